//! The log of decoded mutations: enough lines for an operator to notice, with a limit for many of a
//! kind.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::decode::{Decoded, Ignored};
use crate::engine::Noted;
use crate::entry::ChangeEntry;
use crate::sequence::SequenceRange;

/// The intervals of the limits: for warnings, and for other lines.
const OFTEN: Duration = Duration::from_secs(60);
const SELDOM: Duration = Duration::from_secs(3_600);

/// The limit for databases and collections that are remembered as logged. If there are more, they
/// are logged again.
const MAX_TOLD: usize = 1_000;

static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
static INVALID: Limit = Limit::new(10, OFTEN);
static LEFT_OUT: Limit = Limit::new(10, OFTEN);
static PROPERTIES: Limit = Limit::new(1, SELDOM);
static CONFLICTS: Limit = Limit::new(10, OFTEN);
static FULL: Limit = Limit::new(10, OFTEN);
static OTHER_STATES: Limit = Limit::new(10, OFTEN);
static IMPLAUSIBLE: Limit = Limit::new(10, OFTEN);
static SKIPPED: Limit = Limit::new(10, OFTEN);
static ABANDONED: Limit = Limit::new(10, OFTEN);
static UNDELIVERED: Limit = Limit::new(10, OFTEN);
static DATABASES: Once<Box<str>> = Once::new();
static COLLECTIONS: Once<u32> = Once::new();

/// Admits some lines per interval, and counts the others.
#[derive(Debug)]
struct Limit {
    most: u32,
    interval: Duration,
    state: Mutex<Passed>,
}

#[derive(Debug)]
struct Passed {
    /// The start of the interval; `None` before the first line.
    since: Option<Duration>,
    admitted: u32,
    refused: u64,
}

impl Limit {
    const fn new(most: u32, interval: Duration) -> Self {
        Limit { most, interval, state: Mutex::new(Passed { since: None, admitted: 0, refused: 0 }) }
    }

    /// Whether a line may be written.
    fn admits(&self, now: Duration) -> bool {
        self.admits_line_of(now, 1)
    }

    /// Whether a line about `count` things may be written.
    fn admits_line_of(&self, now: Duration, count: u64) -> bool {
        let mut state = self.state.lock();
        if state.since.is_none_or(|since| now >= since + self.interval) {
            (state.since, state.admitted) = (Some(now), 0);
        }
        if state.admitted == self.most {
            state.refused += count;
            return false;
        }
        state.admitted += 1;
        true
    }

    /// The number of things whose lines were refused in an interval that is over. Each is reported
    /// once.
    fn take_refused(&self, now: Duration) -> Option<u64> {
        let mut state = self.state.lock();
        let is_over = state.since.is_some_and(|since| now >= since + self.interval);
        (is_over && state.refused > 0).then(|| std::mem::take(&mut state.refused))
    }
}

/// Admits each value once.
#[derive(Debug)]
struct Once<T>(Mutex<BTreeSet<T>>);

impl<T: Ord> Once<T> {
    const fn new() -> Self {
        Once(Mutex::new(BTreeSet::new()))
    }

    fn admits(&self, thing: T) -> bool {
        let mut told = self.0.lock();
        if told.len() >= MAX_TOLD {
            told.clear();
        }
        told.insert(thing)
    }
}

/// Logs the results of the mutations of one feed batch.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// Collections that were checked, so that a batch of their documents checks once.
    collections: SmallVec<[u32; 4]>,
}

impl Notices {
    /// Logs the result of a mutation of `key`, if it is of interest.
    #[inline]
    pub(super) fn tell(&mut self, key: &[u8], decoded: &Decoded) {
        match decoded {
            Decoded::Document(document) | Decoded::Foreign(document) if document.left_out.is_none() => {}
            Decoded::Principal(_) | Decoded::Unused(_) | Decoded::Counter(_) | Decoded::Purged(_) => {}
            Decoded::Ignored(Ignored::OtherCollection(collection)) if self.collections.contains(collection) => {}
            Decoded::Ignored(Ignored::NoMetadata | Ignored::Internal | Ignored::Deletion) => {}
            _ => self.tell_oddity(key, decoded),
        }
    }

    #[cold]
    fn tell_oddity(&mut self, key: &[u8], decoded: &Decoded) {
        let now = BEGINNING.elapsed();
        let key = key.escape_ascii();
        match decoded {
            Decoded::Invalid(invalid) if INVALID.admits(now) => {
                tracing::warn!(%key, reason = %invalid.reason, "a mutation cannot be understood; left out");
            }
            Decoded::Document(document) | Decoded::Foreign(document) => {
                if let Some(left_out) = &document.left_out
                    && LEFT_OUT.admits(now)
                {
                    tracing::warn!(%key, %left_out, "part of a document's metadata is left out; the document is shown without it");
                }
            }
            Decoded::Ignored(Ignored::ForeignProperty) if PROPERTIES.admits(now) => {
                tracing::info!(%key, "a document has a property `_sync` that is not the gateway's; it is left out, as a document without metadata");
            }
            Decoded::Ignored(Ignored::OtherDatabase(id)) if DATABASES.admits(id.clone()) => {
                tracing::info!(metadata_id = %id, %key, "the bucket has another database, which is left out; to cache that one instead, set its metadata id (decoder.metadata_id)");
            }
            Decoded::Ignored(Ignored::OtherCollection(collection)) => {
                self.collections.push(*collection);
                if COLLECTIONS.admits(*collection) {
                    tracing::info!(collection, %key, "documents of a collection are left out, because it is not among those that are set (decoder.collections)");
                }
            }
            _ => {}
        }
    }

    /// Logs the number of suppressed lines of an interval that is over.
    pub(super) fn tell_more(&self) {
        tell_refused_mutations(BEGINNING.elapsed());
    }
}

/// Logs the number of suppressed lines that are not told yet, when it is dropped.
#[derive(Debug)]
pub(super) struct TellAtEnd;

impl Drop for TellAtEnd {
    fn drop(&mut self) {
        // Every interval is over by then.
        tell_refused_mutations(Duration::MAX);
        tell_refused_sequences(Duration::MAX);
    }
}

/// Logs the number of suppressed lines about mutations of an interval that is over.
fn tell_refused_mutations(now: Duration) {
    if let Some(more) = INVALID.take_refused(now) {
        tracing::warn!(more, "more mutations could not be understood, and were left out");
    }
    if let Some(more) = LEFT_OUT.take_refused(now) {
        tracing::warn!(more, "more documents had metadata with parts that were left out");
    }
    if let Some(more) = CONFLICTS.take_refused(now) {
        tracing::warn!(
            more,
            "more documents had a sequence that was in use already, or left channels at one; they are shown as late changes"
        );
    }
    if let Some(more) = FULL.take_refused(now) {
        tracing::error!(more, "more documents were left out, because no position was free for their sequence");
    }
    if let Some(more) = OTHER_STATES.take_refused(now) {
        tracing::warn!(more, "more documents had a sequence at which a killed writer had stored other states; they are shown");
    }
    if let Some(more) = PROPERTIES.take_refused(now) {
        tracing::info!(more, "more documents had a property `_sync` that is not the gateway's");
    }
}

/// Logs what the sequencer has decided: one line of each kind.
pub(super) fn tell_noted(noted: &[Noted]) {
    let now = BEGINNING.elapsed();
    if !noted.is_empty() {
        tell_missing(noted, now);
    }
    tell_refused_sequences(now);
}

/// Logs the number of suppressed lines about sequences of an interval that is over.
fn tell_refused_sequences(now: Duration) {
    if let Some(more) = IMPLAUSIBLE.take_refused(now) {
        tracing::warn!(more, "more sequences were implausibly high, because too many below them are missing");
    }
    if let Some(more) = SKIPPED.take_refused(now) {
        tracing::info!(more, "more sequences were skipped");
    }
    if let Some(more) = ABANDONED.take_refused(now) {
        tracing::warn!(more, "more sequences were given up");
    }
    if let Some(more) = UNDELIVERED.take_refused(now) {
        tracing::debug!(more, "more sequences were not delivered by the restricted feed");
    }
}

#[cold]
fn tell_missing(noted: &[Noted], now: Duration) {
    let (mut skipped, mut abandoned, mut undelivered) = (None, None, None);
    for note in noted {
        match note {
            Noted::Skipped(range) => Missing::add(&mut skipped, *range),
            Noted::Abandoned(range) => Missing::add(&mut abandoned, *range),
            Noted::Undelivered(range) => Missing::add(&mut undelivered, *range),
            Noted::Implausible(range) if IMPLAUSIBLE.admits(now) => tracing::warn!(
                sequence = %range.last().next(),
                missing = %range,
                "the sequence is implausibly high: too many below it are missing. Documents at or above it are stored, and not \
                 shown until the gateway's counter comes near: look at it with `sluicegate inspect sequence`, and raise \
                 writer.max_jump if the gap is real"
            ),
            Noted::Implausible(_) => {}
        }
    }
    if let Some(Missing { first, ranges, sequences }) = Missing::admitted(skipped, &SKIPPED, now) {
        tracing::info!(%first, ranges, sequences, "sequences are missing: later ones are shown without them; a document that comes with one is shown, too");
    }
    if let Some(Missing { first, ranges, sequences }) = Missing::admitted(abandoned, &ABANDONED, now) {
        tracing::warn!(%first, ranges, sequences, "missing sequences are given up: nothing waits for them any more; a document that comes with one is shown as late");
    }
    if let Some(Missing { first, ranges, sequences }) = Missing::admitted(undelivered, &UNDELIVERED, now) {
        tracing::debug!(%first, ranges, sequences, "the restricted feed did not deliver some sequences: nothing waits for them");
    }
}

/// Missing sequences in one log line.
#[derive(Debug, PartialEq)]
struct Missing {
    /// The first range of them.
    first: SequenceRange,
    ranges: u64,
    sequences: u64,
}

impl Missing {
    fn add(known: &mut Option<Missing>, range: SequenceRange) {
        let missing = known.get_or_insert(Missing { first: range, ranges: 0, sequences: 0 });
        missing.ranges += 1;
        missing.sequences += range.count();
    }

    /// Returns what a line may be written about.
    fn admitted(known: Option<Missing>, limit: &Limit, now: Duration) -> Option<Missing> {
        known.filter(|missing| limit.admits_line_of(now, missing.sequences))
    }
}

/// Logs that a document or a departure gets a position of its own, because its sequence was
/// accounted for already.
pub(super) fn tell_conflict(entry: &ChangeEntry) {
    if !CONFLICTS.admits(BEGINNING.elapsed()) {
        return;
    }
    let (sequence, document, revision) = (entry.sequence(), entry.document(), entry.revision());
    if entry.in_star() {
        tracing::warn!(
            %sequence, %document, revision,
            "a document came with a sequence that was in use already; it is shown as a late change"
        );
    } else {
        tracing::warn!(
            %sequence, %document, revision,
            "a document left channels at a sequence that was in use already; the removal is shown as a late change"
        );
    }
}

/// Logs that a document is left out, because all positions of its sequence are taken.
pub(super) fn tell_full(entry: &ChangeEntry) {
    if FULL.admits(BEGINNING.elapsed()) {
        tracing::error!(
            sequence = %entry.sequence(),
            document = %entry.document(),
            revision = entry.revision(),
            "a document is left out: no position is free for its sequence, which other documents have; to show it, update the document"
        );
    }
}

/// Logs that states of another entry are removed, which would hide a new document.
pub(super) fn tell_other_states(entry: &ChangeEntry) {
    if OTHER_STATES.admits(BEGINNING.elapsed()) {
        tracing::warn!(
            sequence = %entry.sequence(),
            document = %entry.document(),
            revision = entry.revision(),
            "a writer that was killed had stored states of another document or revision at the sequence of this document; they are \
             removed, and the document is shown: nothing needs to be done"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn some_lines_an_interval_are_admitted_and_the_others_are_counted() {
        let limit = Limit::new(3, OFTEN);
        let admitted = |now| (0..10).filter(|_| limit.admits(at(now))).count();
        assert_eq!((admitted(5), limit.take_refused(at(64))), (3, None), "the interval is not over");
        assert_eq!(admitted(64), 0);
        assert_eq!((limit.take_refused(at(65)), limit.take_refused(at(65))), (Some(17), None));
        assert_eq!(admitted(65), 3);
        // There was no call in between: no count is lost.
        assert_eq!((admitted(200), limit.take_refused(at(260))), (3, Some(14)));
        assert_eq!(limit.take_refused(at(900)), None);
    }

    #[test]
    fn missing_ranges_are_one_line_and_its_sequences_are_counted() {
        let (limit, mut skipped) = (Limit::new(1, OFTEN), None);
        let range = |first, last| SequenceRange::new(crate::Sequence(first), crate::Sequence(last)).unwrap();
        [range(3, 5), range(9, 9)].into_iter().for_each(|range| Missing::add(&mut skipped, range));
        let expected = Missing { first: range(3, 5), ranges: 2, sequences: 4 };
        assert_eq!(Missing::admitted(skipped, &limit, at(1)), Some(expected));
        let mut more = None;
        Missing::add(&mut more, range(20, 29));
        assert_eq!((Missing::admitted(more, &limit, at(2)), limit.take_refused(at(61))), (None, Some(10)));
    }

    #[test]
    fn each_is_admitted_once() {
        let once = Once::new();
        assert_eq!([1, 2, 1, 2, 3].map(|n| once.admits(n)), [true, true, false, false, true]);
        for n in 0..10 * MAX_TOLD {
            once.admits(n);
        }
        assert!(once.0.lock().len() <= MAX_TOLD);
    }
}
