//! The gateway's databases in one bucket: names, metadata ids and collections, read from the
//! documents in which gateways keep them.
//!
//! Each database has its own sequences: two databases of one bucket count from 1 each. They differ
//! in the metadata id in the keys of users, roles, markers and the counter, and in the collections
//! of their documents.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use sha1::{Digest as _, Sha1};

use super::GatewayOptions;
use super::attributes;
use crate::feed::{Mutation, MutationKind};

/// The metadata id of a database whose keys hold none.
pub const DEFAULT_ID: &str = "_default";

/// The collection that every bucket has.
pub const DEFAULT_COLLECTION: &str = "_default._default";

/// Names of this length in bytes, or longer, are replaced by a digest in keys.
const MAX_NAME: usize = 40;

const CONFIG: &[u8] = b"_sync:dbconfig:";
const REGISTRY: &[u8] = b"_sync:registry";
const INFO: &[u8] = b"_sync:syncInfo";

/// The metadata id that a gateway gives a database of this name, unless the database gets the
/// default one.
pub fn metadata_id_of(database: &str) -> Cow<'_, str> {
    name_in_key(database)
}

/// The name of a user or role in keys that hold a metadata id: a long name is its SHA-1 in
/// hexadecimal.
pub fn name_in_key(name: &str) -> Cow<'_, str> {
    if name.len() < MAX_NAME {
        return Cow::Borrowed(name);
    }
    let digest = Sha1::digest(name);
    Cow::Owned(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The key of the counter from which a database takes its sequences.
pub fn counter_key(metadata_id: Option<&str>) -> String {
    match metadata_id.filter(|id| *id != DEFAULT_ID) {
        Some(id) => format!("_sync:m_{id}:seq"),
        None => "_sync:seq".to_owned(),
    }
}

/// The owner of a mutation, by its key and its collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A document in the collection of this number.
    Collection(u32),
    /// A user, a role, a marker of unused sequences or the counter of the database with this
    /// metadata id; none for the default one.
    Database(Option<&'a [u8]>),
    /// Bookkeeping of the gateway that has no sequence.
    Nobody,
}

impl<'a> Owner<'a> {
    /// The owner of a mutation.
    pub fn of(mutation: &'a Mutation) -> Self {
        let Some(rest) = mutation.key.strip_prefix(b"_sync:") else { return Owner::Collection(mutation.collection) };
        let until_colon = |rest: &'a [u8]| rest.iter().position(|byte| *byte == b':').map(|at| (&rest[..at], &rest[at + 1..]));
        if let Some(rest) = rest.strip_prefix(b"user:").or_else(|| rest.strip_prefix(b"role:")) {
            // A name has no colon.
            return Owner::Database(until_colon(rest).map(|(id, _)| id));
        }
        let (id, rest) = match rest.strip_prefix(b"m_").and_then(until_colon) {
            Some((id, rest)) => (Some(id), rest),
            None => (None, rest),
        };
        // The counter tells how high sequences can be. Without it, a wide gap that is real hides
        // the documents above it.
        let is_own = rest == b"seq" || rest.starts_with(b"unusedSeq:") || rest.starts_with(b"unusedSeqs:");
        if is_own { Owner::Database(id) } else { Owner::Nobody }
    }
}

/// A database of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// Its name; `None` if only collections name it.
    pub name: Option<String>,
    /// Its metadata id; `None` for the default one.
    pub metadata_id: Option<String>,
    /// Its collections.
    pub collections: Vec<Collection>,
}

/// A collection of a database. At least one of the two is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Collection {
    /// Its name with its scope: `scope.collection`.
    pub name: Option<String>,
    /// Its number.
    pub id: Option<u32>,
}

impl Database {
    /// Options to decode this database only; `None` while the number of one of its collections is
    /// not known.
    pub fn options(&self) -> Option<GatewayOptions> {
        let collections: Option<BTreeSet<u32>> = self.collections.iter().map(|collection| collection.id).collect();
        Some(GatewayOptions { metadata_id: self.metadata_id.clone(), collections: Some(collections?), ..Default::default() })
    }

    /// The key of the counter from which it takes its sequences.
    pub fn counter_key(&self) -> String {
        counter_key(self.metadata_id.as_deref())
    }
}

/// The databases of a bucket, as far as the documents seen so far tell.
#[derive(Clone, Debug, Default)]
pub struct Databases {
    /// The names of collections, by number.
    names: BTreeMap<u32, String>,
    /// From each database's own document.
    configs: BTreeMap<String, Stated>,
    /// From the registry of all databases.
    registered: BTreeMap<String, Stated>,
    /// The metadata ids that collections name.
    infos: BTreeMap<u32, String>,
}

/// The entry for a database in one document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stated {
    metadata_id: Option<String>,
    /// Names of collections with their scopes.
    collections: BTreeSet<String>,
}

impl Databases {
    /// Before the first document. `names` are the collections of the bucket, as `scope.collection`
    /// by number; the default collection is always known.
    pub fn new(names: impl IntoIterator<Item = (u32, String)>) -> Self {
        let default = [(0, DEFAULT_COLLECTION.to_owned())];
        Databases { names: default.into_iter().chain(names).collect(), ..Databases::default() }
    }

    /// Sets the name of a collection; returns whether it was new.
    pub fn name(&mut self, number: u32, name: &str) -> bool {
        self.names.insert(number, name.to_owned()).as_deref() != Some(name)
    }

    /// Takes any mutation; returns whether it added something about databases. A document that
    /// cannot be read adds nothing.
    pub fn observe(&mut self, mutation: &Mutation) -> bool {
        let key = &mutation.key[..];
        if !key.starts_with(b"_sync:") {
            return false;
        }
        let is_there = mutation.kind == MutationKind::Mutation;
        if key == INFO {
            if !is_there {
                return self.infos.remove(&mutation.collection).is_some();
            }
            let info = body(mutation).and_then(read::<Info>).and_then(|info| info.metadata_id);
            return info.is_some_and(|id| self.infos.insert(mutation.collection, id.clone()) != Some(id));
        }
        if key == REGISTRY {
            let registered = match body(mutation).and_then(read::<Registry>) {
                Some(registry) if is_there => registry.databases(),
                _ if is_there => return false,
                _ => BTreeMap::new(),
            };
            let is_new = self.registered != registered;
            self.registered = registered;
            return is_new;
        }
        let Some(rest) = key.strip_prefix(CONFIG).and_then(|rest| std::str::from_utf8(rest).ok()) else { return false };
        // Before 3.1 the key named only the group, of one database.
        let in_key = rest.split_once(':').map(|(name, _)| name.to_owned());
        if !is_there {
            return in_key.is_some_and(|name| self.configs.remove(&name).is_some());
        }
        let Some(config) = body(mutation).and_then(read::<Config>) else { return false };
        let Some(name) = config.name.clone().or(in_key) else { return false };
        let stated = config.stated();
        self.configs.insert(name, stated.clone()) != Some(stated)
    }

    /// The databases, by name. Those that only collections name come last.
    pub fn list(&self) -> Vec<Database> {
        let mut stated = self.registered.clone();
        // The registry may be older or newer than a database's own document. The one that names
        // collections is used.
        for (name, config) in &self.configs {
            let known = stated.entry(name.clone()).or_default();
            known.metadata_id = config.metadata_id.clone().or(known.metadata_id.take());
            if !config.collections.is_empty() {
                known.collections.clone_from(&config.collections);
            }
        }
        let ids: BTreeMap<&str, u32> = self.names.iter().map(|(id, name)| (name.as_str(), *id)).collect();
        let info = |collection: &str| ids.get(collection).and_then(|id| self.infos.get(id)).map(String::as_str);
        let mut is_default_taken = stated.values().any(|stated| stated.metadata_id.as_deref() == Some(DEFAULT_ID));
        let mut databases = Vec::new();
        let mut told = BTreeSet::new();
        for (name, Stated { metadata_id, collections }) in &stated {
            let metadata_id = metadata_id.clone().or_else(|| collections.iter().find_map(|name| info(name)).map(str::to_owned));
            let metadata_id = metadata_id.unwrap_or_else(|| {
                if collections.contains(DEFAULT_COLLECTION) && !is_default_taken {
                    is_default_taken = true;
                    return DEFAULT_ID.to_owned();
                }
                metadata_id_of(name).into_owned()
            });
            told.insert(metadata_id.clone());
            let of_name = |name: &String| Collection { name: Some(name.clone()), id: ids.get(name.as_str()).copied() };
            let mut collections: Vec<Collection> = collections.iter().map(of_name).collect();
            // Collections without a known name that name their metadata id.
            collections.extend(self.unnamed(&metadata_id));
            databases.push(Database { name: Some(name.clone()), metadata_id: other_than_default(metadata_id), collections });
        }
        let untold: BTreeSet<&String> = self.infos.values().filter(|id| !told.contains(*id)).collect();
        for id in untold {
            let named = self.infos.iter().filter(|(_, other)| *other == id).filter_map(|(id, _)| {
                let name = self.names.get(id)?.clone();
                Some(Collection { name: Some(name), id: Some(*id) })
            });
            let collections = named.chain(self.unnamed(id)).collect();
            databases.push(Database { name: None, metadata_id: other_than_default(id.clone()), collections });
        }
        databases
    }

    /// The collections that name this metadata id and have no known name.
    fn unnamed(&self, metadata_id: &str) -> impl Iterator<Item = Collection> {
        let infos = self.infos.iter().filter(move |(id, info)| *info == metadata_id && !self.names.contains_key(id));
        infos.map(|(id, _)| Collection { name: None, id: Some(*id) })
    }
}

fn other_than_default(metadata_id: String) -> Option<String> {
    (metadata_id != DEFAULT_ID).then_some(metadata_id)
}

/// The body of a mutation, if it is JSON. Binary documents begin with one byte, the format version.
fn body(mutation: &Mutation) -> Option<&[u8]> {
    let value = &mutation.value[..];
    if mutation.datatype.is_compressed() {
        return None;
    }
    let body = if mutation.datatype.has_attributes() { attributes::body(value).ok()? } else { value };
    Some(body.strip_prefix(b"\x01").unwrap_or(body))
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    serde_json::from_slice(body).ok()
}

#[derive(Deserialize)]
struct Info {
    #[serde(rename = "metadataID")]
    metadata_id: Option<String>,
}

#[derive(Deserialize)]
struct Config {
    name: Option<String>,
    metadata_id: Option<String>,
    scopes: Option<BTreeMap<String, ConfiguredScope>>,
}

#[derive(Deserialize)]
struct ConfiguredScope {
    #[serde(default)]
    collections: BTreeMap<String, serde::de::IgnoredAny>,
}

impl Config {
    fn stated(self) -> Stated {
        let collections = match self.scopes {
            Some(scopes) => join(scopes.into_iter().map(|(scope, content)| (scope, content.collections.into_keys().collect()))),
            None => BTreeSet::from([DEFAULT_COLLECTION.to_owned()]),
        };
        Stated { metadata_id: self.metadata_id, collections }
    }
}

#[derive(Deserialize)]
struct Registry {
    #[serde(default)]
    config_groups: BTreeMap<String, Group>,
}

#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    databases: BTreeMap<String, Registered>,
}

#[derive(Deserialize)]
struct Registered {
    metadata_id: Option<String>,
    scopes: Option<BTreeMap<String, RegisteredScope>>,
}

#[derive(Deserialize)]
struct RegisteredScope {
    #[serde(default)]
    collections: Vec<String>,
}

impl Registry {
    /// The databases of all groups. A deleted database stays for a while, without collections.
    fn databases(self) -> BTreeMap<String, Stated> {
        let databases = self.config_groups.into_values().flat_map(|group| group.databases);
        let stated = databases.filter_map(|(name, Registered { metadata_id, scopes })| {
            let collections = join(scopes?.into_iter().map(|(scope, content)| (scope, content.collections)));
            (!collections.is_empty()).then_some((name, Stated { metadata_id, collections }))
        });
        stated.collect()
    }
}

fn join(scopes: impl Iterator<Item = (String, Vec<String>)>) -> BTreeSet<String> {
    scopes.flat_map(|(scope, names)| names.into_iter().map(move |name| format!("{scope}.{name}"))).collect()
}

#[cfg(test)]
mod tests;
