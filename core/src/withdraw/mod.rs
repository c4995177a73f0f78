//! Taking entries back: what the feed delivered and its producer has lost (ARCHITECTURE.md,
//! "Rollback").
//!
//! What is gone is announced first, in a batch record, and that decides it. All that follows is
//! written by compare-and-swap under the writer's term, and may be repeated whole, by whoever finds
//! that record to be the last.

mod plan;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};

use crate::batch::{Floor, LatePage, entry_states};
use crate::block::{Block, BlockCodec};
use crate::channel::Channel;
use crate::commit::TakenOver;
use crate::directory::Directory;
use crate::document::DocumentRef;
use crate::entry::ChangeEntry;
use crate::error::{Error, ErrorKind, Result};
use crate::feed::PartitionId;
use crate::fenced::{Change, Fenced};
use crate::key::{BlockIndex, CacheKey};
use crate::pointer::Pointer;
use crate::scan;
use crate::sequence::{Sequence, SequenceRange};
use crate::store::{CacheStore, PARALLEL};

pub(crate) use plan::{BySequence, Gone, Plan};
use plan::{Edit, Edits, edited, replaced};

/// What is looked for: entries that came from after a seqno of a partition.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    /// By partition, the last seqno that holds.
    pub(crate) after: BTreeMap<PartitionId, u64>,
    /// Only what it leaves is looked through, and what is named there.
    pub(crate) floor: Floor,
    /// How many late entries there are.
    pub(crate) late: u64,
    /// Numbers that nothing accounts for: a writer that crashed may have stored their documents,
    /// and nothing else.
    pub(crate) probe: Vec<SequenceRange>,
    /// How many entries there may be.
    pub(crate) limit: usize,
}

impl Search {
    fn wants(&self, entry: &ChangeEntry) -> bool {
        let origin = entry.origin();
        self.after.get(&origin.partition).is_some_and(|after| origin.seqno.0 > *after)
    }

    /// Everything that is stored and wanted.
    ///
    /// A star channel's block in which nothing is live may not be listed. But the newest entry of a
    /// document is live, and names those before.
    ///
    /// # Errors
    /// `RolledBack` if there are more than the limit; what the store says.
    pub(crate) async fn run(&self, store: &dyn CacheStore, codec: &dyn BlockCodec) -> Result<Vec<Arc<ChangeEntry>>> {
        let (above, late) = match self.late_entries(store).await? {
            Some(late) => (self.floor.stable, late),
            None => (Sequence::ZERO, Vec::new()),
        };
        let mut found = BySequence::new();
        let mut take = |entry: Arc<ChangeEntry>| {
            if self.wants(&entry) {
                found.insert(entry.position(), entry);
            }
            if found.len() <= self.limit { Ok(()) } else { Err(too_many(self.limit)) }
        };
        if let Some(range) = SequenceRange::new(above.next(), Sequence::MAX) {
            for star in scan::stars(store).await? {
                scan::for_each(store, codec, &star, range, &mut take).await?;
            }
        }
        let mut probe: Vec<Sequence> =
            self.probe.iter().flat_map(|range| range.first().0..=range.last().0).map(Sequence).collect();
        // A take-over after a withdrawal announces restored entries again, so an entry may be late
        // twice.
        probe.extend(late);
        probe.sort_unstable();
        probe.dedup();
        for page in probe.chunks(scan::PAGE) {
            store.entries(page).await?.into_iter().flatten().try_for_each(&mut take)?;
        }
        let mut asked = HashSet::new();
        let mut next: Vec<Sequence> = named(found.values());
        while !next.is_empty() {
            next.retain(|number| !found.contains_key(number) && asked.insert(*number));
            let mut more = BySequence::new();
            for page in next.chunks(scan::PAGE) {
                let wanted = store.entries(page).await?.into_iter().flatten().filter(|entry| self.wants(entry));
                more.extend(wanted.map(|entry| (entry.position(), entry)));
            }
            next = named(more.values());
            found.extend(more);
            if found.len() > self.limit {
                return Err(too_many(self.limit));
            }
        }
        Ok(found.into_values().collect())
    }
}

impl Search {
    /// The late entries that the floor leaves; none if that cannot be told.
    async fn late_entries(&self, store: &dyn CacheStore) -> Result<Option<Vec<Sequence>>> {
        let mut late = Vec::new();
        if self.floor.late >= self.late {
            return Ok(Some(late));
        }
        for page in LatePage::of(self.floor.late + 1)..=LatePage::of(self.late) {
            let stored = store.get(&CacheKey::Late(page)).await?;
            let Some(Ok(page)) = stored.map(|stored| LatePage::from_bytes(&stored.value)) else { return Ok(None) };
            late.extend(page.entries.iter().filter(|late| late.number > self.floor.late).map(|late| late.sequence));
        }
        // A repair that does not know which entry has a number says 0.
        Ok((!late.contains(&Sequence::ZERO)).then_some(late))
    }
}

fn too_many(limit: usize) -> Error {
    let message = format!("the feed took back more than {limit} entries, the limit max_taken_back");
    Error::new(ErrorKind::RolledBack, message).with_next_step("raise it, or make the cache anew in another namespace")
}

fn named<'a>(entries: impl Iterator<Item = &'a Arc<ChangeEntry>>) -> Vec<Sequence> {
    let numbers: BTreeSet<Sequence> = entries.flat_map(|entry| entry.supersedes()).copied().collect();
    numbers.into_iter().collect()
}

/// Plans the withdrawal of `gone`; also the stored entries of what these say to be superseded.
pub(crate) async fn plan(store: &dyn CacheStore, codec: &dyn BlockCodec, gone: &Gone) -> Result<(Plan, BySequence)> {
    let mut numbers = named(gone.entries.values());
    numbers.retain(|number| !gone.entries.contains_key(number));
    let mut stored = BySequence::new();
    for page in numbers.chunks(scan::PAGE) {
        stored.extend(store.entries(page).await?.into_iter().flatten().map(|entry| (entry.position(), entry)));
    }
    Ok((Plan::new(gone, &stored, codec.capacity()), stored))
}

/// Does what follows from the announcement that all these are `gone`, but for removing their
/// documents: in every channel, predecessors are shown again and what is gone is not; directories
/// list what is shown again; pointers point to it. What is shown again, and the pointers as they
/// are then.
pub(crate) async fn hide(
    fenced: Fenced<'_>,
    codec: &dyn BlockCodec,
    gone: &Gone,
) -> Result<(Vec<Arc<ChangeEntry>>, Vec<Pointer>)> {
    let (plan, stored) = plan(fenced.store, codec, gone).await?;
    let shows = |edits: &Edits| edits.values().any(|edit| matches!(edit, Edit::Restore(_)));
    // Those first that show something again: so a document is not gone from a channel in between.
    let (first, then): (Vec<_>, Vec<_>) = plan.blocks.iter().partition(|(_, edits)| shows(edits));
    edit_blocks(fenced, codec, &first).await?;
    edit_blocks(fenced, codec, &then).await?;

    let mut shown: BTreeMap<&Channel, Vec<BlockIndex>> = BTreeMap::new();
    for ((channel, index), _) in first {
        shown.entry(channel).or_default().push(*index);
    }
    let listings = shown.into_iter().map(|(channel, blocks)| list(fenced, channel, blocks)).collect::<Vec<_>>();
    futures::stream::iter(listings).buffer_unordered(PARALLEL).try_collect::<()>().await?;
    let touched: BTreeSet<&Channel> = plan.blocks.keys().map(|(channel, _)| channel).collect();
    for channel in touched {
        fenced.store.increment(&CacheKey::Counter(channel.clone()), 1).await?;
    }
    let pointers = restore_pointers(fenced, &gone.entries, &stored).await?;
    Ok((plan.restored, pointers))
}

async fn edit_blocks(fenced: Fenced<'_>, codec: &dyn BlockCodec, blocks: &[(&(Channel, BlockIndex), &Edits)]) -> Result<()> {
    let edits = blocks.iter().map(|((channel, index), edits)| edit_block(fenced, codec, channel, *index, edits));
    futures::stream::iter(edits.collect::<Vec<_>>()).buffer_unordered(PARALLEL).try_collect().await
}

async fn edit_block(
    fenced: Fenced<'_>,
    codec: &dyn BlockCodec,
    channel: &Channel,
    index: BlockIndex,
    edits: &Edits,
) -> Result<()> {
    let key = CacheKey::Block(channel.clone(), index);
    let change = |stored: Option<&[u8]>| {
        let block = stored.map_or_else(|| Ok(Block::new(codec.capacity())), |stored| codec.decode(stored))?;
        let edited = edited(&block, edits);
        Ok(edited.map_or(Change::Keep, |block| Change::Put(codec.encode(&block))))
    };
    fenced.rewrite(&key, change).await.map(drop)
}

/// Lists blocks that show something again. Written in any case: whoever drops one of them by what
/// it was must find another version, see
/// [`Directory`].
async fn list(fenced: Fenced<'_>, channel: &Channel, blocks: Vec<BlockIndex>) -> Result<()> {
    let change = |stored: Option<&[u8]>| {
        let mut directory = match stored {
            Some(bytes) => Directory::from_bytes(bytes, channel)?,
            None => Directory::new(channel.clone()),
        };
        for index in &blocks {
            directory.list(*index);
        }
        directory.generation += 1;
        Ok(Change::Put(directory.to_bytes()))
    };
    fenced.rewrite(&CacheKey::Directory(channel.clone()), change).await.map(drop)
}

/// Takes pointers back to what survives, where there are any; as they are then.
async fn restore_pointers(fenced: Fenced<'_>, gone: &BySequence, stored: &BySequence) -> Result<Vec<Pointer>> {
    let documents: BTreeSet<DocumentRef<'_>> = gone.values().map(|entry| entry.document()).collect();
    let keys: Vec<CacheKey> = documents.iter().map(|id| CacheKey::Document((*id).into())).collect();
    let mut found = Vec::new();
    for ((document, key), stored) in documents.into_iter().zip(&keys).zip(fenced.store.get_many(&keys).await?) {
        if let Some(stored) = stored {
            let pointer = Pointer::from_bytes(&stored.value, document).map_err(|e| e.with_context("key", key))?;
            found.push((document, key, pointer));
        }
    }
    // What came since, and what is not superseded by what is gone.
    let mut others: Vec<Sequence> = found.iter().flat_map(|(_, _, pointer)| pointer.rows()).collect();
    others.retain(|position| !gone.contains_key(position) && !stored.contains_key(position));
    others.sort_unstable();
    others.dedup();
    let mut stored = stored.clone();
    for page in others.chunks(scan::PAGE) {
        let entries = fenced.store.entries(page).await?.into_iter().flatten();
        stored.extend(entries.map(|entry| (entry.position(), entry)));
    }
    let mut pointers = Vec::new();
    for (document, key, _) in found {
        let mut kept = None;
        let (out, of_it) = (&mut kept, stored.values().filter(|entry| entry.document() == document).map(Arc::as_ref));
        fenced
            .rewrite(key, |bytes| {
                let Some(bytes) = bytes else { return Ok(Change::Keep) };
                let before = Pointer::from_bytes(bytes, document)?;
                let mut pointer = before.clone();
                pointer.withdraw(|row| gone.contains_key(&row), of_it.clone());
                let change = if pointer == before { Change::Keep } else { Change::Put(pointer.to_bytes()) };
                *out = Some(pointer);
                Ok(change)
            })
            .await?;
        pointers.extend(kept);
    }
    Ok(pointers)
}

/// Clears the states at an entry's position in the star channel and in the entry's channels. The
/// entry must not be committed yet.
pub(crate) async fn clear(fenced: Fenced<'_>, codec: &dyn BlockCodec, entry: &ChangeEntry) -> Result<()> {
    let mut blocks: BTreeMap<(Channel, BlockIndex), Edits> = BTreeMap::new();
    entry_states(entry, |change| {
        let (index, offset) = Block::locate(change.sequence, codec.capacity());
        blocks.entry((change.channel.clone(), index)).or_default().insert(offset, Edit::Clear);
    });
    edit_blocks(fenced, codec, &blocks.iter().collect::<Vec<_>>()).await
}

/// Makes sure that these entries, which were just committed and are not published yet, are the
/// stored ones. A writer that crashed, or a deposed one that does not know it, may have stored
/// another entry there that nothing accounts for. Sequence documents stay as first written, so that
/// entry would be shown instead.
pub(crate) async fn confirm(fenced: Fenced<'_>, codec: &dyn BlockCodec, entries: &[Arc<ChangeEntry>]) -> Result<()> {
    for page in entries.chunks(scan::PAGE) {
        let positions: Vec<Sequence> = page.iter().map(|entry| entry.position()).collect();
        let stored = fenced.store.entries(&positions).await?;
        for (entry, stored) in page.iter().zip(stored) {
            let Some(stored) = stored.filter(|stored| stored != entry) else { continue };
            if (stored.document(), stored.revision()) == (entry.document(), entry.revision()) {
                tracing::debug!(
                    sequence = %entry.sequence(),
                    document = %entry.document(),
                    revision = entry.revision(),
                    "the entry of this revision is stored again: it supersedes other sequences, or has other channels"
                );
            } else {
                tracing::warn!(
                    sequence = %entry.sequence(),
                    document = %entry.document(),
                    revision = entry.revision(),
                    found = %stored.document(),
                    found_revision = stored.revision(),
                    "a former writer stored another entry under this sequence; it is replaced, and this document is shown"
                );
            }
            let bytes = entry.to_bytes();
            let change =
                |stored: Option<&[u8]>| Ok(if stored == Some(&bytes[..]) { Change::Keep } else { Change::Put(bytes.clone()) });
            // Blocks first: while the other entry is stored, a retry edits them again.
            let edits = replaced(&stored, entry, codec.capacity());
            edit_blocks(fenced, codec, &edits.iter().collect::<Vec<_>>()).await?;
            if stored.document() != entry.document() {
                // It may have been published, and the checkpoint does not know that.
                let replaced = BySequence::from([(entry.position(), stored)]);
                restore_pointers(fenced, &replaced, &BySequence::new()).await?;
            }
            fenced.rewrite(&CacheKey::Sequence(entry.position()), change).await?;
        }
    }
    Ok(())
}

/// Removes the documents of what is gone and hidden. Where there is another one by now, its number
/// has been given out again, and it stays.
pub(crate) async fn remove(fenced: Fenced<'_>, gone: &[Arc<ChangeEntry>]) -> Result<()> {
    let removals = gone.iter().map(|entry| remove_document(fenced, entry)).collect::<Vec<_>>();
    futures::stream::iter(removals).buffer_unordered(PARALLEL).try_collect().await
}

/// Does what a writer may have left undone that was cut off after its announcement, in the last
/// batch or in the one of a checkpoint that is ahead of the clock. What is gone, and what is shown
/// again.
pub(crate) async fn finish(
    fenced: Fenced<'_>,
    codec: &dyn BlockCodec,
    taken: &TakenOver,
) -> Result<(Gone, Vec<Arc<ChangeEntry>>)> {
    let ahead = match taken.checkpoint.batch {
        batch if batch > taken.clock.value.batch => fenced.store.record(batch, taken.meta.ring).await?,
        _ => None,
    };
    // A batch is begun only when all of a withdrawal before it is done.
    let record = ahead.as_deref().or(taken.record.as_ref());
    let entries: BySequence =
        record.iter().flat_map(|record| &record.gone).map(|entry| (entry.position(), entry.clone())).collect();
    let room = record.iter().flat_map(|record| &record.room).copied().collect();
    let gone = Gone { entries, room };
    if gone.entries.is_empty() {
        return Ok((gone, Vec::new()));
    }
    let (restored, _) = hide(fenced, codec, &gone).await?;
    remove(fenced, &gone.entries()).await?;
    Ok((gone, restored))
}

async fn remove_document(fenced: Fenced<'_>, entry: &ChangeEntry) -> Result<()> {
    let is_it = |bytes: &[u8]| ChangeEntry::from_bytes(bytes).is_ok_and(|stored| stored == *entry);
    let change = |stored: Option<&[u8]>| Ok(if stored.is_some_and(is_it) { Change::Remove } else { Change::Keep });
    fenced.rewrite(&CacheKey::Sequence(entry.position()), change).await.map(drop)
}
