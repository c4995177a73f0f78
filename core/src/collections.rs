//! The collections that have documents in a cache, and the names of the bucket's collections.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::{from_json, to_json};
use crate::document::CollectionId;
use crate::error::Result;

/// The stored document [`CacheKey::Collections`](crate::CacheKey::Collections): the collections
/// that have documents in the cache, so that their star channels are found; and the names of
/// collections.
///
/// A writer adds a collection before it stores the first document of it. Nothing is ever removed,
/// so two lists merge to their union.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collections {
    used: BTreeSet<CollectionId>,
    /// `SCOPE.COLLECTION`, as far as the feed has reported it.
    names: BTreeMap<CollectionId, Box<str>>,
}

impl Collections {
    /// An empty list. The default collection always counts as used.
    pub fn new() -> Self {
        Collections::default()
    }

    /// Adds a collection that has documents; returns whether it was new.
    pub fn add(&mut self, collection: CollectionId) -> bool {
        !collection.is_default() && self.used.insert(collection)
    }

    /// Sets the name of a collection, `SCOPE.COLLECTION`; returns whether it was new.
    pub fn name(&mut self, collection: CollectionId, name: &str) -> bool {
        if self.names.get(&collection).is_some_and(|known| **known == *name) {
            return false;
        }
        self.names.insert(collection, name.into());
        true
    }

    /// Merges `other` into this; returns whether anything was new.
    pub fn merge(&mut self, other: &Collections) -> bool {
        let mut changed = false;
        for &collection in &other.used {
            changed |= self.add(collection);
        }
        for (&collection, name) in &other.names {
            changed |= self.name(collection, name);
        }
        changed
    }

    /// The collections that have documents, the default one first: it always counts.
    pub fn used(&self) -> impl Iterator<Item = CollectionId> + '_ {
        std::iter::once(CollectionId::DEFAULT).chain(self.used.iter().copied())
    }

    /// The collections whose name is known.
    pub fn names(&self) -> impl Iterator<Item = (CollectionId, &str)> {
        self.names.iter().map(|(collection, name)| (*collection, &**name))
    }

    /// The name of a collection, if it is known.
    pub fn name_of(&self, collection: CollectionId) -> Option<&str> {
        self.names.get(&collection).map(|name| &**name).or(collection.is_default().then_some(DEFAULT_NAME))
    }

    /// The collection with the name `SCOPE.COLLECTION`. If a collection was dropped and another one
    /// was created with its name, it is the later one: numbers only grow.
    pub fn find(&self, name: &str) -> Option<CollectionId> {
        let named = self.names.iter().rev().find(|(_, known)| ***known == *name).map(|(collection, _)| *collection);
        named.or((name == DEFAULT_NAME).then_some(CollectionId::DEFAULT))
    }

    /// JSON.
    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// Reads the stored document.
    ///
    /// # Errors
    /// `Corrupt` if it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        from_json(bytes, "list of collections")
    }
}

/// The name of the default collection.
pub const DEFAULT_NAME: &str = "_default._default";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_merge_and_read_back() {
        let mut one = Collections::new();
        assert!(one.add(CollectionId(8)) && !one.add(CollectionId(8)) && !one.add(CollectionId::DEFAULT));
        assert!(one.name(CollectionId(8), "s.c") && !one.name(CollectionId(8), "s.c"));
        let mut two = Collections::new();
        two.add(CollectionId(9));
        two.name(CollectionId(9), "s.c");
        assert!(two.merge(&one) && !two.merge(&one));
        assert_eq!(two.used().collect::<Vec<_>>(), [0, 8, 9].map(CollectionId));
        assert_eq!(two.find("s.c"), Some(CollectionId(9)), "8 was dropped");
        assert_eq!((two.find("_default._default"), two.find("s.d")), (Some(CollectionId::DEFAULT), None));
        assert_eq!(Collections::from_bytes(&two.to_bytes()).unwrap(), two);
    }
}
