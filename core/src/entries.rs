//! The entries of a batch.

use std::fmt;
use std::ops::Deref;
use std::slice;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::entry::ChangeEntry;

/// The entries of a batch, shared by what stores them and what announces them: so their text is written once. Cheap to clone.
#[derive(Clone, Default)]
pub struct Entries(Arc<Shared>);

#[derive(Default)]
struct Shared {
    list: Vec<Arc<ChangeEntry>>,
    text: OnceLock<Text>,
}

/// The sequence documents, one after the other with a comma between.
struct Text {
    joined: Bytes,
    ends: Vec<usize>,
}

impl Entries {
    /// The [sequence documents](ChangeEntry::to_bytes), in the order of the entries. They share one buffer.
    pub fn documents(&self) -> impl Iterator<Item = Bytes> + '_ {
        let text = self.text();
        let starts = std::iter::once(0).chain(text.ends.iter().map(|end| end + 1));
        starts.zip(&text.ends).map(|(start, end)| text.joined.slice(start..*end))
    }

    /// The same with commas between: the inside of a JSON list.
    pub(crate) fn joined(&self) -> &Bytes {
        &self.text().joined
    }

    fn text(&self) -> &Text {
        self.0.text.get_or_init(|| {
            let mut joined = Vec::with_capacity(self.0.list.iter().map(|entry| entry.size_hint() + 1).sum());
            let ends = self.0.list.iter().enumerate().map(|(at, entry)| {
                if at > 0 {
                    joined.push(b',');
                }
                entry.write(&mut joined);
                joined.len()
            });
            let ends = ends.collect();
            Text { joined: joined.into(), ends }
        })
    }
}

impl Deref for Entries {
    type Target = [Arc<ChangeEntry>];

    fn deref(&self) -> &Self::Target {
        &self.0.list
    }
}

impl<'a> IntoIterator for &'a Entries {
    type Item = &'a Arc<ChangeEntry>;
    type IntoIter = slice::Iter<'a, Arc<ChangeEntry>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl From<Vec<Arc<ChangeEntry>>> for Entries {
    fn from(list: Vec<Arc<ChangeEntry>>) -> Self {
        Entries(Arc::new(Shared { list, text: OnceLock::new() }))
    }
}

impl FromIterator<Arc<ChangeEntry>> for Entries {
    fn from_iter<T: IntoIterator<Item = Arc<ChangeEntry>>>(entries: T) -> Self {
        entries.into_iter().collect::<Vec<_>>().into()
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        self.0.list == other.0.list
    }
}

impl Serialize for Entries {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(|entry| &**entry))
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Entries::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EntryFlags, Sequence};

    #[test]
    fn documents_are_those_of_the_entries() {
        let made: Vec<Arc<ChangeEntry>> = ["a", "b,{\"", ""]
            .into_iter()
            .enumerate()
            .map(|(n, id)| Arc::new(ChangeEntry::new(Sequence(n as u64), id, "1-a", EntryFlags::default()).unwrap()))
            .collect();
        for count in 0..=made.len() {
            let entries: Entries = made[..count].iter().cloned().collect();
            let documents: Vec<Bytes> = entries.documents().collect();
            assert_eq!(documents, made[..count].iter().map(|entry| entry.to_bytes()).collect::<Vec<_>>());
            assert_eq!(entries.joined(), &documents.join(&b',')[..]);
        }
    }
}
