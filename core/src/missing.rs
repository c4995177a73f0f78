//! The sequences that are missing after a batch: those on the skipped list, and those that have
//! been given up.
//!
//! A batch record has all of them if there are few. Otherwise it has only what has changed since a
//! list that is stored by itself, so a batch costs what changes and not what is missing. There are
//! two places for such a list. A writer stores the next one in the place that the last published
//! record does not refer to.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::batch::{BatchRecord, Gap};
use crate::clock::{Epoch, PublishedClock, from_json, to_json};
use crate::commit::{clock_lost, guard, read_clock, update};
use crate::error::Result;
use crate::key::CacheKey;
use crate::sequence::{RangeSet, SequenceRange};
use crate::store::CacheStore;

/// What is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The skipped list, in order.
    pub gaps: Vec<Gap>,
    /// What has been given up and has not come since; also positions in slots that are expected,
    /// and notes of readmitted sequences.
    pub abandoned: RangeSet,
}

impl Missing {
    /// How many ranges it has.
    pub fn ranges_len(&self) -> usize {
        self.gaps.len() + self.abandoned.ranges_len()
    }

    /// Replaces what it has in `changed` by `now`.
    fn change(&mut self, changed: &RangeSet, now: &Missing) {
        for (first, last) in changed.iter() {
            self.abandoned.remove(first, last);
        }
        for (first, last) in now.abandoned.iter() {
            self.abandoned.insert(first, last);
        }
        let mut gaps = Vec::with_capacity(self.gaps.len() + now.gaps.len());
        for gap in &self.gaps {
            let (mut first, last) = (gap.range.first().0, gap.range.last().0);
            for (a, b) in changed.within(first, last) {
                gaps.extend(before(first, a).map(|range| Gap { range, ..*gap }));
                first = b.saturating_add(1);
            }
            gaps.extend(SequenceRange::new(first, last).map(|range| Gap { range, ..*gap }));
        }
        gaps.extend_from_slice(&now.gaps);
        gaps.sort_unstable_by_key(|gap| gap.range);
        self.gaps = gaps;
    }

    /// All of it, and the sequences of its notes.
    #[cfg(feature = "runtime")]
    pub(crate) fn sequences(&self) -> RangeSet {
        let mut all = self.abandoned.with_readmitted();
        for gap in &self.gaps {
            all.insert(gap.range.first().0, gap.range.last().0);
        }
        all
    }
}

/// Follows records, each the next, with the sequences that are missing.
#[cfg(feature = "runtime")]
pub(crate) fn follow(missing: &mut Arc<RangeSet>, records: &[Arc<BatchRecord>]) {
    // A record repeats the changes of those before it that are relative to the same list.
    let list = |record: &Arc<BatchRecord>| record.base.as_ref().map(MissingBase::id);
    for (at, record) in records.iter().enumerate() {
        if records.get(at + 1).is_none_or(|next| next.base.is_some() && list(next) != list(record)) {
            follow_one(missing, record);
        }
    }
}

#[cfg(feature = "runtime")]
fn follow_one(missing: &mut Arc<RangeSet>, record: &BatchRecord) {
    let now = record.own_missing().sequences();
    let Some(base) = &record.base else {
        if **missing != now {
            *missing = Arc::new(now);
        }
        return;
    };
    // A request may hold the set, so it is copied only if something in it has changed.
    let is_out_of_date = |(first, last): &(u64, u64)| !missing.within(*first, *last).eq(now.within(*first, *last));
    let changed: Vec<(u64, u64)> = base.changed.iter().filter(is_out_of_date).collect();
    if changed.is_empty() {
        return;
    }
    let missing = Arc::make_mut(missing);
    for (first, last) in changed {
        missing.remove(first, last);
        for (a, b) in now.within(first, last) {
            missing.insert(a, b);
        }
    }
}

/// `first..end`.
fn before(first: u64, end: u64) -> Option<SequenceRange> {
    SequenceRange::new(first, end.checked_sub(1)?)
}

/// The stored list that a batch record is relative to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingBase {
    /// The term in which the list was made.
    pub epoch: Epoch,
    /// The list's number.
    pub list: u64,
    /// How long before the record it was made, in milliseconds.
    pub age_ms: u64,
    /// Where the list is out of date: the record has what is missing there.
    pub changed: RangeSet,
}

impl MissingBase {
    /// What identifies the list.
    pub(crate) fn id(&self) -> (Epoch, u64) {
        (self.epoch, self.list)
    }
}

/// A list of all that was missing after a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingList {
    /// The writer's term. Together with the number it identifies the list.
    pub epoch: Epoch,
    /// Its number.
    pub number: u64,
    /// What was missing.
    #[serde(flatten)]
    pub missing: Missing,
}

impl MissingList {
    /// Where the list of this number is stored.
    pub fn key(number: u64) -> CacheKey {
        CacheKey::Missing(number % 2)
    }

    /// JSON.
    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// Reads a stored list.
    ///
    /// # Errors
    /// `Corrupt` if it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        from_json(bytes, "list of missing sequences")
    }

    /// Stores it over an older one. May be repeated.
    ///
    /// # Errors
    /// `Fenced` if one of a later term is there; what the store says.
    pub async fn store<S: CacheStore + ?Sized>(&self, store: &S) -> Result<()> {
        update(store, &MissingList::key(self.number), |stored| {
            if let Some(stored) = stored {
                guard(self.epoch, MissingList::from_bytes(stored)?.epoch)?;
            }
            Ok(Some(self.to_bytes()))
        })
        .await
    }
}

impl BatchRecord {
    /// What it has itself of what is missing.
    pub(crate) fn own_missing(&self) -> Missing {
        Missing { gaps: self.gaps.clone(), abandoned: self.abandoned.clone() }
    }

    /// What is missing after it, if the list that it is relative to is this one. Without a list if
    /// it needs none.
    pub fn missing(&self, list: Option<&MissingList>) -> Option<Missing> {
        let own = self.own_missing();
        let Some(base) = &self.base else { return Some(own) };
        let list = list.filter(|list| (list.epoch, list.number) == base.id())?;
        let mut missing = list.missing.clone();
        missing.gaps.iter_mut().for_each(|gap| gap.age_ms = gap.age_ms.saturating_add(base.age_ms));
        missing.change(&base.changed, &own);
        Some(missing)
    }

    /// What is missing after it, from the store. `None` if the list that it is relative to is not
    /// there, which is so for a record that is not the last.
    ///
    /// # Errors
    /// `Corrupt`, naming the key, if the list cannot be read; what the store says.
    pub async fn read_missing<S: CacheStore + ?Sized>(&self, store: &S) -> Result<Option<Missing>> {
        let Some(base) = &self.base else { return Ok(self.missing(None)) };
        let key = MissingList::key(base.list);
        let Some(stored) = store.get(&key).await? else { return Ok(None) };
        let list = MissingList::from_bytes(&stored.value).map_err(|e| e.with_context("key", &key))?;
        Ok(self.missing(Some(&list)))
    }
}

/// A published clock, and what its batch left.
#[derive(Clone, Debug)]
pub struct LastBatch {
    /// The clock.
    pub clock: PublishedClock,
    /// Its record. `None` if it is gone, or there was no batch.
    pub record: Option<Arc<BatchRecord>>,
    /// What is missing after it. Empty if the record is gone, or the list that it is relative to.
    pub missing: Missing,
    /// The list that the record is relative to, if that is gone: the term in which it was made, and
    /// its number.
    pub lacks: Option<(Epoch, u64)>,
}

impl From<PublishedClock> for LastBatch {
    /// Without a record.
    fn from(clock: PublishedClock) -> Self {
        LastBatch { clock, record: None, missing: Missing::default(), lacks: None }
    }
}

impl LastBatch {
    /// The last batch by this clock, or by a later one if the writer has replaced its record or
    /// list meanwhile.
    ///
    /// # Errors
    /// `Corrupt`, naming the key, if one of them cannot be read, or if the clock is gone; what the
    /// store says.
    pub async fn read<S: CacheStore + ?Sized>(store: &S, ring: u64, mut clock: PublishedClock) -> Result<LastBatch> {
        let mut lacked = None;
        loop {
            let record = if clock.batch == 0 { None } else { store.record(clock.batch, ring).await? };
            let missing = match &record {
                Some(record) => record.read_missing(store).await?,
                None => None,
            };
            if missing.is_some() || clock.batch == 0 {
                return Ok(LastBatch { clock, record, missing: missing.unwrap_or_default(), lacks: None });
            }
            // A writer that goes on may have replaced the record, or the list. A list that a later
            // record still refers to was not replaced: it is gone.
            let lacks = record.as_ref().and_then(|record| record.base.as_ref()).map(MissingBase::id);
            let now = read_clock(store).await?.ok_or_else(clock_lost)?.value;
            if now.batch != clock.batch && (lacks.is_none() || lacks != lacked) {
                (clock, lacked) = (now, lacks);
                continue;
            }
            warn_gone(&clock, ring, lacks);
            return Ok(LastBatch { clock, record, missing: Missing::default(), lacks });
        }
    }
}

/// Logs that it is not known what was missing after the last batch.
pub(crate) fn warn_gone(clock: &PublishedClock, ring: u64, list: Option<(Epoch, u64)>) {
    let key = list.map_or(CacheKey::Batch(clock.batch % ring.max(1)), |(_, number)| MissingList::key(number));
    tracing::warn!(
        batch = clock.batch,
        %key,
        "the last batch record, or the list of missing sequences that it refers to, is gone from the store: it is not known \
         which sequences were missing; a writer that takes over announces them again as late; check the cache with `sluicegate verify`"
    );
}
