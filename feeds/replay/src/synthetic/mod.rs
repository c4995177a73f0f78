//! A gateway's feed made up from a seed, with whatever makes a feed hard: sequences out of order, late, lost and unused, events that come
//! again, channel moves, tombstones. The generator knows what a cache must answer in the end, from a model of its own.
//!
//! The gateway it imitates allocates a sequence, and writes the document some time later; the feed has the writes in the order
//! in which they happened. A write that finds its document at a higher sequence already takes another one, and names the first as unused.

mod document;
mod feed;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use bytes::Bytes;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate_core::feed::{Datatype, MutationKind};
use sluicegate_core::sequence::RangeSet;
use sluicegate_core::{Error, Mutation, PartitionId, PartitionSeqno, Result, Sequence};

pub use feed::SyntheticFeed;

use crate::text::{self, put_list};
use crate::{PARTITIONS, transform};
use document::{Document, Write};

/// The most channels of a document that a configuration may ask for.
const MAX_DOCUMENT_CHANNELS: u32 = 1000;
/// A document moves among so many times the most channels it is in at once: metadata remember every channel a document has been in,
/// and would grow for ever.
const HOME: u32 = 3;
/// How long an unused marker lives, in sequences allocated meanwhile; then the feed may have its deletion.
const MARKER_LIFE: u64 = 600;
/// Sequences the gateway reserves at a time; the counter's document changes each time.
const RESERVED: u64 = 10;

/// What to generate. Probabilities are from 0 to 1. Start from the default, in which sequences come in order, each
/// once, and none is lost; and set what differs.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticConfig {
    /// Documents there are.
    pub documents: u32,
    /// Channels there are: `ch0`, `ch1`, …, the most popular first.
    pub channels: u32,
    /// Exponent of the channels' popularity (Zipf); 0 makes all equally popular.
    pub zipf: f64,
    /// Fewest channels of a document.
    pub min_channels: u32,
    /// Most channels of a document.
    pub max_channels: u32,
    /// That a write changes the document's channels.
    pub moves: f64,
    /// That a write deletes the document. A write to a deleted one mostly brings it back.
    pub deletions: f64,
    /// Bytes of a body, about.
    pub body: u32,
    /// Users and roles, each.
    pub principals: u32,
    /// That a write is a user's or role's.
    pub principal_writes: f64,
    /// That a write lost a race, and names sequences it allocated in vain.
    pub retries: f64,
    /// That another program writes a document besides, leaving the gateway's metadata as they were.
    pub foreign: f64,
    /// That a write comes with bookkeeping that means nothing to a cache.
    pub internal: f64,
    /// The longest that a sequence is held before its write, in sequences allocated meanwhile.
    pub out_of_order: u64,
    /// That a sequence is never written: lost.
    pub gaps: f64,
    /// That a sequence is held for long.
    pub late: f64,
    /// How long that is at least, in sequences allocated meanwhile; at most it is twice as long.
    pub late_by: u64,
    /// That sequences are released as unused.
    pub unused: f64,
    /// The most sequences released at once.
    pub unused_max: u64,
    /// That after an event the last 1 to 16 come again.
    pub duplicates: f64,
    /// After how many events a restart delivers the last ones again; 0 for never.
    pub restart_every: u64,
    /// How many a restart delivers again.
    pub restart_repeats: usize,
}

impl Default for SyntheticConfig {
    fn default() -> Self {
        SyntheticConfig {
            documents: 10_000,
            channels: 1_000,
            zipf: 0.9,
            min_channels: 1,
            max_channels: 4,
            moves: 0.25,
            deletions: 0.08,
            body: 64,
            principals: 20,
            principal_writes: 0.02,
            retries: 0.01,
            foreign: 0.01,
            internal: 0.1,
            out_of_order: 0,
            gaps: 0.0,
            late: 0.0,
            late_by: 2_000,
            unused: 0.0,
            unused_max: 10,
            duplicates: 0.0,
            restart_every: 0,
            restart_repeats: 100,
        }
    }
}

impl SyntheticConfig {
    /// One with everything that can go wrong going wrong now and then.
    pub fn rough() -> Self {
        SyntheticConfig {
            out_of_order: 200,
            gaps: 0.002,
            late: 0.002,
            unused: 0.01,
            unused_max: 1_000,
            duplicates: 0.005,
            restart_every: 2_000,
            ..SyntheticConfig::default()
        }
    }

    /// Checks everything.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming all that is wrong.
    pub fn validate(&self) -> Result<()> {
        let mut wrong = Vec::new();
        for (name, value) in [
            ("moves", self.moves),
            ("deletions", self.deletions),
            ("principal_writes", self.principal_writes),
            ("retries", self.retries),
            ("foreign", self.foreign),
            ("internal", self.internal),
            ("gaps", self.gaps),
            ("late", self.late),
            ("unused", self.unused),
            ("duplicates", self.duplicates),
        ] {
            if !(0.0..=1.0).contains(&value) {
                wrong.push(format!("{name}={value} must be from 0 to 1"));
            }
        }
        if self.gaps > 0.9 {
            wrong.push(format!("gaps={} must leave a tenth of the sequences", self.gaps));
        }
        if !(0.0..=10.0).contains(&self.zipf) {
            wrong.push(format!("zipf={} must be from 0 to 10", self.zipf));
        }
        for (name, value) in [("documents", u64::from(self.documents)), ("channels", u64::from(self.channels))] {
            if value == 0 {
                wrong.push(format!("{name}=0 must be at least 1"));
            }
        }
        if self.min_channels > self.max_channels {
            wrong.push(format!("min_channels={} is over max_channels={}", self.min_channels, self.max_channels));
        }
        if self.max_channels > self.channels.min(MAX_DOCUMENT_CHANNELS) {
            wrong.push(format!(
                "max_channels={} must not be over channels={} nor over {MAX_DOCUMENT_CHANNELS}",
                self.max_channels, self.channels
            ));
        }
        if self.principals == 0 && self.principal_writes > 0.0 {
            wrong.push(format!("principals=0 does not go with principal_writes={}", self.principal_writes));
        }
        if self.unused_max == 0 || self.unused_max > 10_000_000 {
            wrong.push(format!("unused_max={} must be from 1 to 10000000", self.unused_max));
        }
        for (name, value) in [("out_of_order", self.out_of_order), ("late_by", self.late_by)] {
            if value > 10_000_000 {
                wrong.push(format!("{name}={value} must not be over 10000000"));
            }
        }
        if self.restart_repeats > 1_000_000 {
            wrong.push(format!("restart_repeats={} must not be over 1000000", self.restart_repeats));
        }
        if wrong.is_empty() { Ok(()) } else { Err(Error::config(format!("synthetic feed: {}", wrong.join("; ")))) }
    }
}

/// A row that a channel must have in the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExpectedRow {
    /// The sequence.
    pub sequence: Sequence,
    /// The document.
    pub document: String,
    /// The revision.
    pub revision: String,
    /// Whether the document left the channel there.
    pub removed: bool,
    /// Whether it was deleted there.
    pub deleted: bool,
}

/// A feed that ends, and what a cache must answer after it.
#[derive(Clone, Debug, Default)]
pub struct Generated {
    /// The events in the order of the feed; `seqno` counts them from 1.
    pub mutations: Vec<Mutation>,
    /// Sequences below [`high`](Self::high) that nothing in the feed accounts for.
    pub lost: RangeSet,
    /// The highest sequence that the feed accounts for.
    pub high: Sequence,
    /// By channel, `*` included, the newest row of each document, by sequence. The generator's own model: a document that is in the
    /// channel has its own sequence and revision there, one that left has those it left with.
    pub truth: BTreeMap<String, Vec<ExpectedRow>>,
}

/// The partition of `key`, as Couchbase has it.
pub fn partition_of(key: &[u8]) -> PartitionId {
    let hash = (crc32fast::hash(key) >> 16) & 0x7fff;
    PartitionId(hash as u16 & (PARTITIONS - 1))
}

/// The generator: an endless iterator of mutations, unless a limit is set. The same configuration, seed and limit always give the same.
pub struct Synthetic {
    config: SyntheticConfig,
    random: ChaCha8Rng,
    /// Weights of the channels, summed up.
    popularity: Vec<f64>,
    documents: Vec<Option<Box<Document>>>,
    principals: BTreeMap<u32, u64>,
    /// What has been allocated and is to be written, by time; then in the order of allocation.
    held: BinaryHeap<Reverse<(u64, u64, Task)>>,
    now: u64,
    turn: u64,
    /// The last sequence allocated.
    counter: u64,
    counter_changed: bool,
    clock: u64,
    lost: RangeSet,
    high: u64,
    ready: VecDeque<Mutation>,
    /// The last events, repetitions left out.
    recent: VecDeque<Mutation>,
    fresh: u64,
    /// Events made so far.
    made: u64,
    /// Events that what is held will make.
    owed: u64,
    delivered: u64,
    limit: u64,
}

/// What to write when its time comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    Document { sequence: u64 },
    Principal { sequence: u64 },
    Released { first: u64, last: u64 },
    ReleaseExpired { first: u64, last: u64 },
}

impl Synthetic {
    /// A generator.
    ///
    /// # Errors
    /// As [`SyntheticConfig::validate`].
    pub fn new(config: SyntheticConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        let weight = |rank: u32| (f64::from(rank) + 1.0).powf(-config.zipf);
        let sum = |total: &mut f64, rank| {
            *total += weight(rank);
            Some(*total)
        };
        Ok(Synthetic {
            random: ChaCha8Rng::seed_from_u64(seed),
            popularity: (0..config.channels).scan(0.0, sum).collect(),
            documents: vec![None; config.documents as usize],
            principals: BTreeMap::new(),
            held: BinaryHeap::new(),
            now: 0,
            turn: 0,
            counter: 0,
            counter_changed: false,
            clock: 0,
            lost: RangeSet::new(),
            high: 0,
            ready: VecDeque::new(),
            recent: VecDeque::new(),
            fresh: 0,
            made: 0,
            owed: 0,
            delivered: 0,
            limit: u64::MAX,
            config,
        })
    }

    /// Ends after exactly `events` events. By then every sequence that is held has been written.
    #[must_use]
    pub fn with_limit(mut self, events: u64) -> Self {
        self.limit = events;
        self
    }

    /// A feed of `events` events, and what is true after it.
    pub fn generate(self, events: usize) -> Generated {
        let mut generator = self.with_limit(events as u64);
        let mutations: Vec<Mutation> = generator.by_ref().collect();
        let mut lost = std::mem::take(&mut generator.lost);
        lost.remove(generator.high.saturating_add(1), u64::MAX);
        Generated { mutations, lost, high: Sequence(generator.high), truth: generator.truth() }
    }

    fn truth(&self) -> BTreeMap<String, Vec<ExpectedRow>> {
        let mut truth: BTreeMap<String, Vec<ExpectedRow>> = BTreeMap::new();
        for document in self.documents.iter().flatten() {
            for (channel, row) in document.rows() {
                truth.entry(channel).or_default().push(row);
            }
        }
        for rows in truth.values_mut() {
            rows.sort_unstable();
        }
        truth
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.random_bool(probability)
    }

    /// How many events can be added to those made and owed.
    fn room(&self) -> u64 {
        self.limit.saturating_sub(self.made).saturating_sub(self.owed)
    }

    fn allocate(&mut self) -> u64 {
        self.counter_changed |= self.counter.is_multiple_of(RESERVED);
        self.counter += 1;
        self.counter
    }

    /// Holds what will make one event.
    fn hold(&mut self, delay: u64, task: Task) {
        self.turn += 1;
        self.owed += 1;
        self.held.push(Reverse((self.now + delay, self.turn, task)));
    }

    /// Allocates one sequence, or a range to be released, and writes whatever is due.
    fn step(&mut self) {
        self.now += 1;
        let sequence = self.allocate();
        if self.chance(self.config.gaps) {
            self.lost.insert(sequence, sequence);
        } else {
            let task = if self.chance(self.config.unused) {
                // Most are short, whatever the most is.
                let longest = self.random.random_range(1..=self.config.unused_max);
                let last = sequence + self.random.random_range(0..longest);
                self.counter = last;
                Task::Released { first: sequence, last }
            } else if self.chance(self.config.principal_writes) {
                Task::Principal { sequence }
            } else {
                Task::Document { sequence }
            };
            let delay = if self.chance(self.config.late) {
                self.random.random_range(self.config.late_by..=2 * self.config.late_by)
            } else {
                self.random.random_range(0..=self.config.out_of_order)
            };
            self.hold(delay, task);
        }
        while self.held.peek().is_some_and(|Reverse((at, ..))| *at <= self.now) {
            self.perform_next();
        }
        if self.counter_changed && self.config.internal > 0.0 && self.room() > 0 {
            self.counter_changed = false;
            let value = self.counter.to_string();
            self.emit_plain("_sync:seq".into(), value.into(), Datatype(0), MutationKind::Mutation);
        }
        if self.chance(self.config.foreign) && self.room() > 0 {
            self.write_by_another();
        }
    }

    fn perform_next(&mut self) {
        let Some(Reverse((at, _, task))) = self.held.pop() else { return };
        self.now = self.now.max(at);
        match task {
            Task::Document { sequence } => self.write_document(sequence),
            Task::Principal { sequence } => self.write_principal(sequence),
            Task::Released { first, last } => {
                self.account(last);
                let key = marker_key(first, last);
                let value =
                    if first == last { first.to_le_bytes().to_vec() } else { [first, last].map(u64::to_le_bytes).concat() };
                if self.chance(0.2) && self.room() > 0 {
                    self.hold(MARKER_LIFE, Task::ReleaseExpired { first, last });
                }
                self.owed -= 1;
                self.emit_plain(key, value.into(), Datatype(0), MutationKind::Mutation);
            }
            Task::ReleaseExpired { first, last } => {
                self.owed -= 1;
                self.emit_plain(marker_key(first, last), Bytes::new(), Datatype(0), MutationKind::Deletion);
            }
        }
    }

    fn account(&mut self, sequence: u64) {
        self.high = self.high.max(sequence);
    }

    fn next_cas(&mut self) -> u64 {
        self.clock += 1;
        text::cas(self.clock)
    }

    /// A document's number; some documents are much more popular.
    fn pick_document(&mut self) -> usize {
        let documents = self.documents.len();
        let among = if self.chance(0.1) { documents.div_ceil(64) } else { documents };
        self.random.random_range(0..among)
    }

    /// So many channels, the popular ones more often.
    fn draw_channels(&mut self, count: usize) -> Vec<u32> {
        let total = self.popularity.last().copied().unwrap_or(1.0);
        let mut drawn = Vec::with_capacity(count);
        while drawn.len() < count {
            let at = self.random.random_range(0.0..total);
            let mut channel = self.popularity.partition_point(|sum| *sum <= at) as u32;
            // The next free one instead of another draw: there may be hardly any other.
            while drawn.contains(&channel) {
                channel = (channel + 1) % self.config.channels;
            }
            drawn.push(channel);
        }
        drawn
    }

    /// Those of `among` that a document is in from now on.
    fn pick_channels(&mut self, among: &[u32]) -> Vec<u32> {
        let count = self.random.random_range(self.config.min_channels..=self.config.max_channels) as usize;
        let mut chosen: Vec<u32> = among.choose_multiple(&mut self.random, count).copied().collect();
        chosen.sort_unstable();
        chosen
    }

    fn write_document(&mut self, mut sequence: u64) {
        let number = self.pick_document();
        let mut document = match self.documents[number].take() {
            Some(document) => document,
            None => {
                let home = (self.config.max_channels * HOME).min(self.config.channels);
                Box::new(Document::new(number, self.draw_channels(home as usize)))
            }
        };
        // A number below the document's own cannot be used, nor one whose write lost a race.
        let mut unused = Vec::new();
        let mut races = if self.chance(self.config.retries) { self.random.random_range(1..=3) } else { 0 };
        while sequence <= document.sequence() || races > 0 {
            races = u32::saturating_sub(races, 1);
            unused.push(sequence);
            sequence = self.allocate();
        }
        self.account(sequence);
        if document.exists() && self.chance(self.config.internal) && self.room() > 0 {
            self.emit_plain(document.old_revision_key(), Bytes::new(), Datatype(0), MutationKind::Mutation);
        }
        let deleted =
            if document.is_deleted() { self.chance(0.3) } else { document.exists() && self.chance(self.config.deletions) };
        let members = if deleted {
            // Some tombstones stay in their channels.
            if self.chance(0.25) { document.members() } else { Vec::new() }
        } else if !document.exists() || document.is_deleted() {
            self.pick_channels(document.home())
        } else if self.chance(self.config.moves) {
            if self.config.min_channels == 0 && self.chance(0.1) { Vec::new() } else { self.pick_channels(document.home()) }
        } else {
            document.members()
        };
        let cas = self.next_cas();
        let digest = self.random.random();
        document.write(Write { sequence, unused, digest, cas, deleted, members, body: self.config.body as usize });
        let mutation = document.event(cas, false);
        self.documents[number] = Some(document);
        self.owed -= 1;
        self.emit(mutation);
    }

    /// Another program writes a document: the metadata are the old ones, and their value is not the event's.
    fn write_by_another(&mut self) {
        let number = self.pick_document();
        let cas = self.next_cas();
        if let Some(document) = self.documents[number].as_mut().filter(|document| !document.is_deleted()) {
            let mutation = document.event(cas, true);
            self.emit(mutation);
        }
    }

    fn write_principal(&mut self, sequence: u64) {
        self.account(sequence);
        let number = self.random.random_range(0..2 * self.config.principals);
        let (kind, name) = if number.is_multiple_of(2) { ("user", number / 2) } else { ("role", number / 2) };
        let key = format!("_sync:{kind}:{kind}{name}");
        let before = self.principals.get(&number).copied();
        // Gone, and then made anew; or stored once more as it was.
        if self.room() > 0 && before.is_some() && self.chance(0.05) {
            self.emit_plain(key.clone(), Bytes::new(), Datatype(0), MutationKind::Deletion);
        } else if self.room() > 0
            && let Some(before) = before
            && self.chance(0.3)
        {
            self.emit_plain(key.clone(), principal_body(kind, name, before, &[]), Datatype(1), MutationKind::Mutation);
        }
        self.owed -= 1;
        // Like a document, it never goes back.
        if before.is_some_and(|before| before > sequence) {
            self.emit_plain(
                marker_key(sequence, sequence),
                sequence.to_le_bytes().to_vec().into(),
                Datatype(0),
                MutationKind::Mutation,
            );
            return;
        }
        let channels = self.draw_channels(self.config.max_channels as usize);
        self.principals.insert(number, sequence);
        self.emit_plain(key, principal_body(kind, name, sequence, &channels), Datatype(1), MutationKind::Mutation);
    }

    fn emit_plain(&mut self, key: String, value: Bytes, datatype: Datatype, kind: MutationKind) {
        let mut mutation = Mutation::new(key, value);
        mutation.partition = partition_of(&mutation.key);
        (mutation.kind, mutation.datatype, mutation.rev_no) = (kind, datatype, 1);
        mutation.cas = self.next_cas();
        self.emit(mutation);
    }

    /// Adds an event, and what comes again after it.
    fn emit(&mut self, mutation: Mutation) {
        self.made += 1;
        self.fresh += 1;
        let keep = self.config.restart_repeats.max(transform::MAX_REPEATED);
        if self.recent.len() == keep {
            self.recent.pop_front();
        }
        self.recent.push_back(mutation.clone());
        self.ready.push_back(mutation);
        let mut again = 0;
        if self.chance(self.config.duplicates) {
            again = self.random.random_range(1..=transform::MAX_REPEATED);
        }
        if self.config.restart_every > 0 && self.fresh.is_multiple_of(self.config.restart_every) {
            again = self.config.restart_repeats;
        }
        let again = again.min(self.recent.len()).min(usize::try_from(self.room()).unwrap_or(usize::MAX));
        if again > 0 {
            self.made += again as u64;
            self.ready.extend(self.recent.range(self.recent.len() - again..).cloned());
        }
    }
}

impl Iterator for Synthetic {
    type Item = Mutation;

    fn next(&mut self) -> Option<Mutation> {
        loop {
            if let Some(mut mutation) = self.ready.pop_front() {
                self.delivered += 1;
                mutation.seqno = PartitionSeqno(self.delivered);
                return Some(mutation);
            }
            if self.room() > 0 {
                self.step();
            } else if self.held.is_empty() {
                return None;
            } else {
                self.perform_next();
            }
        }
    }
}

impl std::fmt::Debug for Synthetic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Synthetic").field("config", &self.config).field("delivered", &self.delivered).finish_non_exhaustive()
    }
}

fn marker_key(first: u64, last: u64) -> String {
    if first == last { format!("_sync:unusedSeq:{first}") } else { format!("_sync:unusedSeqs:{first}:{last}") }
}

fn principal_body(kind: &str, name: u32, sequence: u64, channels: &[u32]) -> Bytes {
    use std::io::Write as _;
    let mut out = Vec::with_capacity(256);
    let grant = |out: &mut Vec<u8>, channel: &u32| write!(out, r#""ch{channel}":{sequence}"#);
    // Writing into memory cannot fail.
    let _ = write!(out, r#"{{"name":"{kind}{name}","admin_channels":{{"#);
    put_list(&mut out, channels, grant);
    out.extend_from_slice(br#"},"all_channels":{"!":1"#);
    for channel in channels {
        out.push(b',');
        let _ = grant(&mut out, channel);
    }
    let _ = write!(out, r#"}},"sequence":{sequence},"channel_inval_seq":{sequence}}}"#);
    out.into()
}
