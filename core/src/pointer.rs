//! Pointers: where a document's newest rows are, for when its metadata cannot be relied on to name the earlier ones.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::channel::{Channel, ChannelMap};
use crate::clock::{from_json, to_json};
use crate::decode::DecodedDocument;
use crate::document::{CollectionId, DocumentRef};
use crate::entry::ChangeEntry;
use crate::error::{Error, Result};
use crate::sequence::Sequence;

/// How a writer finds out which rows an entry supersedes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Supersession {
    /// From what the decoder says: the gateway's documents name their recent sequences. Costs nothing. A document that changed more often than
    /// it remembers (5 to 20 revisions) since the feed last delivered it leaves its old row behind.
    #[default]
    Recents,
    /// From one small document a document id, which holds its newest sequence in each channel: one more read and write a mutation, and
    /// nothing is left behind. What the decoder says counts as well. Relies on the feed's order within a partition.
    Pointers,
}

/// The newest row of one document in each channel it has been in. Sequences only grow, so merging two is taking the greater ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pointer {
    /// The document's collection. Since format 2.
    #[serde(rename = "col", default, skip_serializing_if = "CollectionId::is_default_ref")]
    collection: CollectionId,
    /// The document's full key: keys of long ids hold only a hash.
    #[serde(rename = "doc")]
    key: Box<str>,
    /// By channel. All channels are of the document's collection.
    rows: ChannelMap<Sequence>,
}

impl Pointer {
    /// Of a document without rows.
    pub fn new<'a>(document: impl Into<DocumentRef<'a>>) -> Self {
        let DocumentRef { collection, key } = document.into();
        Pointer { collection, key: key.into(), rows: ChannelMap::default() }
    }

    /// The document.
    pub fn document(&self) -> DocumentRef<'_> {
        DocumentRef { collection: self.collection, key: &self.key }
    }

    /// The newest row in `channel`, if there is one.
    pub fn row(&self, channel: &Channel) -> Option<Sequence> {
        self.rows.get(channel).copied()
    }

    /// All its rows, in any order.
    #[cfg(feature = "runtime")]
    pub(crate) fn rows(&self) -> impl Iterator<Item = Sequence> + '_ {
        self.rows.values().copied()
    }

    /// Takes the rows of a decoded document, and adds to what it supersedes the rows it takes the place of.
    pub fn follow_document(&mut self, document: &mut DecodedDocument) {
        self.follow_departures(document);
        self.follow(&mut document.entry);
    }

    /// Takes the rows of `entry`, and adds to what the entry supersedes the rows it takes the place of.
    pub fn follow(&mut self, entry: &mut ChangeEntry) {
        let sequence = entry.position();
        let mut take = |channel: &Channel| match self.rows.get_mut(channel) {
            Some(row) if row.rank() >= sequence.rank() => None,
            Some(row) => Some(std::mem::replace(row, sequence)),
            None => {
                self.rows.insert(channel.clone(), sequence);
                None
            }
        };
        let mut older = if entry.in_star() { take(entry.star()).into_iter().collect() } else { Vec::new() };
        for change in entry.channels_mut() {
            if let Some(row) = take(&change.channel) {
                change.since = std::cmp::min_by_key(change.since, row, |position| position.rank());
                older.push(row);
            }
        }
        for row in older {
            if !entry.supersedes().contains(&row) {
                entry.push_superseded(row);
            }
        }
    }

    /// Takes the removals that only the channel map remembers, each of which takes the place of an earlier row.
    pub(crate) fn follow_departures(&mut self, document: &mut DecodedDocument) {
        for departure in &mut document.departures {
            let row = self.rows.entry(departure.channel.clone()).or_default();
            if row.rank() < departure.sequence.rank() {
                let older = std::mem::replace(row, departure.sequence);
                if older > Sequence::ZERO {
                    departure.since = std::cmp::min_by_key(departure.since, older, |position| position.rank());
                    if !document.entry.supersedes().contains(&older) {
                        document.entry.push_superseded(older);
                    }
                }
            }
        }
    }

    /// Takes over the greater sequences of `other`; whether there were any.
    pub fn merge(&mut self, other: &Pointer) -> bool {
        let mut changed = false;
        for (channel, &sequence) in &other.rows {
            let row = self.rows.entry(channel.clone()).or_default();
            if row.rank() < sequence.rank() {
                changed = true;
                *row = sequence;
            }
        }
        changed
    }

    /// Takes the rows of an entry as it is stored, in whatever order entries come.
    #[cfg(feature = "runtime")]
    pub(crate) fn raise(&mut self, entry: &ChangeEntry) {
        let in_star = entry.in_star().then(|| entry.star());
        for channel in in_star.into_iter().chain(entry.channels().iter().map(|change| &change.channel)) {
            let row = self.rows.entry(channel.clone()).or_default();
            *row = std::cmp::max_by_key(*row, entry.position(), |position| position.rank());
        }
    }

    /// Takes the rows that are `gone` back: the newest of the `surviving` entries has its channel again.
    #[cfg(feature = "runtime")]
    pub(crate) fn withdraw<'a>(
        &mut self,
        is_gone: impl Fn(Sequence) -> bool,
        surviving: impl Iterator<Item = &'a ChangeEntry> + Clone,
    ) {
        self.rows.retain(|channel, row| {
            if is_gone(*row) {
                let rows = surviving.clone().filter(|entry| entry.membership(channel).is_some());
                let newest = rows.reduce(|newest, entry| if entry.is_newer_than(newest) { entry } else { newest });
                *row = newest.map(ChangeEntry::position).unwrap_or_default();
            }
            *row > Sequence::ZERO
        });
    }

    /// JSON.
    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// Reads the pointer stored for `document`.
    ///
    /// # Errors
    /// `Corrupt` if it is none, or another document's (two long ids with one hash).
    pub fn from_bytes<'a>(bytes: &[u8], document: impl Into<DocumentRef<'a>>) -> Result<Self> {
        let mut pointer: Pointer = from_json(bytes, "pointer")?;
        if pointer.document() != document.into() {
            let stored = pointer.document().to_string();
            return Err(Error::corrupt(format!("the pointer is that of document {stored:?}: two ids share a key")));
        }
        if !pointer.collection.is_default() {
            let rows = std::mem::take(&mut pointer.rows);
            pointer.rows = rows.into_iter().map(|(channel, row)| (channel.in_collection(pointer.collection), row)).collect();
        }
        Ok(pointer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EntryFlags;
    use crate::{Membership, PartitionId};

    fn entry(sequence: u64, channels: &[(&str, Membership)]) -> ChangeEntry {
        let entry = ChangeEntry::new(Sequence(sequence), "d", "1-a", EntryFlags::default()).unwrap();
        let entry = entry.with_origin(PartitionId(0), Default::default());
        channels.iter().fold(entry, |entry, (name, membership)| entry.with_channel(Channel::new(name).unwrap(), *membership))
    }

    #[test]
    fn an_entry_supersedes_the_newest_row_of_each_channel_it_enters() {
        let mut pointer = Pointer::new("d");
        pointer.follow(&mut entry(3, &[("a", Membership::Present), ("b", Membership::Present)]));
        let mut second = entry(7, &[("a", Membership::Present), ("b", Membership::Removed)]);
        pointer.follow(&mut second);
        assert_eq!(second.supersedes(), [Sequence(3)]);
        let mut third = entry(9, &[("b", Membership::Present)]);
        pointer.follow(&mut third);
        assert_eq!(third.supersedes(), [Sequence(7)]);
        let mut again = entry(7, &[("a", Membership::Present)]);
        pointer.follow(&mut again);
        assert!(again.supersedes().is_empty());
        assert_eq!(pointer.row(&Channel::new("a").unwrap()), Some(Sequence(7)));
        assert_eq!(Pointer::from_bytes(&pointer.to_bytes(), "d").unwrap(), pointer);
        assert!(Pointer::from_bytes(&pointer.to_bytes(), "e").is_err());
    }

    #[test]
    fn a_pointer_is_of_a_document_of_one_collection() {
        let collection = CollectionId(8);
        let mut pointer = Pointer::new(DocumentRef { collection, key: "d" });
        let entry = entry(3, &[("a", Membership::Present)]);
        pointer.follow(&mut entry.with_collection(collection));
        let read = Pointer::from_bytes(&pointer.to_bytes(), pointer.document()).unwrap();
        assert_eq!(read, pointer);
        assert_eq!(read.row(&Channel::of(collection, "a").unwrap()), Some(Sequence(3)));
        assert!(Pointer::from_bytes(&pointer.to_bytes(), "d").is_err());
    }
}
