//! The pointers of documents, where a writer keeps them.

use hashbrown::HashMap;

use super::findings::{Action, Finding};
use super::pass::{Change, Pass};
use crate::document::{DocumentId, DocumentRef};
use crate::entry::ChangeEntry;
use crate::error::Result;
use crate::key::CacheKey;
use crate::pointer::Pointer;

/// When so many of the newest documents have none, there are none.
const ENOUGH: usize = 2_000;

/// The pointers, if there are any. One that is gone cannot be told from one that never was: a writer may have begun to keep them late.
#[derive(Debug, Default)]
pub(super) struct Pointers {
    /// Whether there are any, and for how many documents that was asked.
    kept: bool,
    asked: usize,
    /// Those that cannot be read, as they must be.
    broken: HashMap<DocumentId, Pointer>,
}

impl Pointers {
    /// Looks at the pointers of documents that are met for the first time. The highest sequences come first: so nothing of them was missed.
    pub(super) async fn check(&mut self, pass: &mut Pass<'_>, mut documents: Vec<DocumentRef<'_>>) -> Result<()> {
        if documents.is_empty() || !self.kept && self.asked >= ENOUGH {
            return Ok(());
        }
        documents.sort_unstable();
        documents.dedup();
        let keys: Vec<CacheKey> = documents.iter().map(|id| CacheKey::Document((*id).into())).collect();
        let found = pass.get_many(&keys).await?;
        self.kept |= found.iter().any(Option::is_some);
        self.asked += keys.len();
        for ((document, key), found) in documents.into_iter().zip(keys).zip(found) {
            if let Some(Err(e)) = found.map(|found| found.and_then(|bytes| Pointer::from_bytes(&bytes, document))) {
                pass.push(Finding::unreadable(key, &e));
                self.broken.insert(document.into(), Pointer::new(document));
            }
        }
        Ok(())
    }

    /// Takes the rows of an entry of a document whose pointer is broken.
    pub(super) fn raise(&mut self, entry: &ChangeEntry) {
        if let Some(pointer) = self.broken.get_mut(&entry.document()) {
            pointer.raise(entry);
        }
    }

    /// Writes those anew that could not be read.
    ///
    /// Not taken away: without its pointer, a document's next revision would supersede only what its metadata name.
    pub(super) async fn write(&mut self, pass: &mut Pass<'_>) -> Result<()> {
        if pass.term.is_none() {
            return Ok(());
        }
        for (document, pointer) in std::mem::take(&mut self.broken) {
            let key = CacheKey::Document(document);
            let written = pass.rewrite(&key, |stored| {
                let is_sound = stored.is_some_and(|bytes| Pointer::from_bytes(bytes, pointer.document()).is_ok());
                Ok(if is_sound { Change::Keep } else { Change::Put(pointer.to_bytes()) })
            });
            if written.await? {
                pass.did(Action::Rebuilt, key, "from the sequence documents");
            }
        }
        Ok(())
    }
}
