//! Damage to a cache, of every kind, from a seed; and what a cache holds, to compare.

#![allow(dead_code, reason = "each test program uses some of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;
use sluicegate::block::{Block, BlockState, codec_named};
use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::core::batch::LatePage;
use sluicegate::core::commit::read_clock;
use sluicegate::core::directory::Directory;
use sluicegate::core::store::Expiry;
use sluicegate::{BlockCodec, BlockIndex, CacheKey, CacheStore, ChangeEntry, Channel, ReaderConfig, ReaderNode, Sequence};
use sluicegate_testkit::PlainStore;

pub(crate) const CAPACITY: u32 = 64;
pub(crate) const CODEC: &str = "two-bit";

pub(crate) fn codec() -> Arc<dyn BlockCodec> {
    codec_named(CODEC, CAPACITY).unwrap()
}

/// The bytes at `key`.
pub(crate) async fn stored(store: &dyn CacheStore, key: &CacheKey) -> Option<Bytes> {
    store.get(key).await.unwrap().map(|found| found.value)
}

/// Writes over whatever is at `key`.
pub(crate) async fn put(store: &dyn CacheStore, key: &CacheKey, value: impl Into<Bytes>) {
    store.remove(key, None).await.unwrap();
    store.insert(key, value.into(), Expiry::Never).await.unwrap();
}

/// Writes over whatever is at `key` what nobody can read. Longer than any block: a short one would be states.
pub(crate) async fn garble(store: &dyn CacheStore, key: &CacheKey) {
    put(store, key, "garbage ".repeat(20)).await;
}

/// Copies a whole cache.
pub(crate) async fn copy(from: &PlainStore, to: &dyn CacheStore) {
    for key in from.keys() {
        put(to, &key, stored(from, &key).await.unwrap()).await;
    }
}

/// What a cache holds, as far as it must be right: states of sequences that have no document say nothing unless they are shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Content {
    pub(crate) entries: BTreeMap<u64, ChangeEntry>,
    pub(crate) blocks: BTreeMap<String, Vec<(u64, BlockState)>>,
    /// Blocks with something live that are listed.
    pub(crate) listed: BTreeMap<String, BTreeSet<u64>>,
    pub(crate) late: Vec<(u64, u64)>,
    pub(crate) pointers: BTreeMap<String, serde_json::Value>,
    pub(crate) answers: BTreeMap<String, Vec<(u64, String, String, bool)>>,
}

impl Content {
    /// What the cache in `store` holds of these channels.
    pub(crate) async fn of(store: Arc<dyn CacheStore>, channels: &[Channel]) -> Content {
        let high = read_clock(store.as_ref()).await.unwrap().unwrap().value.high.0;
        let mut entries = BTreeMap::new();
        for n in 0..=high + u64::from(CAPACITY) {
            if let Some(bytes) = stored(store.as_ref(), &CacheKey::Sequence(Sequence(n))).await {
                entries.insert(n, ChangeEntry::from_bytes(&bytes).unwrap());
            }
        }
        let (mut blocks, mut listed, mut answers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
        for channel in channels {
            let key = CacheKey::Directory(channel.clone());
            let directory = stored(store.as_ref(), &key).await.map(|bytes| Directory::from_bytes(&bytes, channel).unwrap());
            for index in 0..=high / u64::from(CAPACITY) + 1 {
                let key = CacheKey::Block(channel.clone(), BlockIndex(index));
                let Some(bytes) = stored(store.as_ref(), &key).await else { continue };
                let block = codec().decode(&bytes).unwrap();
                let tells = |(at, state): (u32, BlockState)| {
                    let n = index * u64::from(CAPACITY) + u64::from(at);
                    let has = |entry: &ChangeEntry| {
                        let is_star = channel.is_star() && entry.collection() == channel.collection();
                        is_star || entry.membership(channel).is_some()
                    };
                    (state.is_live() || entries.get(&n).is_some_and(has)).then_some((n, state))
                };
                let states: Vec<(u64, BlockState)> = block.iter().filter_map(tells).collect();
                if block.live_count() > 0 && directory.as_ref().is_some_and(|directory| directory.blocks.contains(index)) {
                    listed.entry(channel.to_string()).or_insert_with(BTreeSet::new).insert(index);
                }
                if !states.is_empty() {
                    blocks.insert(key.to_string(), states);
                }
            }
            let options = ChangesOptions::new().delivery(Delivery::Eager);
            let answer = reader.changes(std::slice::from_ref(channel), &options).await.unwrap().answer();
            let row = |row: &sluicegate::changes::AnswerRow| {
                let entry = &row.entry;
                (row.id.sequence.0, entry.document().to_string(), entry.revision().to_owned(), !row.removed.is_empty())
            };
            answers.insert(channel.to_string(), answer.rows.iter().map(row).collect());
        }
        let mut late = Vec::new();
        for page in 0.. {
            let Some(bytes) = stored(store.as_ref(), &CacheKey::Late(page)).await else { break };
            late.extend(LatePage::from_bytes(&bytes).unwrap().entries.iter().map(|late| (late.number, late.sequence.0)));
        }
        let mut pointers = BTreeMap::new();
        for entry in entries.values() {
            let key = CacheKey::Document(entry.document().into());
            if let Some(bytes) = stored(store.as_ref(), &key).await {
                pointers.insert(entry.document().to_string(), serde_json::from_slice(&bytes).unwrap());
            }
        }
        Content { entries, blocks, listed, late, pointers, answers }
    }

    /// Panics unless it is all the same as in `other`.
    #[track_caller]
    pub(crate) fn assert_same(&self, other: &Content, what: &str) {
        assert_eq!(self.late, other.late, "{what}");
        same(&self.entries, &other.entries, what);
        same(&self.pointers, &other.pointers, what);
        self.assert_outcome(other, what);
    }

    /// As [`assert_same`](Self::assert_same), but only for what must come out whatever happened on the way.
    #[track_caller]
    pub(crate) fn assert_outcome(&self, other: &Content, what: &str) {
        let revisions = |content: &Content| {
            let revision = |(n, entry): (&u64, &ChangeEntry)| (*n, (entry.document().to_owned(), entry.revision().to_owned()));
            content.entries.iter().map(revision).collect::<BTreeMap<_, _>>()
        };
        same(&revisions(self), &revisions(other), what);
        same(&self.blocks, &other.blocks, what);
        same(&self.listed, &other.listed, what);
        same(&self.answers, &other.answers, what);
    }
}

#[track_caller]
fn same<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(a: &BTreeMap<K, V>, b: &BTreeMap<K, V>, what: &str) {
    for key in a.keys().chain(b.keys()) {
        assert_eq!(a.get(key), b.get(key), "{key:?}: {what}");
    }
}

/// What may be damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Everything but the batch records.
    AllButRecords,
    /// The batch records, and what is not rebuilt from them.
    Records,
}

impl Target {
    pub(crate) fn includes(self, key: &CacheKey) -> bool {
        match key {
            CacheKey::Clock | CacheKey::Meta | CacheKey::Writer => false,
            // A repair names it, and does not rebuild it.
            CacheKey::Collections => false,
            CacheKey::Batch(_) | CacheKey::Missing(_) => self == Target::Records,
            CacheKey::Sequence(_) | CacheKey::Late(_) => self == Target::AllButRecords,
            _ => true,
        }
    }
}

fn kind(key: &CacheKey) -> std::mem::Discriminant<CacheKey> {
    std::mem::discriminant(key)
}

/// Damages one document in some way; which. `held` is what the cache held before.
pub(crate) async fn damage(
    store: &dyn CacheStore,
    keys: &[CacheKey],
    target: Target,
    held: &Content,
    random: &mut ChaCha8Rng,
) -> String {
    // Each kind as often as the others.
    let mut kinds: Vec<_> = Vec::new();
    for key in keys.iter().filter(|key| target.includes(key)) {
        if !kinds.contains(&kind(key)) {
            kinds.push(kind(key));
        }
    }
    let chosen = *kinds.choose(random).unwrap();
    let same: Vec<&CacheKey> = keys.iter().filter(|key| kind(key) == chosen).collect();
    let key = *same.choose(random).unwrap();
    let Some(bytes) = stored(store, key).await else { return format!("{key}: gone already") };
    let can_go = !matches!(key, CacheKey::Sequence(_) | CacheKey::Document(_));
    let counts = matches!(key, CacheKey::Counter(_));
    let way = match random.random_range(0..6) {
        0 if can_go => {
            store.remove(key, None).await.unwrap();
            "removed"
        }
        1 if !counts => {
            put(store, key, bytes.slice(..bytes.len() / 2)).await;
            "cut off"
        }
        2 if !counts => {
            let other = *same.choose(random).unwrap();
            match (key, stored(store, other).await) {
                (_, None) => put(store, key, "").await,
                (CacheKey::Block(_, index), Some(other)) => put(store, key, transplanted(&other, *index, held)).await,
                (_, Some(other)) => put(store, key, other).await,
            }
            "another's"
        }
        _ => match key {
            CacheKey::Block(channel, index) if random.random_bool(0.7) => {
                if let Ok(block) = codec().decode(&bytes) {
                    put(store, key, restated(&block, channel, *index, held, random)).await;
                }
                "with wrong states"
            }
            CacheKey::Directory(channel) if random.random_bool(0.5) => {
                if let Ok(mut directory) = Directory::from_bytes(&bytes, channel) {
                    let listed: Vec<u64> = directory.blocks.iter().flat_map(|(first, last)| first..=last).collect();
                    if let Some(index) = listed.choose(random) {
                        directory.unlist(BlockIndex(*index));
                    }
                    put(store, key, directory.to_bytes()).await;
                }
                "without a block"
            }
            CacheKey::Late(_) if random.random_bool(0.5) => {
                if let Ok(mut page) = LatePage::from_bytes(&bytes) {
                    page.entries.truncate(page.entries.len() / 2);
                    put(store, key, page.to_bytes()).await;
                }
                "too short"
            }
            _ => {
                garble(store, key).await;
                "garbage"
            }
        },
    };
    format!("{key}: {way}")
}

/// Another block's states. Where there is no document they are left out: nobody can say that there never was one.
fn transplanted(other: &Bytes, index: BlockIndex, held: &Content) -> Bytes {
    let mut wrong = Block::new(CAPACITY);
    let states: Vec<(u32, BlockState)> = codec().decode(other).map(|block| block.iter().collect()).unwrap_or_default();
    for (at, state) in states {
        if state.is_live() && held.entries.contains_key(&(index.0 * u64::from(CAPACITY) + u64::from(at))) {
            wrong.raise(at, state);
        }
    }
    codec().encode(&wrong)
}

/// A block in which some states are others, so that it can be told.
fn restated(block: &Block, channel: &Channel, index: BlockIndex, held: &Content, random: &mut ChaCha8Rng) -> Bytes {
    let mut states: BTreeMap<u32, BlockState> = block.iter().collect();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..CAPACITY);
        let n = index.0 * u64::from(CAPACITY) + u64::from(at);
        let Some(entry) = held.entries.get(&n) else { continue };
        // While a later row waits for its marks, they may be there or not.
        let newer = held.entries.range(n + 1..).any(|(_, other)| other.document() == entry.document());
        let state = BlockState::from_bits(random.random_range(0..4));
        if state != BlockState::Superseded || !newer && entry.membership(channel).is_some() {
            states.insert(at, state);
        }
    }
    let mut wrong = Block::new(CAPACITY);
    for (at, state) in states {
        wrong.raise(at, state);
    }
    codec().encode(&wrong)
}
