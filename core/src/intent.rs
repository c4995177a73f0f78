//! The entries that commits in progress may have stored.
//!
//! A commit that is cut off leaves entries that are stored and not published. Nothing in the cache
//! tells them from entries that readers have been told of. So a writer stores the positions of a
//! batch before it commits the batch. The next term expects these entries again, and an entry that
//! comes is no duplicate, even if another document, a marker or a user has accounted for its
//! sequence by then.
//!
//! A take-over stamps the document with its epoch, so that the old writer adds no more batches: it
//! stores only entries that the next term knows of. A repair does not stamp it.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::{Epoch, from_json, to_json};
use crate::commit::{CAS_ROUNDS, guard, writes_lost};
use crate::error::{Error, ErrorKind, Result};
use crate::key::CacheKey;
use crate::sequence::RangeSet;
use crate::store::{CacheStore, Expiry, Version, Versioned};

/// The limit for positions in the list: more can only come of a damaged document.
const MAX_POSITIONS: u64 = 1 << 24;

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

/// Positions, as they are stored: runs of consecutive ones in ascending order, separated by spaces.
/// Each run is the number of positions that are left out before it, and if it is longer than 1, `x`
/// and its length: `5x3 12` stands for 5, 6, 7 and 20. A batch is stored several times, so this is
/// made once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Positions(Arc<str>);

impl Positions {
    /// Runs in any order, each with its first and last position.
    pub(crate) fn of(mut runs: Vec<(u64, u64)>) -> Self {
        if !runs.is_sorted() {
            runs.sort_unstable();
        }
        runs.dedup_by(|next, run| {
            let is_joined = next.0 <= run.1.saturating_add(1);
            if is_joined {
                run.1 = run.1.max(next.1);
            }
            is_joined
        });
        Positions::of_runs(runs.into_iter())
    }

    fn of_runs(runs: impl Iterator<Item = (u64, u64)>) -> Self {
        let (mut text, mut end) = (String::new(), 0);
        for (first, last) in runs {
            if !text.is_empty() {
                text.push(' ');
            }
            // Writing to a String cannot fail.
            let _ = write!(text, "{}", first - end);
            if last > first {
                let _ = write!(text, "x{}", (last - first).saturating_add(1));
            }
            end = last.saturating_add(1);
        }
        Positions(text.into())
    }

    /// The runs, each with its first and last position.
    fn runs(&self) -> impl Iterator<Item = Result<(u64, u64)>> + '_ {
        let mut end = Some(0u64);
        self.0.split_ascii_whitespace().map(move |run| {
            let (skipped, count) = run.split_once('x').unwrap_or((run, "1"));
            let place = || {
                let first = end?.checked_add(skipped.parse().ok()?)?;
                Some((first, first.checked_add(count.parse::<u64>().ok()?.checked_sub(1)?)?))
            };
            let (first, last) = place().ok_or_else(|| Error::corrupt(format!("`{run}` is no run of positions")))?;
            end = last.checked_add(1);
            Ok((first, last))
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&RangeSet> for Positions {
    fn from(set: &RangeSet) -> Self {
        Positions::of_runs(set.iter())
    }
}

impl Intent {
    /// The positions of batches after `published`.
    fn after(&self, published: u64) -> Result<RangeSet> {
        let mut positions = RangeSet::new();
        for batch in self.batches.iter().filter(|batch| batch.number > published) {
            for run in batch.positions.runs() {
                let (first, last) = run?;
                positions.insert(first, last);
            }
        }
        Ok(positions)
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
        let intent: Intent = from_json(bytes, "list of commits in progress")?;
        let mut count = 0u64;
        for run in intent.batches.iter().flat_map(|batch| batch.positions.runs()) {
            let (first, last) = run?;
            count = count.saturating_add((last - first).saturating_add(1));
        }
        if count > MAX_POSITIONS {
            let message = format!("the list of commits in progress names {count} positions, over the limit of {MAX_POSITIONS}");
            return Err(Error::corrupt(message));
        }
        Ok(intent)
    }
}

/// Writes an intent of a term over the one that is stored, whose version is expected to be `known`.
/// `change` gets the stored one if another version is there. Returns the version written.
///
/// # Errors
/// `Fenced` if a later term has written it; `Corrupt`, naming the key, if it cannot be read; what
/// the store says.
async fn replace(
    store: &dyn CacheStore,
    epoch: Epoch,
    mut known: Option<Version>,
    mut intent: Bytes,
    mut change: impl FnMut(Option<Intent>) -> Result<Bytes> + Send,
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
        intent = change(stored)?;
    }
    Err(Error::new(ErrorKind::Conflict, format!("{CAS_ROUNDS} compare-and-swaps in a row were refused")).with_context("key", key))
}

/// Stamps the stored intent with the term `epoch`. Returns its version, and the positions of
/// batches after `published`: entries may be stored there that no reader was told of. They belong
/// to the term's first batch from here on. May be repeated.
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
        left = stored.map(|stored| stored.after(published)).transpose()?.unwrap_or_default();
        Ok(stamped(&left))
    })
    .await?;
    Ok((version, left))
}

/// Stores an intent over the version that the writer knows. Returns the new version. May be
/// repeated.
///
/// # Errors
/// `Fenced` if a later term has stamped it; `Corrupt`, naming the key, if another version is there
/// that cannot be read; what the store says.
pub(crate) async fn store(store: &dyn CacheStore, intent: &Intent, known: Version) -> Result<Version> {
    let bytes = intent.to_bytes();
    let gone = || writes_lost("the list of commits in progress is gone").with_context("key", CacheKey::Intent);
    // A take-over has stored it, so that it is there.
    replace(store, intent.epoch, Some(known), bytes.clone(), |stored| stored.map(|_| bytes.clone()).ok_or_else(gone)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn positions(of: &[u64]) -> Positions {
        Positions::of(of.iter().map(|n| (*n, *n)).collect())
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
            let after: Vec<u64> = read.after(6).unwrap().iter().flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(after, expected);
            prop_assert!(read.after(7).unwrap().is_empty());
        }
    }

    #[test]
    fn runs_are_stored_as_what_is_left_out_and_how_many_follow() {
        assert_eq!(&*positions(&[20, 7, 5, 6, 6]).0, "5x3 12");
        assert_eq!(&*Positions::of(vec![(20, 20), (5, 7), (6, 6), (8, 9)]).0, "5x5 10");
        assert!(positions(&[]).is_empty());
        let damaged = Intent {
            epoch: Epoch::default(),
            batches: vec![IntendedBatch { number: 1, positions: Positions::of_runs([(0, 1 << 50)].into_iter()) }],
        };
        assert_eq!(Intent::from_bytes(&damaged.to_bytes()).unwrap_err().kind(), ErrorKind::Corrupt);
        let top = Positions::of_runs([(0, 0), (u64::MAX, u64::MAX)].into_iter());
        assert_eq!(top.runs().map(Result::unwrap).collect::<Vec<_>>(), [(0, 0), (u64::MAX, u64::MAX)]);
    }

    #[test]
    fn what_is_no_list_of_commits_is_corrupt() {
        let top = format!("{}x2", u64::MAX);
        for wrong in ["5x0", "5x", "x3", "-1", "5 a", &top, &format!("{} 0", u64::MAX)] {
            let text = format!(r#"{{"epoch":{{"counter":1,"writer":1}},"batches":[{{"number":1,"positions":"{wrong}"}}]}}"#);
            assert_eq!(Intent::from_bytes(text.as_bytes()).unwrap_err().kind(), ErrorKind::Corrupt, "{wrong}");
        }
    }
}
