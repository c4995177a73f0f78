//! Benchmarks that anyone can run: rates, CPU seconds and memory on the loads of the gateway's own cache benchmark.

mod cold;
mod sent;
mod stores;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use serde::{Deserialize, Serialize};
use sluicegate_core::changes::ChangesOptions;
use sluicegate_core::channel::ChannelMap;
use sluicegate_core::feed::{FeedBatch, FeedCapabilities, FeedInfo};
use sluicegate_core::{
    CacheStore, ChangeEntry, Channel, Decoded, EntryFlags, Epoch, Error, ErrorKind, Feed, FeedStart, FeedStream, GatewayDecoder,
    Membership, ReaderConfig, ReaderNode, Result, Sequence, Writer, WriterConfig,
};
use sluicegate_memory::MemoryStore;
use sluicegate_replay::peer;
pub use sluicegate_replay::peer::PeerLoad;

pub use cold::{ColdLoad, ColdStart, clear_cold, cold, fill};
pub use sent::MeteredStore;
use stores::ObservedStore;

const FIRST_EPOCH: Epoch = Epoch { counter: 1, writer: 1 };

/// One measured run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// What was measured.
    pub what: String,
    /// How many sequences.
    pub sequences: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// CPU seconds of the whole process.
    pub cpu_seconds: f64,
    /// Resident memory after it, in MiB.
    pub resident_mib: f64,
}

impl Measured {
    /// Sequences a wall-clock second.
    pub fn rate(&self) -> f64 {
        self.sequences as f64 / self.seconds
    }

    /// Sequences a CPU second.
    pub fn rate_per_cpu(&self) -> f64 {
        self.sequences as f64 / self.cpu_seconds
    }
}

struct Watch(Instant, ProcessTime);

impl Watch {
    fn start() -> Self {
        Watch(Instant::now(), ProcessTime::now())
    }

    fn stop(&self, what: &str, sequences: u64) -> Measured {
        Measured {
            what: what.to_owned(),
            sequences,
            seconds: self.0.elapsed().as_secs_f64(),
            cpu_seconds: self.1.elapsed().as_secs_f64(),
            resident_mib: resident(),
        }
    }
}

/// A feed that hands out batches made beforehand, once.
#[derive(Debug)]
struct Prepared(parking_lot::Mutex<Option<Vec<FeedBatch>>>);

#[async_trait::async_trait]
impl Feed for Prepared {
    fn info(&self) -> FeedInfo {
        let capabilities = FeedCapabilities { finite: true, positions: true, ..FeedCapabilities::default() };
        FeedInfo { scheme: "prepared", name: "bench".to_owned(), partitions: 1024, capabilities }
    }

    async fn open(&self, _start: FeedStart) -> Result<FeedStream> {
        let taken = self.0.lock().take();
        let batches = taken.ok_or_else(|| Error::new(ErrorKind::Closed, "prepared batches are handed out once"))?;
        Ok(Box::pin(futures::stream::iter(batches.into_iter().map(Ok))))
    }
}

/// Through the whole writer: raw mutations out of order → decode → sequence → commit → publish.
///
/// # Errors
/// What the writer says.
pub async fn raw(what: &str, store: Arc<dyn CacheStore>, load: PeerLoad, config: WriterConfig) -> Result<Measured> {
    let documents = load.documents as u64;
    let feed = Prepared(parking_lot::Mutex::new(Some(peer::dcp_batches(load))));
    let mut writer = Writer::take_over(store, Arc::new(GatewayDecoder::default()), "bench", FIRST_EPOCH, config).await?;
    let watch = Watch::start();
    writer.run(&feed, std::future::pending()).await?;
    let measured = watch.stop(what, documents);
    check(&writer, documents)?;
    Ok(measured)
}

/// The same without decoding.
///
/// # Errors
/// What the writer says.
pub async fn decoded(what: &str, store: Arc<dyn CacheStore>, load: PeerLoad, config: WriterConfig) -> Result<Measured> {
    let documents = load.documents as u64;
    let batches = peer::entries(load);
    let mut writer = Writer::take_over(store, Arc::new(GatewayDecoder::default()), "bench", FIRST_EPOCH, config).await?;
    let watch = Watch::start();
    for batch in batches {
        writer.process_decoded(batch).await?;
    }
    writer.finish().await?;
    let measured = watch.stop(what, documents);
    check(&writer, documents)?;
    Ok(measured)
}

/// A benchmark that did not do its work measures nothing.
fn check(writer: &Writer, documents: u64) -> Result<()> {
    let cached = writer.stats().cached;
    if cached == documents {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Unexpected, format!("{cached} entries were cached of {documents}: {:?}", writer.stats())))
    }
}

/// The least that anything could do with the same entries: a map by sequence, and a list a channel. What [`decoded`] is compared with.
pub fn baseline(what: &str, load: PeerLoad) -> Measured {
    let documents = load.documents as u64;
    let batches = peer::entries(load);
    let watch = Watch::start();
    let mut by_sequence: HashMap<u64, Arc<ChangeEntry>> = HashMap::new();
    let mut by_channel: ChannelMap<Vec<u64>> = ChannelMap::default();
    for decoded in batches.into_iter().flatten() {
        if let Decoded::Document(document) = decoded {
            let sequence = document.entry.sequence().0;
            for change in document.entry.channels() {
                by_channel.entry(change.channel.clone()).or_default().push(sequence);
            }
            by_channel.entry(Channel::star()).or_default().push(sequence);
            by_sequence.insert(sequence, Arc::new(document.entry));
        }
    }
    let measured = watch.stop(what, documents);
    drop(std::hint::black_box((by_sequence, by_channel)));
    measured
}

/// What a read costs.
#[derive(Clone, Debug, Serialize)]
pub struct ReadCost {
    /// What was read.
    pub what: String,
    /// Microseconds a read: the median of many, and the least.
    pub median_us: f64,
    /// The least.
    pub least_us: f64,
    /// Store operations a read.
    pub operations: u64,
    /// Rows a read.
    pub rows: usize,
}

/// Times `read` in runs of `calls`, and gives the median and the least of the runs' means.
fn time_calls(what: &str, calls: u32, rows: usize, mut read: impl FnMut()) -> ReadCost {
    let mut runs: Vec<f64> = (0..21)
        .map(|_| {
            let begun = Instant::now();
            (0..calls).for_each(|_| read());
            begun.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    ReadCost { what: what.to_owned(), median_us: runs[runs.len() / 2], least_us: runs[0], operations: 0, rows }
}

fn document(sequence: u64, document: &str, channel: &Channel, over: Option<u64>) -> Result<Decoded> {
    let entry = ChangeEntry::new(Sequence(sequence), document, "1-abc", EntryFlags::default())?
        .with_channel(channel.clone(), Membership::Present)
        .with_supersedes(over.map(Sequence));
    Ok(Decoded::Document(entry.into()))
}

async fn filled(store: Arc<dyn CacheStore>, count: u64, make: impl Fn(u64) -> Result<Decoded>) -> Result<Writer> {
    let config = WriterConfig::default();
    let mut writer = Writer::take_over(store, Arc::new(GatewayDecoder::default()), "bench", FIRST_EPOCH, config).await?;
    let mut next = 1;
    while next <= count {
        let last = (next + 511).min(count);
        writer.process_decoded((next..=last).map(&make).collect::<Result<_>>()?).await?;
        next = last + 1;
    }
    writer.finish().await?;
    Ok(writer)
}

/// Reads that the tail answers: of several lengths, only made, and with every row looked at. And the bytes an entry costs in the tail, strings
/// left out.
///
/// # Errors
/// What writer and reader say.
pub async fn tail() -> Result<(Vec<ReadCost>, f64)> {
    let channel = Channel::new("bench")?;
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let config: ReaderConfig = serde_json::from_str(r#"{"tail_max": 5000}"#).map_err(|e| Error::config(e.to_string()))?;
    let writer = filled(store.clone(), 5_000, |n| document(n, &format!("d{n}"), &channel, None)).await?;
    let reader = ReaderNode::open(store, config).await?;
    reader.wait_for_batch(writer.clock().batch).await?;
    reader.changes(std::slice::from_ref(&channel), &ChangesOptions::new()).await?;
    let mut costs = Vec::new();
    let mut entry_bytes = 0.0;
    for length in [1, 50, 500, 5_000] {
        let options = ChangesOptions::new().since(5_000 - length);
        let view = || reader.cached_changes(&channel, &options).ok().flatten();
        let rows = view().map_or(0, |changes| changes.rows().len());
        if rows as u64 != length {
            return Err(Error::new(ErrorKind::Unexpected, format!("{rows} rows in the tail instead of {length}")));
        }
        costs.push(time_calls(&format!("view of {length} rows"), 20_000, rows, || drop(std::hint::black_box(view()))));
        costs.push(time_calls(&format!("view of {length} rows, each read"), 2_000, rows, || {
            let read =
                view().map(|changes| changes.rows().iter().map(|row| row.sequence.0 + u64::from(row.removed)).sum::<u64>());
            std::hint::black_box(read);
        }));
        if let Some(changes) = view() {
            let text = |entry: &ChangeEntry| entry.key().len() + entry.revision().len();
            let entries: usize =
                changes.rows().iter().map(|r| r.entry.memory_bytes() - text(&r.entry) + 2 * size_of::<usize>()).sum();
            entry_bytes = (entries as f64 + reader.stats().tail_bytes as f64) / rows as f64;
        }
    }
    Ok((costs, entry_bytes))
}

/// Reads of 100 rows at the start, in the middle and near the end of a channel with `sequences` sequences, of which one in a hundred is
/// live, and the middle third none at all. By directory and blocks alone.
///
/// # Errors
/// What writer and reader say.
pub async fn deep(sequences: u64) -> Result<Vec<ReadCost>> {
    let channel = Channel::new("deep")?;
    let store = Arc::new(ObservedStore::new(1));
    let dead = sequences / 3..sequences * 2 / 3;
    let hot = 990;
    let made = |n: u64| {
        if n.is_multiple_of(100) && !dead.contains(&n) {
            document(n, &format!("live-{n}"), &channel, None)
        } else {
            // Each hot document comes again after `hot` to `hot + 10` sequences.
            let slot = |n: u64| n % 1_000;
            let before = n.checked_sub(1_000).filter(|b| *b > 0 && (!b.is_multiple_of(100) || dead.contains(b)));
            document(n, &format!("hot-{}", slot(n) % (hot + 10)), &channel, before)
        }
    };
    let writer = filled(store.clone(), sequences, made).await?;
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await?;
    reader.wait_for_batch(writer.clock().batch).await?;
    let mut costs = Vec::new();
    for (what, since) in [("the start", 0), ("the middle, where nothing is live", sequences / 2), ("the end", sequences - 20_000)]
    {
        let options = ChangesOptions::new().since(since).limit(100);
        let channels = [channel.clone()];
        reader.changes(&channels, &options).await?;
        let mut runs = Vec::new();
        let (mut operations, mut rows) = (0, 0);
        for _ in 0..200 {
            let (before, begun) = (store.operations(), Instant::now());
            rows = reader.changes(&channels, &options).await?.answer().rows.len();
            runs.push(begun.elapsed().as_secs_f64() * 1e6);
            operations = store.operations() - before;
        }
        runs.sort_by(f64::total_cmp);
        let what = format!("100 rows near {what}");
        costs.push(ReadCost { what, median_us: runs[runs.len() / 2], least_us: runs[0], operations, rows });
    }
    Ok(costs)
}

/// How much was queued at most while the store is slow.
#[derive(Clone, Debug, Serialize)]
pub struct Backpressure {
    /// The limit.
    pub limit_mib: f64,
    /// The most that was queued.
    pub queued_mib: f64,
    /// What the whole load would have been.
    pub load_mib: f64,
    /// How much the process grew by, beyond what is stored.
    pub grown_mib: f64,
}

/// Feeds more than `limit` bytes, as fast as they are taken, to a store whose commits wait a hundred times as long as they take.
///
/// # Errors
/// What the writer says.
pub async fn backpressure(limit: usize) -> Result<Backpressure> {
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let load = PeerLoad { documents: 600_000, ..PeerLoad::default() };
    let total: usize = peer::dcp(load.clone()).map(|batch| batch.memory_bytes()).sum();
    let store: Arc<dyn CacheStore> = Arc::new(ObservedStore::new(100));
    let config = WriterConfig::default().with_queue_bytes(limit);
    let mut writer = Writer::take_over(store, Arc::new(GatewayDecoder::default()), "bench", FIRST_EPOCH, config).await?;
    let mut progress = writer.progress();
    let feed = Lazy(load);
    let before = resident();
    let mut most = (0, 0.0f64);
    let running = writer.run(&feed, std::future::pending());
    tokio::pin!(running);
    let until = tokio::time::sleep(Duration::from_secs(5));
    tokio::pin!(until);
    loop {
        tokio::select! {
            ended = &mut running => { ended?; break }
            () = &mut until => break,
            changed = progress.changed() => {
                if changed.is_err() { break }
                most.0 = most.0.max(progress.borrow_and_update().queued_bytes);
                most.1 = most.1.max(resident() - before);
            }
        }
    }
    Ok(Backpressure { limit_mib: mib(limit), queued_mib: mib(most.0), load_mib: mib(total), grown_mib: most.1 })
}

fn resident() -> f64 {
    memory_stats::memory_stats().map_or(0.0, |m| m.physical_mem as f64 / f64::from(1 << 20))
}

/// Lets [`peak`] begin anew. Whether the system can do that.
fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The most resident memory that this process has had, in MiB, if the system tells.
fn peak() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"))?;
    Some(peak.trim().parse::<f64>().ok()? / 1_024.0)
}

/// The peer's load, made as it is taken.
#[derive(Debug)]
struct Lazy(PeerLoad);

#[async_trait::async_trait]
impl Feed for Lazy {
    fn info(&self) -> FeedInfo {
        let capabilities = FeedCapabilities { finite: true, ..FeedCapabilities::default() };
        FeedInfo { scheme: "peer", name: "bench".to_owned(), partitions: 1024, capabilities }
    }

    async fn open(&self, _start: FeedStart) -> Result<FeedStream> {
        Ok(Box::pin(futures::stream::iter(peer::dcp(self.0.clone()).map(Ok))))
    }
}
