#![doc = include_str!("../README.md")]

mod address;
mod commit;
mod error;
mod line;
mod link;
mod options;
mod proof;
mod publish;
mod script;
mod wake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use redis::{Cmd, Value, cmd};
use rustc_hash::{FxHashMap, FxHashSet};
use sha1::{Digest as _, Sha1};
use sluicegate_core::batch::{BlockDelta, CommitReceipt, Publication, WriteBatch};
use sluicegate_core::registry::{Location, Opening, StoreFactory};
use sluicegate_core::store::{Capabilities, Expiry, StoreInfo, Version, Versioned};
use sluicegate_core::{BlockCodec, BlockIndex, CacheKey, CacheStore, Channel, Error, ErrorKind, PublishedClock, Result};

use address::{Address, Addresses, Shape};
use error::{Failure, translate};
pub use link::Traffic;
use link::{Commands, Effect, Link};
pub use options::RedisOptions;
use options::Target;
use proof::Proofs;

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
    /// Blocks that were found to be some.
    known_blocks: Arc<Mutex<FxHashSet<(Channel, BlockIndex)>>>,
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
            known_blocks: Arc::default(),
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

    /// Runs a script that answers 0, or something else where it found another version.
    async fn compare_and(&self, tag: u16, script: Cmd, operation: &'static str, key: &CacheKey) -> Result<()> {
        match self.link.one(tag, script, Effect::Write).await {
            Ok(Value::Int(0)) => Ok(()),
            Ok(Value::Int(_)) => Err(Error::new(ErrorKind::Conflict, "the document has changed or is gone")
                .with_operation(operation)
                .with_context("key", key)),
            Ok(other) => Err(unexpected(&other).with_operation(operation).with_context("key", key)),
            Err(e) => Err(failed(e, Effect::Write, operation, key)),
        }
    }
}

/// Refuses a value over the limit.
fn check_size(key: &CacheKey, value: &Bytes) -> Result<()> {
    if value.len() > MAX_VALUE {
        let message = format!("a value of {} bytes is over the limit of {MAX_VALUE}", value.len());
        return Err(Error::new(ErrorKind::TooLarge, message).with_context("key", key));
    }
    Ok(())
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

/// A document as it was stored; `None` if there is none.
fn read(answer: Value, shape: &Shape) -> Result<Option<Versioned<Bytes>>> {
    let stored = match answer {
        Value::Nil => return Ok(None),
        Value::BulkString(stored) => Bytes::from(stored),
        other => return Err(unexpected(&other)),
    };
    if *shape == Shape::Counter {
        let number = std::str::from_utf8(&stored).ok().and_then(|text| text.parse().ok());
        let number: u64 = number.ok_or_else(|| Error::corrupt("a counter is no number"))?;
        return Ok(Some(Versioned { value: stored, version: Version(number) }));
    }
    let Some((version, _)) = stored.split_first_chunk::<VERSION>() else {
        return Err(Error::corrupt("the key holds what no cache wrote; use a namespace of its own"));
    };
    let version = if *shape == Shape::Block { block_version(&stored) } else { Version(u64::from_be_bytes(*version)) };
    Ok(Some(Versioned { version, value: stored.slice(VERSION..) }))
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
                // Fields of a hash do not expire, and keys that can would be let go by a server that evicts volatile ones.
                expiry: false,
                persistent: self.persistent,
                max_value: MAX_VALUE,
            },
        }
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        let Address { key: name, tag, shape } = self.addresses.of(key);
        let command = match shape {
            Shape::Field(field) => cmd("HGET").arg(name).arg(field).take(),
            Shape::Document | Shape::Block | Shape::Counter => cmd("GET").arg(name).take(),
        };
        let answer = self.link.one(tag, command, Effect::Read).await.map_err(|e| failed(e, Effect::Read, "get", key))?;
        read(answer, &shape).map_err(|e| e.with_operation("get").with_context("key", key))
    }

    async fn insert(&self, key: &CacheKey, value: Bytes, _expiry: Expiry) -> Result<Version> {
        check_size(key, &value)?;
        let Address { key: name, tag, shape } = self.addresses.of(key);
        let mut version = RedisStore::new_version();
        let stored = stored(version, &value);
        if shape == Shape::Block {
            version = block_version(&stored);
        }
        let command = match shape {
            Shape::Field(field) => cmd("HSETNX").arg(name).arg(field).arg(stored).take(),
            Shape::Document | Shape::Block => cmd("SET").arg(name).arg(stored).arg("NX").take(),
            Shape::Counter => cmd("SET").arg(name).arg(&value[..]).arg("NX").take(),
        };
        match self.link.one(tag, command, Effect::Write).await {
            Ok(Value::Okay | Value::Int(1)) => Ok(version),
            Ok(Value::Nil | Value::Int(0)) => Err(Error::new(ErrorKind::AlreadyExists, "there is a document already")
                .with_operation("insert")
                .with_context("key", key)),
            Ok(other) => Err(unexpected(&other).with_operation("insert").with_context("key", key)),
            Err(e) => Err(failed(e, Effect::Write, "insert", key)),
        }
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, _expiry: Expiry) -> Result<Version> {
        check_size(key, &value)?;
        let Address { key: name, tag, shape } = self.addresses.of(key);
        let mut version = RedisStore::new_version();
        let (text, expected, stored) = (version_text(expected), version_bytes(expected), stored(version, &value));
        if shape == Shape::Block {
            version = block_version(&stored);
        }
        let script = match shape {
            Shape::Field(field) => eval(script::REPLACE_FIELD, &[&name]).arg(field).arg(&expected[..]).arg(stored).take(),
            Shape::Document => eval(script::REPLACE, &[&name]).arg(&expected[..]).arg(stored).take(),
            Shape::Block => eval(script::REPLACE_BLOCK, &[&name]).arg(text).arg(stored).take(),
            Shape::Counter => return Err(Error::new(ErrorKind::Unsupported, "a counter only grows").with_context("key", key)),
        };
        self.compare_and(tag, script, "replace", key).await.map(|()| version)
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        let Address { key: name, tag, shape } = self.addresses.of(key);
        let Some((text, expected)) = expected.map(|expected| (version_text(expected), version_bytes(expected))) else {
            let command = match shape {
                Shape::Field(field) => cmd("HDEL").arg(name).arg(field).take(),
                // Without a clock there is no cache, and nothing to be proven.
                Shape::Document if *key == CacheKey::Clock => cmd("DEL").arg(name).arg(self.proofs.key()).take(),
                Shape::Document | Shape::Block | Shape::Counter => cmd("DEL").arg(name).take(),
            };
            return self
                .link
                .one(tag, command, Effect::Write)
                .await
                .map(drop)
                .map_err(|e| failed(e, Effect::Write, "remove", key));
        };
        let script = match shape {
            Shape::Field(field) => eval(script::REMOVE_FIELD, &[&name]).arg(field).arg(&expected[..]).take(),
            Shape::Document => eval(script::REMOVE, &[&name]).arg(&expected[..]).take(),
            Shape::Block => eval(script::REMOVE_BLOCK, &[&name]).arg(text).take(),
            Shape::Counter => return Err(Error::new(ErrorKind::Unsupported, "a counter only grows").with_context("key", key)),
        };
        self.compare_and(tag, script, "remove", key).await
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
        // For each key the command that reads it, and its place in the answer if that is a list.
        let mut places = Vec::with_capacity(keys.len());
        let mut buckets: FxHashMap<u64, (usize, u16, Cmd, usize)> = FxHashMap::default();
        let mut shapes = Vec::with_capacity(keys.len());
        for key in keys {
            if let CacheKey::Sequence(sequence) = key {
                let (bucket, field) = Addresses::bucket(*sequence);
                let next = buckets.len();
                let (at, _, command, count) = buckets.entry(bucket).or_insert_with(|| {
                    let address = self.addresses.in_bucket(bucket, field);
                    (next, address.tag, cmd("HMGET").arg(address.key).take(), 0)
                });
                command.arg(field);
                places.push((*at, Some(*count)));
                *count += 1;
                shapes.push(Shape::Field(field));
            } else {
                let address = self.addresses.of(key);
                places.push((commands.add(address.tag, cmd("GET").arg(address.key).take()), None));
                shapes.push(address.shape);
            }
        }
        let first_bucket = commands.len();
        let mut buckets: Vec<_> = buckets.into_values().collect();
        buckets.sort_unstable_by_key(|(at, ..)| *at);
        for (_, tag, command, _) in buckets {
            commands.add(tag, command);
        }
        let mut answers = self.link.run(commands, Effect::Read).await;
        let mut found = Vec::with_capacity(keys.len());
        for ((key, (at, within)), shape) in keys.iter().zip(places).zip(shapes) {
            let error = |e: Error| e.with_operation("get").with_context("key", key);
            let value = match within {
                None => std::mem::replace(&mut answers[at], Ok(Value::Nil)),
                Some(within) => match &mut answers[first_bucket + at] {
                    Ok(Value::Array(fields)) if within < fields.len() => Ok(std::mem::replace(&mut fields[within], Value::Nil)),
                    Ok(other) => return Err(error(unexpected(other))),
                    Err(e) => Err(e.clone()),
                },
            };
            let value = value.map_err(|e| failed(e, Effect::Read, "get", key))?;
            found.push(read(value, &shape).map_err(error)?);
        }
        Ok(found)
    }

    async fn merge_block(&self, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<u32> {
        match codec.in_place() {
            Some(layout) => self.merge_in_place(delta, codec, layout).await,
            None => sluicegate_core::commit::merge_block(self, delta, codec).await,
        }
    }

    async fn commit(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        self.link.settle().await.map_err(|e| translate(e, Effect::Write).with_operation("commit"))?;
        match batch.codec.in_place() {
            Some(layout) => self.commit_in_place(batch, layout).await,
            None => {
                let receipt = sluicegate_core::commit::store_batch(self, batch).await?;
                self.prove(batch.epoch).await?;
                Ok(receipt)
            }
        }
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
