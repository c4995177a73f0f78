//! Collections and documents: the identity of a document.

use std::fmt;

use hashbrown::Equivalent;
use serde::{Deserialize, Serialize};

/// The number of a collection within a bucket. Documents of different collections are different
/// documents, even if their keys are the same.
///
/// The server allocates the number when the collection is created, and never reuses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CollectionId(pub u32);

impl CollectionId {
    /// The default collection. Feeds without collections deliver everything in it.
    pub const DEFAULT: CollectionId = CollectionId(0);

    /// Whether this is the default collection.
    pub fn is_default(self) -> bool {
        self == CollectionId::DEFAULT
    }

    /// For fields that stored documents leave out if they have the default value.
    pub(crate) fn is_default_ref(&self) -> bool {
        self.is_default()
    }
}

impl From<u32> for CollectionId {
    fn from(id: u32) -> Self {
        CollectionId(id)
    }
}

impl fmt::Display for CollectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a document within a database: its collection and its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentId {
    /// The collection.
    pub collection: CollectionId,
    /// The key, also called the document's id.
    pub key: Box<str>,
}

impl DocumentId {
    /// The document `key` of `collection`.
    pub fn new(collection: CollectionId, key: impl Into<Box<str>>) -> Self {
        DocumentId { collection, key: key.into() }
    }

    /// The same, borrowed.
    pub fn as_ref(&self) -> DocumentRef<'_> {
        DocumentRef { collection: self.collection, key: &self.key }
    }
}

/// A document of the default collection.
impl From<&str> for DocumentId {
    fn from(key: &str) -> Self {
        DocumentId::new(CollectionId::DEFAULT, key)
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

/// A borrowed [`DocumentId`]. Finds one in a map of `hashbrown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentRef<'a> {
    /// The collection.
    pub collection: CollectionId,
    /// The key.
    pub key: &'a str,
}

impl DocumentRef<'_> {
    /// The same, owned.
    pub fn to_owned(self) -> DocumentId {
        DocumentId::new(self.collection, self.key)
    }
}

/// A document of the default collection.
impl<'a> From<&'a str> for DocumentRef<'a> {
    fn from(key: &'a str) -> Self {
        DocumentRef { collection: CollectionId::DEFAULT, key }
    }
}

impl From<DocumentRef<'_>> for DocumentId {
    fn from(document: DocumentRef<'_>) -> Self {
        document.to_owned()
    }
}

impl Equivalent<DocumentId> for DocumentRef<'_> {
    fn equivalent(&self, id: &DocumentId) -> bool {
        *self == id.as_ref()
    }
}

impl PartialEq<DocumentRef<'_>> for DocumentId {
    fn eq(&self, other: &DocumentRef<'_>) -> bool {
        self.as_ref() == *other
    }
}

/// The key. In another collection than the default one, the collection's number comes before it.
impl fmt::Display for DocumentRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.collection.is_default() {
            write!(f, "{}/", self.collection)?;
        }
        f.write_str(self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_in_two_collections_is_two_documents() {
        let mut known = hashbrown::HashMap::new();
        known.insert(DocumentId::new(CollectionId(8), "d"), 1);
        assert_eq!(known.get(&DocumentRef { collection: CollectionId(8), key: "d" }), Some(&1));
        assert_eq!(known.get(&DocumentRef { collection: CollectionId(9), key: "d" }), None);
        assert_eq!(known.get(&DocumentId::from("d").as_ref()), None);
        assert_eq!(DocumentId::new(CollectionId(8), "d").to_string(), "8/d");
        assert_eq!(DocumentId::from("d").to_string(), "d");
    }
}
