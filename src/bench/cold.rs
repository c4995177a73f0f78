//! A cold start: a whole bucket is read into a new cache. And a later burst: a writer that was away
//! reads what has been written since.
//!
//! A server sends what it has vbucket by vbucket, so the sequences of a gateway come in an order
//! that has little to do with their own.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluicegate_core::feed::{FeedBatch, FeedCapabilities, FeedInfo};
use sluicegate_core::{
    CacheStore, Channel, Epoch, Feed, FeedEvent, FeedStart, FeedStream, GatewayDecoder, Mutation, PartitionId, PartitionSeqno,
    Result, Writer, WriterConfig,
};

use sluicegate_testkit::clear::{Contents, clear};

use super::{FIRST_EPOCH, Measured, MeteredStore, Watch, check, peak, reset_peak};

const VBUCKETS: u64 = 1_024;

/// Events of a batch.
const BATCH: usize = 512;

/// Channels, of which each document is in one.
const CHANNELS: u64 = 1_000;

/// A bucket, and the order in which it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColdLoad {
    /// The number of documents that the cache has already, in the order of their sequences. These
    /// are not measured.
    pub cached: u64,
    /// How many documents are sent. Each has one sequence.
    pub documents: u64,
    /// How many documents of a vbucket are sent before some of the next one; `None` for the order
    /// of the sequences.
    pub chunk: Option<u64>,
}

/// One document: its sequence and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    sequence: u64,
    vbucket: u64,
    seqno: u64,
}

/// By how many places the vbuckets are shifted in the `nth` run of `VBUCKETS` sequences. Each
/// vbucket has one document in each run.
fn rotation(nth: u64) -> u64 {
    (nth.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % VBUCKETS
}

impl ColdLoad {
    /// What the cache has already.
    fn before(self) -> Self {
        ColdLoad { cached: 0, documents: self.cached, chunk: None }
    }

    /// What is sent after [`before`](Self::before).
    fn places(self) -> impl Iterator<Item = Place> + Send {
        let shift = move |place: Place| Place {
            sequence: self.cached + place.sequence,
            seqno: self.cached.div_ceil(VBUCKETS) + place.seqno,
            ..place
        };
        self.unshifted().map(shift)
    }

    /// As if the cache had nothing.
    fn unshifted(self) -> Box<dyn Iterator<Item = Place> + Send> {
        let documents = self.documents;
        let Some(chunk) = self.chunk else {
            let place = |sequence: u64| {
                let (nth, at) = ((sequence - 1) / VBUCKETS, (sequence - 1) % VBUCKETS);
                Place { sequence, vbucket: (at + VBUCKETS - rotation(nth)) % VBUCKETS, seqno: nth + 1 }
            };
            return Box::new((1..=documents).map(place));
        };
        let (each, chunk) = (documents.div_ceil(VBUCKETS), chunk.max(1));
        let place = |vbucket: u64, nth: u64| {
            let sequence = 1 + nth * VBUCKETS + (vbucket + rotation(nth)) % VBUCKETS;
            Place { sequence, vbucket, seqno: nth + 1 }
        };
        let chunks = (0..each.div_ceil(chunk)).flat_map(|turn| (0..VBUCKETS).map(move |vbucket| (turn, vbucket)));
        let of_chunk = move |(turn, vbucket)| (turn * chunk..each.min((turn + 1) * chunk)).map(move |nth| place(vbucket, nth));
        Box::new(chunks.flat_map(of_chunk).filter(move |place| place.sequence <= documents))
    }

    fn batches(self) -> impl Iterator<Item = FeedBatch> + Send {
        let mut places = self.places();
        let mut is_over = false;
        std::iter::from_fn(move || {
            let mut events: Vec<FeedEvent> =
                places.by_ref().take(BATCH).map(|place| FeedEvent::Mutation(mutation(place))).collect();
            if events.is_empty() && !std::mem::replace(&mut is_over, true) {
                events.push(FeedEvent::CaughtUp);
            }
            (!events.is_empty()).then(|| FeedBatch::from(events))
        })
    }
}

fn channel_name(number: u64) -> String {
    format!("test-{number}")
}

fn mutation(Place { sequence, vbucket, seqno }: Place) -> Mutation {
    let channel = channel_name(sequence % CHANNELS);
    let value = format!(
        r#"{{"_sync":{{"rev":"1-cd809becc169215072fd567eebd8b8de","sequence":{sequence},"recent_sequences":[{sequence}],"channels":{{"{channel}":null}}}},"n":{sequence}}}"#
    );
    let (partition, seqno) = (PartitionId(vbucket as u16), PartitionSeqno(seqno));
    Mutation { partition, seqno, cas: sequence << 16, ..Mutation::new(format!("doc-{sequence}"), value) }
}

#[async_trait::async_trait]
impl Feed for ColdLoad {
    fn info(&self) -> FeedInfo {
        let capabilities = FeedCapabilities { finite: true, positions: true, ..FeedCapabilities::default() };
        FeedInfo { scheme: "cold", name: "bench".to_owned(), partitions: VBUCKETS as u16, capabilities }
    }

    async fn open(&self, _start: FeedStart) -> Result<FeedStream> {
        Ok(Box::pin(futures::stream::iter(self.batches().map(Ok))))
    }
}

/// What a cold start costs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ColdStart {
    /// How long it took.
    #[serde(flatten)]
    pub measured: Measured,
    /// How many documents came after readers had passed their sequence.
    pub late: u64,
    /// How many sequences were skipped.
    pub skipped: u64,
    /// How many bytes the store was sent, if [`MeteredStore`] counts them.
    pub sent_bytes: Option<u64>,
    /// The most resident memory that the process has had meanwhile, in MiB; `None` if the system
    /// does not tell. What the process has had before counts if it has not been given back: so
    /// measure in a process of its own.
    pub peak_mib: Option<f64>,
}

async fn take_over(store: &MeteredStore, load: ColdLoad, epoch: Epoch) -> Result<Writer> {
    let (decoder, config) = (Arc::new(GatewayDecoder::default()), WriterConfig::default());
    Writer::take_over(store.store(), decoder, &load.info().checkpoint_name(), epoch, config).await
}

/// Stores the documents that the cache is to have before [`cold`], by a writer of their own.
///
/// # Errors
/// What the writer says.
pub async fn fill(store: &MeteredStore, load: ColdLoad) -> Result<()> {
    let before = load.before();
    if before.documents == 0 {
        return Ok(());
    }
    let mut writer = take_over(store, load, FIRST_EPOCH).await?;
    writer.run(&before, std::future::pending()).await?;
    check(&writer, before.documents)
}

/// Reads a bucket into `store`, which must be empty but for what [`fill`] has stored.
///
/// # Errors
/// What the writer says.
pub async fn cold(what: &str, store: &MeteredStore, load: ColdLoad) -> Result<ColdStart> {
    let is_peak_of_this = load.cached == 0 || reset_peak();
    // Without a cache this is the first term. In later terms the writer also looks for entries that
    // a former writer has stored.
    let counter = FIRST_EPOCH.counter + u64::from(load.cached > 0);
    let mut writer = take_over(store, load, Epoch { counter, ..FIRST_EPOCH }).await?;
    let before = store.sent();
    let watch = Watch::start();
    writer.run(&load, std::future::pending()).await?;
    let measured = watch.stop(what, load.documents);
    check(&writer, load.documents)?;
    let sent_bytes = store.sent().zip(before).map(|(after, before)| after - before);
    let (late, skipped) = (writer.stats().late, writer.stats().skipped);
    Ok(ColdStart { measured, late, skipped, sent_bytes, peak_mib: is_peak_of_this.then(peak).flatten() })
}

/// Removes from `store` what a cold start has left.
///
/// # Errors
/// As [`clear`].
pub async fn clear_cold(store: &Arc<dyn CacheStore>, load: ColdLoad) -> Result<()> {
    let mut contents = Contents { feed: load.info().checkpoint_name(), ..Contents::default() };
    if load.cached + load.documents > 0 {
        contents.sequences.insert(1, load.cached + load.documents);
    }
    contents.channels = (0..CHANNELS).map(|channel| Channel::new(&channel_name(channel))).collect::<Result<_>>()?;
    contents.channels.insert(Channel::star());
    clear(store, &contents).await
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use sluicegate_memory::MemoryStore;

    use super::*;

    #[test]
    fn each_order_has_all_documents_once_and_each_vbucket_in_order() {
        let sorted = |places: &[Place]| places.iter().map(|p| (p.sequence, p.vbucket, p.seqno)).collect::<BTreeSet<_>>();
        let changes = |places: &[Place]| places.windows(2).filter(|two| two[0].vbucket != two[1].vbucket).count();
        for cached in [0, 1_500] {
            let load = |chunk| ColdLoad { cached, documents: 10_000, chunk };
            let all = |chunk| load(chunk).places().collect::<Vec<_>>();
            let in_order = all(None);
            assert!(in_order.iter().map(|place| place.sequence).eq(cached + 1..=cached + 10_000));
            for chunk in [1, 3, 100] {
                let places = all(Some(chunk));
                assert_eq!((places.len(), sorted(&places)), (10_000, sorted(&in_order)), "{chunk}");
                let mut last: BTreeMap<u64, u64> = load(None).before().places().map(|p| (p.vbucket, p.seqno)).collect();
                assert_eq!(last.len(), cached.min(VBUCKETS) as usize);
                assert!(places.iter().all(|p| last.insert(p.vbucket, p.seqno).is_none_or(|before| before < p.seqno)), "{chunk}");
            }
            assert_eq!(changes(&all(Some(100))), 1_023, "vbucket by vbucket");
        }
    }

    #[tokio::test]
    async fn nothing_is_late_or_skipped_in_any_order() {
        for chunk in [None, Some(1), Some(5), Some(1_000)] {
            let store = MeteredStore::counting(Arc::new(MemoryStore::new()));
            let start = cold("small", &store, ColdLoad { cached: 0, documents: 20_000, chunk }).await.unwrap();
            assert_eq!((start.late, start.skipped), (0, 0), "{chunk:?}");
        }
    }
}
