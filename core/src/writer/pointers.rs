//! Keeping pointers: read ahead with the feed, known in memory until what is read is new enough.

use std::collections::VecDeque;
use std::sync::Arc;

use backon::{ExponentialBuilder, Retryable};
use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use super::items::{DecodedBatch, Item};
use super::{log_retry, name_repair};
use crate::decode::{Decoded, DecodedDocument};
use crate::document::DocumentId;
use crate::entry::ChangeEntry;
use crate::error::{Error, Result};
use crate::key::CacheKey;
use crate::pointer::{Pointer, SequenceOwner};
use crate::sequence::Sequence;
use crate::store::CacheStore;

/// Pointers as they are stored, by document.
pub(super) type Pointers = HashMap<DocumentId, Pointer>;

/// Reads the pointers of a feed batch's documents.
#[derive(Debug)]
pub(super) struct PointerReader {
    store: Option<Arc<dyn CacheStore>>,
    policy: ExponentialBuilder,
    number: u64,
}

impl PointerReader {
    pub(super) fn new(store: Option<Arc<dyn CacheStore>>, policy: ExponentialBuilder, number: u64) -> Self {
        PointerReader { store, policy, number }
    }

    /// Reads them, if there is a store to read them from.
    pub(super) async fn read(self, items: Vec<Item>, bytes: usize) -> Result<DecodedBatch> {
        self.read_all(items, bytes).await.map_err(name_repair)
    }

    async fn read_all(self, items: Vec<Item>, bytes: usize) -> Result<DecodedBatch> {
        let mut batch = DecodedBatch { items, bytes, number: self.number, pointers: HashMap::new() };
        let Some(store) = self.store else { return Ok(batch) };
        let documents = batch.items.iter().filter_map(|item| match item {
            Item::Decoded(_, _, Decoded::Document(document) | Decoded::Foreign(document)) => Some(document.entry.document()),
            _ => None,
        });
        let mut documents: Vec<DocumentId> = documents.map(Into::into).collect();
        documents.sort_unstable();
        documents.dedup();
        let keys: Vec<CacheKey> = documents.iter().cloned().map(CacheKey::Document).collect();
        let attempt = || async { store.get_many(&keys).await };
        let found = attempt.retry(self.policy).when(Error::is_retryable).notify(log_retry).await?;
        for ((document, key), found) in documents.into_iter().zip(&keys).zip(found) {
            if let Some(found) = found {
                let pointer = Pointer::from_bytes(&found.value, document.as_ref()).map_err(|e| e.with_context("key", key))?;
                batch.pointers.insert(document, pointer);
            }
        }
        recall(store.as_ref(), self.policy, &mut batch).await?;
        Ok(batch)
    }
}

/// Gives documents that their pointer has passed already what their stored entries know to be
/// superseded: the pointer no longer does. They are there to be read: a pointer moves on only when
/// everything up to it is stored.
async fn recall(store: &dyn CacheStore, policy: ExponentialBuilder, batch: &mut DecodedBatch) -> Result<()> {
    let mut passed = Vec::new();
    for item in &mut batch.items {
        if let Item::Decoded(_, _, Decoded::Document(document)) = item
            && let Some(row) =
                batch.pointers.get(&document.entry.document()).and_then(|pointer| pointer.row(document.entry.star()))
            && row.number() >= document.entry.sequence()
        {
            passed.push((document, row));
        }
    }
    if passed.is_empty() {
        return Ok(());
    }
    let sequences = |document: &DecodedDocument, row: Sequence| {
        let departures = document.departures.iter().map(|departure| departure.sequence);
        // It may be in a slot, which only the pointer names.
        let own = if row.number() == document.entry.sequence() { row } else { document.entry.sequence() };
        departures.chain([own]).collect::<Vec<Sequence>>()
    };
    let mut wanted: Vec<Sequence> = passed.iter().flat_map(|(document, row)| sequences(document, *row)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let attempt = || async { store.entries(&wanted).await };
    let stored = attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await?;
    for (document, row) in passed {
        for sequence in sequences(document, row) {
            if let Ok(at) = wanted.binary_search(&sequence)
                && let Some(entry) = &stored[at]
            {
                document.recall(entry);
            }
        }
    }
    Ok(())
}

/// Pointers that may be newer than what was read of them: those whose batch is not published, or
/// was after a read began that has not been used yet.
#[derive(Debug, Default)]
pub(super) struct PointerCache {
    newest: HashMap<DocumentId, (Pointer, u64), FxBuildHasher>,
    /// Documents of published batches, and until when they must be kept.
    leaving: VecDeque<(u64, u64, Vec<DocumentId>)>,
    /// Documents that may get no entry, with the number of the batch in which the entry would be.
    without_entry: VecDeque<(u64, DocumentId)>,
}

impl PointerCache {
    /// Works out what a decoded document supersedes, given the pointer that was `read` for it.
    /// `batch` is the batch its entry will be in, `owner` who had its sequence.
    /// Returns whether the rows that the document had before are of a purged one.
    pub(super) fn follow(&mut self, decoded: &mut Decoded, read: &Pointers, batch: u64, owner: SequenceOwner) -> bool {
        let is_shown = matches!(decoded, Decoded::Document(_));
        let (Decoded::Document(document) | Decoded::Foreign(document)) = decoded else { return false };
        if !is_shown && document.departures.is_empty() {
            return false;
        }
        let id = document.entry.document();
        if !self.newest.contains_key(&id) {
            let pointer = read.get(&id).cloned().unwrap_or_else(|| Pointer::new(id));
            self.newest.insert(id.into(), (pointer, batch));
        }
        let Some((pointer, last)) = self.newest.get_mut(&document.entry.document()) else { return false };
        *last = batch;
        if !is_shown || owner == SequenceOwner::Itself {
            self.without_entry.push_back((batch, document.entry.document().into()));
        }
        if !is_shown {
            // Only the channels that it left get rows.
            pointer.follow_departures(document);
            return false;
        }
        let is_of_purged = pointer.is_of_purged(document);
        pointer.follow_document(document, owner);
        is_of_purged
    }

    /// The pointers of these entries as they are now: what is to be written when they are
    /// published.
    pub(super) fn of<'a>(&self, entries: impl Iterator<Item = &'a ChangeEntry>) -> Vec<Pointer> {
        let mut pointers: Vec<Pointer> =
            entries.filter_map(|entry| self.newest.get(&entry.document()).map(|(pointer, _)| pointer.clone())).collect();
        pointers.sort_by(|a, b| a.document().cmp(&b.document()));
        pointers.dedup_by(|a, b| a.document() == b.document());
        pointers
    }

    /// The pointers of these documents are those that are stored now, if there are any, as of
    /// `batch`. Reads begun before, up to number `begun`, may have missed them.
    pub(super) fn replace(&mut self, documents: Vec<DocumentId>, stored: Vec<Pointer>, batch: u64, begun: u64) {
        for document in &documents {
            self.newest.insert(document.clone(), (Pointer::new(document.as_ref()), batch));
        }
        for pointer in stored {
            self.newest.insert(pointer.document().into(), (pointer, batch));
        }
        self.published(batch, documents.into_iter(), begun);
    }

    /// `batch` is published: its pointers can be read. Reads begun before, up to number `begun`,
    /// may have missed them.
    pub(super) fn published(&mut self, batch: u64, documents: impl Iterator<Item = DocumentId>, begun: u64) {
        let is_over = |(last, _): &(u64, DocumentId)| *last <= batch;
        let without_entry = std::iter::from_fn(|| self.without_entry.pop_front_if(|waiting| is_over(waiting)));
        let documents = documents.chain(without_entry.map(|(_, document)| document)).collect();
        self.leaving.push_back((begun, batch, documents));
    }

    /// All reads up to number `used` have been used.
    pub(super) fn used(&mut self, used: u64) {
        while self.leaving.front().is_some_and(|(until, ..)| *until <= used) {
            let Some((_, batch, documents)) = self.leaving.pop_front() else { return };
            for document in documents {
                if self.newest.get(&document).is_some_and(|(_, last)| *last <= batch) {
                    self.newest.remove(&document);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EntryFlags;
    use crate::sequence::Sequence;

    #[test]
    fn the_pointer_of_a_duplicate_is_let_go_with_those_of_its_batch() {
        let mut cache = PointerCache::default();
        let follow = |cache: &mut PointerCache, key: &str, batch, owner| {
            let entry = ChangeEntry::new(Sequence(5), key, "1-a", EntryFlags::default()).unwrap();
            cache.follow(&mut Decoded::Document(entry.into()), &Pointers::default(), batch, owner);
        };
        follow(&mut cache, "new", 3, SequenceOwner::Nobody);
        follow(&mut cache, "again", 3, SequenceOwner::Itself);
        follow(&mut cache, "later", 4, SequenceOwner::Itself);
        cache.published(3, [DocumentId::from("new")].into_iter(), 7);
        cache.used(6);
        assert_eq!(cache.newest.len(), 3, "a read that began before may have missed them");
        cache.used(7);
        assert_eq!(cache.newest.keys().map(|id| &*id.key).collect::<Vec<_>>(), ["later"]);
        cache.published(4, [].into_iter(), 7);
        cache.used(7);
        assert!(cache.newest.is_empty());
    }
}
