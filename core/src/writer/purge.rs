//! Documents that were deleted from the bucket with all their attributes.
//!
//! A purge names a key and no sequence, so the entries of the document must be searched. Most keys
//! that are deleted without attributes never were documents of the gateway. So purges are
//! collected, and searched together: by one read each if all writers of the cache have kept
//! pointers, and otherwise by reading the star channels once for all.
//!
//! The feed leaves out a purge if the document is made anew soon. Pointers tell: they have a row in
//! a channel that the new document does not name.

use std::sync::Arc;
use std::time::Duration;

use backon::Retryable as _;
use hashbrown::HashMap;
use tokio::time::Instant;

use super::{Writer, backoff, log_retry, name_repair};
use crate::channel::Channel;
use crate::decode::{DecodedDocument, Purged};
use crate::document::{DocumentId, DocumentRef};
use crate::entry::{ChangeEntry, ChannelChange, Origin};
use crate::error::{Error, Result};
use crate::feed::{PartitionId, PartitionPosition, PartitionSeqno};
use crate::key::CacheKey;
use crate::pointer::Pointer;
use crate::scan;
use crate::sequence::{Sequence, SequenceRange};
use crate::store::CacheStore;
use crate::withdraw::BySequence;

/// The limit for purges in one search.
const MAX_GATHERED: usize = 100_000;

/// Searches may take this fraction of the time, as one part in so many.
const DUTY: u32 = 10;

/// The purges of a document that are not carried out yet.
#[derive(Clone, Debug)]
struct Pending {
    partition: PartitionId,
    /// In any order. The feed may roll some of them back.
    purges: Vec<Origin>,
    /// The first revision after each purge that the feed left out, in order.
    made_anew: Vec<MadeAnew>,
    /// The position of its partition before them. A restart continues from there.
    before: Option<PartitionPosition>,
}

impl Pending {
    /// Takes a later revision of the document that was made anew last: it names all channels of the
    /// revisions since. Returns false for one of another document, which was made anew after that.
    fn follow(&mut self, document: &DecodedDocument) -> bool {
        let is_same = |last: &&mut MadeAnew| last.latest.iter().all(|channel| document.names(channel));
        let Some(last) = self.made_anew.last_mut().filter(is_same) else { return false };
        last.latest = named(document);
        true
    }
}

/// A revision of a document whose rows in other channels than it names are from before a purge.
#[derive(Clone, Debug)]
struct MadeAnew {
    origin: Origin,
    /// All channels in which the document has been since it was made anew.
    channels: Vec<Channel>,
    /// The same of its last revision so far.
    latest: Vec<Channel>,
}

/// All channels that a document names.
fn named(document: &DecodedDocument) -> Vec<Channel> {
    let of_entry = document.entry.channels().iter().map(|change| &change.channel);
    of_entry.chain(document.departures.iter().map(|departure| &departure.channel)).cloned().collect()
}

impl MadeAnew {
    /// The position of the purge, as far as it is known: after the last of the `entries` in other
    /// channels.
    fn purge<'a>(&self, entries: impl Iterator<Item = &'a ChangeEntry>) -> Option<Origin> {
        let is_named = |change: &ChannelChange| self.channels.contains(&change.channel);
        let others = entries.filter(|entry| {
            let Origin { partition, seqno, cas } = entry.origin();
            let is_before = match cas {
                0 => partition == self.origin.partition && seqno.0 > 0 && seqno < self.origin.seqno,
                _ => cas < self.origin.cas,
            };
            is_before && !entry.channels().iter().all(is_named)
        });
        let last = others.map(ChangeEntry::origin).max_by_key(|origin| (origin.cas, origin.seqno))?;
        let cas = if last.cas > 0 { last.cas + 1 } else { 0 };
        Some(Origin { partition: last.partition, seqno: PartitionSeqno(last.seqno.0 + 1), cas })
    }
}

/// Purges that are not carried out yet.
#[derive(Debug, Default)]
pub(super) struct Purges {
    pending: HashMap<DocumentId, Pending>,
    /// The time at which the next search may begin; at once if there was none yet.
    next: Option<Instant>,
}

impl Purges {
    /// Takes a purge. `before` is the position of its partition before it.
    pub(super) fn take(&mut self, purged: Purged, origin: Origin, before: Option<PartitionPosition>, now: Instant) {
        self.pending_of(purged.document, origin, before, now).purges.push(origin);
    }

    /// Takes a revision that names all channels of its document, and whose document has a row in
    /// another one. `before` is the position of its partition before it. Returns whether no purge
    /// of the document waits already.
    pub(super) fn take_made_anew(&mut self, document: &DecodedDocument, before: Option<PartitionPosition>, now: Instant) -> bool {
        let entry = &document.entry;
        let pending = self.pending_of(entry.document().into(), entry.origin(), before, now);
        let is_new = pending.purges.is_empty() && pending.made_anew.is_empty();
        if !pending.follow(document) {
            let channels = named(document);
            pending.made_anew.push(MadeAnew { origin: entry.origin(), latest: channels.clone(), channels });
        }
        is_new
    }

    /// Takes a revision of a document whose rows are not those of a purged one.
    pub(super) fn follow(&mut self, document: &DecodedDocument) {
        if !self.pending.is_empty()
            && let Some(pending) = self.pending.get_mut(&document.entry.document())
        {
            pending.follow(document);
        }
    }

    fn pending_of(
        &mut self,
        document: DocumentId,
        origin: Origin,
        before: Option<PartitionPosition>,
        now: Instant,
    ) -> &mut Pending {
        self.next.get_or_insert(now);
        let first = || Pending { partition: origin.partition, purges: Vec::new(), made_anew: Vec::new(), before: before.clone() };
        let pending = self.pending.entry(document).or_insert_with(first);
        if seqno_of(before.as_ref()) < seqno_of(pending.before.as_ref()) {
            pending.before = before;
        }
        pending
    }

    /// The origins of the purges of a document that are not carried out yet. In any order: one that
    /// has waited for a rollback may be older than those that came before it.
    pub(super) fn origins(&self, document: DocumentRef<'_>) -> impl Iterator<Item = Origin> + '_ {
        self.pending.get(&document).into_iter().flat_map(|pending| pending.purges.iter().copied())
    }

    /// The feed has rolled the partition back to `to`.
    pub(super) fn roll_back(&mut self, partition: PartitionId, to: PartitionSeqno) {
        let is_kept = |origin: &Origin| origin.partition != partition || origin.seqno <= to;
        self.pending.retain(|_, pending| {
            pending.purges.retain(is_kept);
            pending.made_anew.retain(|made_anew| is_kept(&made_anew.origin));
            !pending.purges.is_empty() || !pending.made_anew.is_empty()
        });
    }

    /// The time at which they are to be carried out, if there are any.
    pub(super) fn due(&self) -> Option<Instant> {
        let is_full = self.pending.len() >= MAX_GATHERED;
        if is_full { Some(Instant::now()) } else { self.next.filter(|_| !self.pending.is_empty()) }
    }

    /// For each purge that is not carried out yet: its partition, and the position before it.
    pub(super) fn restart_positions(&self) -> impl Iterator<Item = (PartitionId, Option<&PartitionPosition>)> {
        self.pending.values().map(|pending| (pending.partition, pending.before.as_ref()))
    }
}

/// The seqno of a position; 0 if nothing of the partition was known.
pub(super) fn seqno_of(position: Option<&PartitionPosition>) -> u64 {
    position.map_or(0, |position| position.seqno)
}

/// Whether an entry is from before the purge of its document, rather than written after it.
pub(super) fn is_older(entry: &ChangeEntry, purge: Origin) -> bool {
    let origin = entry.origin();
    if origin.cas > 0 && purge.cas > 0 {
        return origin.cas < purge.cas;
    }
    let is_known = purge.seqno.0 > 0 && origin.partition == purge.partition;
    !is_known || origin.seqno < purge.seqno
}

impl Writer {
    /// Removes purged documents, if it is time for that.
    pub(super) async fn purge_due(&mut self) -> Result<()> {
        match self.purges.due() {
            Some(due) if due <= Instant::now() && self.rollbacks.is_settled() => self.purge().await,
            _ => Ok(()),
        }
    }

    /// Removes all purged documents.
    pub(super) async fn purge(&mut self) -> Result<()> {
        if self.purges.pending.is_empty() || !self.rollbacks.is_settled() {
            return Ok(());
        }
        let began = Instant::now();
        self.settle_all().await?;
        let pending = std::mem::take(&mut self.purges.pending);
        let found = self.entries_of(&pending).await.map_err(name_repair);
        let (gone, limits) = match found {
            Ok(found) => found,
            Err(e) => {
                self.purges.pending = pending;
                return Err(e);
            }
        };
        if !gone.is_empty() {
            tracing::info!(
                keys = pending.len(),
                entries = gone.len(),
                "documents have been purged from the bucket; their rows are removed"
            );
            self.remove_purged(gone).await?;
        }
        self.rollbacks.forget(|entry| is_purged(&limits, entry));
        self.dirty = true;
        let gather = Duration::from_millis(self.config.gather_purges_ms);
        self.purges.next = Some(Instant::now() + (began.elapsed() * DUTY).max(gather));
        Ok(())
    }

    /// The entries that the purged documents had, and the purges of each document.
    async fn entries_of(&mut self, pending: &HashMap<DocumentId, Pending>) -> Result<(BySequence, Limits)> {
        let has_pointers = self.has_pointers;
        let (store, codec, policy) = (self.store.clone(), self.codec.clone(), backoff(&self.config));
        let is_wanted = |entry: &ChangeEntry| pending.contains_key(&entry.document());
        let unpublished = self.unpublished.clone();
        let attempt = || async {
            let mut known = BySequence::new();
            let mut positions = unpublished.iter().flat_map(|(first, last)| first..=last).map(Sequence);
            loop {
                let page: Vec<Sequence> = positions.by_ref().take(scan::PAGE).collect();
                if page.is_empty() {
                    break;
                }
                let read = store.entries(&page).await?.into_iter().flatten();
                known.extend(read.filter(|entry| is_wanted(entry)).map(|entry| (entry.position(), entry)));
            }
            if has_pointers {
                for entry in pointed_to(store.as_ref(), pending).await? {
                    known.insert(entry.position(), entry);
                }
            } else {
                for star in scan::stars(store.as_ref()).await?.iter().filter(|star| concerns(pending, star)) {
                    let Some(all) = SequenceRange::new(Sequence::ZERO, Sequence::MAX) else { continue };
                    let take = |entry: Arc<ChangeEntry>| {
                        if is_wanted(&entry) {
                            known.insert(entry.position(), entry);
                        }
                        Ok(())
                    };
                    scan::for_each(store.as_ref(), codec.as_ref(), star, all, take).await?;
                }
            }
            // A block without live rows need not be listed, but live entries name the others. So
            // does a revision that was written after the purge.
            let mut next: Vec<Sequence> = superseded(&known);
            while !next.is_empty() {
                let mut more = BySequence::new();
                for page in next.chunks(scan::PAGE) {
                    let read = store.entries(page).await?.into_iter().flatten();
                    more.extend(read.filter(|entry| is_wanted(entry)).map(|entry| (entry.position(), entry)));
                }
                next = superseded(&more).into_iter().filter(|n| !known.contains_key(n)).collect();
                known.extend(more);
            }
            let limits = limits(pending, &known);
            known.retain(|_, entry| is_purged(&limits, entry));
            Ok((known, limits))
        };
        attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await
    }
}

/// For each document, the purges that were delivered and those that were left out.
type Limits = HashMap<DocumentId, Vec<Origin>>;

fn limits(pending: &HashMap<DocumentId, Pending>, known: &BySequence) -> Limits {
    let mut entries: HashMap<DocumentRef<'_>, Vec<&ChangeEntry>> = HashMap::new();
    for entry in known.values() {
        entries.entry(entry.document()).or_default().push(entry);
    }
    let limits = |(document, pending): (&DocumentId, &Pending)| {
        let own = entries.get(&document.as_ref()).into_iter().flatten().copied();
        let left_out = pending.made_anew.iter().filter_map(|made_anew| made_anew.purge(own.clone()));
        (document.clone(), pending.purges.iter().copied().chain(left_out).collect())
    };
    pending.iter().map(limits).collect()
}

fn is_purged(limits: &Limits, entry: &ChangeEntry) -> bool {
    limits.get(&entry.document()).is_some_and(|purges| purges.iter().any(|purge| is_older(entry, *purge)))
}

fn concerns(pending: &HashMap<DocumentId, Pending>, star: &Channel) -> bool {
    pending.keys().any(|document| document.collection == star.collection())
}

fn superseded(entries: &BySequence) -> Vec<Sequence> {
    let mut numbers: Vec<Sequence> = entries.values().flat_map(|entry| entry.supersedes()).copied().collect();
    numbers.retain(|number| !entries.contains_key(number));
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// The newest entries of the documents, by their pointers.
async fn pointed_to(store: &dyn CacheStore, pending: &HashMap<DocumentId, Pending>) -> Result<Vec<Arc<ChangeEntry>>> {
    let documents: Vec<&DocumentId> = pending.keys().collect();
    let mut rows = Vec::new();
    for some in documents.chunks(scan::PAGE) {
        let keys: Vec<CacheKey> = some.iter().map(|document| CacheKey::Document((*document).clone())).collect();
        for ((document, key), found) in some.iter().zip(&keys).zip(store.get_many(&keys).await?) {
            if let Some(found) = found {
                let pointer = Pointer::from_bytes(&found.value, document.as_ref()).map_err(|e| e.with_context("key", key))?;
                rows.extend(pointer.rows());
            }
        }
    }
    rows.sort_unstable();
    rows.dedup();
    let mut entries = Vec::new();
    for page in rows.chunks(scan::PAGE) {
        entries.extend(store.entries(page).await?.into_iter().flatten());
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EntryFlags;
    use crate::feed::{FeedPosition, PartitionSeqno};
    use crate::writer::rollback::Rollbacks;

    const P: PartitionId = PartitionId(3);

    fn origin(seqno: u64, cas: u64) -> Origin {
        Origin { partition: P, seqno: PartitionSeqno(seqno), cas }
    }

    #[test]
    fn what_was_written_after_a_purge_stays() {
        let entry = |seqno, cas| {
            let entry = ChangeEntry::new(Sequence(1), "d", "1-a", EntryFlags::default()).unwrap();
            entry.with_origin(P, PartitionSeqno(seqno)).with_cas(cas)
        };
        assert!(is_older(&entry(4, 100), origin(5, 101)));
        assert!(!is_older(&entry(6, 102), origin(5, 101)));
        assert!(is_older(&entry(4, 0), origin(5, 101)) && !is_older(&entry(6, 0), origin(5, 101)));
    }

    #[test]
    fn the_latest_of_several_purges_counts_in_whatever_order_they_come() {
        let entry = |cas| {
            let entry = ChangeEntry::new(Sequence(cas), "d", "1-a", EntryFlags::default()).unwrap();
            Arc::new(entry.with_origin(P, PartitionSeqno(cas)).with_cas(cas))
        };
        let entries = [10, 30, 50].map(entry);
        let known: BySequence = entries.iter().map(|entry| (entry.position(), entry.clone())).collect();
        for order in [[20, 40], [40, 20]] {
            let mut purges = Purges::default();
            for cas in order {
                purges.take(Purged { document: "d".into(), cas }, origin(cas, cas), None, Instant::now());
            }
            let limits = limits(&purges.pending, &known);
            assert_eq!(entries.each_ref().map(|entry| is_purged(&limits, entry)), [true, true, false], "{order:?}");
        }
    }

    #[test]
    fn a_purge_that_was_left_out_is_after_the_last_row_in_another_channel() {
        let entry = |cas, name: &str| {
            let entry = ChangeEntry::new(Sequence(cas), "d", "1-a", EntryFlags::default()).unwrap();
            let entry = entry.with_channel(Channel::new(name).unwrap(), crate::Membership::Present);
            Arc::new(entry.with_origin(P, PartitionSeqno(cas)).with_cas(cas))
        };
        let mut purges = Purges::default();
        let mut made_anew = DecodedDocument::from(ChangeEntry::clone(&entry(50, "a")));
        made_anew.names_all_channels = true;
        assert!(purges.take_made_anew(&made_anew, None, Instant::now()));
        assert!(!purges.take_made_anew(&made_anew, None, Instant::now()));
        let entries = [(10, "a"), (20, "b"), (30, "a"), (50, "a"), (60, "b")].map(|(cas, name)| entry(cas, name));
        let known: BySequence = entries.iter().map(|entry| (entry.position(), entry.clone())).collect();
        let limits = limits(&purges.pending, &known);
        let gone: Vec<u64> = entries.iter().filter(|entry| is_purged(&limits, entry)).map(|entry| entry.origin().cas).collect();
        assert_eq!(gone, [10, 20], "30 may be of the new document");
        purges.roll_back(P, PartitionSeqno(49));
        assert!(purges.pending.is_empty());
    }

    #[test]
    fn a_position_stays_before_the_first_purge_that_is_not_carried_out() {
        let at = |seqno| PartitionPosition { seqno, ..Default::default() };
        let mut purges = Purges::default();
        let now = Instant::now();
        let mut take = |key: &str, seqno: u64| {
            let purged = Purged { document: key.into(), cas: 0 };
            purges.take(purged, origin(seqno, 0), seqno.checked_sub(1).filter(|n| *n > 0).map(at), now);
        };
        take("c", 30);
        take("b", 9);
        take("a", 5);
        take("a", 12);
        let limited = |purges: &Purges, seqno| {
            let mut position = FeedPosition { partitions: [(P, at(seqno)), (PartitionId(4), at(7))].into() };
            Rollbacks::default().limit(&mut position, purges.restart_positions());
            (position.partitions.get(&P).map(|at| at.seqno), position.partitions[&PartitionId(4)].seqno)
        };
        purges.roll_back(P, PartitionSeqno(29));
        assert_eq!((purges.pending.len(), limited(&purges, 20)), (2, (Some(4), 7)));
        // The second purge of `a` is rolled back, the first one stays.
        purges.roll_back(P, PartitionSeqno(8));
        assert_eq!((purges.pending.len(), limited(&purges, 20)), (1, (Some(4), 7)));
        assert_eq!(purges.origins("a".into()).map(|origin| origin.seqno.0).collect::<Vec<_>>(), [5]);
        assert_eq!(limited(&purges, 3), (Some(3), 7), "it is before them anyway");
        // It has waited for a rollback.
        purges.take(Purged { document: "a".into(), cas: 0 }, origin(3, 0), Some(at(2)), now);
        assert_eq!(limited(&purges, 20), (Some(2), 7));
        let mut purges = Purges::default();
        purges.take(Purged { document: "a".into(), cas: 0 }, origin(1, 0), None, now);
        assert_eq!(limited(&purges, 20), (None, 7), "nothing was known of the partition");
    }
}
