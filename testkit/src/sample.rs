//! Made-up entries and batches, from a seed.

use std::sync::Arc;

use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate_core::batch::{ListedBlocks, WriteBatch};
use sluicegate_core::entry::ChannelChange;
use sluicegate_core::{
    BlockCodec, ChangeEntry, Channel, CollectionId, EntryFlags, Epoch, Membership, PartitionId, PartitionSeqno, Sequence,
};

use crate::expect::Expect as _;

/// The channel called `name`, which must be a valid name.
///
/// # Panics
/// If it is none.
pub fn channel(name: &str) -> Channel {
    Channel::new(name).must("name a channel")
}

/// Entry `sequence` of document `document`, in `channels`; a leading `-` means that it leaves the channel.
pub fn entry(sequence: u64, document: &str, channels: &[&str]) -> ChangeEntry {
    let entry = ChangeEntry::new(Sequence(sequence), document, &format!("{sequence}-r"), EntryFlags::default());
    channels.iter().fold(entry.must("make an entry"), |entry, name| match name.strip_prefix('-') {
        Some(left) => entry.with_channel(channel(left), Membership::Removed),
        None => entry.with_channel(channel(name), Membership::Present),
    })
}

/// As [`entry`], in a collection.
pub fn entry_of(collection: CollectionId, sequence: u64, document: &str, channels: &[&str]) -> ChangeEntry {
    entry(sequence, document, channels).with_collection(collection)
}

/// A batch of `entries` without marks, at the very beginning.
pub fn batch(codec: &Arc<dyn BlockCodec>, entries: impl IntoIterator<Item = ChangeEntry>) -> WriteBatch {
    WriteBatch {
        epoch: Epoch { counter: 1, writer: 1 },
        codec: codec.clone(),
        entries: entries.into_iter().map(Arc::new).collect(),
        marks: Vec::new(),
        stable: Sequence::ZERO,
        listed: Arc::new(ListedBlocks::default()),
    }
}

/// Makes batches such as a writer makes: documents are created, revised, moved between channels and deleted; numbers come out of order
/// and some never; marks follow in later batches.
#[derive(Debug)]
pub struct Sampler {
    random: ChaCha8Rng,
    channels: Vec<Channel>,
    /// Each has documents of the same keys, and channels of the same names.
    collections: Vec<CollectionId>,
    /// The sequences of each document.
    documents: Vec<Vec<Sequence>>,
    next: u64,
    unmarked: Vec<Arc<ChangeEntry>>,
    listed: Arc<ListedBlocks>,
}

impl Sampler {
    /// The same batches for the same seed.
    pub fn new(seed: u64) -> Self {
        let names = ["a", "b", "a:b", "[c]", "ü", "*x", "_seq"];
        Sampler {
            random: ChaCha8Rng::seed_from_u64(seed),
            channels: names.map(channel).to_vec(),
            collections: vec![CollectionId::DEFAULT],
            documents: vec![Vec::new(); 20],
            next: 1,
            unmarked: Vec::new(),
            listed: Arc::default(),
        }
    }

    /// Spreads the documents over these collections.
    #[must_use]
    pub fn over(self, collections: impl IntoIterator<Item = CollectionId>) -> Self {
        Sampler { collections: collections.into_iter().collect(), ..self }
    }

    /// The next sequence's entry.
    pub fn entry(&mut self) -> ChangeEntry {
        let sequence = Sequence(self.next);
        self.next += 1 + u64::from(self.random.random_ratio(1, 10)) * self.random.random_range(0..40);
        let document = self.random.random_range(0..self.documents.len());
        let mut flags = EntryFlags::default();
        for (flag, one_in) in [(EntryFlags::DELETED, 8), (EntryFlags::DEPARTURE, 12), (EntryFlags::BRANCHED, 20)] {
            if self.random.random_ratio(1, one_in) {
                flags = flags.with(flag);
            }
        }
        let earlier = &self.documents[document];
        let supersedes: Vec<Sequence> = earlier.iter().rev().take(self.random.random_range(1..4)).copied().collect();
        let (key, collection) = (document / self.collections.len(), self.collections[document % self.collections.len()]);
        let entry = ChangeEntry::new(sequence, &format!("doc{key}"), &format!("{}-x", earlier.len() + 1), flags);
        let mut entry = entry
            .must("make an entry")
            .with_collection(collection)
            .with_origin(PartitionId(self.random.random_range(0..1024)), PartitionSeqno(sequence.0))
            .with_supersedes(supersedes.iter().copied());
        let count = self.random.random_range(0..4);
        let chosen: Vec<Channel> = self.channels.choose_multiple(&mut self.random, count).cloned().collect();
        for channel in chosen {
            let memberships = [Membership::Present, Membership::Present, Membership::Removed, Membership::RemovedByDeletion];
            let membership = memberships[self.random.random_range(0..memberships.len())];
            let since = if self.random.random() { Sequence::ZERO } else { supersedes.iter().copied().min().unwrap_or_default() };
            entry.push_channel(ChannelChange { channel, membership, since });
        }
        self.documents[document].push(sequence);
        entry
    }

    /// A batch of `size` entries, and marks of some earlier ones.
    pub fn batch(&mut self, size: usize, codec: &Arc<dyn BlockCodec>) -> WriteBatch {
        let stable = Sequence(self.random.random_range(0..=self.next));
        let mut entries: Vec<Arc<ChangeEntry>> = (0..size).map(|_| Arc::new(self.entry())).collect();
        entries.shuffle(&mut self.random);
        let marked = self.random.random_range(0..=self.unmarked.len());
        let marks = self.unmarked.drain(..marked).collect();
        self.unmarked.extend(entries.iter().cloned());
        let epoch = Epoch { counter: 1, writer: 1 };
        WriteBatch { epoch, codec: codec.clone(), entries: entries.into(), marks, stable, listed: self.listed.clone() }
    }
}
