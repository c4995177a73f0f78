//! The commit and publish algorithms over the six primitives, for stores that have nothing better.
//!
//! Each step only after the one before is acknowledged where the arrow says so (cache format, "Batch commit"): sequence documents and blocks,
//! in parallel → directories and counters, in parallel → pointers, if there are any → late pages → batch record → checkpoint → clock.
//! Everything before the clock may be repeated, or cut short anywhere, without a reader noticing.

mod term;
mod update;

use futures::{StreamExt as _, TryStreamExt as _};

pub use term::{TakenOver, take_over};
#[cfg(feature = "runtime")]
pub(crate) use term::{begin_term, stamp_checkpoint};
pub(crate) use update::CAS_ROUNDS;
pub use update::{update, update_many};

use crate::batch::{BatchRecord, BlockDelta, Checkpoint, CommitReceipt, Entries, LatePage, Publication, WriteBatch};
use crate::block::{Block, BlockCodec};
use crate::channel::Channel;
use crate::clock::{Epoch, PublishedClock};
#[cfg(feature = "runtime")]
use crate::collections::Collections;
use crate::directory::Directory;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{BlockIndex, CacheKey};
use crate::pointer::Pointer;
use crate::store::{CacheStore, Expiry, PARALLEL, Versioned, Write};

/// The provided [`CacheStore::merge_block`].
pub async fn merge_block<S: CacheStore + ?Sized>(store: &S, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<u32> {
    merge_blocks(store, std::slice::from_ref(delta), codec).await.map(|live| live.into_iter().sum())
}

/// Raises the states of several blocks, by reading and writing them; how many of the sequences of each are live afterwards.
///
/// # Errors
/// As [`CacheStore::merge_block`].
pub async fn merge_blocks<S: CacheStore + ?Sized>(store: &S, deltas: &[BlockDelta], codec: &dyn BlockCodec) -> Result<Vec<u32>> {
    let keys: Vec<CacheKey> = deltas.iter().map(|delta| CacheKey::Block(delta.channel.clone(), delta.index)).collect();
    let mut live = vec![0; deltas.len()];
    let live_out = &mut live;
    update_many(store, &keys, |at, stored| {
        let mut block = match stored {
            Some(bytes) => codec.decode(bytes)?,
            None => Block::new(codec.capacity()),
        };
        let changed = deltas[at].apply(&mut block);
        live_out[at] = block.live_count();
        Ok((changed || stored.is_none()).then(|| codec.encode(&block)))
    })
    .await?;
    Ok(live)
}

/// The provided [`CacheStore::commit`].
pub async fn store_batch<S: CacheStore + ?Sized>(store: &S, batch: &WriteBatch) -> Result<CommitReceipt> {
    let deltas = batch.block_deltas();

    let merges = deltas.iter().map(|delta| store.merge_block(delta, batch.codec.as_ref())).collect();
    let ((), live) = futures::future::try_join(insert_entries(store, &batch.entries), in_parallel(merges)).await?;

    let listings = list_blocks(store, batch, &deltas);
    let mut channels: Vec<&Channel> = deltas.iter().map(|d| &d.channel).collect();
    channels.dedup();
    let counts = channels.into_iter().map(|channel| count(store, channel)).collect();
    futures::future::try_join(listings, in_parallel::<_, ()>(counts)).await?;

    let emptied = deltas.into_iter().zip(live).filter(|(_, live)| *live == 0).map(|(delta, _)| (delta.channel, delta.index));
    Ok(CommitReceipt { emptied: emptied.collect() })
}

/// Adds the missing collections to the stored list. It only adds, so a deposed writer that does not
/// know it does no harm.
#[cfg(feature = "runtime")]
pub(crate) async fn register_collections<S: CacheStore + ?Sized>(store: &S, collections: &Collections) -> Result<()> {
    update(store, &CacheKey::Collections, |stored| {
        let mut known = stored.map(Collections::from_bytes).transpose()?.unwrap_or_default();
        Ok(known.merge(collections).then(|| known.to_bytes()))
    })
    .await
}

/// Runs all, [`PARALLEL`] at a time; their results in order, or the first error.
async fn in_parallel<F: Future<Output = Result<T>> + Send, T: Send>(futures: Vec<F>) -> Result<Vec<T>> {
    futures::stream::iter(futures).buffered(PARALLEL).try_collect().await
}

/// Writes the pointers of what is about to be published over the clock `last`, if it can be. For stores that publish natively: before the record and
/// the checkpoint.
///
/// Not in `commit`: several batches commit at once, and a pointer must not pass an entry that is not stored. An entry that is stored names
/// what it supersedes, while a pointer that has moved on no longer does (ARCHITECTURE.md, "Superseded rows").
///
/// # Errors
/// `Corrupt`, naming the key, for a pointer that cannot be read; as [`still_there`], before any is written; what the store says.
pub async fn store_pointers<S: CacheStore + ?Sized>(
    store: &S,
    publication: &Publication,
    last: &Versioned<PublishedClock>,
) -> Result<()> {
    if publication.pointers.is_empty() {
        return Ok(());
    }
    still_there(store, publication.clock.epoch, last).await?;
    write_pointers(store, publication).await
}

async fn write_pointers<S: CacheStore + ?Sized>(store: &S, publication: &Publication) -> Result<()> {
    let mut pointers: Vec<&Pointer> = publication.pointers.iter().collect();
    pointers.sort_by_key(|pointer| pointer.document());
    let of_documents: Vec<&[&Pointer]> = pointers.chunk_by(|a, b| a.document() == b.document()).collect();
    let keys: Vec<CacheKey> = of_documents.iter().map(|of| CacheKey::Document(of[0].document().into())).collect();
    update_many(store, &keys, |at, stored| {
        let (first, more) = (of_documents[at][0], &of_documents[at][1..]);
        let (mut merged, mut changed) = match stored {
            Some(stored) => {
                let mut stored = Pointer::from_bytes(stored, first.document())?;
                let changed = stored.merge(first);
                (stored, changed)
            }
            None => (first.clone(), true),
        };
        for pointer in more {
            changed |= merged.merge(pointer);
        }
        Ok(changed.then(|| merged.to_bytes()))
    })
    .await
}

async fn insert_entries<S: CacheStore + ?Sized>(store: &S, entries: &Entries) -> Result<()> {
    let keys = entries.iter().map(|entry| CacheKey::Sequence(entry.position()));
    let writes = keys.zip(entries.documents()).map(|(key, value)| Write { key, expected: None, value });
    for (entry, written) in entries.iter().zip(store.write_many(writes.collect()).await) {
        match written {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                return Err(e.with_context("key", CacheKey::Sequence(entry.position())));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn count<S: CacheStore + ?Sized>(store: &S, channel: &Channel) -> Result<()> {
    let key = CacheKey::Counter(channel.clone());
    store.increment(&key, 1).await.map(drop).map_err(|e| e.with_context("key", &key))
}

/// Puts the blocks that got rows into their channels' directories. For stores that commit natively: after the blocks.
///
/// # Errors
/// `Corrupt`, naming the key, for a directory that cannot be read; what the store says.
pub async fn list_blocks<S: CacheStore + ?Sized>(store: &S, batch: &WriteBatch, deltas: &[BlockDelta]) -> Result<()> {
    let listed: Vec<&BlockDelta> = deltas.iter().filter(|delta| must_list(batch, delta)).collect();
    let of_channels: Vec<&[&BlockDelta]> = listed.chunk_by(|a, b| a.channel == b.channel).collect();
    let keys: Vec<CacheKey> = of_channels.iter().map(|of| CacheKey::Directory(of[0].channel.clone())).collect();
    update_many(store, &keys, |at, stored| {
        let deltas = of_channels[at];
        let mut directory = match stored {
            Some(bytes) => Directory::from_bytes(bytes, &deltas[0].channel)?,
            None => Directory::new(deltas[0].channel.clone()),
        };
        let mut changed = false;
        for delta in deltas {
            changed |= directory.list(delta.index) || is_droppable(batch, delta);
        }
        directory.generation += 1;
        Ok(changed.then(|| directory.to_bytes()))
    })
    .await?;
    for delta in listed {
        batch.listed.insert(&delta.channel, delta.index);
    }
    Ok(())
}

/// Whether a block may be dropped meanwhile: then the directory is rewritten even if it lists the block, so that a drop decided before our merge
/// fails on the version (see `Directory`).
fn is_droppable(batch: &WriteBatch, delta: &BlockDelta) -> bool {
    Block::range(delta.index, batch.codec.capacity()).last() <= batch.stable
}

/// Whether [`list_blocks`] has something to do for a block.
pub fn must_list(batch: &WriteBatch, delta: &BlockDelta) -> bool {
    delta.adds_rows && (is_droppable(batch, delta) || !batch.listed.contains(&delta.channel, delta.index))
}

/// Drops blocks in which nothing is live from their directories, if that still holds when it is looked at; how many were dropped.
/// Only for blocks wholly at or below the published stable sequence.
pub async fn drop_blocks<S: CacheStore + ?Sized>(
    store: &S,
    mut blocks: Vec<(Channel, BlockIndex)>,
    codec: &dyn BlockCodec,
) -> Result<usize> {
    blocks.sort_unstable();
    let of_channels: Vec<&[(Channel, BlockIndex)]> = blocks.chunk_by(|(a, _), (b, _)| a == b).collect();
    let mut directories = Vec::new();
    let keys: Vec<CacheKey> = of_channels.iter().map(|of| CacheKey::Directory(of[0].0.clone())).collect();
    for ((of, key), stored) in of_channels.into_iter().zip(&keys).zip(store.get_many(&keys).await?) {
        if let Some(stored) = stored {
            let directory = Directory::from_bytes(&stored.value, &of[0].0).map_err(|e| e.with_context("key", key))?;
            directories.push((of, key, directory, stored.version));
        }
    }
    // After the directories: whoever adds a row to one of them from here on rewrites its directory.
    let wanted = directories.iter().flat_map(|(of, ..)| of.iter());
    let block_keys: Vec<CacheKey> = wanted.map(|(channel, index)| CacheKey::Block(channel.clone(), *index)).collect();
    let mut found = block_keys.iter().zip(store.get_many(&block_keys).await?);
    let (mut writes, mut counts) = (Vec::new(), Vec::new());
    for (of, key, mut directory, version) in directories {
        let mut dropped = 0;
        for ((_, index), (block_key, stored)) in of.iter().zip(&mut found) {
            let block = stored.map(|stored| codec.decode(&stored.value)).transpose();
            let is_live = block.map_err(|e| e.with_context("key", block_key))?.is_some_and(|block| block.live_count() > 0);
            dropped += usize::from(!is_live && directory.unlist(*index));
        }
        if dropped > 0 {
            directory.generation += 1;
            writes.push(Write { key: key.clone(), expected: Some(version), value: directory.to_bytes() });
            counts.push(dropped);
        }
    }
    let keys: Vec<CacheKey> = writes.iter().map(|write| write.key.clone()).collect();
    let mut dropped = 0;
    for ((written, count), key) in store.write_many(writes).await.into_iter().zip(counts).zip(keys) {
        match written {
            Ok(_) => dropped += count,
            // Someone wrote the directory meanwhile; the blocks stay listed, which costs a read and hides nothing.
            Err(e) if e.kind() == ErrorKind::Conflict => {}
            Err(e) => return Err(e.with_context("key", key)),
        }
    }
    Ok(dropped)
}

fn fenced(epoch: Epoch, by: Epoch) -> Error {
    Error::new(ErrorKind::Fenced, format!("epoch {epoch} is over: epoch {by} has taken over; campaign again"))
}

/// Refuses to write over what another writer of the same or a later epoch wrote. For stores that publish natively.
///
/// # Errors
/// `Fenced`, naming both epochs.
pub fn guard(mine: Epoch, stored: Epoch) -> Result<()> {
    if stored == mine || mine.supersedes(stored) { Ok(()) } else { Err(fenced(mine, stored)) }
}

/// The provided [`CacheStore::publish`].
pub async fn publish<S: CacheStore + ?Sized>(
    store: &S,
    publication: &Publication,
    last: &Versioned<PublishedClock>,
) -> Result<Versioned<PublishedClock>> {
    let epoch = publication.clock.epoch;
    still_there(store, epoch, last).await?;
    write_pointers(store, publication).await?;
    append_late(store, epoch, &publication.record).await?;

    let record = publication.record.to_bytes();
    update(store, &CacheKey::Batch(publication.record.number % publication.ring.max(1)), |stored| {
        if let Some(stored) = stored {
            guard(epoch, BatchRecord::from_bytes(stored)?.epoch)?;
        }
        Ok(Some(record.clone()))
    })
    .await?;

    if let Some((feed, checkpoint)) = &publication.checkpoint {
        update(store, &CacheKey::Checkpoint(feed.clone()), |stored| {
            if let Some(stored) = stored {
                guard(epoch, Checkpoint::from_bytes(stored)?.epoch)?;
            }
            Ok(Some(checkpoint.to_bytes()))
        })
        .await?;
    }

    replace_clock(store, &publication.clock, last).await
}

/// The stored clock, if nothing that the writer of `last` knows to be stored was lost. Before anything of a publication is written: a checkpoint or a
/// pointer over an older state would pass what was lost, and no later writer would look for it.
///
/// # Errors
/// `Corrupt` if something was lost; `Fenced` if a later epoch has taken over.
pub async fn still_there<S: CacheStore + ?Sized>(
    store: &S,
    epoch: Epoch,
    last: &Versioned<PublishedClock>,
) -> Result<Versioned<PublishedClock>> {
    let known = read_clock(store).await?.ok_or_else(clock_lost)?;
    guard(epoch, known.value.epoch)?;
    if let Some(why) = known.value.lost_since(&last.value) {
        return Err(writes_lost(why).with_context("key", CacheKey::Clock));
    }
    Ok(known)
}

async fn append_late<S: CacheStore + ?Sized>(store: &S, epoch: Epoch, record: &BatchRecord) -> Result<()> {
    for (key, entries) in record.late_pages() {
        update(store, &key, |stored| {
            let mut stored = stored.map(LatePage::from_bytes).transpose()?.unwrap_or_default();
            guard(epoch, stored.epoch)?;
            stored.append(epoch, entries);
            Ok(Some(stored.to_bytes()))
        })
        .await?;
    }
    Ok(())
}

async fn replace_clock<S: CacheStore + ?Sized>(
    store: &S,
    clock: &PublishedClock,
    last: &Versioned<PublishedClock>,
) -> Result<Versioned<PublishedClock>> {
    let mut known = last.clone();
    for _ in 0..CAS_ROUNDS {
        if let Some(why) = clock.lost_since(&known.value) {
            return Err(Error::new(ErrorKind::Unexpected, format!("refused to publish a clock that goes back: {why}"))
                .with_context("key", CacheKey::Clock));
        }
        match store.replace(&CacheKey::Clock, clock.to_bytes(), known.version, Expiry::Never).await {
            Ok(version) => return Ok(Versioned { value: clock.clone(), version }),
            Err(e) if e.kind() == ErrorKind::Conflict => {}
            Err(e) => return Err(e.with_context("key", CacheKey::Clock)),
        }
        known = still_there(store, clock.epoch, last).await?;
        if known.value.batch >= clock.batch {
            // An earlier try whose outcome was unknown did apply.
            return Ok(known);
        }
    }
    Err(Error::new(ErrorKind::Conflict, "the clock could not be replaced").with_context("key", CacheKey::Clock))
}

/// The error of a store that does not have what it acknowledged; `why` says how that shows.
pub fn writes_lost(why: &str) -> Error {
    Error::corrupt(format!(
        "{why}: the store lost what it had acknowledged; start the writer again, and open the cache again to read it"
    ))
}

/// The error of a clock that was there and is gone.
pub fn clock_lost() -> Error {
    writes_lost("the published clock is gone").with_context("key", CacheKey::Clock)
}

/// The published clock, if there is a cache.
///
/// # Errors
/// `Corrupt`, naming the key, if it cannot be read.
pub async fn read_clock<S: CacheStore + ?Sized>(store: &S) -> Result<Option<Versioned<PublishedClock>>> {
    let Some(found) = store.get(&CacheKey::Clock).await? else { return Ok(None) };
    let value = PublishedClock::from_bytes(&found.value).map_err(|e| e.with_context("key", CacheKey::Clock))?;
    Ok(Some(Versioned { value, version: found.version }))
}
