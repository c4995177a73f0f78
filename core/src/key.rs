//! Where things lie in the store.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::document::{CollectionId, DocumentId};
use crate::sequence::Sequence;

/// Number of a cache block in its channel: `sequence / capacity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockIndex(pub u64);

/// Address of one document of the cache (cache format). A backend may store the value of a key in
/// any structure of its own, as long as the conformance suite cannot tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CacheKey {
    /// Format version, block codec and capacity.
    Meta,
    /// The change entry of one sequence.
    Sequence(Sequence),
    /// A range of sequences of one channel.
    Block(Channel, BlockIndex),
    /// Grows with every batch that touched the channel. An integer in ASCII decimal.
    Counter(Channel),
    /// Which blocks of the channel hold something live.
    Directory(Channel),
    /// The published clock, the only commit point.
    Clock,
    /// What one batch changed; a slot of the ring.
    Batch(u64),
    /// A page of late entries.
    Late(u64),
    /// What is missing after some batch; one of two places.
    Missing(u64),
    /// Feed position and sequencer state to restart from. Holds the feed's name.
    Checkpoint(String),
    /// The newest rows of one document.
    Document(DocumentId),
    /// The collections that have documents in the cache. Since format 2.
    Collections,
    /// The coordination document.
    Writer,
    /// The positions of entries that commits in progress may have stored.
    Intent,
}

/// Longest key text before the channel name is replaced by a hash (Couchbase allows 250 bytes; the rest is room for a namespace).
pub const MAX_KEY_BYTES: usize = 200;

/// The longest name in a key, in bytes.
const MAX_NAME_BYTES: usize = MAX_KEY_BYTES - 40;

impl CacheKey {
    /// The canonical text of the key in `namespace` (default `_cache`).
    ///
    /// Channels and documents of the default collection have their name between the brackets, those
    /// of others the collection's number, a colon and the name.
    ///
    /// Injective: `%`, `:`, `[`, `]` and `#` in a channel, document, feed or namespace name are
    /// percent-escaped, and names whose key would exceed [`MAX_KEY_BYTES`] are replaced by `#` and
    /// a 128-bit hash (the directory keeps the full name, so that a collision is noticed).
    pub fn canonical(&self, namespace: &str) -> String {
        let mut out = String::with_capacity(48);
        escape_into(&mut out, namespace);
        // Writing to a String cannot fail.
        let _ = match self {
            CacheKey::Meta => write!(out, ":_meta"),
            CacheKey::Sequence(n) => write!(out, ":_seq:[{}]", n.0),
            CacheKey::Block(channel, index) => write!(out, ":[{}]:block[{}]", channel_name(channel), index.0),
            CacheKey::Counter(channel) => write!(out, ":_count:[{}]", channel_name(channel)),
            CacheKey::Directory(channel) => write!(out, ":_dir:[{}]", channel_name(channel)),
            CacheKey::Clock => write!(out, "_stableSeq"),
            CacheKey::Batch(slot) => write!(out, ":_batch:[{slot}]"),
            CacheKey::Late(page) => write!(out, ":_late:[{page}]"),
            CacheKey::Missing(place) => write!(out, ":_missing:[{place}]"),
            CacheKey::Checkpoint(feed) => write!(out, ":_checkpoint:[{}]", name(feed)),
            CacheKey::Document(id) => write!(out, ":_doc:[{}]", qualified(id.collection, &id.key)),
            CacheKey::Collections => write!(out, ":_collections"),
            CacheKey::Writer => write!(out, ":_writer"),
            CacheKey::Intent => write!(out, ":_intent"),
        };
        out
    }
}

/// For people: the canonical text in the default namespace, but for positions in slots, as
/// [`Sequence::shown`].
impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CacheKey::Sequence(position) => write!(f, "_cache:_seq:[{}]", position.shown()),
            key => f.write_str(&key.canonical("_cache")),
        }
    }
}

fn escape_into(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '%' | ':' | '[' | ']' | '#' => {
                let _ = write!(out, "%{:02X}", c as u32);
            }
            c => out.push(c),
        }
    }
}

fn channel_name(channel: &Channel) -> String {
    qualified(channel.collection(), channel.name())
}

/// A name in a collection. An escaped name has no colon.
fn qualified(collection: CollectionId, text: &str) -> String {
    if collection.is_default() {
        return name(text);
    }
    let collection = format!("{collection}:");
    format!("{collection}{}", name_within(MAX_NAME_BYTES - collection.len(), text))
}

fn name(text: &str) -> String {
    name_within(MAX_NAME_BYTES, text)
}

fn name_within(limit: usize, text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    escape_into(&mut out, text);
    if out.len() > limit {
        let hash = fnv1a_128(text.as_bytes());
        return format!("#{hash:032x}");
    }
    out
}

/// FNV-1a, 128 bits: stable over versions and machines, which a hasher of the standard library need not be.
fn fnv1a_128(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn channel(name: &str) -> Channel {
        Channel::new(name).unwrap()
    }

    fn keys(a: &str, n: u64) -> Vec<CacheKey> {
        vec![
            CacheKey::Meta,
            CacheKey::Clock,
            CacheKey::Writer,
            CacheKey::Intent,
            CacheKey::Sequence(Sequence(n)),
            CacheKey::Batch(n),
            CacheKey::Late(n),
            CacheKey::Missing(n),
            CacheKey::Block(channel(a), BlockIndex(n)),
            CacheKey::Counter(channel(a)),
            CacheKey::Directory(channel(a)),
            CacheKey::Checkpoint(a.to_owned()),
            CacheKey::Document(a.into()),
            CacheKey::Collections,
            CacheKey::Block(channel(a).in_collection(CollectionId((n as u32).saturating_add(1))), BlockIndex(n)),
            CacheKey::Counter(channel(a).in_collection(CollectionId((n as u32).saturating_add(1)))),
            CacheKey::Document(DocumentId::new(CollectionId((n as u32).saturating_add(1)), a)),
        ]
    }

    proptest! {
        #[test]
        fn different_keys_have_different_texts(
            a in "[a-c:\\[\\]%#_0-9]{1,12}", b in "[a-c:\\[\\]%#_0-9]{1,12}", n in 0u64..30, m in 0u64..30,
        ) {
            for x in keys(&a, n) {
                for y in keys(&b, m) {
                    prop_assert_eq!(x == y, x.canonical("_cache") == y.canonical("_cache"), "{:?} {:?}", x, y);
                }
            }
        }

        #[test]
        fn different_namespaces_never_meet(a in "[a-c:\\[\\]%_]{1,8}", x in "[a-c:\\[\\]%_]{1,8}", y in "[a-c:\\[\\]%_]{1,8}") {
            prop_assume!(x != y);
            for k in keys(&a, 1) {
                for l in keys(&a, 1) {
                    prop_assert_ne!(k.canonical(&x), l.canonical(&y));
                }
            }
        }

        #[test]
        fn keys_are_short_whatever_the_name(name in "\\PC{1,300}") {
            for key in keys(&name, u64::MAX) {
                prop_assert!(key.canonical("_cache").len() <= MAX_KEY_BYTES);
            }
        }
    }

    #[test]
    fn canonical_texts_are_those_of_the_format() {
        assert_eq!(CacheKey::Sequence(Sequence(7)).to_string(), "_cache:_seq:[7]");
        let in_slot = CacheKey::Sequence(Sequence(1).in_slot(2).unwrap());
        assert_eq!(in_slot.canonical("_cache"), "_cache:_seq:[17365880163140632577]");
        assert_eq!(in_slot.to_string(), "_cache:_seq:[1 (slot 2)]");
        assert_eq!(CacheKey::Block(channel("ABC"), BlockIndex(3)).to_string(), "_cache:[ABC]:block[3]");
        assert_eq!(CacheKey::Counter(channel("ABC")).to_string(), "_cache:_count:[ABC]");
        assert_eq!(CacheKey::Clock.to_string(), "_cache_stableSeq");
        assert_eq!(CacheKey::Directory(channel("a]:b")).to_string(), "_cache:_dir:[a%5D%3Ab]");
        let of_collection = channel("A:B").in_collection(CollectionId(8));
        assert_eq!(CacheKey::Block(of_collection, BlockIndex(3)).to_string(), "_cache:[8:A%3AB]:block[3]");
        assert_eq!(CacheKey::Document(DocumentId::new(CollectionId(8), "d")).to_string(), "_cache:_doc:[8:d]");
    }
}
