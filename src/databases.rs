//! The gateway's databases in one bucket: their names and settings, the stores of their caches, and
//! the keyspaces in requests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sluicegate_core::decode::GatewayOptions;
use sluicegate_core::decode::databases::{DEFAULT_COLLECTION, DEFAULT_ID, Database, Databases, metadata_id_of};
use sluicegate_core::feed::Territory;
use sluicegate_core::source::DatabaseIdentity;
use sluicegate_core::{CollectionId, Error, Mutation, Result};

/// One of the gateway's databases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DatabaseConfig {
    /// Its metadata id; `_default` for the default one. `None` for the one that the gateway makes
    /// from the name.
    pub metadata_id: Option<String>,
    /// Its collections, each as `scope.collection`. `None` for `_default._default`.
    pub collections: Option<BTreeSet<String>>,
    /// The namespace of its cache in the store. `None` for that of the store's URL, followed by the
    /// name.
    pub namespace: Option<String>,
}

impl DatabaseConfig {
    /// The name and the settings of a database that was found.
    pub fn of(found: &Database) -> (String, DatabaseConfig) {
        let id = found.metadata_id.clone().unwrap_or_else(|| DEFAULT_ID.to_owned());
        let name = found.name.clone().unwrap_or_else(|| id.clone());
        let number = |id: u32| format!("0x{id:x}");
        let collections = found.collections.iter().filter_map(|found| found.name.clone().or(found.id.map(number)));
        let config = DatabaseConfig { metadata_id: Some(id), collections: Some(collections.collect()), namespace: None };
        (name, config)
    }

    /// The metadata id of the database of this name; `None` for the default one.
    pub fn metadata_id(&self, name: &str) -> Option<String> {
        let id = self.metadata_id.clone().unwrap_or_else(|| metadata_id_of(name).into_owned());
        (id != DEFAULT_ID).then_some(id)
    }

    /// Its collections.
    pub fn collections(&self) -> BTreeSet<String> {
        self.collections.clone().unwrap_or_else(|| BTreeSet::from([DEFAULT_COLLECTION.to_owned()]))
    }

    /// The identity of this database in a cache's source.
    pub fn identity(&self, name: &str) -> DatabaseIdentity {
        DatabaseIdentity {
            name: Some(name.to_owned()),
            metadata_id: self.metadata_id(name),
            collections: Some(self.collections()),
        }
    }

    /// The database's part of a feed.
    pub fn territory(&self, name: &str) -> Territory {
        Territory::new(self.metadata_id(name), Some(self.collections()))
    }

    /// The options of a decoder for a feed that delivers only this database's part.
    ///
    /// # Errors
    /// `ConfigInvalid` for an invalid metadata id.
    pub fn decoder(&self, name: &str, base: &GatewayOptions) -> Result<GatewayOptions> {
        let mut options = base.clone();
        (options.metadata_id, options.collections) = (self.metadata_id(name), None);
        options.validate()?;
        Ok(options)
    }

    /// Checks the values.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the one that is wrong.
    pub fn validate(&self, name: &str) -> Result<()> {
        if name.is_empty() || name.contains(['.', ':', '/']) {
            return Err(Error::config(format!(
                "databases: `{name}` cannot be the name of a database: it is empty, or holds `.`, `:` or `/`"
            )));
        }
        self.decoder(name, &GatewayOptions::default())?;
        if self.collections.as_ref().is_some_and(BTreeSet::is_empty) {
            return Err(Error::config(format!(
                "databases.{name}: collections names none; leave it out for {DEFAULT_COLLECTION}"
            )));
        }
        let wrong = self.collections.iter().flatten().find(|collection| !is_collection(collection));
        match wrong {
            Some(wrong) => Err(Error::config(format!(
                "databases.{name}: collections holds `{wrong}`; each is scope.collection, or a number such as 0x8"
            ))),
            None => Ok(()),
        }
    }
}

fn is_collection(text: &str) -> bool {
    let is_name = text.split('.').count() == 2 && text.split('.').all(|part| !part.is_empty());
    is_name || text.strip_prefix("0x").is_some_and(|digits| u32::from_str_radix(digits, 16).is_ok())
}

/// One spelling for each collection: numbers may have leading zeros, and the default one has a name
/// and a number.
fn same_collection(text: &str) -> String {
    match number_of(text, |name| (name == DEFAULT_COLLECTION).then_some(CollectionId::DEFAULT)) {
        Some(CollectionId(number)) => format!("0x{number:x}"),
        None => text.to_owned(),
    }
}

/// Checks that databases are distinct: no two of them have a metadata id or a collection in common.
///
/// # Errors
/// `ConfigInvalid`, naming both.
pub fn validate(databases: &BTreeMap<String, DatabaseConfig>) -> Result<()> {
    let (mut ids, mut collections, mut namespaces) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (name, config) in databases {
        config.validate(name)?;
        if let Some(other) = ids.insert(config.metadata_id(name), name) {
            return Err(Error::config(format!("databases {other} and {name} have one metadata id; each has its own")));
        }
        for collection in config.collections() {
            if let Some(other) = collections.insert(same_collection(&collection), name) {
                return Err(Error::config(format!("databases {other} and {name} both have the collection {collection}")));
            }
        }
        if let Some(namespace) = &config.namespace
            && let Some(other) = namespaces.insert(namespace, name)
        {
            return Err(Error::config(format!("databases {other} and {name} have one namespace; each cache needs its own")));
        }
    }
    Ok(())
}

/// The databases that a bucket's own documents name.
///
/// # Errors
/// `ConfigInvalid` if two are not distinct.
pub fn discover<'a>(
    names: impl IntoIterator<Item = (u32, String)>,
    mutations: impl IntoIterator<Item = &'a Mutation>,
) -> Result<BTreeMap<String, DatabaseConfig>> {
    let mut found = Databases::new(names);
    for mutation in mutations {
        found.observe(mutation);
    }
    listed(&found)
}

/// The settings of the databases that were found.
///
/// # Errors
/// `ConfigInvalid` if two are not distinct.
pub fn listed(found: &Databases) -> Result<BTreeMap<String, DatabaseConfig>> {
    let found: BTreeMap<String, DatabaseConfig> =
        found.list().iter().filter(|database| !database.collections.is_empty()).map(DatabaseConfig::of).collect();
    validate(&found)?;
    Ok(found)
}

/// The URLs of the stores with the caches of these databases, in their order.
///
/// # Errors
/// `ConfigInvalid` if two of them are one cache, which happens where one database is given the
/// namespace that another has by its name.
pub fn store_urls(url: &str, databases: &BTreeMap<String, DatabaseConfig>) -> Result<Vec<String>> {
    let urls: Vec<String> = databases.iter().map(|(name, config)| store_url(url, name, config)).collect();
    let mut names = BTreeMap::new();
    for (name, own) in databases.keys().zip(&urls) {
        // Each store in memory without a name is separate.
        if own != "memory:"
            && let Some(other) = names.insert(own, name)
        {
            return Err(Error::config(format!("databases {other} and {name} have one cache; give each a namespace of its own")));
        }
    }
    Ok(urls)
}

/// The URL of the store for the cache of a database: that of the whole store, with the database's
/// own namespace.
pub fn store_url(url: &str, name: &str, config: &DatabaseConfig) -> String {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    if let Some(rest) = base.strip_prefix("memory:") {
        // Each store without a name is separate.
        return if rest.is_empty() {
            url.to_owned()
        } else {
            format!("{base}-{}", encoded(config.namespace.as_deref().unwrap_or(name)))
        };
    }
    let mut others = Vec::new();
    let mut namespace = "_cache";
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.strip_prefix("namespace=") {
            Some(given) => namespace = given,
            None => others.push(pair.to_owned()),
        }
    }
    others.push(match &config.namespace {
        Some(namespace) => format!("namespace={}", encoded(namespace)),
        None => format!("namespace={namespace}_{}", encoded(name)),
    });
    format!("{base}?{}", others.join("&"))
}

fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    text.bytes().fold(String::new(), |mut out, byte| {
        if plain(&byte) {
            out.push(char::from(byte))
        } else {
            out.push_str(&format!("%{byte:02X}"))
        }
        out
    })
}

/// A collection of a database in a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Keyspace {
    /// The database, if it is named.
    pub database: Option<String>,
    /// The collection: `scope.collection`, or its number, as `0x8`.
    pub collection: String,
}

impl FromStr for Keyspace {
    type Err = Error;

    /// `database.scope.collection`, `scope.collection`, or `database` for its default collection. A
    /// number such as `0x8` may stand for `scope.collection`.
    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('.').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(Error::config(format!("the keyspace `{text}` has an empty part")));
        }
        let is_number = |part: &str| number_of(part, |_| None).is_some();
        match parts[..] {
            [number] if is_number(number) => Ok(Keyspace { database: None, collection: number.to_owned() }),
            [database, number] if is_number(number) => {
                Ok(Keyspace { database: Some(database.to_owned()), collection: number.to_owned() })
            }
            [database] => Ok(Keyspace { database: Some(database.to_owned()), collection: DEFAULT_COLLECTION.to_owned() }),
            [scope, collection] => Ok(Keyspace { database: None, collection: format!("{scope}.{collection}") }),
            [database, scope, collection] => {
                Ok(Keyspace { database: Some(database.to_owned()), collection: format!("{scope}.{collection}") })
            }
            _ => Err(Error::config(format!("the keyspace `{text}` is none; write database.scope.collection"))),
        }
    }
}

impl fmt::Display for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(database) = &self.database {
            write!(f, "{database}.")?;
        }
        f.write_str(&self.collection)
    }
}

/// The number of a collection that is given by name, or as a number such as `0x8`.
pub fn number_of(collection: &str, find: impl FnOnce(&str) -> Option<CollectionId>) -> Option<CollectionId> {
    match collection.strip_prefix("0x").map(|digits| u32::from_str_radix(digits, 16)) {
        Some(Ok(number)) => Some(CollectionId(number)),
        _ => find(collection),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(metadata_id: Option<&str>, collections: &[&str], namespace: Option<&str>) -> DatabaseConfig {
        DatabaseConfig {
            metadata_id: metadata_id.map(str::to_owned),
            collections: (!collections.is_empty()).then(|| collections.iter().map(|name| (*name).to_owned()).collect()),
            namespace: namespace.map(str::to_owned),
        }
    }

    #[test]
    fn a_database_has_the_metadata_id_of_its_name_unless_told_otherwise() {
        assert_eq!(config(None, &[], None).metadata_id("db1"), Some("db1".to_owned()));
        assert_eq!(config(Some("_default"), &[], None).metadata_id("db1"), None);
        let long = "db1-with-a-name-so-long-that-its-metadata-id-is-hashed";
        assert_eq!(config(None, &[], None).metadata_id(long).as_deref(), Some("199a5884a60a79376549c820e9d1402d139b8f1e"));
    }

    #[test]
    fn databases_that_cannot_be_told_apart_are_refused() {
        let all = |list: &[(&str, DatabaseConfig)]| {
            validate(&list.iter().map(|(name, config)| ((*name).to_owned(), config.clone())).collect())
        };
        all(&[("a", config(None, &["s.c"], None)), ("b", config(None, &["s.d"], None))]).unwrap();
        for (b, word) in [
            (config(Some("a"), &["s.d"], None), "metadata id"),
            (config(None, &["s.c"], None), "s.c"),
            (config(None, &["s"], None), "`s`"),
            (config(Some("x:y"), &["s.d"], None), "x:y"),
            (config(None, &["s.d"], Some("n")), "namespace"),
            (config(None, &["0x0008"], None), "0x0008"),
            (config(None, &["0x0"], None), "0x0"),
        ] {
            let a = config(None, &["s.c", "0x8", DEFAULT_COLLECTION], Some("n"));
            let error = all(&[("a", a), ("b", b)]).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn each_cache_has_a_namespace_of_its_own() {
        let of = |url: &str, namespace: Option<&str>| store_url(url, "d$1", &config(None, &[], namespace));
        assert_eq!(of("redis://h", None), "redis://h?namespace=_cache_d%241");
        assert_eq!(of("redis://h/1?pool=3&namespace=n", None), "redis://h/1?pool=3&namespace=n_d%241");
        assert_eq!(of("redis://h?namespace=n", Some("x")), "redis://h?namespace=x");
        assert_eq!((of("memory:", None), of("memory:a", None)), ("memory:".to_owned(), "memory:a-d%241".to_owned()));
    }

    #[test]
    fn databases_whose_caches_would_be_one_are_refused() {
        let urls = |url: &str, namespace: &str| {
            let databases = [("a", config(None, &["s.a"], Some(namespace))), ("b", config(None, &["s.b"], None))];
            store_urls(url, &databases.map(|(name, config)| (name.to_owned(), config)).into())
        };
        for (url, namespace) in [("redis://h", "_cache_b"), ("redis://h?namespace=n", "n_b"), ("memory:x", "b")] {
            let error = urls(url, namespace).unwrap_err().to_string();
            assert!(error.contains("a and b") && error.contains("namespace"), "{error}");
        }
        assert_eq!(urls("redis://h?namespace=n", "x").unwrap(), ["redis://h?namespace=x", "redis://h?namespace=n_b"]);
        assert_eq!(urls("memory:", "b").unwrap(), ["memory:", "memory:"]);
    }

    #[test]
    fn keyspaces_have_one_to_three_parts() {
        let of = |text: &str| text.parse::<Keyspace>().map(|keyspace| keyspace.to_string());
        assert_eq!(of("db.s.c").unwrap(), "db.s.c");
        assert_eq!(of("s.c").unwrap(), "s.c");
        assert_eq!(of("db").unwrap(), "db._default._default");
        assert_eq!((of("0x8").unwrap(), of("db.0x1f").unwrap()), ("0x8".to_owned(), "db.0x1f".to_owned()));
        let of_number = "db.0x1f".parse::<Keyspace>().unwrap();
        assert_eq!((of_number.database.as_deref(), of_number.collection.as_str()), (Some("db"), "0x1f"));
        assert!(of("a.b.c.d").is_err() && of("db.").is_err() && of("").is_err());
    }
}
