//! Channels, interned so that comparing and hashing one costs as much as an integer.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use parking_lot::RwLock;
use rustc_hash::{FxBuildHasher, FxHasher};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::document::CollectionId;
use crate::error::{Error, Result};

/// The longest channel name accepted, in bytes. Longer input is refused before it is stored.
pub const MAX_CHANNEL_BYTES: usize = 4096;

/// A collection, and the name under which document revisions of that collection are published. The
/// name is any Unicode text; `*` is the star channel, which has every document of the collection.
///
/// Channels of one name in different collections are different channels.
///
/// Cheap to clone. The hash is kept beside the name, so maps keyed by channels never hash the name
/// again.
#[derive(Clone)]
pub struct Channel(Arc<Inner>);

struct Inner {
    hash: u64,
    collection: CollectionId,
    name: Box<str>,
}

impl Channel {
    /// The channel `name` of the default collection. Prefer an [`Interner`] for names that repeat.
    ///
    /// # Errors
    /// `TooLarge` over [`MAX_CHANNEL_BYTES`]; `ConfigInvalid` if it is empty.
    pub fn new(name: &str) -> Result<Self> {
        Channel::of(CollectionId::DEFAULT, name)
    }

    /// The channel `name` of `collection`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(collection: CollectionId, name: &str) -> Result<Self> {
        if name.len() > MAX_CHANNEL_BYTES {
            return Err(Error::new(
                crate::ErrorKind::TooLarge,
                format!("a channel name of {} bytes is over the limit of {MAX_CHANNEL_BYTES}", name.len()),
            ));
        }
        if name.is_empty() {
            return Err(Error::config("a channel name must not be empty"));
        }
        Ok(Channel::unchecked(collection, name))
    }

    /// The star channel of the default collection.
    pub fn star() -> Self {
        Channel::star_of(CollectionId::DEFAULT)
    }

    /// The star channel of `collection`.
    pub fn star_of(collection: CollectionId) -> Self {
        Channel::shared_star(collection).clone()
    }

    /// The star channel of `collection`, as a static reference: no reference count is written. It
    /// is made once for each collection, and stays as long as the process runs.
    #[inline]
    pub fn shared_star(collection: CollectionId) -> &'static Self {
        static DEFAULT: LazyLock<Channel> = LazyLock::new(|| Channel::unchecked(CollectionId::DEFAULT, "*"));
        if collection.is_default() { &DEFAULT } else { Channel::shared_star_of_named(collection) }
    }

    fn shared_star_of_named(collection: CollectionId) -> &'static Self {
        type Stars = std::collections::HashMap<CollectionId, &'static Channel, FxBuildHasher>;
        static NAMED: LazyLock<RwLock<Stars>> = LazyLock::new(RwLock::default);
        if let Some(star) = NAMED.read().get(&collection) {
            return star;
        }
        let mut named = NAMED.write();
        named.entry(collection).or_insert_with(|| Box::leak(Box::new(Channel::unchecked(collection, "*"))))
    }

    fn unchecked(collection: CollectionId, name: &str) -> Self {
        Channel(Arc::new(Inner { hash: hash_of(collection, name), collection, name: name.into() }))
    }

    /// The collection.
    pub fn collection(&self) -> CollectionId {
        self.0.collection
    }

    /// The channel of the same name in `collection`.
    #[must_use]
    pub fn in_collection(self, collection: CollectionId) -> Self {
        if self.0.collection == collection { self } else { Channel::unchecked(collection, &self.0.name) }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether this is the star channel of its collection.
    pub fn is_star(&self) -> bool {
        &*self.0.name == "*"
    }
}

fn hash_of(collection: CollectionId, name: &str) -> u64 {
    let mut hasher = FxHasher::default();
    name.hash(&mut hasher);
    collection.hash(&mut hasher);
    hasher.finish()
}

impl PartialEq for Channel {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.0.hash == other.0.hash && self.0.collection == other.0.collection && self.0.name == other.0.name)
    }
}

impl Eq for Channel {}

impl Hash for Channel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl PartialOrd for Channel {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Channel {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.collection, &self.0.name).cmp(&(other.0.collection, &other.0.name))
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.collection.is_default() {
            write!(f, "{}/", self.0.collection)?;
        }
        fmt::Debug::fmt(&*self.0.name, f)
    }
}

/// The name. In another collection than the default one, the collection's number comes before it.
impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.collection.is_default() {
            // Pads in the same way as the name alone.
            return fmt::Display::fmt(&*self.0.name, f);
        }
        f.pad(&format!("{}/{}", self.0.collection, self.0.name))
    }
}

/// The name only: the value that contains the channel has the collection.
impl Serialize for Channel {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A channel of the default collection; see [`Channel::in_collection`].
impl<'de> Deserialize<'de> for Channel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Channel::new(&name).map_err(serde::de::Error::custom)
    }
}

/// A map keyed by channel.
pub type ChannelMap<V> = std::collections::HashMap<Channel, V, FxBuildHasher>;

/// Hands out one [`Channel`] a name, so that equal channels are usually the same allocation.
///
/// Bounded: past its capacity it forgets everything and starts again, which costs memory sharing, never correctness.
#[derive(Debug)]
pub struct Interner {
    known: std::collections::HashMap<Box<str>, Channel, FxBuildHasher>,
    capacity: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Interner::with_capacity(1 << 20)
    }
}

impl Interner {
    /// One that remembers at most `capacity` names.
    pub fn with_capacity(capacity: usize) -> Self {
        Interner { known: Default::default(), capacity: capacity.max(1) }
    }

    /// The channel called `name`.
    ///
    /// # Errors
    /// As [`Channel::new`].
    pub fn channel(&mut self, name: &str) -> Result<Channel> {
        if let Some(channel) = self.known.get(name) {
            return Ok(channel.clone());
        }
        let channel = Channel::new(name)?;
        if self.known.len() >= self.capacity {
            self.known.clear();
        }
        self.known.insert(name.into(), channel.clone());
        Ok(channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_equal_channels_however_they_were_made() {
        let mut interner = Interner::default();
        let a = interner.channel("ch1").unwrap();
        assert_eq!(a, Channel::new("ch1").unwrap());
        assert!(Arc::ptr_eq(&a.0, &interner.channel("ch1").unwrap().0));
        assert_ne!(a, Channel::star());
    }

    #[test]
    fn channels_of_one_name_in_two_collections_differ() {
        let (a, b) = (Channel::of(CollectionId(8), "c").unwrap(), Channel::of(CollectionId(9), "c").unwrap());
        assert_ne!(a, b);
        assert_ne!(a, Channel::new("c").unwrap());
        assert_eq!(b.clone().in_collection(CollectionId(8)), a);
        assert!(Channel::star_of(CollectionId(8)).is_star());
        assert_ne!(Channel::star_of(CollectionId(8)), Channel::star());
        assert_eq!(format!("{a} {:?} {}", b, Channel::star()), r#"8/c 9/"c" *"#);
    }

    #[test]
    fn an_interner_stays_within_its_capacity() {
        let mut interner = Interner::with_capacity(10);
        for n in 0..1000 {
            interner.channel(&n.to_string()).unwrap();
        }
        assert!(interner.known.len() <= 10);
    }

    #[test]
    fn empty_and_huge_names_are_refused() {
        assert!(Channel::new("").is_err());
        assert!(Channel::new(&"x".repeat(MAX_CHANNEL_BYTES + 1)).is_err());
    }
}
