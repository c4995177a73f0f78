//! The change entry: what the cache keeps of one sequence.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::channel::Channel;
use crate::document::{CollectionId, DocumentRef};
use crate::error::{Error, Result};
use crate::feed::{PartitionId, PartitionSeqno};
use crate::sequence::{Sequence, SequenceList};

/// What kind of row an entry is in one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Membership {
    /// The revision is in the channel.
    Present = 0,
    /// The document left the channel with this revision.
    Removed = 1,
    /// The document left the channel by being deleted.
    RemovedByDeletion = 2,
}

impl Membership {
    /// Whether the document left the channel.
    pub fn is_removal(self) -> bool {
        self != Membership::Present
    }
}

/// One channel that an entry concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelChange {
    /// The channel.
    pub channel: Channel,
    /// Whether the entry is in it, or leaves it.
    pub membership: Membership,
    /// The lowest of the entry's superseded sequences that can be in this channel: where the
    /// document's first known stay there began. Zero if not known.
    pub since: Sequence,
}

/// Flags of an entry, as the gateway's metadata has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryFlags(pub u8);

impl EntryFlags {
    /// The revision is a tombstone.
    pub const DELETED: EntryFlags = EntryFlags(1);
    /// Hidden.
    pub const HIDDEN: EntryFlags = EntryFlags(4);
    /// The document is in conflict.
    pub const CONFLICT: EntryFlags = EntryFlags(8);
    /// The document's history has branches.
    pub const BRANCHED: EntryFlags = EntryFlags(16);
    /// **Ours**: not a revision by itself. A sequence known only from a newer revision of its
    /// document, which says that the document left some channels there. It is in those channels,
    /// and not in the star channel.
    pub const DEPARTURE: EntryFlags = EntryFlags(128);

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: EntryFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub fn with(self, other: EntryFlags) -> EntryFlags {
        EntryFlags(self.0 | other.0)
    }
}

/// Where in the feed an entry came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The partition.
    pub partition: PartitionId,
    /// Its position in that partition.
    pub seqno: PartitionSeqno,
    /// The document's CAS after the mutation; 0 if not known.
    pub cas: u64,
}

/// What the cache keeps of one sequence: which revision of which document, and which channels it
/// concerns.
///
/// Every entry is also in the star channel of its collection, unless it is a
/// [`DEPARTURE`](EntryFlags::DEPARTURE); the star channel is not in `channels`. All its channels
/// are of its collection.
#[derive(Clone, PartialEq, Eq)]
pub struct ChangeEntry {
    sequence: Sequence,
    /// The document's key, the revision id and the current version, one after the other: one
    /// allocation for all.
    text: Box<str>,
    document_len: u32,
    revision_len: u32,
    collection: CollectionId,
    flags: EntryFlags,
    /// The slot of its position.
    slot: u8,
    // Not an `Origin`, which needs 8 bytes more. With the counts of its `Arc`, an entry has 128
    // bytes, a size class of allocators.
    partition: PartitionId,
    seqno: PartitionSeqno,
    cas: u64,
    channels: SmallVec<[ChannelChange; 1]>,
    supersedes: SequenceList,
}

impl Origin {
    /// Whether both are of the same mutation. An entry of format 1 has no CAS.
    #[cfg(feature = "runtime")]
    pub(crate) fn is_same(self, other: Origin) -> bool {
        let is_cas_known = self.cas > 0 && other.cas > 0;
        (self.partition, self.seqno) == (other.partition, other.seqno) && (!is_cas_known || self.cas == other.cas)
    }
}

impl ChangeEntry {
    /// An entry of a document of the default collection, without channels.
    ///
    /// # Errors
    /// `TooLarge` if the document's key or the revision id exceeds 4 GiB.
    pub fn new(sequence: Sequence, document: &str, revision: &str, flags: EntryFlags) -> Result<Self> {
        ChangeEntry::versioned(sequence, document, revision, "", flags)
    }

    /// An entry of nothing, for the place of one that is moved.
    pub(crate) fn empty() -> Self {
        ChangeEntry {
            sequence: Sequence::ZERO,
            text: Box::default(),
            document_len: 0,
            revision_len: 0,
            collection: CollectionId::DEFAULT,
            flags: EntryFlags::default(),
            slot: 0,
            partition: PartitionId::default(),
            seqno: PartitionSeqno::default(),
            cas: 0,
            channels: SmallVec::new(),
            supersedes: SequenceList::new(),
        }
    }

    /// As [`new`](Self::new), with the revision's current version, `VERSION@SOURCE` in the form
    /// that clients see; empty if it has none.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn versioned(sequence: Sequence, document: &str, revision: &str, version: &str, flags: EntryFlags) -> Result<Self> {
        ChangeEntry::build(sequence, document, revision, &[version], flags)
    }

    /// As [`versioned`](Self::versioned), from the parts of a version.
    pub(crate) fn build(sequence: Sequence, document: &str, revision: &str, version: &[&str], flags: EntryFlags) -> Result<Self> {
        let length = |text: &str, what| {
            u32::try_from(text.len()).map_err(|_| Error::new(crate::ErrorKind::TooLarge, format!("a {what} is over 4 GiB")))
        };
        let (document_len, revision_len) = (length(document, "document id")?, length(revision, "revision id")?);
        let version_len: usize = version.iter().map(|part| part.len()).sum();
        let mut text = String::with_capacity(document.len() + revision.len() + version_len);
        text.push_str(document);
        text.push_str(revision);
        version.iter().for_each(|part| text.push_str(part));
        Ok(ChangeEntry { sequence, text: text.into_boxed_str(), document_len, revision_len, flags, ..ChangeEntry::empty() })
    }

    /// Sets the collection of the document. Channels that were added before become those of the
    /// same names in this collection.
    #[must_use]
    pub fn with_collection(mut self, collection: CollectionId) -> Self {
        if self.collection != collection {
            self.collection = collection;
            for change in &mut self.channels {
                change.channel = change.channel.clone().in_collection(collection);
            }
        }
        self
    }

    /// Adds a channel, as [`push_channel`](Self::push_channel) does.
    #[must_use]
    pub fn with_channel(mut self, channel: Channel, membership: Membership) -> Self {
        self.push_channel(ChannelChange { channel, membership, since: Sequence::ZERO });
        self
    }

    /// Says where it came from.
    #[must_use]
    pub fn with_origin(mut self, partition: PartitionId, seqno: PartitionSeqno) -> Self {
        (self.partition, self.seqno) = (partition, seqno);
        self
    }

    /// Sets the document's CAS after the mutation.
    #[must_use]
    pub fn with_cas(mut self, cas: u64) -> Self {
        self.cas = cas;
        self
    }

    /// Says where it came from.
    #[cfg(feature = "runtime")]
    pub(crate) fn set_origin(&mut self, origin: Origin) {
        (self.partition, self.seqno, self.cas) = (origin.partition, origin.seqno, origin.cas);
    }

    /// Sets the positions of the same document that it supersedes.
    #[must_use]
    pub fn with_supersedes(mut self, sequences: impl IntoIterator<Item = Sequence>) -> Self {
        self.supersedes = sequences.into_iter().collect();
        self
    }

    /// Adds the channel of this name in the entry's collection. The star channel is implied, and
    /// ignored here.
    pub fn push_channel(&mut self, change: ChannelChange) {
        if !change.channel.is_star() {
            let channel = change.channel.in_collection(self.collection);
            self.channels.push(ChannelChange { channel, ..change });
        }
    }

    /// Adds a position of the same document that this entry supersedes.
    pub fn push_superseded(&mut self, sequence: Sequence) {
        self.supersedes.push(sequence);
    }

    /// Takes over what `stored`, the same sequence's entry as it was stored before, knows to be
    /// superseded.
    pub fn recall(&mut self, stored: &ChangeEntry) {
        // A departure may name all that the later mutation named which told of it, and so revisions
        // that are later than this one.
        let may_be_later = |sequence: Sequence| !stored.in_star() && self.in_star() && sequence.rank() > stored.position().rank();
        let known: Vec<Sequence> = stored.supersedes().iter().copied().filter(|sequence| !may_be_later(*sequence)).collect();
        for sequence in known {
            if !self.supersedes.contains(&sequence) {
                self.supersedes.push(sequence);
            }
        }
        for change in &mut self.channels {
            if let Some(known) = stored.channels.iter().find(|known| known.channel == change.channel) {
                change.since = std::cmp::min_by_key(change.since, known.since, |position| position.rank());
            }
        }
    }

    /// Its sequence.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The position under which it is stored and which it has in blocks: its sequence, unless
    /// another document has that; see [`Sequence`].
    #[inline]
    pub fn position(&self) -> Sequence {
        // Deserialization and the writer check that the sequence has the slot.
        self.sequence.in_slot(self.slot).unwrap_or(self.sequence)
    }

    /// Sets the slot in which it is stored, because another document has its sequence.
    #[must_use]
    pub fn with_slot(mut self, slot: u8) -> Self {
        self.slot = slot;
        self
    }

    /// Whether this is a later revision of the document than `other`: its CAS is higher. If a CAS
    /// is not known, or both are the same: it came later in the partition, or its sequence is
    /// higher.
    ///
    /// Sequences alone do not tell: gateways before 1.5 could give a later revision a lower one.
    /// Neither does the order of the feed: a server in development mode was seen to swap two events
    /// of a key.
    ///
    /// The CAS of a departure is that of the later revision that names it. So the departure is
    /// newer than all revisions before that one.
    pub fn is_newer_than(&self, other: &ChangeEntry) -> bool {
        let (mine, others) = (self.origin(), other.origin());
        if mine.cas > 0 && others.cas > 0 {
            if mine.cas != others.cas {
                return mine.cas > others.cas;
            }
            // The revision that names the departure.
            if self.in_star() != other.in_star() {
                return self.in_star();
            }
        }
        let is_known = mine.seqno.0 > 0 && others.seqno.0 > 0 && mine.partition == others.partition;
        if is_known && mine.seqno != others.seqno && self.in_star() && other.in_star() {
            return mine.seqno > others.seqno;
        }
        self.position().rank() > other.position().rank()
    }

    /// Whether it is a revision with a lower sequence than an earlier one.
    #[inline]
    pub(crate) fn is_low(&self) -> bool {
        // Positions in slots are above all sequences.
        let may_be_above = |earlier: &Sequence| *earlier > self.sequence;
        self.supersedes.iter().any(|earlier| may_be_above(earlier) && earlier.rank() > self.position().rank()) && self.in_star()
    }

    /// Whether the mark counts that this entry makes on the position of `found`: the document is
    /// the same, and `found` is not known to be a later revision of it. A document that was purged
    /// and made anew may have a sequence again that it had before.
    pub(crate) fn counts_on(&self, found: &ChangeEntry) -> bool {
        let (mine, others) = (self.cas_of_revision(), found.cas_of_revision());
        self.document() == found.document() && (mine == 0 || others <= mine)
    }

    /// The CAS of the revision. Zero if it is not known, and for a departure, which has the CAS of
    /// a later revision.
    pub(crate) fn cas_of_revision(&self) -> u64 {
        if self.in_star() { self.cas } else { 0 }
    }

    /// The document: its collection and its key.
    pub fn document(&self) -> DocumentRef<'_> {
        DocumentRef { collection: self.collection, key: self.key() }
    }

    /// The document's key, which is its id for clients. Another collection may have a document with
    /// the same key: to compare documents, compare [`document`](Self::document).
    pub fn key(&self) -> &str {
        &self.text[..self.document_len as usize]
    }

    /// The collection of the document and of all its channels.
    pub fn collection(&self) -> CollectionId {
        self.collection
    }

    /// The star channel of its collection.
    #[inline]
    pub fn star(&self) -> &'static Channel {
        Channel::shared_star(self.collection)
    }

    /// The revision's id.
    pub fn revision(&self) -> &str {
        let start = self.document_len as usize;
        &self.text[start..start + self.revision_len as usize]
    }

    /// The revision's current version, `VERSION@SOURCE`; empty if it has none.
    pub fn version(&self) -> &str {
        &self.text[self.document_len as usize + self.revision_len as usize..]
    }

    /// Its flags.
    pub fn flags(&self) -> EntryFlags {
        self.flags
    }

    /// Whether the revision is a tombstone.
    pub fn is_deleted(&self) -> bool {
        self.flags.contains(EntryFlags::DELETED)
    }

    /// Whether it is in the star channel of its collection.
    pub fn in_star(&self) -> bool {
        !self.flags.contains(EntryFlags::DEPARTURE)
    }

    /// Where in the feed it came from.
    pub fn origin(&self) -> Origin {
        Origin { partition: self.partition, seqno: self.seqno, cas: self.cas }
    }

    /// The channels it concerns, the star channel left out.
    pub fn channels(&self) -> &[ChannelChange] {
        &self.channels
    }

    /// The channels it concerns, to be changed.
    pub(crate) fn channels_mut(&mut self) -> &mut [ChannelChange] {
        &mut self.channels
    }

    /// Positions of the same document's entries that it supersedes, in any order.
    pub fn supersedes(&self) -> &[Sequence] {
        &self.supersedes
    }

    /// How it stands in `channel`, if it concerns it.
    pub fn membership(&self, channel: &Channel) -> Option<Membership> {
        if channel.is_star() {
            return (self.in_star() && channel.collection() == self.collection).then_some(Membership::Present);
        }
        self.channels.iter().find(|c| c.channel == *channel).map(|c| c.membership)
    }

    /// Bytes it keeps in memory, channel names left out (they are shared).
    pub fn memory_bytes(&self) -> usize {
        let channels = if self.channels.spilled() { self.channels.capacity() * size_of::<ChannelChange>() } else { 0 };
        let supersedes = if self.supersedes.spilled() { self.supersedes.capacity() * size_of::<Sequence>() } else { 0 };
        size_of::<Self>() + self.text.len() + channels + supersedes
    }

    /// The sequence document: JSON, as the cache format has it.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.size_hint());
        self.write(&mut out);
        Bytes::from(out)
    }

    /// How long its document is, about.
    pub(crate) fn size_hint(&self) -> usize {
        self.text.len() + 64 + 32 * self.channels.len()
    }

    /// Writes its document at the end of `out`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        // Writing JSON into memory cannot fail: every field serializes.
        let _ = serde_json::to_writer(out, self);
    }

    /// Reads a sequence document.
    ///
    /// # Errors
    /// `Corrupt` if it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| Error::corrupt("not a sequence document").with_source(e))
    }
}

impl fmt::Debug for ChangeEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {} {}", self.sequence, self.document(), self.revision())?;
        if self.slot != 0 {
            write!(f, " in slot {}", self.slot)?;
        }
        if !self.version().is_empty() {
            write!(f, " {}", self.version())?;
        }
        for change in &self.channels {
            let sign = if change.membership.is_removal() { "-" } else { "+" };
            write!(f, " {sign}{}", change.channel)?;
        }
        if self.is_deleted() {
            f.write_str(" deleted")?;
        }
        if !self.supersedes.is_empty() {
            write!(f, " over {:?}", self.supersedes.iter().map(|s| s.0).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// The stored shape of an entry, as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<'a> {
    seq: Sequence,
    #[serde(borrow)]
    doc: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    rev: std::borrow::Cow<'a, str>,
    /// Since format 2.
    #[serde(borrow, default)]
    cv: std::borrow::Cow<'a, str>,
    /// Since format 2.
    #[serde(default)]
    col: CollectionId,
    /// Since format 2.
    #[serde(default)]
    slot: u8,
    #[serde(default)]
    flags: u8,
    #[serde(borrow, default)]
    ch: SmallVec<[StoredChannel<'a>; 4]>,
    #[serde(default, rename = "sup")]
    supersedes: SequenceList,
    vb: u16,
    sq: u64,
    /// Since format 2.
    #[serde(default)]
    cas: u64,
}

/// `[name, membership, since]`
#[derive(Deserialize)]
struct StoredChannel<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>, u8, Sequence);

struct ChannelsToStore<'a>(&'a [ChannelChange]);

impl Serialize for ChannelsToStore<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|c| (&c.channel, c.membership as u8, c.since)))
    }
}

impl Serialize for ChangeEntry {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let lists = usize::from(!self.channels.is_empty()) + usize::from(!self.supersedes.is_empty());
        let (has_version, has_collection) = (!self.version().is_empty(), !self.collection.is_default());
        let options = [self.flags.0 != 0, has_version, has_collection, self.slot != 0, self.cas != 0];
        let options = options.into_iter().filter(|is_there| *is_there).count();
        let mut out = serializer.serialize_struct("Entry", 5 + options + lists)?;
        out.serialize_field("seq", &self.sequence)?;
        out.serialize_field("doc", self.key())?;
        out.serialize_field("rev", self.revision())?;
        if has_version {
            out.serialize_field("cv", self.version())?;
        }
        if has_collection {
            out.serialize_field("col", &self.collection)?;
        }
        if self.slot != 0 {
            out.serialize_field("slot", &self.slot)?;
        }
        if self.flags.0 != 0 {
            out.serialize_field("flags", &self.flags)?;
        }
        if !self.channels.is_empty() {
            out.serialize_field("ch", &ChannelsToStore(&self.channels))?;
        }
        if !self.supersedes.is_empty() {
            out.serialize_field("sup", &self.supersedes[..])?;
        }
        out.serialize_field("vb", &self.partition)?;
        out.serialize_field("sq", &self.seqno)?;
        if self.cas != 0 {
            out.serialize_field("cas", &self.cas)?;
        }
        out.end()
    }
}

impl<'de> Deserialize<'de> for ChangeEntry {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let stored = Stored::deserialize(deserializer)?;
        if stored.seq.in_slot(stored.slot).is_none() {
            return Err(D::Error::custom(format!("sequence {} has no slot {}", stored.seq, stored.slot)));
        }
        let mut entry = ChangeEntry::versioned(stored.seq, &stored.doc, &stored.rev, &stored.cv, EntryFlags(stored.flags))
            .map_err(D::Error::custom)?
            .with_collection(stored.col)
            .with_slot(stored.slot)
            .with_origin(PartitionId(stored.vb), PartitionSeqno(stored.sq))
            .with_cas(stored.cas);
        for StoredChannel(name, membership, since) in stored.ch {
            let channel = Channel::of(stored.col, &name).map_err(D::Error::custom)?;
            let membership = match membership {
                0 => Membership::Present,
                1 => Membership::Removed,
                2 => Membership::RemovedByDeletion,
                other => return Err(D::Error::custom(format!("unknown membership {other}"))),
            };
            entry.push_channel(ChannelChange { channel, membership, since });
        }
        entry.supersedes = stored.supersedes;
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ChangeEntry {
        let mut entry = ChangeEntry::new(Sequence((1 << 53) + 1), "dö\"c", "2-abc", EntryFlags::DELETED)
            .unwrap()
            .with_channel(Channel::new("a:[b]").unwrap(), Membership::Present)
            .with_origin(PartitionId(1023), PartitionSeqno(7))
            .with_supersedes([Sequence(3), Sequence(9)]);
        entry.push_channel(ChannelChange {
            channel: Channel::new("b").unwrap(),
            membership: Membership::RemovedByDeletion,
            since: Sequence(3),
        });
        entry
    }

    #[test]
    fn a_departure_recalls_no_revisions_that_may_be_later() {
        let entry = |flags| ChangeEntry::new(Sequence(19), "d", "23-x", flags).unwrap();
        let named = [12, 18, 28].map(Sequence);
        let recalled = |mut entry: ChangeEntry, flags| {
            let stored = ChangeEntry::new(Sequence(19), "d", "23-x", flags).unwrap().with_supersedes(named);
            entry.recall(&stored);
            entry.supersedes().to_vec()
        };
        let (shown, departure) = (EntryFlags::default(), EntryFlags::DEPARTURE);
        assert_eq!(recalled(entry(shown), departure), named[..2]);
        assert_eq!(recalled(entry(shown), shown), named, "the earlier revision had a higher sequence");
        assert_eq!(recalled(entry(departure), departure), named);
    }

    #[test]
    fn a_sequence_document_reads_back_as_written() {
        let entry = sample();
        assert_eq!(ChangeEntry::from_bytes(&entry.to_bytes()).unwrap(), entry);
        assert_eq!((entry.key(), entry.revision(), entry.version()), ("dö\"c", "2-abc", ""));
        let in_slot = |slot| ChangeEntry::from_bytes(&entry.clone().with_slot(slot).to_bytes());
        assert_eq!(in_slot(15).unwrap().position(), entry.sequence().in_slot(15).unwrap());
        assert_eq!(in_slot(16).unwrap_err().kind(), crate::ErrorKind::Corrupt);
        let named = ChangeEntry::versioned(Sequence(3), "d", "1-a", "18a@x", EntryFlags::default()).unwrap();
        let named = named.with_channel(Channel::new("c").unwrap(), Membership::Present).with_collection(CollectionId(8));
        assert_eq!(ChangeEntry::from_bytes(&named.to_bytes()).unwrap(), named);
        assert_eq!((named.revision(), named.version(), named.document().to_string()), ("1-a", "18a@x", "8/d".to_owned()));
        assert_eq!(named.membership(&Channel::new("c").unwrap()), None);
        assert_eq!(named.membership(&Channel::of(CollectionId(8), "c").unwrap()), Some(Membership::Present));
        assert_eq!(
            (named.membership(&Channel::star()), named.membership(&Channel::star_of(CollectionId(8)))),
            (None, Some(Membership::Present))
        );
    }

    #[test]
    fn an_entry_whose_sequence_is_taken_lies_in_another_slot() {
        let entry = sample().with_slot(3);
        assert_eq!(ChangeEntry::from_bytes(&entry.to_bytes()).unwrap(), entry);
        assert_eq!(entry.position(), Sequence((0xf2 << 56) | ((1 << 53) + 1)));
        assert_eq!((entry.position().number(), entry.position().slot()), (entry.sequence(), 3));
        assert!(sample().position().rank() < entry.position().rank());
    }

    #[test]
    fn newer_is_by_cas_then_by_the_feed_then_by_sequence() {
        let entry = |sequence, partition, seqno| {
            let entry = ChangeEntry::new(Sequence(sequence), "d", "1-a", EntryFlags::default()).unwrap();
            entry.with_origin(PartitionId(partition), PartitionSeqno(seqno))
        };
        assert!(entry(4, 1, 9).is_newer_than(&entry(5, 1, 8)) && !entry(5, 1, 8).is_newer_than(&entry(4, 1, 9)));
        for (partition, seqno) in [(1, 9), (2, 3), (1, 0)] {
            let other = entry(5, partition, seqno);
            assert!(other.is_newer_than(&entry(4, 1, 9)) && !entry(4, 1, 9).is_newer_than(&other), "{partition} {seqno}");
        }
        let (swapped, before) = (entry(4, 1, 9).with_cas(70), entry(5, 1, 8).with_cas(71));
        assert!(before.is_newer_than(&swapped) && !swapped.is_newer_than(&before));
        assert!(entry(4, 1, 9).is_newer_than(&before), "one CAS is not known");
    }

    #[test]
    fn a_sequence_document_of_format_1_reads_as_it_was() {
        let stored = br#"{"seq":7,"doc":"d","rev":"1-a","ch":[["a",0,0]],"sup":[3],"vb":2,"sq":9}"#;
        let entry = ChangeEntry::from_bytes(stored).unwrap();
        assert_eq!((entry.collection(), entry.version()), (CollectionId::DEFAULT, ""));
        assert_eq!(entry.to_bytes(), &stored[..]);
    }

    #[test]
    fn every_cut_of_a_sequence_document_is_an_error_and_no_panic() {
        let bytes = sample().to_bytes();
        for end in 0..bytes.len() {
            assert_eq!(ChangeEntry::from_bytes(&bytes[..end]).unwrap_err().kind(), crate::ErrorKind::Corrupt);
        }
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<ChangeEntry>() <= 112, "{}", size_of::<ChangeEntry>());
    }

    #[test]
    fn the_star_channel_is_implied() {
        let entry = sample().with_channel(Channel::star(), Membership::Present);
        assert_eq!(entry.channels().len(), 2);
        assert_eq!(entry.membership(&Channel::star()), Some(Membership::Present));
    }
}
