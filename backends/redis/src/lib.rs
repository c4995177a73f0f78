#![doc = include_str!("../README.md")]

mod address;
mod append;
mod blocks;
mod commit;
mod error;
mod line;
mod link;
mod options;
mod page;
mod patch;
mod proof;
mod publish;
mod rows;
mod script;
mod wake;
mod write;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use redis::{Cmd, Value, cmd};
use rustc_hash::FxHashMap;
use sha1::{Digest as _, Sha1};
use sluicegate_core::batch::{BlockDelta, CommitReceipt, Publication, WriteBatch};
use sluicegate_core::registry::{Location, Opening, StoreFactory};
use sluicegate_core::store::{Capabilities, Expiry, StoreInfo, Version, Versioned, Write};
use sluicegate_core::{BlockCodec, CacheKey, CacheStore, Error, ErrorKind, PublishedClock, Result};

use address::{Address, Addresses, Shape};
use error::{Failure, translate};
pub use link::Traffic;
use link::{Commands, Effect, Link};
pub use options::RedisOptions;
use options::Target;
use page::KnownLengths;
use patch::ReadBlocks;
use proof::Proofs;
use rows::KnownRows;

/// For the fuzz targets.
#[doc(hidden)]
pub mod pages {
    pub use crate::page::{append, find};
}

/// Largest value.
const MAX_VALUE: usize = 64 << 20;

/// Bytes of version before each value.
const VERSION: usize = 8;

/// A cache store on Redis or Valkey. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct RedisStore {
    link: Link,
    addresses: Addresses,
    target: Arc<Target>,
    /// Whether the server keeps what it acknowledged over a restart.
    persistent: bool,
    /// Versions of the batch records and checkpoints that this store wrote last.
    written: Arc<Mutex<FxHashMap<CacheKey, Version>>>,
    known_rows: Arc<Mutex<KnownRows>>,
    known_pages: Arc<Mutex<KnownLengths>>,
    read_blocks: Arc<ReadBlocks>,
    /// Held while a commit merges blocks whose codec supports neither in-place changes nor
    /// appending. It only saves repeated work: blocks are written by compare-and-swap.
    merging: Arc<tokio::sync::Mutex<()>>,
    /// Held while a commit adds blocks to directories. It only saves repeated work, as `merging`
    /// does.
    listing: Arc<tokio::sync::Mutex<()>>,
    /// Whether the user may not run scripts by their hashes.
    refuses_hashes: Arc<AtomicBool>,
    proofs: Proofs,
}

impl RedisStore {
    /// Connects to what `url` names: `redis://[user:password@]host[:port][/database]`, the same with `rediss:` for TLS, or
    /// `redis+cluster://[user:password@]host[:port],host[:port]…`; after a `?` the options of [`RedisOptions`].
    ///
    /// # Errors
    /// `ConfigInvalid` for a URL, option or login that is wrong; `Unavailable` where there is no server.
    pub async fn connect(url: &str) -> Result<Self> {
        let location = Location::parse(url)?;
        let scheme = SCHEMES.into_iter().find(|(scheme, _)| *scheme == location.scheme());
        let (scheme, _) = scheme.ok_or_else(|| Error::config(format!("`{}:` is not a Redis URL", location.scheme())))?;
        Self::open(&location, scheme).await
    }

    async fn open(location: &Location, scheme: &'static str) -> Result<Self> {
        let target = Target::new(location, scheme)?;
        let link = Link::open(&target).await?;
        let addresses = Addresses::new(&target.options.namespace);
        let proofs = Proofs::new(&addresses, !target.cluster);
        let target = Arc::new(target);
        let mut store = RedisStore {
            link,
            addresses,
            target,
            persistent: false,
            written: Arc::default(),
            known_rows: Arc::default(),
            known_pages: Arc::default(),
            read_blocks: Arc::default(),
            merging: Arc::default(),
            listing: Arc::default(),
            refuses_hashes: Arc::default(),
            proofs,
        };
        let info = store.server_info().await?;
        store.persistent = info.values("aof_enabled").all(|enabled| enabled == "1");
        warn_of_eviction(&info, &store.target);
        Ok(store)
    }

    /// What this store and its clones have sent, for measuring.
    pub fn traffic(&self) -> Traffic {
        self.link.traffic()
    }

    /// What the server or all nodes say of themselves.
    async fn server_info(&self) -> Result<ServerInfo> {
        let answer = self.link.all(cmd("INFO")).await.map_err(|e| translate(e, Effect::Read).with_operation("INFO"))?;
        let mut text = String::new();
        collect_text(&answer, &mut text);
        Ok(ServerInfo(text))
    }

    /// A version that no document had before.
    fn new_version() -> Version {
        Version(rand::random())
    }

    /// Removes a document if it has a version.
    async fn remove_version(&self, key: &CacheKey, expected: Version) -> Result<()> {
        let address = self.addresses.of(key);
        let name = &[address.key.as_str()];
        let script = match address.shape {
            Shape::Record(place) => eval(script::PAGE, name).arg(place).arg(&version_bytes(expected)[..]).take(),
            Shape::Document => eval(script::REMOVE, name).arg(&version_bytes(expected)[..]).take(),
            Shape::Block => eval(script::REMOVE_BLOCK, name).arg(version_text(expected)).take(),
            Shape::Counter => return Err(only_grows(key)),
        };
        let answer =
            self.link.one(address.tag, script, Effect::Write).await.map_err(|e| failed(e, Effect::Write, "remove", key))?;
        let is_removed = match address.shape {
            Shape::Record(_) => page_length(&answer).map(|length| length.is_some()),
            _ => is_done(&answer),
        };
        match is_removed {
            Ok(true) => Ok(()),
            Ok(false) => Err(conflict("remove", key)),
            Err(e) => Err(e.with_operation("remove").with_context("key", key)),
        }
    }
}

/// What a script answered that does something to a version, or not.
fn is_done(answer: &Value) -> Result<bool> {
    match answer {
        Value::Int(done) => Ok(*done == 0),
        other => Err(unexpected(other)),
    }
}

/// What the script of a page answered: its new length, or that there was another version.
fn page_length(answer: &Value) -> Result<Option<u64>> {
    match answer {
        Value::Int(-1) => Ok(None),
        Value::Int(-2) => Err(Error::corrupt("the page of documents is none")),
        Value::Int(length) if *length >= 0 => Ok(Some(*length as u64)),
        other => Err(unexpected(other)),
    }
}

fn conflict(operation: &'static str, key: &CacheKey) -> Error {
    Error::new(ErrorKind::Conflict, "the document has changed or is gone").with_operation(operation).with_context("key", key)
}

fn only_grows(key: &CacheKey) -> Error {
    Error::new(ErrorKind::Unsupported, "a counter only grows").with_context("key", key)
}

/// A value as it is stored.
fn stored(version: Version, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(VERSION + value.len());
    out.extend_from_slice(&version.0.to_be_bytes());
    out.extend_from_slice(value);
    out
}

/// The version of a block: the beginning of its SHA-1, which the server can tell as well. The eight bytes before the value, random when it is written
/// whole, make it differ from all before; bits that are raised in place change it by themselves.
fn block_version(stored: &[u8]) -> Version {
    let [a, b, c, d, e, f, g, h, ..]: [u8; 20] = Sha1::digest(stored).into();
    Version(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

fn version_bytes(version: Version) -> [u8; VERSION] {
    version.0.to_be_bytes()
}

/// A block's version as the server tells it.
fn version_text(version: Version) -> String {
    format!("{:016x}", version.0)
}

/// What `GET` answered.
fn string(answer: Value) -> Result<Option<Bytes>> {
    match answer {
        Value::Nil => Ok(None),
        Value::BulkString(stored) => Ok(Some(stored.into())),
        other => Err(unexpected(&other)),
    }
}

/// A document in what is stored; `None` if there is none.
fn read(stored: Option<Bytes>, shape: &Shape) -> Result<Option<Versioned<Bytes>>> {
    let Some(stored) = stored else { return Ok(None) };
    if *shape == Shape::Counter {
        let number = std::str::from_utf8(&stored).ok().and_then(|text| text.parse().ok());
        let number: u64 = number.ok_or_else(|| Error::corrupt("a counter is no number"))?;
        return Ok(Some(Versioned { value: stored, version: Version(number) }));
    }
    if let Shape::Record(place) = shape {
        return page::find(stored, *place);
    }
    let (version, value) = split_version(&stored)?;
    let version = if *shape == Shape::Block { block_version(&stored) } else { version };
    Ok(Some(Versioned { version, value }))
}

fn split_version(stored: &Bytes) -> Result<(Version, Bytes)> {
    let Some((version, _)) = stored.split_first_chunk::<VERSION>() else {
        return Err(Error::corrupt("the key holds what no cache wrote; use a namespace of its own"));
    };
    Ok((Version(u64::from_be_bytes(*version)), stored.slice(VERSION..)))
}

fn unexpected(answer: &Value) -> Error {
    let kind = match answer {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) => "a string",
        Value::Array(_) => "a list",
        Value::SimpleString(_) | Value::Okay => "a status",
        _ => "something else",
    };
    Error::new(ErrorKind::Unexpected, format!("the server answered with {kind}, which the command does not"))
}

fn failed(error: Failure, effect: Effect, operation: &'static str, key: &CacheKey) -> Error {
    translate(error, effect).with_operation(operation).with_context("key", key)
}

fn eval(script: &str, keys: &[&str]) -> Cmd {
    let mut command = cmd("EVAL");
    command.arg(script).arg(keys.len()).arg(keys);
    command
}

#[async_trait]
impl CacheStore for RedisStore {
    fn info(&self) -> StoreInfo {
        StoreInfo {
            scheme: self.target.scheme,
            name: self.target.name.clone(),
            capabilities: Capabilities {
                native_commit: true,
                notify: true,
                // Records of a page do not expire, and keys that can would be let go by a server that evicts volatile ones.
                expiry: false,
                persistent: self.persistent,
                max_value: MAX_VALUE,
            },
        }
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        let Address { key: name, tag, shape } = self.addresses.of(key);
        let answer = self
            .link
            .one(tag, cmd("GET").arg(name).take(), Effect::Read)
            .await
            .map_err(|e| failed(e, Effect::Read, "get", key))?;
        let found = string(answer).and_then(|stored| read(stored, &shape));
        found.map_err(|e| e.with_operation("get").with_context("key", key))
    }

    async fn insert(&self, key: &CacheKey, value: Bytes, _expiry: Expiry) -> Result<Version> {
        self.write(Write { key: key.clone(), expected: None, value }).await
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, _expiry: Expiry) -> Result<Version> {
        self.write(Write { key: key.clone(), expected: Some(expected), value }).await
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        self.known_rows.lock().forget(key);
        if let Some(expected) = expected {
            return self.remove_version(key, expected).await;
        }
        let Address { key: name, tag, shape } = self.addresses.of(key);
        let command = match shape {
            Shape::Record(place) => eval(script::PAGE, &[&name]).arg(place).arg("*").take(),
            // Without a clock there is no cache, and nothing to be proven.
            Shape::Document if *key == CacheKey::Clock => cmd("DEL").arg(name).arg(self.proofs.key()).take(),
            Shape::Document | Shape::Block | Shape::Counter => cmd("DEL").arg(name).take(),
        };
        self.link.one(tag, command, Effect::Write).await.map(drop).map_err(|e| failed(e, Effect::Write, "remove", key))
    }

    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        let Address { key: name, tag, shape } = self.addresses.of(key);
        if shape != Shape::Counter {
            return Err(Error::new(ErrorKind::Unsupported, "not a counter's key")
                .with_operation("increment")
                .with_context("key", key));
        }
        if by == 0 {
            return Ok(self.get(key).await?.map_or(0, |found| found.version.0));
        }
        match self.link.one(tag, cmd("INCRBY").arg(name).arg(by).take(), Effect::Write).await {
            Ok(Value::Int(number)) if number >= 0 => Ok(number as u64),
            Ok(other) => Err(unexpected(&other).with_operation("increment").with_context("key", key)),
            Err(e) => Err(failed(e, Effect::Write, "increment", key)),
        }
    }

    async fn ping(&self) -> Result<Duration> {
        let start = Instant::now();
        // To the server that has the clock.
        let command = cmd("EXISTS").arg(self.addresses.of(&CacheKey::Clock).key).take();
        self.link
            .one(self.addresses.tag(), command, Effect::Read)
            .await
            .map_err(|e| translate(e, Effect::Read).with_operation("ping"))?;
        Ok(start.elapsed())
    }

    async fn get_many(&self, keys: &[CacheKey]) -> Result<Vec<Option<Versioned<Bytes>>>> {
        let mut commands = Commands::default();
        // For each command the first key that needs it; for each key its command, and what it reads.
        let mut first = Vec::with_capacity(keys.len());
        let mut places = Vec::with_capacity(keys.len());
        let mut pages: FxHashMap<u64, usize> = FxHashMap::default();
        for key in keys {
            let mut read_at = |Address { key: name, tag, .. }| {
                first.push(key);
                commands.add(tag, cmd("GET").arg(name).take())
            };
            places.push(if let CacheKey::Sequence(sequence) = key {
                let (page, place) = page::place(*sequence);
                (*pages.entry(page).or_insert_with(|| read_at(self.addresses.page(page))), Shape::Record(place))
            } else {
                let address = self.addresses.of(key);
                let shape = address.shape.clone();
                (read_at(address), shape)
            });
        }
        let mut stored = Vec::with_capacity(first.len());
        for (key, answer) in first.into_iter().zip(self.link.run(commands, Effect::Read).await) {
            let answer = answer.map_err(|e| failed(e, Effect::Read, "get", key))?;
            stored.push(string(answer).map_err(|e| e.with_operation("get").with_context("key", key))?);
        }
        let read = |(key, (at, shape)): (&CacheKey, (usize, Shape))| {
            let found = read(stored[at].clone(), &shape).map_err(|e| e.with_operation("get").with_context("key", key))?;
            if let (Shape::Block, Some(stored), Some(found)) = (shape, &stored[at], &found) {
                self.read_blocks.insert(key, found.version, stored);
            }
            Ok(found)
        };
        keys.iter().zip(places).map(read).collect()
    }

    async fn write_many(&self, writes: Vec<Write>) -> Vec<Result<Version>> {
        self.write_all(&writes).await
    }

    async fn merge_block(&self, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<u32> {
        match codec.in_place() {
            Some(layout) => self.merge_in_place(delta, codec, layout).await,
            None => match self.merge_append(delta, codec).await? {
                Some(live) => Ok(live),
                None => sluicegate_core::commit::merge_block(self, delta, codec).await,
            },
        }
    }

    async fn commit(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        self.link.settle().await.map_err(|e| translate(e, Effect::Write).with_operation("commit"))?;
        self.commit_natively(batch).await
    }

    async fn publish(&self, publication: &Publication, last: &Versioned<PublishedClock>) -> Result<Versioned<PublishedClock>> {
        let published = self.publish_at_once(publication, last).await;
        if published.as_ref().is_err_and(|e| !e.is_retryable()) {
            self.proofs.forget();
        }
        published
    }

    fn wakes(&self) -> Option<BoxStream<'static, ()>> {
        Some(wake::wakes(self.target.clone(), self.addresses.wake_channel()))
    }

    async fn bytes_used(&self) -> Result<Option<u64>> {
        let info = self.server_info().await?;
        // Replicas hold what their masters hold, and answer as well; a server that does not say has no `used_memory`.
        let bytes = info.values("used_memory").filter_map(|bytes| bytes.parse::<u64>().ok());
        Ok(bytes.reduce(|a, b| a + b))
    }
}

/// The text of `INFO`, of one server or of several.
struct ServerInfo(String);

impl ServerInfo {
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.lines().filter_map(move |line| line.trim().strip_prefix(name)?.strip_prefix(':'))
    }
}

fn collect_text(answer: &Value, out: &mut String) {
    match answer {
        Value::BulkString(bytes) => out.push_str(&String::from_utf8_lossy(bytes)),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => out.push_str(text),
        Value::Array(all) | Value::Set(all) => all.iter().for_each(|value| collect_text(value, out)),
        Value::Map(pairs) => pairs.iter().for_each(|(_, value)| collect_text(value, out)),
        _ => {}
    }
    out.push('\n');
}

/// A server that may throw keys away throws away the cache.
fn warn_of_eviction(info: &ServerInfo, target: &Target) {
    let limited = info.values("maxmemory").any(|limit| limit != "0");
    if let Some(policy) = info.values("maxmemory_policy").find(|policy| limited && policy.starts_with("allkeys")) {
        tracing::warn!(
            store = target.name,
            policy,
            "the server may evict the cache's keys when its memory is full, and the cache would be lost; set maxmemory-policy to noeviction or a volatile one"
        );
    }
}

const SCHEMES: [(&str, &str); 4] = [
    ("redis", "Redis or Valkey: redis://[user:password@]host[:port][/database]"),
    ("rediss", "the same over TLS"),
    ("redis+cluster", "Redis Cluster: redis+cluster://host[:port],host[:port]"),
    ("rediss+cluster", "the same over TLS"),
];

macro_rules! submit {
    ($($index:literal)*) => {
        $(inventory::submit! {
            StoreFactory {
                scheme: SCHEMES[$index].0,
                about: SCHEMES[$index].1,
                open: |location: Location| -> Opening<dyn CacheStore> {
                    Box::pin(async move {
                        let store = RedisStore::open(&location, SCHEMES[$index].0).await?;
                        Ok(Arc::new(store) as Arc<dyn CacheStore>)
                    })
                },
            }
        })*
    };
}
submit! { 0 1 2 3 }
