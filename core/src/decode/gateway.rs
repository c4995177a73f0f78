//! The gateway's documents: revisions with their metadata, users and roles, markers of unused sequences.

mod superseded;
mod value;

use std::collections::BTreeSet;

use superseded::{Reach, Superseded};
use value::Value;

use super::databases::{DEFAULT_ID, name_in_key};
use super::interner::Interners;
use super::json::Scanner;
use super::metadata::{Metadata, Removal, is_gateways};
use super::{Decoded, DecodedDocument, Departure, Ignored, Invalid, LeftOut, MutationDecoder, Principal, PrincipalKind, Purged};
use crate::document::{CollectionId, DocumentId};
use crate::entry::{ChangeEntry, ChannelChange, EntryFlags, Membership};
use crate::feed::{Mutation, MutationKind};
use crate::sequence::{Sequence, SequenceRange};

/// Where a document keeps the gateway's metadata: the attribute, or the property of the body, of this name.
const METADATA: &str = "_sync";

/// What all keys of the gateway's own documents begin with.
const INTERNAL: &[u8] = b"_sync:";

/// The most sequences that one marker releases. No gateway releases more at a time.
const MAX_RELEASED: u64 = 10_000_000;

/// The bits of the gateway's flags that an entry keeps; the top one is ours.
const FLAGS: u64 = 0x7f;

/// How to read the gateway's documents.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GatewayOptions {
    /// The database's metadata id, which is part of the keys of its users, roles and unused
    /// sequences. `None`, or `_default`, for a database whose keys have none. It has no colon.
    pub metadata_id: Option<String>,
    /// The numbers of the database's collections; `None` for all that the feed delivers. This
    /// filters documents only: users, roles and markers are in a collection of their own.
    pub collections: Option<BTreeSet<u32>>,
    /// Whether metadata are in attributes only. If so, a property `_sync` of a body is never read.
    pub attributes_only: bool,
    /// About how many channel names of each collection are remembered, so that entries share them.
    pub channel_capacity: usize,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        GatewayOptions { metadata_id: None, collections: None, attributes_only: false, channel_capacity: 1 << 20 }
    }
}

impl GatewayOptions {
    /// Whether the values make sense.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the one that does not.
    pub fn validate(&self) -> crate::Result<()> {
        let wrong = match (&self.metadata_id, &self.collections) {
            (Some(id), _) if id.is_empty() || id.contains(':') => {
                format!("metadata_id is `{id}`, must not be empty, nor hold a colon")
            }
            (_, Some(collections)) if collections.is_empty() => "collections names none, must name at least one".to_owned(),
            _ => return Ok(()),
        };
        Err(crate::Error::config(wrong))
    }
}

/// Understands what Sync Gateway writes: metadata in attributes or in the body, its users and roles, its unused sequences.
///
/// What a document's entry supersedes is what its metadata remembers of its earlier revisions: `recent_sequences`, and where it last
/// left each channel that it has entered since. So every earlier row of the document is marked, also where the feed leaves revisions
/// out, as long as the revision delivered before is still among the recent sequences of the next: the gateway keeps from 5 to 20.
#[derive(Debug)]
pub struct GatewayDecoder {
    /// `None` for the default.
    metadata_id: Option<Box<[u8]>>,
    /// Sorted; `None` for all.
    collections: Option<Box<[u32]>>,
    attributes_only: bool,
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
        let metadata_id = options.metadata_id.as_deref().filter(|id| *id != DEFAULT_ID);
        GatewayDecoder {
            metadata_id: metadata_id.map(|id| id.as_bytes().into()),
            collections: options.collections.as_ref().map(|collections| collections.iter().copied().collect()),
            attributes_only: options.attributes_only,
            channels: Interners::with_capacity(options.channel_capacity),
        }
    }

    fn try_decode(&self, mutation: &Mutation) -> Result<Decoded, Invalid> {
        match mutation.key.strip_prefix(INTERNAL) {
            Some(rest) => self.internal(rest, mutation),
            None => self.document(mutation),
        }
    }

    fn document(&self, mutation: &Mutation) -> Result<Decoded, Invalid> {
        if let Some(collections) = &self.collections
            && collections.binary_search(&mutation.collection).is_err()
        {
            return Ok(Decoded::Ignored(Ignored::OtherCollection(mutation.collection)));
        }
        let value = Value::of(mutation)?;
        let mut metadata = Metadata::default();
        if let Some(attribute) = value.attribute(METADATA)? {
            let mut scanner = Scanner::new(attribute);
            metadata.read(&mut scanner).and_then(|()| scanner.end()).map_err(|_| in_metadata(&scanner))?;
            if metadata.is_empty() {
                let is_there = mutation.kind == MutationKind::Mutation;
                return Ok(if is_there { Decoded::Ignored(Ignored::NoMetadata) } else { gone(mutation) });
            }
            let is_own = parse_cas(&metadata.cas)? == mutation.cas || value.is_unchanged(mutation.kind, attribute)?;
            let document = self.revision(mutation, &metadata)?;
            return Ok(if is_own { Decoded::Document(document) } else { Decoded::Foreign(with_own_departures(document)) });
        }
        if mutation.kind != MutationKind::Mutation {
            return Ok(gone(mutation));
        }
        if self.attributes_only {
            return Ok(Decoded::Ignored(Ignored::NoMetadata));
        }
        if let Some(ignored) = read_inline(value.body()?, &mut metadata)? {
            return Ok(Decoded::Ignored(ignored));
        }
        self.revision(mutation, &metadata).map(Decoded::Document)
    }

    /// The entry of a revision.
    fn revision(&self, mutation: &Mutation, metadata: &Metadata<'_>) -> Result<DecodedDocument, Invalid> {
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
        let mut digits = [0; 16];
        let version = version(metadata, &mut digits);
        let entry = ChangeEntry::build(Sequence(own), id, &metadata.revision, &version, flags)
            .map_err(refused)?
            .with_collection(collection)
            .with_origin(mutation.partition, mutation.seqno);
        let mut document = DecodedDocument::from(entry);
        // The gateway never removes a channel from the map.
        document.names_all_channels = true;
        let entry = &mut document.entry;

        let mut superseded = Superseded::recent(metadata);
        let remembered = metadata.recent.iter().min().copied();
        for state in &metadata.channels {
            let (membership, left) = match &state.removal {
                None => (Membership::Present, own),
                Some(removal) => (how(removal), removal.sequence),
            };
            if left == 0 || left > own && !metadata.recent.contains(&left) {
                // It cannot have left there.
                document.names_all_channels = false;
                continue;
            }
            let reach = Reach::new(metadata, &state.name, membership, left);
            // What is older than that has been marked, if there ever was a row.
            if let Some(departure) = reach.departure.filter(|_| remembered.is_none_or(|remembered| remembered <= left)) {
                superseded.departures.push(Sequence(departure));
            }
            let channel = match self.channels.channel(collection, &state.name) {
                Ok(channel) => channel,
                Err(error) => {
                    leave_out(&mut document.left_out, &state.name, &error);
                    // The sequence belongs to this document and to no other.
                    if left != own {
                        document.accounted.push(Sequence(left));
                    }
                    continue;
                }
            };
            let since = Sequence(reach.since);
            match &state.removal {
                Some(removal) if left != own => document.departures.push(Departure {
                    sequence: Sequence(left),
                    revision: (&*removal.revision).into(),
                    channel,
                    membership,
                    since,
                }),
                _ => entry.push_channel(ChannelChange { channel, membership, since }),
            }
        }
        superseded.finish(entry, &mut document.accounted);
        document.unused = metadata.unused.iter().filter(|n| **n > 0 && **n != own).map(|n| Sequence(*n)).collect();
        if metadata.cut != [0; 2] {
            let cut: usize = metadata.cut.iter().sum();
            document.left_out.get_or_insert_default().sequences = cut as u64;
        }
        Ok(document)
    }

    /// A user, a role, a marker, or another document of the gateway itself. `rest` is its key after
    /// the prefix.
    fn internal(&self, rest: &[u8], mutation: &Mutation) -> Result<Decoded, Invalid> {
        if let Some(name) = rest.strip_prefix(b"user:") {
            return self.principal(PrincipalKind::User, name, mutation);
        }
        if let Some(name) = rest.strip_prefix(b"role:") {
            return self.principal(PrincipalKind::Role, name, mutation);
        }
        let (id, rest) = match rest.strip_prefix(b"m_").and_then(split_at_colon) {
            Some((id, rest)) => (Some(id), rest),
            None => (None, rest),
        };
        // Markers expire, and then come again as deletions; their sequences stay unused.
        let (first, last) = if let Some(number) = rest.strip_prefix(b"unusedSeq:") {
            let number = parse_sequence(number);
            (number, number)
        } else if let Some(range) = rest.strip_prefix(b"unusedSeqs:") {
            let ends = split_at_colon(range);
            (ends.and_then(|(first, _)| parse_sequence(first)), ends.and_then(|(_, last)| parse_sequence(last)))
        } else if rest == b"seq" && id == self.metadata_id.as_deref() {
            return counter(mutation);
        } else {
            return Ok(Decoded::Ignored(Ignored::Internal));
        };
        if id != self.metadata_id.as_deref() {
            return Ok(other_database(id));
        }
        let range = first.zip(last).and_then(|(first, last)| SequenceRange::new(first, last));
        let range = range.ok_or_else(|| invalid("a marker of unused sequences without a sequence in its key"))?;
        if range.count() > MAX_RELEASED || range.last() == Sequence::MAX {
            return Err(invalid(format!(
                "a marker for the unused sequences {range}: no gateway releases more than {MAX_RELEASED} at a time, or the highest of all"
            )));
        }
        Ok(Decoded::Unused(range))
    }

    /// A user or role. After the kind, the key has the metadata id, unless that is the default one,
    /// and the name, which has no colon.
    fn principal(&self, kind: PrincipalKind, rest: &[u8], mutation: &Mutation) -> Result<Decoded, Invalid> {
        let name = match (&self.metadata_id, split_at_colon(rest)) {
            (None, None) => rest,
            (Some(id), Some((found, name))) if *found == **id => name,
            (_, other) => return Ok(other_database(other.map(|(id, _)| id))),
        };
        if mutation.kind != MutationKind::Mutation {
            return Ok(Decoded::Ignored(Ignored::Deletion));
        }
        let name = std::str::from_utf8(name).map_err(|_| invalid("a principal's name that is not UTF-8"))?;
        let body = Value::of(mutation)?.body()?;
        let (mut sequence, mut full_name) = (0, None);
        let mut scanner = Scanner::new(body);
        scanner
            .object(|s, key| {
                match key {
                    b"sequence" => sequence = s.u64()?,
                    b"name" if s.peek()? == b'"' => full_name = Some(s.string()?),
                    _ => s.skip()?,
                }
                Ok(())
            })
            .and_then(|()| scanner.end())
            .map_err(|_| invalid(format!("a principal: {}", scanner.failure())))?;
        if sequence == 0 {
            // It has no sequence of its own.
            return Ok(Decoded::Ignored(Ignored::Internal));
        }
        // For a long name the key has only a digest.
        let full_name = full_name.filter(|full| self.metadata_id.is_some() && name_in_key(full) == name);
        let name = full_name.as_deref().unwrap_or(name).into();
        let (sequence, document) = (Sequence(sequence), mutation.value.slice_ref(body));
        Ok(Decoded::Principal(Principal { sequence, kind, name, document }))
    }
}

impl MutationDecoder for GatewayDecoder {
    fn decode(&self, mutation: &Mutation) -> Decoded {
        self.try_decode(mutation).unwrap_or_else(Decoded::Invalid)
    }
}

/// Adds the departures of a revision that is not shown because another program has written since.
/// The next revision of the gateway repeats them, but their sequence is accounted for by then.
#[cold]
fn with_own_departures(mut document: DecodedDocument) -> DecodedDocument {
    let DecodedDocument { entry, departures, .. } = &mut document;
    for ChannelChange { channel, membership, since } in entry.channels().iter().filter(|change| change.membership.is_removal()) {
        departures.push(Departure {
            sequence: entry.sequence(),
            revision: entry.revision().into(),
            channel: channel.clone(),
            membership: *membership,
            since: *since,
        });
    }
    document
}

/// Records that a channel is left out.
#[cold]
fn leave_out(left_out: &mut Option<Box<LeftOut>>, name: &[u8], error: &crate::Error) {
    /// The longest part of a name that is shown, in bytes.
    const MOST: usize = 80;
    let left_out = left_out.get_or_insert_default();
    left_out.channels += 1;
    if left_out.named.len() < LeftOut::NAMED {
        let (shown, more) = if name.len() > MOST { (&name[..MOST], "...") } else { (name, "") };
        left_out.named.push(format!("\"{}{more}\" ({error})", shown.escape_ascii()));
    }
}

/// A deletion that leaves no metadata of the gateway.
fn gone(mutation: &Mutation) -> Decoded {
    // The feed has no values, so remaining attributes are not visible.
    let is_unknown = mutation.datatype.has_attributes() && mutation.value.is_empty();
    match std::str::from_utf8(&mutation.key) {
        Ok(id) if !id.is_empty() && !is_unknown => {
            let document = DocumentId::new(CollectionId(mutation.collection), id);
            Decoded::Purged(Purged { document, cas: mutation.cas })
        }
        _ => Decoded::Ignored(Ignored::Deletion),
    }
}

/// Reads the metadata in the property `_sync` of a body. Returns why the document is to be ignored
/// if there is no such property, or if another program wrote it.
fn read_inline<'a>(body: &'a [u8], metadata: &mut Metadata<'a>) -> Result<Option<Ignored>, Invalid> {
    let mut scanner = Scanner::new(body);
    if scanner.peek() != Ok(b'{') {
        return Ok(Some(Ignored::NoMetadata));
    }
    let mut found = None;
    let read = scanner.object(|s, key| {
        if key != METADATA.as_bytes() {
            return s.skip();
        }
        if found.is_some() {
            *metadata = Metadata::default();
        }
        found = Some(s.clone());
        metadata.read(s)
    });
    let is_read = read.and_then(|()| scanner.end()).is_ok();
    let Some(mut property) = found else {
        // Without the property it is not the gateway's, well-formed or not.
        return Ok(Some(Ignored::NoMetadata));
    };
    if is_read && metadata.sequence > 0 && !metadata.revision.is_empty() {
        return Ok(None);
    }
    match is_gateways(&mut property) {
        false => Ok(Some(Ignored::ForeignProperty)),
        true if is_read => Ok(None),
        true => Err(in_metadata(&scanner)),
    }
}

/// The counter of allocated sequences: a number. Its deletion is ignored.
fn counter(mutation: &Mutation) -> Result<Decoded, Invalid> {
    if mutation.kind != MutationKind::Mutation {
        return Ok(Decoded::Ignored(Ignored::Internal));
    }
    let body = Value::of(mutation)?.body()?;
    let number = std::str::from_utf8(body).ok().and_then(|text| text.trim().trim_matches('"').parse().ok());
    // A recording may leave the body out.
    Ok(number.map_or(Decoded::Ignored(Ignored::Internal), |number| Decoded::Counter(Sequence(number))))
}

/// The parts of the current version in the form that clients see: the number in hexadecimal, most
/// significant digit first, and the source. Empty if there is none, or none that can be read:
/// nothing depends on it.
#[inline]
fn version<'a>(metadata: &'a Metadata<'_>, digits: &'a mut [u8; 16]) -> [&'a str; 3] {
    if metadata.source.is_empty() {
        return [""; 3];
    }
    let Ok(mut number @ 1..) = parse_cas(&metadata.version) else { return [""; 3] };
    let mut first = digits.len();
    while number > 0 {
        first -= 1;
        digits[first] = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
    [std::str::from_utf8(&digits[first..]).unwrap_or_default(), "@", &metadata.source]
}

/// A key of another database; without an id, of the default one.
fn other_database(id: Option<&[u8]>) -> Decoded {
    let id = id.map_or(DEFAULT_ID.into(), String::from_utf8_lossy);
    Decoded::Ignored(Ignored::OtherDatabase(id.into()))
}

/// The parts before and after the first colon.
#[inline]
fn split_at_colon(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == b':')?;
    Some((&bytes[..at], &bytes[at + 1..]))
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
