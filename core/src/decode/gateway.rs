//! The gateway's documents: revisions with their metadata, users and roles, markers of unused sequences.

use smallvec::SmallVec;

use super::attributes;
use super::interner::Interners;
use super::json::Scanner;
use super::metadata::{Metadata, Removal};
use super::{Decoded, DecodedDocument, Departure, Ignored, Invalid, MutationDecoder, Principal, PrincipalKind};
use crate::document::CollectionId;
use crate::entry::{ChangeEntry, ChannelChange, EntryFlags, Membership};
use crate::feed::{Mutation, MutationKind};
use crate::sequence::{Sequence, SequenceRange};

/// Where a document keeps the gateway's metadata: the attribute, or the property of the body, of this name.
const METADATA: &str = "_sync";

/// What all keys of the gateway's own documents begin with.
const INTERNAL: &[u8] = b"_sync:";

/// The most sequences an entry may supersede. The gateway remembers about 20.
const MAX_SUPERSEDED: usize = 1_000;

/// The bits of the gateway's flags that an entry keeps; the top one is ours.
const FLAGS: u64 = 0x7f;

/// How to read the gateway's documents.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GatewayOptions {
    /// What the keys of users, roles and unused sequences begin with, the colon after it left out. `_sync`, unless the
    /// database has a metadata id: then `_sync:m_` and that id.
    pub metadata_prefix: String,
    /// About how many channel names are remembered, so that entries share them.
    pub channel_capacity: usize,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        GatewayOptions { metadata_prefix: METADATA.into(), channel_capacity: 1 << 20 }
    }
}

/// Understands what Sync Gateway writes: metadata in attributes or in the body, its users and roles, its unused sequences.
///
/// What a document's entry supersedes is what its metadata remembers of its earlier revisions: `recent_sequences`, and where it last
/// left each channel that it has entered since. So every earlier row of the document is marked, also where the feed leaves revisions
/// out, as long as the revision delivered before is still among the recent sequences of the next: the gateway keeps from 5 to 20.
#[derive(Debug)]
pub struct GatewayDecoder {
    /// Prefix with the colon.
    prefix: Box<[u8]>,
    channels: Interners,
}

impl Default for GatewayDecoder {
    fn default() -> Self {
        GatewayDecoder::new(&GatewayOptions::default())
    }
}

impl GatewayDecoder {
    /// A decoder with these options.
    pub fn new(options: &GatewayOptions) -> Self {
        let prefix = format!("{}:", options.metadata_prefix).into_bytes().into_boxed_slice();
        GatewayDecoder { prefix, channels: Interners::with_capacity(options.channel_capacity) }
    }

    fn try_decode(&self, mutation: &Mutation) -> Result<Decoded, Invalid> {
        if let Some(rest) = mutation.key.strip_prefix(&*self.prefix) {
            return internal(rest, mutation);
        }
        if mutation.key.starts_with(INTERNAL) {
            return Ok(Decoded::Ignored(Ignored::Internal));
        }
        self.document(mutation)
    }

    fn document(&self, mutation: &Mutation) -> Result<Decoded, Invalid> {
        let value = Value::of(mutation)?;
        let mut metadata = Metadata::default();
        if let Some(attribute) = value.attribute(METADATA)? {
            let mut scanner = Scanner::new(attribute);
            metadata.read(&mut scanner).and_then(|()| scanner.end()).map_err(|_| in_metadata(&scanner))?;
            if parse_cas(&metadata.cas)? != mutation.cas {
                return Ok(Decoded::Ignored(Ignored::ForeignWrite));
            }
        } else if mutation.kind == MutationKind::Mutation {
            if !read_inline(value.body()?, &mut metadata)? {
                return Ok(Decoded::Ignored(Ignored::NoMetadata));
            }
        } else {
            let nothing = if value.has_attributes { Ignored::NoMetadata } else { Ignored::Deletion };
            return Ok(Decoded::Ignored(nothing));
        }
        self.revision(mutation, &metadata)
    }

    /// The entry of a revision.
    fn revision(&self, mutation: &Mutation, metadata: &Metadata<'_>) -> Result<Decoded, Invalid> {
        let id = match std::str::from_utf8(&mutation.key) {
            Ok("") => return Err(invalid("a document without an id")),
            Ok(id) => id,
            Err(_) => return Err(invalid("a document id that is not UTF-8")),
        };
        if metadata.sequence == 0 {
            return Err(invalid("metadata without a sequence"));
        }
        if metadata.revision.is_empty() {
            return Err(invalid("metadata without a revision"));
        }
        let own = metadata.sequence;
        let flags = EntryFlags((metadata.flags & FLAGS) as u8);
        let collection = CollectionId(mutation.collection);
        let mut entry = ChangeEntry::new(Sequence(own), id, &metadata.revision, flags)
            .map_err(refused)?
            .with_collection(collection)
            .with_origin(mutation.partition, mutation.seqno);

        let mut superseded = Superseded::new(metadata)?;
        let recent = superseded.recent();
        let remembered = metadata.recent.iter().min().copied();
        let mut departures = Vec::new();
        for state in &metadata.channels {
            let (membership, left) = match &state.removal {
                None => (Membership::Present, own),
                Some(removal) => (how(removal), removal.sequence),
            };
            if left == 0 || left > own {
                // It cannot have left there.
                continue;
            }
            let reach = Reach::new(metadata, &state.name, membership, left);
            // What is older than that has been marked, if there ever was a row.
            if let Some(departure) = reach.departure.filter(|_| remembered.is_none_or(|remembered| remembered <= left)) {
                superseded.sequences.push(Sequence(departure));
            }
            let channel = self.channels.channel(collection, &state.name).map_err(refused)?;
            let since = Sequence(reach.since);
            match &state.removal {
                Some(removal) if left != own => departures.push(Departure {
                    sequence: Sequence(left),
                    revision: (&*removal.revision).into(),
                    channel,
                    membership,
                    since,
                }),
                _ => entry.push_channel(ChannelChange { channel, membership, since }),
            }
        }
        superseded.finish(recent)?;
        superseded.sequences.iter().for_each(|sequence| entry.push_superseded(*sequence));
        let unused = metadata.unused.iter().filter(|n| **n > 0 && **n != own).map(|n| Sequence(*n)).collect();
        Ok(Decoded::Document(DecodedDocument { entry, unused, departures }))
    }
}

impl MutationDecoder for GatewayDecoder {
    fn decode(&self, mutation: &Mutation) -> Decoded {
        self.try_decode(mutation).unwrap_or_else(Decoded::Invalid)
    }
}

/// Collects the sequences that an entry supersedes.
struct Superseded {
    sequences: SmallVec<[Sequence; 24]>,
}

impl Superseded {
    /// Those of the document's last revisions, in order.
    #[inline]
    fn new(metadata: &Metadata<'_>) -> Result<Self, Invalid> {
        let mut sequences = SmallVec::new();
        for &n in &metadata.recent {
            if n < metadata.sequence && n > 0 && metadata.unused.binary_search(&n).is_err() {
                sequences.push(Sequence(n));
            }
        }
        let mut superseded = Superseded { sequences };
        superseded.sort();
        superseded.check()?;
        Ok(superseded)
    }

    /// How many there are so far.
    fn recent(&self) -> usize {
        self.sequences.len()
    }

    /// Puts those from `recent` on, which are new, in order.
    #[inline]
    fn finish(&mut self, recent: usize) -> Result<(), Invalid> {
        if self.sequences.len() > recent {
            self.sort();
            self.check()?;
        }
        Ok(())
    }

    #[inline]
    fn sort(&mut self) {
        // The gateway writes them sorted.
        if !self.sequences.is_sorted_by(|a, b| a < b) {
            self.sequences.sort_unstable();
            self.sequences.dedup();
        }
    }

    fn check(&self) -> Result<(), Invalid> {
        if self.sequences.len() > MAX_SUPERSEDED {
            return Err(invalid(format!("a revision that supersedes over {MAX_SUPERSEDED} others")));
        }
        Ok(())
    }
}

/// Where the document's earlier rows in one channel can be, seen from the row at some sequence.
struct Reach {
    /// No row of it in that channel that needs a mark is below; zero if that is not known.
    since: u64,
    /// Where the document last left the channel before the row, if its recent sequences do not say.
    departure: Option<u64>,
}

impl Reach {
    /// For the row at `row`, which is `membership` in `channel`.
    ///
    /// Rows in a channel are at the sequences of the document's stays there: from each start to its end, which is the removal. The
    /// row before this one need not belong to the last stay but one: the feed may have left out whole stays. So everything back to
    /// the first known stay is within reach, if it is among the superseded; marking a sequence at which there is no row does no harm.
    ///
    /// The row before may also be older than the recent sequences: it is then the end of a stay. Which of the recent ones is the oldest revision
    /// cannot be told (some may never have been used), so the latest end that is not among them is taken in any case.
    #[inline]
    fn new(metadata: &Metadata<'_>, channel: &[u8], membership: Membership, row: u64) -> Self {
        let (mut first_start, mut departure, mut known) = (u64::MAX, 0, false);
        for stay in metadata.last_stays.of(channel).chain(metadata.earlier_stays.of(channel)) {
            if stay.start > row {
                continue;
            }
            first_start = first_start.min(stay.start);
            known |= if membership == Membership::Present { stay.end == 0 } else { stay.end == row };
            if stay.end > departure && stay.end < row && !metadata.recent.contains(&stay.end) {
                departure = stay.end;
            }
        }
        Reach { since: if known { first_start } else { 0 }, departure: (departure > 0).then_some(departure) }
    }
}

/// A mutation's value, its encoding understood.
struct Value<'a> {
    bytes: &'a [u8],
    has_attributes: bool,
}

impl<'a> Value<'a> {
    #[inline]
    fn of(mutation: &'a Mutation) -> Result<Self, Invalid> {
        // A feed without values may still say how they are encoded.
        let bytes = &mutation.value[..];
        if mutation.datatype.is_compressed() && !bytes.is_empty() {
            return Err(invalid("a compressed value; the feed must decompress it"));
        }
        Ok(Value { bytes, has_attributes: mutation.datatype.has_attributes() && !bytes.is_empty() })
    }

    #[inline]
    fn attribute(&self, name: &str) -> Result<Option<&'a [u8]>, Invalid> {
        if self.has_attributes { attributes::find(self.bytes, name).map_err(refused) } else { Ok(None) }
    }

    #[inline]
    fn body(&self) -> Result<&'a [u8], Invalid> {
        if self.has_attributes { attributes::body(self.bytes).map_err(refused) } else { Ok(self.bytes) }
    }
}

/// Reads the metadata in a body that is a JSON object with such a property; whether it is one.
fn read_inline<'a>(body: &'a [u8], metadata: &mut Metadata<'a>) -> Result<bool, Invalid> {
    let mut scanner = Scanner::new(body);
    if scanner.peek() != Ok(b'{') {
        return Ok(false);
    }
    let mut found = false;
    let read = scanner.object(|s, key| {
        if key != METADATA.as_bytes() {
            return s.skip();
        }
        if found {
            *metadata = Metadata::default();
        }
        found = true;
        metadata.read(s)
    });
    match read.and_then(|()| scanner.end()) {
        Ok(()) => Ok(found),
        Err(_) if found => Err(in_metadata(&scanner)),
        // Without the property it is not the gateway's, well-formed or not.
        Err(_) => Ok(false),
    }
}

/// A user, a role or a marker, whose key continues with `rest` after the prefix.
fn internal(rest: &[u8], mutation: &Mutation) -> Result<Decoded, Invalid> {
    if let Some(name) = rest.strip_prefix(b"user:") {
        return principal(PrincipalKind::User, name, mutation);
    }
    if let Some(name) = rest.strip_prefix(b"role:") {
        return principal(PrincipalKind::Role, name, mutation);
    }
    // Markers expire, and then come again as deletions; what they say stays true.
    let (first, last) = if let Some(number) = rest.strip_prefix(b"unusedSeq:") {
        let number = parse_sequence(number);
        (number, number)
    } else if let Some(range) = rest.strip_prefix(b"unusedSeqs:") {
        let mut ends = range.splitn(2, |b| *b == b':');
        (ends.next().and_then(parse_sequence), ends.next().and_then(parse_sequence))
    } else {
        return Ok(Decoded::Ignored(Ignored::Internal));
    };
    let range = first.zip(last).and_then(|(first, last)| SequenceRange::new(first, last));
    range.map(Decoded::Unused).ok_or_else(|| invalid("a marker of unused sequences whose key names none"))
}

fn principal(kind: PrincipalKind, name: &[u8], mutation: &Mutation) -> Result<Decoded, Invalid> {
    if mutation.kind != MutationKind::Mutation {
        return Ok(Decoded::Ignored(Ignored::Deletion));
    }
    let name = std::str::from_utf8(name).map_err(|_| invalid("a principal's name that is not UTF-8"))?;
    let body = Value::of(mutation)?.body()?;
    let mut sequence = 0;
    let mut scanner = Scanner::new(body);
    scanner
        .object(|s, key| {
            if key == b"sequence" {
                sequence = s.u64()?;
                return Ok(());
            }
            s.skip()
        })
        .and_then(|()| scanner.end())
        .map_err(|_| invalid(format!("a principal: {}", scanner.failure())))?;
    if sequence == 0 {
        // It used up none.
        return Ok(Decoded::Ignored(Ignored::Internal));
    }
    let (sequence, document) = (Sequence(sequence), mutation.value.slice_ref(body));
    Ok(Decoded::Principal(Principal { sequence, kind, name: name.into(), document }))
}

fn how(removal: &Removal<'_>) -> Membership {
    if removal.deleted { Membership::RemovedByDeletion } else { Membership::Removed }
}

/// A decimal number of digits only, not zero.
fn parse_sequence(digits: &[u8]) -> Option<Sequence> {
    let digits = std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok().filter(|n| *n > 0).map(Sequence)
}

/// A CAS as the metadata has it: its bytes from the lowest on, in hexadecimal. None at all is zero, which no document has.
#[inline]
fn parse_cas(text: &[u8]) -> Result<u64, Invalid> {
    if text.is_empty() {
        return Ok(0);
    }
    let bad = || invalid("metadata whose CAS is not 0x and 16 hexadecimal digits");
    let digits: &[u8; 16] = text.strip_prefix(b"0x").and_then(|digits| digits.try_into().ok()).ok_or_else(bad)?;
    let (mut number, mut wrong) = (0u64, 0);
    for digit in digits {
        let value = HEX[usize::from(*digit)];
        wrong |= value;
        number = number << 4 | u64::from(value & 15);
    }
    if wrong > 15 { Err(bad()) } else { Ok(number.swap_bytes()) }
}

/// The value of each hexadecimal digit; over 15 for other bytes.
const HEX: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as u8;
        table[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    table
};

#[cold]
fn invalid(reason: impl Into<String>) -> Invalid {
    Invalid { reason: reason.into() }
}

#[cold]
fn refused(error: crate::Error) -> Invalid {
    invalid(error.to_string())
}

#[cold]
fn in_metadata(scanner: &Scanner<'_>) -> Invalid {
    invalid(format!("metadata: {}", scanner.failure()))
}

#[cfg(test)]
mod tests;
