//! One round on one store: write everything, read it back, wake a waiting reader, clear.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::feed::Feed as _;
use sluicegate::{
    CacheStore, ChangeEntry, Channel, Decoded, EntryFlags, Error, ErrorKind, GatewayDecoder, Membership, PublishedClock,
    ReaderConfig, ReaderNode, Registry, Result, Sequence, Writer,
};
use tokio::sync::oneshot;

use crate::load::Load;
use crate::target::{self, Target};
use crate::timed::{Calls, Latency, TimedStore};

/// Rows a read.
const ROWS: usize = 100;
/// Reads of each channel once the tail has it.
const HOT: usize = 20;
/// How often a waiting reader is woken a round.
const WAKES: u64 = 50;
/// How long it may take to be woken before that is an error.
const PATIENCE: Duration = Duration::from_secs(30);

/// All that was measured of one store.
pub(crate) struct Results {
    pub(crate) name: String,
    pub(crate) rounds: Vec<Round>,
    pub(crate) calls: Arc<Calls>,
    /// Reads of the latest rows of a channel: from the store, and from the tail.
    pub(crate) cold: Latency,
    pub(crate) hot: Latency,
    /// From the beginning of a publication until a waiting reader has been told.
    pub(crate) wake: Latency,
    /// Of the rows read.
    digest: Option<u64>,
}

/// The writing of one round.
pub(crate) struct Round {
    pub(crate) entries: u64,
    pub(crate) seconds: f64,
    pub(crate) calls: u64,
    /// By which the store has grown, if it says so.
    pub(crate) bytes: Option<u64>,
}

impl Round {
    /// Entries a second.
    pub(crate) fn rate(&self) -> f64 {
        self.entries as f64 / self.seconds
    }
}

impl Results {
    pub(crate) fn new(target: &Target) -> Result<Self> {
        let [cold, hot, wake] = [Latency::new()?, Latency::new()?, Latency::new()?];
        let (name, calls) = (target.name.clone(), Arc::new(Calls::new()?));
        Ok(Results { name, rounds: Vec::new(), calls, cold, hot, wake, digest: None })
    }

    /// The latencies, by what they are of.
    pub(crate) fn latencies(&self) -> [(&'static str, &Latency); 5] {
        [
            ("commit", &self.calls.commit),
            ("publish", &self.calls.publish),
            ("cold read", &self.cold),
            ("hot read", &self.hot),
            ("wake", &self.wake),
        ]
    }
}

/// Runs a round and adds what it measures to `results`.
pub(crate) async fn round(registry: &Registry, target: &Target, load: &Load, results: &mut Results) -> Result<()> {
    let store = target.open(registry).await?;
    let ran = run(&store, load, results).await;
    // In the namespace that is left behind if this fails.
    ran.map_err(|e| e.with_context("store", &store.info().name))
}

async fn run(store: &Arc<dyn CacheStore>, load: &Load, results: &mut Results) -> Result<()> {
    results.rounds.push(write(store, load, &results.calls).await?);
    let digest = read(store, load, results).await?;
    if *results.digest.get_or_insert(digest) != digest {
        return Err(Error::new(ErrorKind::Unexpected, "two rounds gave different answers: something else writes to this store"));
    }
    let clock = wake(store, load, &results.wake).await?;
    target::clear(store, load, &load.feed.info().checkpoint_name(), &clock).await
}

/// Whoever does not give the same answers need not be compared.
pub(crate) fn check_same(results: &[Results]) -> Result<()> {
    let mut different = results.iter().filter(|r| r.digest != results[0].digest);
    different.next().map_or(Ok(()), |other| {
        let message =
            format!("{} and {} do not give the same answers; run the conformance suite on both", results[0].name, other.name);
        Err(Error::new(ErrorKind::Unexpected, message))
    })
}

async fn writer(store: &Arc<dyn CacheStore>, load: &Load, calls: &Arc<Calls>) -> Result<Writer> {
    let timed = Arc::new(TimedStore::new(store.clone(), calls.clone()));
    let name = load.feed.info().checkpoint_name();
    Writer::alone(timed, Arc::new(GatewayDecoder::default()), &name, load.config.clone()).await
}

/// The whole load through a writer.
async fn write(store: &Arc<dyn CacheStore>, load: &Load, calls: &Arc<Calls>) -> Result<Round> {
    let mut writer = writer(store, load, calls).await?;
    let (used, called, begun) = (store.bytes_used().await?, calls.count(), Instant::now());
    writer.run(&load.feed, std::future::pending()).await?;
    let (seconds, calls) = (begun.elapsed().as_secs_f64(), calls.count() - called);
    let bytes = used.zip(store.bytes_used().await?).and_then(|(before, after)| after.checked_sub(before));
    Ok(Round { entries: writer.stats().cached.max(1), seconds, calls, bytes })
}

/// The latest rows of some channels, by a reader that knows nothing yet, and again from its tails; a digest of them.
async fn read(store: &Arc<dyn CacheStore>, load: &Load, results: &Results) -> Result<u64> {
    let everything = ChangesOptions::new().delivery(Delivery::Eager);
    let finder = ReaderNode::open(store.clone(), ReaderConfig::default()).await?;
    let mut places: Vec<([Channel; 1], Sequence)> = Vec::new();
    let mut digest = DefaultHasher::new();
    for channel in &load.read {
        let channel = [channel.clone()];
        let all = finder.changes(&channel, &everything).await?;
        for row in all.rows() {
            (row.sequence, row.entry.document(), row.removed).hash(&mut digest);
        }
        let rows = all.rows();
        let since = rows.len().checked_sub(ROWS + 1).map_or(Sequence::ZERO, |before| rows[before].sequence);
        places.push((channel, since));
    }
    drop(finder);

    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await?;
    for (channel, since) in &places {
        let options = everything.clone().since(*since).limit(ROWS);
        let begun = Instant::now();
        let answer = reader.changes(channel, &options).await?.answer();
        results.cold.record(begun.elapsed());
        drop(std::hint::black_box(answer));
    }
    for (channel, since) in &places {
        // Without a limit: what is read stays in the tail.
        let options = everything.clone().since(*since);
        reader.changes(channel, &options).await?;
        for _ in 0..HOT {
            let begun = Instant::now();
            let cached = reader.cached_changes(&channel[0], &options)?;
            let answer =
                cached.ok_or_else(|| Error::new(ErrorKind::Unexpected, "the tail does not hold what was read"))?.answer();
            results.hot.record(begun.elapsed());
            drop(std::hint::black_box(answer));
        }
    }
    Ok(digest.finish())
}

/// Entries one by one while a reader waits for each; the clock after them.
async fn wake(store: &Arc<dyn CacheStore>, load: &Load, latency: &Latency) -> Result<PublishedClock> {
    let calls = Arc::new(Calls::new()?);
    let mut writer = writer(store, load, &calls).await?;
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await?;
    let channel = &load.read[0];
    // From then on it has a tail.
    reader.changes(std::slice::from_ref(channel), &ChangesOptions::new().limit(1)).await?;
    for n in 0..WAKES {
        let seen = reader.wait_for_batch(writer.clock().batch).await?;
        let (waits, waiting) = oneshot::channel();
        let (reader, channels) = (reader.clone(), [channel.clone()]);
        let told = tokio::spawn(async move {
            let mut wait = pin!(reader.wait_for_change(&channels, &seen));
            let first = futures::poll!(wait.as_mut());
            // Fails only if nobody wants to know any more.
            let _ = waits.send(());
            match first {
                Poll::Ready(told) => told?,
                Poll::Pending => wait.await?,
            };
            Ok::<_, Error>(Instant::now())
        });
        waiting.await.map_err(failed)?;
        let flags = EntryFlags::default();
        let entry = ChangeEntry::new(writer.clock().high.next(), &format!("compare-wake-{n}"), "1-a", flags)?
            .with_channel(channel.clone(), Membership::Present);
        writer.process_decoded(vec![Decoded::Document(entry.into())]).await?;
        writer.flush().await?;
        let late = |_| Error::new(ErrorKind::Timeout, format!("a waiting reader was not told within {PATIENCE:?}"));
        let told = tokio::time::timeout(PATIENCE, told).await.map_err(late)?.map_err(failed)??;
        let published = calls.published().ok_or_else(|| Error::new(ErrorKind::Unexpected, "nothing was published"))?;
        latency.record(told.saturating_duration_since(published));
    }
    Ok(writer.clock().clone())
}

fn failed(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Unexpected, "the task of a waiting reader failed").with_source(e)
}
