//! Pointers: where a document's newest rows are, for when its metadata cannot be relied on to name
//! the earlier ones.

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
    /// From what the decoder says: the gateway's documents name their recent sequences. Costs
    /// nothing. A document that changed more often than it remembers (5 to 20 revisions) since the
    /// feed last delivered it leaves its old row behind.
    #[default]
    Recents,
    /// From one small document a document id, which holds its newest sequence in each channel: one
    /// more read and write a mutation, and nothing is left behind. What the decoder says counts as
    /// well. Relies on the feed's order within a partition.
    Pointers,
}

/// The row of one document with the highest position, in each channel that the document has been
/// in. Positions only grow, so merging two pointers is taking the higher ones.
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
    /// Positions of revisions that came after a higher one, in order. A gateway whose counter was
    /// lost may give a later revision a lower sequence, and no channel's highest row leads to it.
    /// Since format 2.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    low: Vec<Sequence>,
    /// The highest CAS of its revisions, if that is known. One with a lower CAS is earlier: its
    /// feed was opened at an older position, and it is not known any more that it had come. Since
    /// format 2.
    #[serde(default, skip_serializing_if = "is_zero")]
    cas: u64,
}

fn is_zero(cas: &u64) -> bool {
    *cas == 0
}

/// Who had the sequence of a document when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceOwner {
    /// It was not accounted for: the document is new.
    Nobody,
    /// The document itself: it comes again.
    Itself,
    /// Something else, and the document is no duplicate.
    Another,
}

impl Pointer {
    /// Of a document without rows.
    pub fn new<'a>(document: impl Into<DocumentRef<'a>>) -> Self {
        let DocumentRef { collection, key } = document.into();
        Pointer { collection, key: key.into(), rows: ChannelMap::default(), low: Vec::new(), cas: 0 }
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
        self.rows.values().chain(&self.low).copied()
    }

    fn add_low(&mut self, position: Sequence) -> bool {
        let place = self.low.binary_search(&position);
        if let Err(place) = place {
            self.low.insert(place, position);
        }
        place.is_err()
    }

    /// Whether it has a row in a channel that a later revision does not name, although that names
    /// all its channels.
    #[cfg(feature = "runtime")]
    pub(crate) fn is_of_purged(&self, document: &DecodedDocument) -> bool {
        let cas = document.entry.origin().cas;
        let is_named = |channel: &Channel| channel.is_star() || document.names(channel);
        document.names_all_channels && cas > 0 && cas >= self.cas && !self.rows.keys().all(is_named)
    }

    /// Takes the rows of a decoded document, and adds to what it supersedes the rows it takes the
    /// place of. `owner`: who had its sequence when it came.
    pub fn follow_document(&mut self, document: &mut DecodedDocument, owner: SequenceOwner) {
        let cas = document.entry.origin().cas;
        let is_later = self.cas > 0 && cas > self.cas;
        if cas == 0 || cas >= self.cas {
            self.follow_departures(document);
            self.follow(&mut document.entry);
        }
        let (entry, highest) = (&document.entry, self.row(document.entry.star()));
        // Its CAS may be lower than that of an earlier revision.
        let is_followed = highest.is_some_and(|row| row.rank() >= entry.position().rank());
        // A document that was purged and made anew does not name its earlier sequences.
        // One of before that comes for the first time is not named either.
        let is_earlier = owner == SequenceOwner::Nobody && cas > 0 && cas < self.cas;
        let is_unknown = !is_followed || owner == SequenceOwner::Another || is_later || is_earlier || entry.is_low();
        if entry.in_star() && is_unknown && highest != Some(entry.position()) {
            self.add_low(entry.position());
        }
    }

    /// Takes the rows of `entry`, and adds to what the entry supersedes the rows it takes the place
    /// of.
    pub fn follow(&mut self, entry: &mut ChangeEntry) {
        self.cas = self.cas.max(entry.origin().cas);
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
        // Only the highest is known to be later than those of lower sequences.
        let is_highest = !older.is_empty();
        for change in entry.channels_mut() {
            if let Some(row) = take(&change.channel) {
                change.since = std::cmp::min_by_key(change.since, row, |position| position.rank());
                older.push(row);
            }
        }
        if is_highest && let Some(&lowest) = self.low.first() {
            for change in entry.channels_mut() {
                change.since = std::cmp::min_by_key(change.since, lowest, |position| position.rank());
            }
            older.extend(&self.low);
        }
        for row in older {
            if !entry.supersedes().contains(&row) {
                entry.push_superseded(row);
            }
        }
    }

    /// Takes the removals that only the channel map remembers, each of which takes the place of an
    /// earlier row.
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
        for &position in &other.low {
            changed |= self.add_low(position);
        }
        changed |= other.cas > self.cas;
        self.cas = self.cas.max(other.cas);
        changed
    }

    /// Takes the rows of an entry as it is stored, in whatever order entries come.
    #[cfg(feature = "runtime")]
    pub(crate) fn raise(&mut self, entry: &ChangeEntry) {
        if entry.in_star()
            && let Some(row) = self.row(entry.star())
        {
            // The one with the lower position is not known by it if its CAS is higher.
            let (cas, is_below) = (entry.origin().cas, entry.position().rank() < row.rank());
            if is_below && self.cas > 0 && cas > self.cas {
                self.add_low(entry.position());
            } else if row.rank() < entry.position().rank() && cas > 0 && cas < self.cas {
                self.add_low(row);
            }
        }
        if entry.in_star() {
            self.cas = self.cas.max(entry.origin().cas);
        }
        let in_star = entry.in_star().then(|| entry.star());
        for channel in in_star.into_iter().chain(entry.channels().iter().map(|change| &change.channel)) {
            let row = self.rows.entry(channel.clone()).or_default();
            *row = std::cmp::max_by_key(*row, entry.position(), |position| position.rank());
        }
        if entry.is_low() {
            self.add_low(entry.position());
        }
    }

    /// Takes the rows that are `gone` back: the newest of the `surviving` entries has its channel
    /// again.
    #[cfg(feature = "runtime")]
    pub(crate) fn withdraw<'a>(
        &mut self,
        is_gone: impl Fn(Sequence) -> bool,
        surviving: impl Iterator<Item = &'a ChangeEntry> + Clone,
    ) {
        self.low.retain(|position| !is_gone(*position));
        // The highest may be gone. That of those which survive is not higher than what is still to
        // come.
        self.cas = surviving.clone().map(ChangeEntry::cas_of_revision).max().unwrap_or_default();
        self.rows.retain(|channel, row| {
            if is_gone(*row) {
                let rows = surviving.clone().filter(|entry| entry.membership(channel).is_some());
                let newest = rows.reduce(|newest, entry| if entry.is_newer_than(newest) { entry } else { newest });
                *row = newest.map(ChangeEntry::position).unwrap_or_default();
            }
            *row > Sequence::ZERO
        });
        let star = self.row(Channel::shared_star(self.collection));
        self.low.retain(|position| Some(*position) != star);
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
    fn a_later_revision_with_a_lower_sequence_is_not_forgotten() {
        let mut pointer = Pointer::new("d");
        pointer.follow(&mut entry(16, &[("a", Membership::Present)]));
        let low = entry(10, &[("a", Membership::Present)]);
        pointer.follow_document(&mut low.clone().into(), SequenceOwner::Itself);
        assert!(pointer.low.is_empty(), "it may come again after a restart");
        pointer.follow_document(&mut low.into(), SequenceOwner::Another);
        let read = Pointer::from_bytes(&pointer.to_bytes(), "d").unwrap();
        assert_eq!((read.low.as_slice(), read.row(&Channel::star())), (&[Sequence(10)][..], Some(Sequence(16))));
        let mut merged = Pointer::new("d");
        assert!(merged.merge(&read) && !merged.merge(&read));
        let mut next = entry(20, &[("a", Membership::Present)]);
        next.channels_mut()[0].since = Sequence(20);
        merged.follow(&mut next);
        assert_eq!(next.supersedes(), [Sequence(16), Sequence(10)]);
        assert_eq!(next.channels()[0].since, Sequence(10));
    }

    #[test]
    #[cfg(feature = "runtime")]
    fn a_row_in_a_channel_that_a_later_revision_does_not_name_is_of_a_purged_document() {
        let mut pointer = Pointer::new("d");
        let (before, present) = ([("a", Membership::Present), ("b", Membership::Removed)], Membership::Present);
        pointer.follow(&mut entry(3, &before).with_cas(100));
        let revision = |cas, names_all_channels, channels: &[(&str, Membership)]| {
            let entry = entry(7, channels).with_cas(cas);
            DecodedDocument { names_all_channels, ..entry.into() }
        };
        assert!(pointer.is_of_purged(&revision(200, true, &[("a", present)])));
        assert!(!pointer.is_of_purged(&revision(200, true, &[("a", present), ("b", present)])));
        assert!(!pointer.is_of_purged(&revision(200, false, &[("a", present)])), "the decoder does not know");
        assert!(!pointer.is_of_purged(&revision(90, true, &[("a", present)])), "it came before");
    }

    #[test]
    fn a_document_made_anew_with_a_lower_sequence_is_not_forgotten() {
        let mut pointer = Pointer::new("d");
        pointer.follow_document(&mut entry(16, &[]).with_cas(100).into(), SequenceOwner::Nobody);
        for _ in 0..2 {
            // It comes again after a restart.
            pointer.follow_document(&mut entry(10, &[]).with_cas(200).into(), SequenceOwner::Itself);
            assert_eq!((pointer.low.as_slice(), pointer.cas), (&[Sequence(10)][..], 200));
        }
        pointer.follow_document(&mut entry(12, &[]).with_cas(150).into(), SequenceOwner::Itself);
        assert_eq!(pointer.low, [Sequence(10)], "it came before");
        let mut other = pointer.clone();
        other.follow_document(&mut entry(12, &[]).with_cas(150).into(), SequenceOwner::Nobody);
        assert_eq!(other.low, [Sequence(10), Sequence(12)], "it comes for the first time");
        #[cfg(feature = "runtime")]
        for order in [[10, 16], [16, 10]] {
            let mut rebuilt = Pointer::new("d");
            order.iter().for_each(|n| rebuilt.raise(&entry(*n, &[]).with_cas(if *n == 10 { 200 } else { 100 })));
            assert_eq!((rebuilt.low, rebuilt.rows), (pointer.low.clone(), pointer.rows.clone()), "{order:?}");
        }
    }

    #[test]
    fn a_revision_with_a_lower_cas_than_an_earlier_one_is_not_forgotten() {
        let mut pointer = Pointer::new("d");
        pointer.follow_document(&mut entry(5, &[]).with_cas(200).into(), SequenceOwner::Nobody);
        pointer.follow_document(&mut entry(7, &[]).with_cas(100).into(), SequenceOwner::Nobody);
        assert_eq!(pointer.low, [Sequence(7)]);
        let mut next = entry(9, &[]).with_cas(300).into();
        pointer.follow_document(&mut next, SequenceOwner::Nobody);
        assert_eq!(next.entry.supersedes(), [Sequence(5), Sequence(7)]);
    }

    #[test]
    #[cfg(feature = "runtime")]
    fn what_is_withdrawn_leaves_the_newest_that_survives() {
        let earlier = entry(16, &[("a", Membership::Present)]).with_cas(100);
        let later = entry(10, &[("b", Membership::Present)]).with_cas(200);
        let mut pointer = Pointer::new("d");
        pointer.follow(&mut earlier.clone());
        pointer.follow_document(&mut later.clone().into(), SequenceOwner::Another);
        pointer.withdraw(|position| position == Sequence(16), std::iter::once(&later));
        let expected = (Some(Sequence(10)), None, Some(Sequence(10)));
        let row = |name| pointer.row(&Channel::new(name).unwrap());
        assert_eq!((row("*"), row("a"), row("b")), expected);
        assert!(pointer.low.is_empty() && pointer.cas == 200);
        // One of before comes again: it is known to be earlier, and supersedes nothing.
        let mut again = earlier.clone().into();
        pointer.follow_document(&mut again, SequenceOwner::Another);
        assert!(again.entry.supersedes().is_empty());
        assert_eq!(pointer.low, [Sequence(16)]);
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
