//! What committing a batch of 500 entries costs: one channel an entry beside the star channel, of 1,000 channels.

use std::sync::Arc;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use futures::FutureExt as _;
use sluicegate_core::batch::WriteBatch;
use sluicegate_core::block::Block;
use sluicegate_core::{BlockCodec, CacheStore, ChangeEntry, Channel, EntryFlags, Epoch, Membership, Result, Sequence};
use sluicegate_memory::MemoryStore;

fn main() {
    divan::main();
}

const BATCH: u64 = 500;

/// The result of a future that never waits.
fn now<T>(future: impl Future<Output = Result<T>>) -> T {
    future.now_or_never().expect("memory never waits").expect("memory never fails")
}

/// A commit encodes nothing, so only the capacity of the codec matters here.
#[derive(Debug)]
struct Unwritten;

impl BlockCodec for Unwritten {
    fn name(&self) -> &'static str {
        "unwritten"
    }

    fn capacity(&self) -> u32 {
        10_000
    }

    fn encode(&self, _: &Block) -> Bytes {
        Bytes::new()
    }

    fn decode(&self, _: &[u8]) -> Result<Block> {
        Ok(Block::new(self.capacity()))
    }
}

struct Batches {
    channels: Vec<Channel>,
    codec: Arc<dyn BlockCodec>,
    next: u64,
    supersede: bool,
}

impl Batches {
    fn new(channels: usize, supersede: bool) -> Self {
        let channels = (0..channels).map(|n| Channel::new(&format!("channel-{n}")).expect("a valid name")).collect();
        Batches { channels, codec: Arc::new(Unwritten), next: 1, supersede }
    }

    fn next(&mut self) -> WriteBatch {
        let entries: Vec<_> = (self.next..self.next + BATCH).map(|n| self.entry(n)).collect();
        let stable = Sequence(self.next - 1);
        self.next += BATCH;
        let marks = if self.supersede { entries.clone() } else { Vec::new() };
        WriteBatch {
            epoch: Epoch::default(),
            codec: self.codec.clone(),
            entries: entries.into(),
            marks,
            stable,
            listed: Arc::default(),
        }
    }

    fn entry(&self, n: u64) -> Arc<ChangeEntry> {
        // Any fixed order that is not the order of the channels.
        let channel = &self.channels[(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize % self.channels.len()];
        let entry = ChangeEntry::new(Sequence(n), &format!("document-{n}"), "1-0123456789abcdef", EntryFlags::default());
        let entry = entry.expect("a short id").with_channel(channel.clone(), Membership::Present);
        let old = (self.supersede && n > 5000).then(|| Sequence(n - 5000));
        Arc::new(entry.with_supersedes(old))
    }
}

fn commit(bencher: Bencher<'_, '_>, mut batches: Batches) {
    let store = MemoryStore::new();
    for _ in 0..100 {
        now(store.commit(&batches.next()));
    }
    bencher.counter(ItemsCount::new(BATCH)).with_inputs(|| batches.next()).bench_local_refs(|batch| now(store.commit(batch)));
}

/// Entries of new documents.
#[divan::bench(args = [1, 1000, 100_000], sample_count = 2000)]
fn new_documents(bencher: Bencher<'_, '_>, channels: usize) {
    commit(bencher, Batches::new(channels, false));
}

/// Each entry supersedes an older one in its channel and in the star channel.
#[divan::bench(args = [1, 1000], sample_count = 2000)]
fn revisions(bencher: Bencher<'_, '_>, channels: usize) {
    commit(bencher, Batches::new(channels, true));
}

/// Entries read back by sequence, 500 a call.
#[divan::bench(sample_count = 2000)]
fn entries(bencher: Bencher<'_, '_>) {
    let store = MemoryStore::new();
    let mut batches = Batches::new(1000, false);
    for _ in 0..100 {
        now(store.commit(&batches.next()));
    }
    let sequences: Vec<Sequence> = (0..BATCH).map(|n| Sequence(1 + n * 97)).collect();
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| now(store.entries(&sequences)));
}
