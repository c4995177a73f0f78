//! Channels for names, shared by threads.
//!
//! Names are bytes here: that a name is UTF-8 is found out once, when it is first seen.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::FxBuildHasher;

use crate::channel::Channel;
use crate::document::CollectionId;
use crate::error::{Error, Result};

/// How many parts the names are spread over, so that threads seldom meet at one lock.
const SHARDS: usize = 64;

/// Hands out one [`Channel`] a name, to many threads at once: a known name costs a shared lock.
///
/// Bounded as [`Interner`](crate::channel::Interner) is, each part by itself.
pub(super) struct SharedInterner {
    shards: Box<[Shard]>,
    /// Names a part may hold.
    capacity: usize,
    collection: CollectionId,
}

/// One interner per collection.
#[derive(Debug)]
pub(super) struct Interners {
    default: SharedInterner,
    others: RwLock<HashMap<CollectionId, Arc<SharedInterner>, FxBuildHasher>>,
    capacity: usize,
}

impl Interners {
    /// Interners that remember about `capacity` names each.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let default = SharedInterner::new(capacity, CollectionId::DEFAULT);
        Interners { default, others: RwLock::default(), capacity }
    }

    /// The channel `name` of `collection`.
    #[inline]
    pub(super) fn channel(&self, collection: CollectionId, name: &[u8]) -> Result<Channel> {
        if collection.is_default() {
            return self.default.channel(name);
        }
        self.of(collection).channel(name)
    }

    fn of(&self, collection: CollectionId) -> Arc<SharedInterner> {
        if let Some(interner) = self.others.read().get(&collection) {
            return interner.clone();
        }
        let make = || Arc::new(SharedInterner::new(self.capacity, collection));
        self.others.write().entry(collection).or_insert_with(make).clone()
    }
}

/// On cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Shard(RwLock<HashMap<Box<[u8]>, Channel, FxBuildHasher>>);

impl SharedInterner {
    /// An interner for the names of `collection` that remembers about `capacity` names at most.
    fn new(capacity: usize, collection: CollectionId) -> Self {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        SharedInterner { shards, capacity: capacity.div_ceil(SHARDS).max(1), collection }
    }

    /// The channel called `name`.
    #[inline]
    pub(super) fn channel(&self, name: &[u8]) -> Result<Channel> {
        // Names mostly differ in the end. No need to hash them twice.
        let spread = match name {
            [.., a, b] => name.len() + usize::from(*b) + 11 * usize::from(*a),
            _ => name.len(),
        };
        let shard = &self.shards[spread % SHARDS].0;
        if let Some(channel) = shard.read().get(name) {
            return Ok(channel.clone());
        }
        self.insert(shard, name)
    }

    #[cold]
    fn insert(&self, shard: &RwLock<HashMap<Box<[u8]>, Channel, FxBuildHasher>>, name: &[u8]) -> Result<Channel> {
        let text = std::str::from_utf8(name).map_err(|_| Error::corrupt("a channel name is not UTF-8"))?;
        let channel = Channel::of(self.collection, text)?;
        let mut known = shard.write();
        if let Some(channel) = known.get(name) {
            return Ok(channel.clone());
        }
        if known.len() >= self.capacity {
            known.clear();
        }
        known.insert(name.into(), channel.clone());
        Ok(channel)
    }
}

impl fmt::Debug for SharedInterner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedInterner").field("capacity", &(self.capacity * SHARDS)).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_is_one_channel_on_every_thread() {
        let interner = SharedInterner::new(10_000, CollectionId::DEFAULT);
        let channels: Vec<Vec<Channel>> = std::thread::scope(|scope| {
            let names = || (0..200).map(|n| interner.channel(n.to_string().as_bytes()).unwrap()).collect();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(names)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for others in &channels[1..] {
            // The names are the same allocation.
            assert!(channels[0].iter().zip(others).all(|(a, b)| std::ptr::eq(a.name(), b.name())));
        }
    }

    #[test]
    fn names_of_two_collections_are_two_channels() {
        let interners = Interners::with_capacity(10);
        let channel = |id| interners.channel(CollectionId(id), b"a").unwrap();
        assert_ne!(channel(0), channel(8));
        assert_eq!(channel(8), Channel::of(CollectionId(8), "a").unwrap());
        assert!(std::ptr::eq(channel(8).name(), channel(8).name()));
    }

    #[test]
    fn it_stays_within_its_capacity() {
        let interner = SharedInterner::new(100, CollectionId::DEFAULT);
        for n in 0..10_000 {
            interner.channel(n.to_string().as_bytes()).unwrap();
        }
        let held: usize = interner.shards.iter().map(|s| s.0.read().len()).sum();
        assert!(held <= 2 * SHARDS, "{held}");
    }

    #[test]
    fn a_bad_name_is_refused_and_not_remembered() {
        let interner = SharedInterner::new(100, CollectionId::DEFAULT);
        assert!(interner.channel(b"").is_err());
        assert!(interner.channel(&[b'x'; 5000]).is_err());
        assert!(interner.channel(b"\xff").is_err());
        assert!(interner.shards.iter().all(|s| s.0.read().is_empty()));
    }
}
