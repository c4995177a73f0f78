//! One cache of a run: its store, writer, readers and clock.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_core::commit::read_clock;
use sluicegate_core::engine::WriterStats;
use sluicegate_core::meta::Meta;
use sluicegate_core::missing::LastBatch;
use sluicegate_core::pointer::Supersession;
use sluicegate_core::sequence::RangeSet;
use sluicegate_core::verify::{VerifyOptions, verify};
use sluicegate_core::{
    CacheKey, CacheStore, Channel, CollectionId, Error, Mutation, PublishedClock, ReaderConfig, Result, WriterConfig,
};
use tokio::time::Instant;

use super::asking::Asking;
use super::gateway::Gateway;
use super::step::{Event, Settings, StateKey, Value};
use super::variation::Variation;
use super::watched::Pace;
use super::writing::Writing;
use crate::clear::clear;

/// Sequences of a small block: as few as a codec can have.
const SMALL_BLOCK: u32 = 64;
/// Rows of a small tail.
const SMALL_TAIL: usize = 2;
/// The limit for ticks of a writer's timer in one wait.
const TICKS: u64 = 200;

/// A cache, and everything around it.
pub(super) struct Cache {
    store: Arc<dyn CacheStore>,
    gateway: Gateway,
    writing: Writing,
    pub(super) asking: Asking,
    pace: Pace,
    variation: Variation,
    verify: bool,
    /// Events that the writer has not received yet.
    waiting: Vec<Mutation>,
    began: Instant,
    /// Milliseconds since then, by the lines read so far.
    elapsed: u64,
    waits: (u64, u64),
    /// Times at which a wait may end.
    due: BTreeSet<u64>,
}

impl Cache {
    pub(super) async fn begin(
        store: Arc<dyn CacheStore>,
        settings: &Settings,
        is_restricted: bool,
        variation: Variation,
        pace: Pace,
    ) -> Result<Self> {
        let store = pace.watch(store);
        let mut writer = writer_config(settings, variation);
        writer.partial_feed = Some(is_restricted);
        let waits = (writer.max_wait_ms, writer.skip_wait_ms);
        let writing = Writing::begin(store.clone(), writer, variation, pace.clone()).await?;
        let reader = reader_config(settings, variation);
        let asking = Asking::begin(store.clone(), reader, variation.has(Variation::Lazy), pace.clone()).await?;
        Ok(Cache {
            asking,
            store,
            pace,
            gateway: Gateway::new(settings.initial.unwrap_or(0)),
            writing,
            variation,
            verify: settings.verify,
            waiting: Vec::new(),
            began: Instant::now(),
            elapsed: 0,
            waits,
            due: BTreeSet::new(),
        })
    }

    /// Applies an event.
    pub(super) async fn event(&mut self, event: &Event) -> Result<()> {
        let Some(mutation) = self.gateway.apply(event) else { return Ok(()) };
        self.waiting.push(mutation);
        let (max_wait, skip_wait) = self.waits;
        let listed = self.elapsed.saturating_add(max_wait);
        self.due.extend([listed, self.elapsed.saturating_add(skip_wait), listed.saturating_add(skip_wait)]);
        if self.variation.has(Variation::Batches) { Ok(()) } else { self.deliver().await }
    }

    /// Passes the waiting events to the writer.
    pub(super) async fn deliver(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.writing.take(std::mem::take(&mut self.waiting)).await?;
        self.asking.refresh().await
    }

    /// Lets time pass until this many milliseconds after the cache was made.
    pub(super) async fn pass_until(&mut self, time: u64) -> Result<()> {
        self.elapsed = self.elapsed.max(time);
        let now = |began: Instant| u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let period = self.writing.period().map(|period| period.as_millis() as u64);
        // Ticks are at multiples of the period.
        let stride = period.map(|period| period * (time.saturating_sub(now(self.began)) / period / TICKS).max(1));
        loop {
            let at = now(self.began);
            if at >= time {
                return Ok(());
            }
            let due = self.due.range(at + 1..).next().copied();
            let next = match (period, stride) {
                (Some(period), Some(stride)) => {
                    let due = due.map(|due| due.div_ceil(period).saturating_mul(period));
                    (at / stride + 1).saturating_mul(stride).min(due.unwrap_or(u64::MAX))
                }
                _ => due.unwrap_or(u64::MAX),
            };
            tokio::time::advance(Duration::from_millis(next.min(time) - at)).await;
            self.writing.tick().await?;
            self.asking.refresh().await?;
        }
    }

    pub(super) async fn wait(&mut self, time: u64) -> Result<()> {
        self.pass_until(self.elapsed.saturating_add(time)).await
    }

    pub(super) async fn restart(&mut self) -> Result<()> {
        self.writing.restart().await?;
        self.asking.refresh().await
    }

    /// The channels of a request: those of these names in the one collection, or in every
    /// collection that had documents.
    pub(super) fn channels(&self, names: &[String], keyspace: Option<u32>) -> Result<Vec<Channel>> {
        let used = &self.gateway.used().collections;
        let collections: Vec<u32> = match keyspace {
            Some(keyspace) => vec![keyspace],
            None if used.is_empty() => vec![0],
            None => used.iter().copied().collect(),
        };
        let of_all = collections.into_iter().flat_map(|id| names.iter().map(move |name| Channel::of(CollectionId(id), name)));
        of_all.collect()
    }

    /// The state of writer and clock, by key.
    pub(super) async fn state(&mut self, keys: impl IntoIterator<Item = StateKey>) -> Result<Vec<Value>> {
        let clock = self.clock().await?;
        let missing = self.skipped(&clock).await?;
        // After the clock: a writer in a task may take a moment to answer.
        let (stats, pending) = self.writing.numbers().await?;
        Ok(keys.into_iter().map(|key| value(key, &clock, &missing, &stats, pending)).collect())
    }

    async fn clock(&self) -> Result<PublishedClock> {
        let clock = read_clock(self.store.as_ref()).await?;
        clock.map(|clock| clock.value).ok_or_else(|| Error::corrupt("the published clock is gone"))
    }

    /// The skipped list of the last batch.
    async fn skipped(&self, clock: &PublishedClock) -> Result<RangeSet> {
        let meta = self.store.get(&CacheKey::Meta).await?.ok_or_else(|| Error::corrupt("the cache's description is gone"))?;
        let last = LastBatch::read(self.store.as_ref(), Meta::from_bytes(&meta.value)?.ring, clock.clone()).await?;
        let mut skipped = RangeSet::new();
        for gap in &last.missing.gaps {
            skipped.insert(gap.range.first().0, gap.range.last().0);
        }
        Ok(skipped)
    }

    /// Ends the writer, and returns the findings of a check of the whole cache.
    pub(super) async fn end(&mut self) -> Result<Vec<String>> {
        self.deliver().await?;
        self.writing.end().await?;
        if !self.verify {
            return Ok(Vec::new());
        }
        let options = VerifyOptions::default().feed(Writing::feed_name());
        let report = self.pace.drive(verify(self.store.as_ref(), &options)).await?;
        Ok(report.findings.iter().map(ToString::to_string).collect())
    }

    /// Removes everything that was stored.
    pub(super) async fn clear(&self) -> Result<()> {
        clear(&self.store, &self.gateway.used().contents(Writing::feed_name())?).await
    }
}

fn value(key: StateKey, clock: &PublishedClock, skipped: &RangeSet, stats: &WriterStats, pending: usize) -> Value {
    Value::Number(match key {
        StateKey::Skipped => return Value::Ranges(skipped.clone()),
        StateKey::Next => clock.high.next().0,
        StateKey::Stable => clock.stable.0,
        StateKey::High => clock.high.0,
        StateKey::Settled => clock.settled.0,
        StateKey::Pending => pending as u64,
        StateKey::Missing => clock.gaps,
        StateKey::Late => clock.late,
        StateKey::Abandoned => stats.abandoned,
        StateKey::Duplicates => stats.duplicates,
        StateKey::Unused => stats.unused,
        StateKey::Cached => stats.cached,
        StateKey::EverSkipped => stats.skipped,
        StateKey::Superseded => stats.superseded,
        StateKey::Principals => stats.principals,
        StateKey::Ignored => stats.ignored,
        StateKey::Foreign => stats.foreign,
        StateKey::Invalid => stats.invalid,
    })
}

fn writer_config(settings: &Settings, variation: Variation) -> WriterConfig {
    let mut config = WriterConfig::default();
    // The gateway of a scenario is running already.
    config.hold_first_read = false;
    // Each question is about all that has happened.
    config.gather_purges_ms = 0;
    config.max_wait_ms = settings.max_wait.unwrap_or(config.max_wait_ms);
    config.max_pending = settings.max_pending.unwrap_or(config.max_pending);
    config.skip_wait_ms = settings.skip_wait.unwrap_or(config.skip_wait_ms.max(config.max_wait_ms));
    config.initial_sequence = settings.initial.unwrap_or(config.initial_sequence);
    if variation.has(Variation::Small) {
        config.block_capacity = SMALL_BLOCK;
        config.list_changes = 0;
        config.supersession = Supersession::Pointers;
    }
    config
}

fn reader_config(settings: &Settings, variation: Variation) -> ReaderConfig {
    let mut config = ReaderConfig::default();
    config.tail_max = settings.tail_max.unwrap_or(config.tail_max);
    if variation.has(Variation::Tails) {
        config.tail_max = config.tail_max.min(SMALL_TAIL);
    }
    config.tail_min = settings.tail_min.unwrap_or(config.tail_min).min(config.tail_max);
    config.max_channels = settings.max_channels.unwrap_or(config.max_channels);
    config.late_kept = settings.late_kept.unwrap_or(config.late_kept);
    config
}
