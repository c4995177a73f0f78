//! Writing over what must not be merged: fenced by the term, and only over what was read.

use backon::BackoffBuilder as _;
use bytes::Bytes;

use crate::clock::Epoch;
use crate::commit::{clock_lost, guard, read_clock};
use crate::error::{Error, ErrorKind, Result, Status};
use crate::key::CacheKey;
use crate::retry;
use crate::store::{CacheStore, Expiry};

/// How often one document is tried to be replaced. Only a writer that is deposed and does not know
/// it may come in between.
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
    /// Whether a document that the store itself cannot read, so that it has no version, is removed
    /// first. Nobody but a repair writes over it.
    pub(crate) removes_unreadable: bool,
}

impl Fenced<'_> {
    /// `Fenced` unless the term goes on.
    pub(crate) async fn check(&self) -> Result<()> {
        let clock = read_clock(self.store).await?.ok_or_else(clock_lost)?;
        guard(self.term, clock.value.epoch)
    }

    /// Reads a document and does with it what `change` says, until no one else writes it in
    /// between. Returns whether it was written, or may have been: a write that failed or was
    /// refused may have been executed.
    ///
    /// The term is looked at **after** the document was read: so a writer that takes over later
    /// cannot have written what was read, and what it writes makes the compare-and-swap fail.
    ///
    /// A store that fails is asked again here, a few times: a caller rewrites many documents, and
    /// would begin with all of them again.
    pub(crate) async fn rewrite(
        &self,
        key: &CacheKey,
        mut change: impl FnMut(Option<&[u8]>) -> Result<Change> + Send,
    ) -> Result<bool> {
        let (mut may_be_written, mut delays) = (false, retry::delays().build());
        for _ in 0..ROUNDS {
            match self.rewrite_once(key, &mut change, &mut may_be_written).await {
                Ok(Round::Kept) => return Ok(may_be_written),
                Ok(Round::Written) => return Ok(true),
                Ok(Round::Removed) => {}
                Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::AlreadyExists) => {}
                Err(e) if e.is_retryable() => {
                    let Some(after) = delays.next() else { return Err(e.with_context("key", key)) };
                    retry::log(&e.with_context("key", key), after);
                    tokio::time::sleep(after).await;
                }
                Err(e) => return Err(e.with_context("key", key)),
            }
        }
        let message = format!("{ROUNDS} compare-and-swaps in a row were refused; stop other writers, then try again");
        Err(Error::new(ErrorKind::Conflict, message).with_context("key", key))
    }

    async fn rewrite_once(
        &self,
        key: &CacheKey,
        change: &mut (impl FnMut(Option<&[u8]>) -> Result<Change> + Send),
        may_be_written: &mut bool,
    ) -> Result<Round> {
        let found = match self.store.get(key).await {
            Err(e) if self.is_in_the_way(&e) => return self.remove(key, may_be_written).await,
            found => found?,
        };
        let change = change(found.as_ref().map(|found| found.value.as_ref()))?;
        if matches!((&change, &found), (Change::Keep, _) | (Change::Remove, None)) {
            return Ok(Round::Kept);
        }
        self.check().await?;
        let written = match (change, &found) {
            (Change::Put(value), Some(found)) => self.store.replace(key, value, found.version, Expiry::Never).await.map(drop),
            (Change::Put(value), None) => self.store.insert(key, value, Expiry::Never).await.map(drop),
            (_, found) => self.store.remove(key, found.as_ref().map(|found| found.version)).await,
        };
        match written {
            // It lies together with what cannot be read.
            Err(e) if self.is_in_the_way(&e) => self.remove(key, may_be_written).await,
            written => {
                *may_be_written |= is_executed_perhaps(&written);
                written.map(|()| Round::Written)
            }
        }
    }

    fn is_in_the_way(&self, error: &Error) -> bool {
        self.removes_unreadable && error.kind() == ErrorKind::Corrupt
    }

    async fn remove(&self, key: &CacheKey, may_be_written: &mut bool) -> Result<Round> {
        self.check().await?;
        let removed = self.store.remove(key, None).await;
        *may_be_written |= is_executed_perhaps(&removed);
        removed.map(|()| Round::Removed)
    }
}

/// Whether a write was executed, or may have been. A client of the store that repeats it by itself
/// is told of the version that it has written.
fn is_executed_perhaps(written: &Result<()>) -> bool {
    let is_refused = |error: &Error| matches!(error.kind(), ErrorKind::Conflict | ErrorKind::AlreadyExists);
    written.as_ref().err().is_none_or(|error| is_refused(error) || error.status() == Status::Indeterminate)
}

/// What one round of [`Fenced::rewrite`] did.
enum Round {
    Kept,
    Written,
    /// What could not be read is gone; nothing is written yet.
    Removed,
}
