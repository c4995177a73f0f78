//! Where documents lie in Redis.
//!
//! Key names are the canonical ones behind a hash tag: `{1f3a}_cache:[ABC]:block[0]`. In a Cluster the tag decides the slot, so what must
//! change together shares one: all documents that a publication writes; all of one channel.

use sluicegate_core::{CacheKey, Channel, Sequence};

use crate::page;

/// How many pages of sequence documents share a slot, so that those of a batch need few pipelines.
const PAGES: u64 = 16;

/// How many slots pointers are spread over. Fewer than there are slots, so that those of a batch need few pipelines.
const POINTER_TAGS: u64 = 64;

/// What is behind a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// A string: eight bytes of version, then the value.
    Document,
    /// The same, written in place: its version is a hash of what is there, so that each change changes it.
    Block,
    /// A record of a page, at this place.
    Record(u8),
    /// A string that is an integer.
    Counter,
}

/// Where one document lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    /// The Redis key.
    pub(crate) key: String,
    /// What decides the slot in a Cluster.
    pub(crate) tag: u16,
    /// What is there.
    pub(crate) shape: Shape,
}

/// Makes addresses in one namespace.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    namespace: String,
}

/// FNV-1a folded to 16 bits: stable over versions and machines.
fn fold(seed: u8, bytes: &[u8]) -> u16 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64 ^ u64::from(seed), |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash ^ hash >> 16 ^ hash >> 32 ^ hash >> 48) as u16
}

impl Addresses {
    /// Those of `namespace`.
    pub(crate) fn new(namespace: &str) -> Self {
        Addresses { namespace: namespace.to_owned() }
    }

    /// Where `key` lies.
    pub(crate) fn of(&self, key: &CacheKey) -> Address {
        match key {
            CacheKey::Sequence(sequence) => {
                let (page, place) = page::place(*sequence);
                Address { shape: Shape::Record(place), ..self.page(page) }
            }
            CacheKey::Block(channel, _) => self.tagged(self.channel_tag(channel), key, Shape::Block),
            CacheKey::Directory(channel) => self.tagged(self.channel_tag(channel), key, Shape::Document),
            CacheKey::Counter(channel) => self.tagged(self.channel_tag(channel), key, Shape::Counter),
            CacheKey::Document(id) => {
                let tag = u64::from(fold(2, id.key.as_bytes())) % POINTER_TAGS;
                self.tagged(fold(3, &tag.to_le_bytes()), key, Shape::Document)
            }
            _ => self.tagged(self.tag(), key, Shape::Document),
        }
    }

    /// The string that is page number `page`.
    pub(crate) fn page(&self, page: u64) -> Address {
        let tag = fold(1, &(page / PAGES).to_le_bytes());
        self.tagged(tag, &CacheKey::Sequence(Sequence(page)), Shape::Record(0))
    }

    /// Where readers are told of publications. Shares the slot of the clock.
    pub(crate) fn wake_channel(&self) -> String {
        self.tagged(self.tag(), &CacheKey::Clock, Shape::Document).key
    }

    /// The slot of the namespace's own documents.
    pub(crate) fn tag(&self) -> u16 {
        fold(0, self.namespace.as_bytes())
    }

    /// The key of something that is no document of the cache, in the slot of one.
    pub(crate) fn beside(&self, address: &Address, name: &str) -> String {
        let namespace = CacheKey::Clock.canonical(&self.namespace);
        let namespace = namespace.strip_suffix("_stableSeq").unwrap_or(&namespace);
        format!("{{{:04x}}}{namespace}:{name}", address.tag)
    }

    fn channel_tag(&self, channel: &Channel) -> u16 {
        // Adds nothing for the default collection: its keys are the same as before there were
        // collections.
        fold(4, channel.name().as_bytes()) ^ channel.collection().0 as u16
    }

    fn tagged(&self, tag: u16, key: &CacheKey, shape: Shape) -> Address {
        Address { key: format!("{{{tag:04x}}}{}", key.canonical(&self.namespace)), tag, shape }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluicegate_core::BlockIndex;

    #[test]
    fn what_must_change_together_shares_a_tag_and_channels_spread() {
        let addresses = Addresses::new("_cache");
        let of = |key: CacheKey| addresses.of(&key);
        let published = [
            CacheKey::Clock,
            CacheKey::Batch(3),
            CacheKey::Late(0),
            CacheKey::Missing(1),
            CacheKey::Checkpoint("{f}".to_owned()),
        ];
        for key in published {
            assert_eq!(of(key).tag, addresses.tag());
        }
        let channel = |n: u64| Channel::new(&format!("{{c}}{n}")).unwrap();
        let tags: std::collections::BTreeSet<u16> = (0..100).map(|n| of(CacheKey::Directory(channel(n))).tag).collect();
        assert!(tags.len() > 90, "{tags:?}");
        let mine = [CacheKey::Block(channel(1), BlockIndex(9)), CacheKey::Counter(channel(1)), CacheKey::Directory(channel(1))];
        assert!(mine.into_iter().all(|key| of(key).tag == of(CacheKey::Block(channel(1), BlockIndex(0))).tag));
    }

    #[test]
    fn keys_are_readable() {
        let addresses = Addresses::new("app");
        let tag = format!("{:04x}", addresses.tag());
        assert_eq!(addresses.of(&CacheKey::Clock).key, format!("{{{tag}}}app_stableSeq"));
        let entry = addresses.of(&CacheKey::Sequence(Sequence(300)));
        assert!(entry.key.ends_with("}app:_seq:[37]"), "{}", entry.key);
        assert_eq!(entry.shape, Shape::Record(4));
    }
}
