//! The entries that commits in progress may have stored.
//!
//! A commit that is cut off leaves entries that are stored and not published. Nothing in the cache
//! tells them from entries that readers have been told of. So a writer stores the positions of a
//! batch before it commits the batch. The next term expects these entries again, and an entry that
//! comes is no duplicate, even if another document, a marker or a user has accounted for its
//! sequence by then.
//!
//! A take-over stamps the document with its epoch, so that the old writer begins no more commits.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::{Epoch, from_json, to_json};
use crate::commit::{CAS_ROUNDS, guard};
use crate::entry::ChangeEntry;
use crate::error::{Error, ErrorKind, Result};
use crate::key::CacheKey;
use crate::sequence::{RangeSet, SequenceRange};
use crate::store::{CacheStore, Expiry, Version, Versioned};

/// The stored document [`CacheKey::Intent`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Intent {
    /// The writer's term.
    pub(crate) epoch: Epoch,
    /// The batches that may be stored and are not published.
    pub(crate) batches: Vec<IntendedBatch>,
}

/// The positions of one batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IntendedBatch {
    /// The batch. Several may have the same number: a term takes over what the former one left, and
    /// its first batch publishes that.
    pub(crate) number: u64,
    /// The positions of its entries.
    pub(crate) positions: Positions,
}

/// Positions in ascending order, as runs of consecutive ones. Stored as a list of numbers: how many
/// positions are left out, how many follow, and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u64>", into = "Vec<u64>")]
pub(crate) struct Positions(Vec<SequenceRange>);

impl Positions {
    /// The positions of some entries, in any order.
    pub(crate) fn of<'a>(entries: impl Iterator<Item = &'a ChangeEntry>) -> Self {
        let mut positions: Vec<u64> = entries.map(|entry| entry.position().0).collect();
        // Nearly always sorted already.
        positions.sort_unstable();
        positions.dedup();
        let runs = positions.chunk_by(|a, b| a.checked_add(1) == Some(*b));
        Positions(runs.filter_map(|run| SequenceRange::new(*run.first()?, *run.last()?)).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&RangeSet> for Positions {
    fn from(set: &RangeSet) -> Self {
        Positions(set.iter().filter_map(|(first, last)| SequenceRange::new(first, last)).collect())
    }
}

impl From<Positions> for Vec<u64> {
    fn from(positions: Positions) -> Self {
        let mut numbers = Vec::with_capacity(2 * positions.0.len());
        let mut end = 0;
        for run in positions.0 {
            numbers.extend([run.first().0 - end, run.count()]);
            end = run.last().0.saturating_add(1);
        }
        numbers
    }
}

impl TryFrom<Vec<u64>> for Positions {
    type Error = &'static str;

    fn try_from(numbers: Vec<u64>) -> std::result::Result<Self, Self::Error> {
        let (pairs, []) = numbers.as_chunks::<2>() else { return Err("a run of positions has no length") };
        let mut end = Some(0u64);
        let mut runs = Vec::with_capacity(pairs.len());
        for [skipped, count] in pairs {
            let first = end.and_then(|end| end.checked_add(*skipped)).ok_or("a position is too high")?;
            let last = first.checked_add(count.checked_sub(1).ok_or("a run of positions is empty")?);
            let last = last.ok_or("a position is too high")?;
            runs.extend(SequenceRange::new(first, last));
            end = last.checked_add(1);
        }
        Ok(Positions(runs))
    }
}

impl Intent {
    /// The positions of batches after `published`.
    fn after(&self, published: u64) -> RangeSet {
        let mut positions = RangeSet::new();
        for batch in self.batches.iter().filter(|batch| batch.number > published) {
            for run in &batch.positions.0 {
                positions.insert(run.first().0, run.last().0);
            }
        }
        positions
    }

    /// JSON.
    pub(crate) fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// Reads a stored document.
    ///
    /// # Errors
    /// `Corrupt` if it is none.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        from_json(bytes, "list of commits in progress")
    }
}

/// Writes an intent of a term over the one that is stored, whose version is expected to be `known`.
/// `change` gets the stored one if another version is there. Returns the version written.
///
/// # Errors
/// `Fenced` if a later term has written it; `Corrupt`, naming the key, if it cannot be read; what the
/// store says.
async fn replace(
    store: &dyn CacheStore,
    epoch: Epoch,
    mut known: Option<Version>,
    mut intent: Bytes,
    mut change: impl FnMut(Option<Intent>) -> Bytes + Send,
) -> Result<Version> {
    let key = CacheKey::Intent;
    for _ in 0..CAS_ROUNDS {
        let written = match known {
            Some(known) => store.replace(&key, intent, known, Expiry::Never).await,
            None => store.insert(&key, intent, Expiry::Never).await,
        };
        match written {
            Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::AlreadyExists) => {}
            written => return written.map_err(|e| e.with_context("key", &key)),
        }
        let found = store.get(&key).await?;
        let read = |found: &Versioned<Bytes>| {
            let stored = Intent::from_bytes(&found.value)?;
            guard(epoch, stored.epoch).map(|()| stored)
        };
        let stored = found.as_ref().map(read).transpose().map_err(|e| e.with_context("key", &key))?;
        known = found.map(|found| found.version);
        intent = change(stored);
    }
    Err(Error::new(ErrorKind::Conflict, format!("{CAS_ROUNDS} compare-and-swaps in a row were refused")).with_context("key", key))
}

/// Stamps the stored intent with the term `epoch`. Returns its version, and the positions of batches
/// after `published`: entries may be stored there that no reader was told of. They belong to the
/// term's first batch from here on. May be repeated.
///
/// # Errors
/// As for [`store`].
pub(crate) async fn take_over(store: &dyn CacheStore, epoch: Epoch, published: u64) -> Result<(Version, RangeSet)> {
    let mut left = RangeSet::new();
    let stamped = |left: &RangeSet| {
        let first = IntendedBatch { number: published + 1, positions: left.into() };
        let batches = if left.is_empty() { Vec::new() } else { vec![first] };
        Intent { epoch, batches }.to_bytes()
    };
    let beginning = stamped(&left);
    let version = replace(store, epoch, None, beginning, |stored| {
        left = stored.map(|stored| stored.after(published)).unwrap_or_default();
        stamped(&left)
    })
    .await?;
    Ok((version, left))
}

/// Stores an intent over the version that the writer knows. Returns the new version. May be repeated.
///
/// # Errors
/// `Fenced` if a later term has stamped it; `Corrupt`, naming the key, if another version is there
/// that cannot be read; what the store says.
pub(crate) async fn store(store: &dyn CacheStore, intent: &Intent, known: Version) -> Result<Version> {
    let bytes = intent.to_bytes();
    replace(store, intent.epoch, Some(known), bytes.clone(), |_| bytes.clone()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EntryFlags;
    use crate::sequence::Sequence;
    use proptest::prelude::*;

    fn positions(of: &[u64]) -> Positions {
        let entries: Vec<ChangeEntry> =
            of.iter().map(|n| ChangeEntry::new(Sequence(*n), "d", "1-a", EntryFlags::default()).unwrap()).collect();
        Positions::of(entries.iter())
    }

    proptest! {
        #[test]
        fn positions_are_read_as_they_were_stored(of in prop::collection::vec(0u64..300, 0..80)) {
            let intent = Intent {
                epoch: Epoch::default(),
                batches: vec![IntendedBatch { number: 7, positions: positions(&of) }],
            };
            let read = Intent::from_bytes(&intent.to_bytes()).unwrap();
            prop_assert_eq!(&read, &intent);
            let mut expected = of;
            expected.sort_unstable();
            expected.dedup();
            let after: Vec<u64> = read.after(6).iter().flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(after, expected);
            prop_assert!(read.after(7).is_empty());
        }

        #[test]
        fn numbers_that_are_no_positions_are_refused(numbers in prop::collection::vec(any::<u64>(), 0..6)) {
            if let Ok(positions) = Positions::try_from(numbers.clone()) {
                prop_assert_eq!(Vec::from(positions), numbers);
            }
        }
    }

    #[test]
    fn runs_are_stored_as_what_is_skipped_and_what_follows() {
        assert_eq!(Vec::from(positions(&[5, 6, 7, 20])), [5, 3, 12, 1]);
        assert_eq!(Positions::try_from(vec![5, 0]).unwrap_err(), "a run of positions is empty");
        assert_eq!(Positions::try_from(vec![5]).unwrap_err(), "a run of positions has no length");
        assert_eq!(Positions::try_from(vec![u64::MAX, 2]).unwrap_err(), "a position is too high");
        assert_eq!(Positions::try_from(vec![u64::MAX, 1, 0, 1]).unwrap_err(), "a position is too high");
    }
}
