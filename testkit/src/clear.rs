//! Removes a whole cache from a store that has no way to remove a namespace.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use sluicegate_core::batch::LatePage;
use sluicegate_core::commit::read_clock;
use sluicegate_core::meta::Meta;
use sluicegate_core::sequence::RangeSet;
use sluicegate_core::{BlockIndex, CacheKey, CacheStore, Channel, DocumentId, Result, Sequence};

/// Parallel removals.
const PARALLEL: usize = 64;

/// The names and numbers that a cache was made of, by which all its documents are found.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The name of the feed's checkpoint.
    pub feed: String,
    /// Sequences that may have entries.
    pub sequences: RangeSet,
    /// The channels, the star channels among them.
    pub channels: BTreeSet<Channel>,
    /// The documents, if there may be pointers.
    pub documents: BTreeSet<DocumentId>,
}

/// Removes every document that a cache of these contents may have. Nothing is removed from a store
/// without a cache.
///
/// # Errors
/// `Corrupt` if the cache's description or clock cannot be read; what the store says.
pub async fn clear(store: &Arc<dyn CacheStore>, contents: &Contents) -> Result<()> {
    let Some(meta) = store.get(&CacheKey::Meta).await? else { return Ok(()) };
    let meta = Meta::from_bytes(&meta.value)?;
    let (late, batch) = read_clock(store.as_ref()).await?.map_or((0, 0), |clock| (clock.value.late, clock.value.batch));
    let capacity = u64::from(meta.capacity.max(1));
    let Contents { feed, sequences, channels, documents } = contents;
    let blocks: BTreeSet<u64> = sequences.iter().flat_map(|(first, last)| first / capacity..=last / capacity).collect();
    // Batches that were committed and not announced are beyond the clock's.
    let slots = 0..meta.ring.min(batch + 16);
    let of_channels = channels.iter().flat_map(|channel| {
        let of_channel = [CacheKey::Directory(channel.clone()), CacheKey::Counter(channel.clone())];
        blocks.iter().map(|index| CacheKey::Block(channel.clone(), BlockIndex(*index))).chain(of_channel)
    });
    let keys = sequences.iter().flat_map(|(first, last)| first..=last).map(|sequence| CacheKey::Sequence(Sequence(sequence)));
    let keys = keys.chain(documents.iter().map(|document| CacheKey::Document(document.clone())));
    let keys = keys.chain(of_channels).chain(slots.map(CacheKey::Batch));
    let keys = keys.chain((0..=LatePage::of(late)).map(CacheKey::Late)).chain([0, 1].map(CacheKey::Missing));
    // The documents by which it is a cache go last.
    let keys = keys.chain([
        CacheKey::Checkpoint(feed.clone()),
        CacheKey::Writer,
        CacheKey::Intent,
        CacheKey::Collections,
        CacheKey::Clock,
        CacheKey::Meta,
    ]);
    let removals = keys.map(|key| {
        let store = store.clone();
        async move { store.remove(&key, None).await }
    });
    futures::stream::iter(removals).buffered(PARALLEL).try_collect().await
}
