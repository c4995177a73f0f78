//! Writing over what must not be merged: fenced by the term, and only over what was read.

use bytes::Bytes;

use crate::clock::Epoch;
use crate::commit::{clock_lost, guard, read_clock};
use crate::error::{Error, ErrorKind, Result};
use crate::key::CacheKey;
use crate::store::{CacheStore, Expiry};

/// How often one document is tried to be replaced. Only a writer that is deposed and does not know it may come in between.
const ROUNDS: usize = 1000;

/// What becomes of a document.
#[derive(Debug)]
pub(crate) enum Change {
    /// It stays.
    Keep,
    /// These bytes take its place.
    Put(Bytes),
    /// It goes.
    Remove,
}

/// Writes as long as a term goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fenced<'a> {
    pub(crate) store: &'a dyn CacheStore,
    pub(crate) term: Epoch,
    /// Whether a document that the store itself cannot read, so that it has no version, is removed first. Nobody but a repair writes over it.
    pub(crate) removes_unreadable: bool,
}

impl Fenced<'_> {
    /// `Fenced` unless the term goes on.
    pub(crate) async fn check(&self) -> Result<()> {
        let clock = read_clock(self.store).await?.ok_or_else(clock_lost)?;
        guard(self.term, clock.value.epoch)
    }

    /// Reads a document and does with it what `change` says, until no one else writes it in between; whether it was written.
    ///
    /// The term is looked at **after** the document was read: so a writer that takes over later cannot have written what was read,
    /// and what it writes makes the compare-and-swap fail.
    pub(crate) async fn rewrite(
        &self,
        key: &CacheKey,
        mut change: impl FnMut(Option<&[u8]>) -> Result<Change> + Send,
    ) -> Result<bool> {
        let mut removed = false;
        for _ in 0..ROUNDS {
            let found = match self.store.get(key).await {
                Err(e) if self.is_in_the_way(&e) => {
                    self.remove(key).await?;
                    removed = true;
                    continue;
                }
                found => found?,
            };
            let change = change(found.as_ref().map(|found| found.value.as_ref()));
            let change = change.map_err(|e| e.with_context("key", key))?;
            if matches!((&change, &found), (Change::Keep, _) | (Change::Remove, None)) {
                return Ok(removed);
            }
            self.check().await?;
            let written = match (change, &found) {
                (Change::Put(value), Some(found)) => self.store.replace(key, value, found.version, Expiry::Never).await.map(drop),
                (Change::Put(value), None) => self.store.insert(key, value, Expiry::Never).await.map(drop),
                (_, found) => self.store.remove(key, found.as_ref().map(|found| found.version)).await,
            };
            match written {
                Ok(()) => return Ok(true),
                Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::AlreadyExists) => {}
                // It lies together with what cannot be read.
                Err(e) if self.is_in_the_way(&e) => {
                    self.remove(key).await?;
                    removed = true;
                }
                Err(e) => return Err(e.with_context("key", key)),
            }
        }
        let message = format!("{ROUNDS} compare-and-swaps in a row were refused; stop other writers, then try again");
        Err(Error::new(ErrorKind::Conflict, message).with_context("key", key))
    }

    fn is_in_the_way(&self, error: &Error) -> bool {
        self.removes_unreadable && error.kind() == ErrorKind::Corrupt
    }

    async fn remove(&self, key: &CacheKey) -> Result<()> {
        self.check().await?;
        self.store.remove(key, None).await.map_err(|e| e.with_context("key", key))
    }
}
