//! Removes the documents that a run stored.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use sluicegate_core::batch::LatePage;
use sluicegate_core::commit::read_clock;
use sluicegate_core::meta::Meta;
use sluicegate_core::{BlockIndex, CacheKey, CacheStore, Channel, CollectionId, DocumentId, Result, Sequence};

use super::gateway::Used;

/// Parallel removals.
const PARALLEL: usize = 64;

/// Removes every document that the cache of a run with these events may have, in its own namespace.
pub(super) async fn clear(store: &Arc<dyn CacheStore>, used: &Used, feed: &str) -> Result<()> {
    let Some(meta) = store.get(&CacheKey::Meta).await? else { return Ok(()) };
    let meta = Meta::from_bytes(&meta.value)?;
    let (late, batch) = read_clock(store.as_ref()).await?.map_or((0, 0), |clock| (clock.value.late, clock.value.batch));
    let capacity = u64::from(meta.capacity.max(1));
    let blocks: BTreeSet<u64> = used.sequences.iter().map(|sequence| sequence / capacity).collect();
    // Batches that were committed and not announced are beyond the clock's.
    let slots = 0..meta.ring.min(batch + 16);
    let collections = used.collections.iter().copied().chain([0]).collect::<BTreeSet<u32>>().into_iter().map(CollectionId);
    let mut channels = Vec::new();
    for collection in collections {
        channels.push(Channel::star_of(collection));
        for name in &used.channels {
            channels.push(Channel::of(collection, name)?);
        }
    }
    let of_channels = channels.iter().flat_map(|channel| {
        let of_channel = [CacheKey::Directory(channel.clone()), CacheKey::Counter(channel.clone())];
        blocks.iter().map(|index| CacheKey::Block(channel.clone(), BlockIndex(*index))).chain(of_channel)
    });
    let keys = used.sequences.iter().map(|sequence| CacheKey::Sequence(Sequence(*sequence)));
    let keys = keys.chain(
        used.documents.iter().map(|(collection, id)| CacheKey::Document(DocumentId::new(CollectionId(*collection), id.as_str()))),
    );
    let keys = keys.chain(of_channels).chain(slots.map(CacheKey::Batch));
    let keys = keys.chain((0..=LatePage::of(late)).map(CacheKey::Late)).chain([0, 1].map(CacheKey::Missing));
    // The documents by which it is a cache go last.
    let keys = keys.chain([
        CacheKey::Checkpoint(feed.to_owned()),
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
