//! What gateways of several databases write to one bucket, and other programs beside them: all of
//! it follows from a seed.
//!
//! A gateway knows nothing but what the bucket has: what a failover loses, it does not know either,
//! its counters among that.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use sluicegate::Mutation;
use sluicegate::core::decode::attributes;
use sluicegate::core::decode::databases::counter_key;
use sluicegate::databases::DatabaseConfig;
use sluicegate::feed::MutationKind;
use sluicegate_mcbp::Datatype;
use sluicegate_simulator::Cluster;
use sluicegate_simulator::bucket::{Content, Item};
use sluicegate_testkit::Model;
use sluicegate_testkit::gateway::{Kept, Standing, is_gateways_write};

/// The channels of each collection.
pub(crate) const CHANNELS: [&str; 4] = ["a", "b", "c", "d"];

/// The names of users.
const USERS: [&str; 3] = ["alice", "bob", "carol"];

/// A database, and the gateway that writes to it.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) name: &'static str,
    pub(crate) config: DatabaseConfig,
    /// The numbers of its collections.
    pub(crate) collections: Vec<u32>,
    /// Sequences that its gateway has taken from the counter and not used yet.
    reserved: Range<u64>,
    /// The highest number that it has given out.
    top: u64,
}

/// A document: the place of its database, its collection, and its key.
type Place = (usize, u32, String);

/// What traffic leaves out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manners {
    /// No other programs write, and nothing is purged. Where the server leaves out changes, some of
    /// that comes out wrong, see ARCHITECTURE.md, "Known limits".
    pub(crate) only_gateways: bool,
}

/// How often something was done.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// The bucket's databases, and the documents of each.
#[derive(Debug)]
pub(crate) struct Traffic<'a> {
    cluster: &'a Cluster,
    pub(crate) databases: Vec<Database>,
    /// A collection that is no database's.
    strange: u32,
    /// How many keys each collection has.
    keys: usize,
    manners: Manners,
    random: ChaCha8Rng,
    writes: u64,
    /// Each document that was purged, and where in its vbucket.
    purges: Vec<(u16, u64, Place)>,
    pub(crate) counts: Counts,
}

fn config(metadata_id: Option<&str>, collections: &[&str]) -> DatabaseConfig {
    let mut config = DatabaseConfig::default();
    config.metadata_id = metadata_id.map(str::to_owned);
    config.collections = (!collections.is_empty()).then(|| collections.iter().map(|name| (*name).to_owned()).collect());
    config
}

impl<'a> Traffic<'a> {
    /// Makes the collections of three databases: one with the default id and collection, two with
    /// ids and collections of their own, which have a scope in common.
    pub(crate) fn new(cluster: &'a Cluster, keys: usize, manners: Manners, seed: u64) -> Self {
        cluster.create_scope("s1").unwrap();
        cluster.create_scope("s2").unwrap();
        let collection = |scope, name| cluster.create_collection(scope, name, None).unwrap();
        let database = |name, config, collections| Database { name, config, collections, reserved: 0..0, top: 0 };
        let databases = vec![
            database("plain", config(Some("_default"), &[]), vec![0]),
            database("orders", config(None, &["s1.c1", "s1.c2"]), vec![collection("s1", "c1"), collection("s1", "c2")]),
            database("people", config(Some("id3"), &["s1.c3", "s2.c1"]), vec![collection("s1", "c3"), collection("s2", "c1")]),
        ];
        Traffic {
            cluster,
            databases,
            strange: collection("s1", "strange"),
            keys,
            manners,
            random: ChaCha8Rng::seed_from_u64(seed),
            writes: 0,
            purges: Vec::new(),
            counts: Counts::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Does so many things.
    pub(crate) fn act(&mut self, times: usize) {
        for _ in 0..times {
            let place = self.place();
            match self.random.random_range(0..100) {
                0..42 => self.write(&place, false, false),
                42..44 => self.contend(&place),
                44..52 => self.write(&place, true, false),
                52..58 => self.write(&place, false, true),
                58..63 => self.touch(&place),
                63..71 => self.write_strangely(&place),
                71..75 => self.delete_strangely(&place),
                75..82 => self.purge(&place),
                82..90 => self.import(&place),
                90..94 => self.change_user(place.0),
                94..96 => self.release_one(place.0),
                96..98 => self.restart(place.0),
                _ => self.write_elsewhere(&place.2),
            }
        }
    }

    fn place(&mut self) -> Place {
        let database = self.random.random_range(0..self.databases.len());
        let collection = *self.databases[database].collections.choose(&mut self.random).unwrap();
        (database, collection, format!("d{}", self.random.random_range(0..self.keys)))
    }

    /// What the gateway keeps of a document, and the document's last change.
    fn known(&self, (_, collection, key): &Place) -> (Option<Kept>, Option<Item>) {
        let item = self.cluster.last_change(*collection, key.clone());
        (item.as_ref().and_then(metadata).and_then(Kept::read), item)
    }

    /// A write by the gateway over what the bucket has: of a document that may be new, deleted or
    /// changed by others.
    fn write(&mut self, place: &Place, is_deletion: bool, has_moved: bool) {
        let body = json!({"number": self.writes}).to_string();
        self.write_body(place, is_deletion, has_moved, &[], body.into());
    }

    /// Two writes of a document at once: one is done, and the other does not get to use the number
    /// that it has, and takes another.
    fn contend(&mut self, place: &Place) {
        let above = self.known(place).0.map_or(0, |kept| kept.sequence);
        let unused = self.allocate(place.0, above);
        self.write(place, false, false);
        let body = json!({"number": self.writes}).to_string();
        self.write_body(place, false, false, &[unused], body.into());
        self.count("contended");
    }

    /// With `has_moved`, the CAS that the metadata name is not the document's, as if something had
    /// been written beside what the gateway wrote.
    fn write_body(&mut self, place: &Place, is_deletion: bool, has_moved: bool, unused: &[u64], body: Bytes) {
        let (known, item) = self.known(place);
        let mut kept = known.unwrap_or_default();
        let is_deletion = is_deletion && kept.sequence > 0 && !kept.deleted;
        self.count(match (&item, kept.sequence, kept.deleted) {
            _ if is_deletion => "deleted",
            (Some(_), 0, _) => "created over what others left",
            (None, 0, _) => "created",
            (_, _, true) => "created again",
            _ => "changed",
        });
        let sequence = self.allocate(place.0, kept.sequence);
        let channels: Vec<String> = match is_deletion {
            true => Vec::new(),
            false => CHANNELS.iter().filter(|_| self.random.random_bool(0.4)).map(ToString::to_string).collect(),
        };
        self.writes += 1;
        kept.write(&format!("{:x}", self.writes), sequence, unused, &channels, is_deletion, false);
        if has_moved {
            self.count("with a moved CAS");
        }
        let content = |cas| content_of(kept.mutation(&place.2, if has_moved { cas - 1 } else { cas }, &body));
        self.cluster.write_naming(place.1, place.2.clone(), is_deletion, content).unwrap();
    }

    /// A number above `above` for a gateway's write. Those that are not above it are given back:
    /// the counter was lost.
    fn allocate(&mut self, database: usize, above: u64) -> u64 {
        loop {
            if self.databases[database].reserved.is_empty() {
                let count = self.random.random_range(1..10);
                let counter = self.counter(database);
                self.cluster.set(self.counter_key(database), (counter + count).to_string()).unwrap();
                let database = &mut self.databases[database];
                database.reserved = counter + 1..counter + count + 1;
                database.top = database.top.max(counter + count);
            }
            match self.databases[database].reserved.next() {
                Some(number) if number > above => return number,
                Some(number) => self.release(database, number..number + 1),
                None => {}
            }
        }
    }

    fn counter(&self, database: usize) -> u64 {
        let item = self.cluster.last_change(0, self.counter_key(database));
        item.map_or(0, |item| std::str::from_utf8(&item.value).unwrap().parse().unwrap())
    }

    fn counter_key(&self, database: usize) -> String {
        counter_key(self.id(database).as_deref())
    }

    /// Something else than the gateway writes beside the gateway's document: the CAS moves, and the
    /// document stays the gateway's.
    fn touch(&mut self, place: &Place) {
        if self.manners.only_gateways {
            return;
        }
        let (known, item) = self.known(place);
        let Some((_, item)) = known.zip(item).filter(|(_, item)| !item.is_removal()) else { return };
        let value = if self.random.random_bool(0.5) { item.value.clone() } else { with_body(&item, None, Some("app")) };
        let content = Content { value, datatype: item.datatype, ..Content::default() };
        self.cluster.write(place.1, place.2.clone(), content).unwrap();
        self.count("touched");
    }

    /// Another program writes a document: over the gateway's, whose attributes stay, or a new one.
    fn write_strangely(&mut self, place: &Place) {
        if self.manners.only_gateways {
            return;
        }
        self.writes += 1;
        let body = json!({"strange": self.writes}).to_string();
        let (_, item) = self.known(place);
        let content = match item.filter(|item| !item.is_removal() && metadata(item).is_some()) {
            Some(item) => {
                Content { value: with_body(&item, Some(body.as_bytes()), None), datatype: item.datatype, ..Content::default() }
            }
            // Over a tombstone, the server keeps nothing of its attributes: as after a purge that
            // nobody is told of.
            None if self.known(place).0.is_some() => return,
            None => Content { value: body.into(), datatype: Datatype::JSON, ..Content::default() },
        };
        self.cluster.write(place.1, place.2.clone(), content).unwrap();
        self.count("written by others");
    }

    /// Another program deletes a document. The gateway's attributes stay.
    fn delete_strangely(&mut self, place: &Place) {
        if !self.manners.only_gateways && self.cluster.delete_from(place.1, place.2.clone()).is_ok() {
            self.count("deleted by others");
        }
    }

    /// The gateway takes what others have written for its own, as a new revision.
    fn import(&mut self, place: &Place) {
        let (known, item) = self.known(place);
        let Some(item) = item else { return };
        let is_own = match metadata(&item) {
            Some(metadata) => is_gateways_write(metadata, item.cas, body(&item), item.is_removal()),
            None => item.is_removal(),
        };
        if !is_own {
            self.count("imported");
            let is_deletion = item.is_removal() && known.is_some_and(|kept| !kept.deleted);
            self.write_body(place, is_deletion, false, &[], Bytes::copy_from_slice(body(&item)));
        }
    }

    /// Nothing is left of a document, nor of what the gateway kept of it.
    fn purge(&mut self, place: &Place) {
        if self.manners.only_gateways || self.known(place).0.is_none() {
            return;
        }
        let stored = self.cluster.write_naming(place.1, place.2.clone(), true, |_| Content::default()).unwrap();
        self.purges.push((stored.vbucket, stored.seqno, place.clone()));
        self.count("purged");
    }

    fn change_user(&mut self, database: usize) {
        let name = *USERS.choose(&mut self.random).unwrap();
        let sequence = self.allocate(database, 0);
        let body = json!({"name": name, "sequence": sequence, "admin_channels": {"a": sequence}}).to_string();
        self.cluster.set(self.key(database, "user", name), body).unwrap();
        self.count("users changed");
    }

    /// A number is given back.
    fn release_one(&mut self, database: usize) {
        let number = self.allocate(database, 0);
        self.release(database, number..number + 1);
    }

    fn release(&mut self, database: usize, numbers: Range<u64>) {
        let (first, last) = (numbers.start, numbers.end - 1);
        let name = if first == last { format!("unusedSeq:{first}") } else { format!("unusedSeqs:{first}:{last}") };
        self.cluster.set(self.marker(database, &name), first.to_le_bytes().to_vec()).unwrap();
        self.count("released");
    }

    /// A gateway starts again: it gives back what it has taken from the counter, or does not come
    /// to that.
    fn restart(&mut self, database: usize) {
        let numbers = std::mem::take(&mut self.databases[database].reserved);
        if !numbers.is_empty() && self.random.random_bool(0.5) {
            self.release(database, numbers);
        }
    }

    /// What belongs to none of the databases: the document of another program, and a user of a
    /// database that is not served.
    fn write_elsewhere(&mut self, key: &str) {
        self.writes += 1;
        let body = json!({"sequence": self.writes, "name": key}).to_string();
        self.cluster.set(format!("_sync:user:other:{key}"), body.clone()).unwrap();
        self.cluster.write(self.strange, key.to_owned(), Content { value: body.into(), ..Content::default() }).unwrap();
    }

    fn id(&self, database: usize) -> Option<String> {
        let Database { name, config, .. } = &self.databases[database];
        config.metadata_id(name)
    }

    fn key(&self, database: usize, kind: &str, name: &str) -> String {
        self.id(database).map_or_else(|| format!("_sync:{kind}:{name}"), |id| format!("_sync:{kind}:{id}:{name}"))
    }

    fn marker(&self, database: usize, name: &str) -> String {
        self.id(database).map_or_else(|| format!("_sync:{name}"), |id| format!("_sync:m_{id}:{name}"))
    }
}

/// What a failover loses, and what must be in the bucket and in the caches at last.
impl Traffic<'_> {
    /// The last position of each vbucket.
    pub(crate) fn positions(&self, vbuckets: u16) -> Vec<u64> {
        (0..vbuckets).map(|vbucket| self.cluster.high_seqno(vbucket)).collect()
    }

    /// Every third vbucket from `first` on loses some of the changes after `since`, if there are
    /// any; those of the counters lose all of them. Documents whose purge is lost are changed by
    /// the gateway: a cache does not know them any more, until then.
    pub(crate) fn fail_over(&mut self, first: usize, since: &[u64]) {
        let mut kept = BTreeMap::new();
        for (vbucket, &since) in since.iter().enumerate() {
            let vbucket = vbucket as u16;
            let high = self.cluster.high_seqno(vbucket);
            let keep = match self.has_counter(vbucket) {
                _ if high <= since => continue,
                true => since,
                false if usize::from(vbucket) % 3 == first => high.saturating_sub(self.random.random_range(1..5)).max(since),
                _ => continue,
            };
            self.cluster.fail_over_vbucket(vbucket, keep);
            *self.counts.entry("changes lost").or_default() += high - keep;
            kept.insert(vbucket, keep);
        }
        let (lost, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.purges)
            .into_iter()
            .partition(|(vbucket, seqno, _)| kept.get(vbucket).is_some_and(|keep| keep < seqno));
        self.purges = left;
        for (_, _, place) in lost {
            if self.known(&place).0.is_some() {
                self.count("purges lost");
                self.write(&place, false, false);
            }
        }
    }

    fn has_counter(&self, vbucket: u16) -> bool {
        (0..self.databases.len()).any(|database| self.cluster.vbucket_of(self.counter_key(database).as_bytes()) == vbucket)
    }

    /// The gateways import all that others have written, and give back every number that nothing in
    /// the bucket tells of.
    pub(crate) fn finish(&mut self) {
        for place in self.documents() {
            self.import(&place);
        }
        for database in 0..self.databases.len() {
            self.databases[database].reserved = 0..0;
            let (told, top, mut next) = (self.told(database), self.databases[database].top, 1);
            for number in told.into_iter().chain([top + 1]) {
                if next < number {
                    self.release(database, next..number);
                }
                next = number + 1;
            }
        }
    }

    /// Every document of a database that the bucket has, tombstones and those of other programs
    /// among them.
    fn documents(&self) -> Vec<Place> {
        let place = |item: Item| {
            let database = self.databases.iter().position(|database| database.collections.contains(&item.collection))?;
            let key = String::from_utf8(item.key.to_vec()).unwrap();
            (!key.starts_with("_sync:")).then_some((database, item.collection, key))
        };
        self.cluster.last_changes().into_iter().filter_map(place).collect()
    }

    /// The numbers of a database that documents and users in the bucket tell of.
    fn told(&self, database: usize) -> BTreeSet<u64> {
        let mut told = BTreeSet::new();
        for place in self.documents().into_iter().filter(|place| place.0 == database) {
            let Some(kept) = self.known(&place).0 else { continue };
            told.insert(kept.sequence);
            told.extend(kept.recent.iter().chain(&kept.unused));
            told.extend(kept.channels.values().filter_map(|standing| match standing {
                Standing::Left { sequence, .. } => Some(sequence),
                Standing::Member => None,
            }));
        }
        told.extend(self.users(database));
        told
    }

    /// The numbers of the last revisions of a database's documents, and of its users.
    pub(crate) fn last_revisions(&self, database: usize) -> BTreeSet<u64> {
        let documents = self.documents().into_iter().filter(|place| place.0 == database);
        let of_documents = documents.filter_map(|place| self.known(&place).0).map(|kept| kept.sequence);
        of_documents.chain(self.users(database)).collect()
    }

    /// The numbers of a database's users.
    fn users(&self, database: usize) -> impl Iterator<Item = u64> + '_ {
        USERS.iter().filter_map(move |name| {
            let item = self.cluster.last_change(0, self.key(database, "user", name))?;
            let body: serde_json::Value = serde_json::from_slice(&item.value).unwrap();
            Some(body["sequence"].as_u64().unwrap())
        })
    }

    /// The highest number that a database has given out.
    pub(crate) fn top(&self, database: usize) -> u64 {
        self.databases[database].top
    }

    /// What a cache of the database must answer: what the bucket has.
    pub(crate) fn model(&self, database: usize) -> Model {
        let mut model = Model::new();
        for place in self.documents().into_iter().filter(|place| place.0 == database) {
            if let Some(kept) = self.known(&place).0 {
                model.apply(&kept.decoded(place.1, &place.2).unwrap());
            }
        }
        model
    }
}

fn content_of(mutation: Mutation) -> Content {
    debug_assert!(mutation.kind != MutationKind::Expiration);
    Content { value: mutation.value, datatype: Datatype(mutation.datatype.0), ..Content::default() }
}

/// The attribute in which the gateway keeps what it knows.
fn metadata(item: &Item) -> Option<&[u8]> {
    if item.datatype.contains(Datatype::XATTR) { attributes::find(&item.value, "_sync").unwrap() } else { None }
}

fn body(item: &Item) -> &[u8] {
    if item.datatype.contains(Datatype::XATTR) { attributes::body(&item.value).unwrap() } else { &item.value }
}

/// The value of a document with attributes, with another body or with one attribute more.
fn with_body(item: &Item, other: Option<&[u8]>, more: Option<&str>) -> Bytes {
    let pairs = attributes::iter(&item.value).unwrap().map(Result::unwrap);
    let pairs: Vec<(String, Vec<u8>)> = pairs
        .map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), value.to_vec()))
        .filter(|(name, _)| more != Some(name))
        .chain(more.map(|name| (name.to_owned(), b"{}".to_vec())))
        .collect();
    attributes::encode(pairs, other.unwrap_or_else(|| body(item))).unwrap().into()
}
