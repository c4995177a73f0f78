//! Benchmarks that anyone can run: rates, CPU seconds and memory on the loads of the gateway's own cache benchmark.

use std::sync::Arc;
use std::time::Instant;

use cpu_time::ProcessTime;
use sluicegate_core::decode::GatewayDecoder;
use sluicegate_core::feed::{FeedBatch, FeedCapabilities, FeedInfo};
use sluicegate_core::{CacheStore, Epoch, Error, ErrorKind, Result, Writer, WriterConfig};
use sluicegate_core::{Feed, FeedStart, FeedStream};
use sluicegate_replay::peer::{self, PeerLoad};

/// One measured run.
#[derive(Clone, Debug, serde::Serialize)]
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
            resident_mib: memory_stats::memory_stats().map_or(0.0, |m| m.physical_mem as f64 / f64::from(1 << 20)),
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
    let mut writer =
        Writer::take_over(store, Arc::new(GatewayDecoder::default()), "bench", Epoch { counter: 1, writer: 1 }, config).await?;
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
    let mut writer =
        Writer::take_over(store, Arc::new(GatewayDecoder::default()), "bench", Epoch { counter: 1, writer: 1 }, config).await?;
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
