//! Channel names, interned so that comparing and hashing one costs an integer.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustc_hash::{FxBuildHasher, FxHasher};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// The longest channel name accepted, in bytes. Longer input is refused before it is stored.
pub const MAX_CHANNEL_BYTES: usize = 4096;

/// The name under which a document revision is published. Any Unicode; `*` is the star channel, which holds everything.
///
/// Cheap to clone. The name's hash is kept beside it, so maps keyed by channels never hash the name again.
#[derive(Clone)]
pub struct Channel(Arc<Inner>);

struct Inner {
    hash: u64,
    name: Box<str>,
}

impl Channel {
    /// The channel called `name`. Prefer an [`Interner`] where the same names come again and again.
    ///
    /// # Errors
    /// `TooLarge` over [`MAX_CHANNEL_BYTES`]; `ConfigInvalid` if it is empty.
    pub fn new(name: &str) -> Result<Self> {
        if name.len() > MAX_CHANNEL_BYTES {
            return Err(Error::new(
                crate::ErrorKind::TooLarge,
                format!("a channel name of {} bytes is over the limit of {MAX_CHANNEL_BYTES}", name.len()),
            ));
        }
        if name.is_empty() {
            return Err(Error::config("a channel name must not be empty"));
        }
        Ok(Channel::unchecked(name))
    }

    /// The star channel.
    pub fn star() -> Self {
        Channel::unchecked("*")
    }

    fn unchecked(name: &str) -> Self {
        Channel(Arc::new(Inner { hash: hash_of(name), name: name.into() }))
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether this is the star channel.
    pub fn is_star(&self) -> bool {
        &*self.0.name == "*"
    }
}

fn hash_of(name: &str) -> u64 {
    let mut hasher = FxHasher::default();
    name.hash(&mut hasher);
    hasher.finish()
}

impl PartialEq for Channel {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.hash == other.0.hash && self.0.name == other.0.name)
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
        self.0.name.cmp(&other.0.name)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0.name, f)
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&*self.0.name, f)
    }
}

impl Serialize for Channel {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

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
