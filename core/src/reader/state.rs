//! What a reader node holds in memory, and how it follows the writer: no I/O.

use std::collections::{BTreeMap, VecDeque, btree_map::Entry};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::time::Instant;

use super::tail::Tail;
use super::{Cut, ReaderConfig};
use crate::batch::{BatchRecord, LateEntry, entry_marks};
use crate::changes::Row;
use crate::channel::{Channel, ChannelMap};
use crate::clock::{Epoch, Progress, PublishedClock};
use crate::entry::ChangeEntry;
use crate::missing::{self, LastBatch};
use crate::sequence::{RangeSet, Sequence};

/// Whether the node can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ready,
    /// The store does not answer; back by itself.
    Offline(String),
    /// The cache is being built, and the node was told to refuse requests until then.
    Building(Progress),
    /// The store lost what it had acknowledged, or is another cache now: nothing known here holds.
    Lost(String),
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) resyncs: AtomicU64,
    /// Orders reads, for eviction.
    pub(crate) reads: AtomicU64,
    /// Tails in use by requests and waiters.
    pub(crate) pinned: Arc<AtomicUsize>,
    /// Rows that are in no channel of their entry's.
    pub(crate) strays: Mutex<Seldom>,
}

/// Admits one line a minute, and counts the others.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    last: Option<Instant>,
    refused: u64,
}

impl Seldom {
    /// How many were not admitted since the last one that was, if this one is.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now < last + Duration::from_secs(60)) {
            self.refused += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.refused))
    }
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) clock: PublishedClock,
    pub(crate) cut: Cut,
    pub(crate) status: Status,
    pub(crate) tails: ChannelMap<Tail>,
    /// Entries above high: not to be seen yet.
    pending: BTreeMap<(Sequence, u8), Arc<ChangeEntry>>,
    /// Channels in which some of them are superseded by revisions with lower sequences.
    superseded: BTreeMap<(Sequence, u8), Vec<Channel>>,
    /// What is missing or given up by the clock. A block may name such a sequence already, when a
    /// writer has stored its document and not announced it yet: it is not to be seen before that.
    pub(crate) missing: Arc<RangeSet>,
    /// The list of what is missing that was gone when this state was read.
    lacks: Option<(Epoch, u64)>,
    /// The newest late entries.
    pub(crate) late: VecDeque<(LateEntry, Arc<ChangeEntry>)>,
    /// Channels that must be looked at when stable moves.
    unsettled: ChannelMap<()>,
    /// How often entries were withdrawn: what was read from blocks before may not be put into a
    /// tail after.
    pub(crate) withdrawals: u64,
    /// Where high was when, for letting old rows go.
    ages: VecDeque<(Duration, Sequence)>,
}

fn numbers(entries: &[Arc<ChangeEntry>]) -> FxHashSet<Sequence> {
    entries.iter().map(|entry| entry.position()).collect()
}

impl State {
    /// The state after `last`. `above` are the entries stored above its high sequence.
    pub(crate) fn new(last: LastBatch, mut above: Vec<(Arc<ChangeEntry>, Vec<Channel>)>) -> Self {
        let LastBatch { clock, record, missing, lacks } = last;
        if let Some(gone) = record.as_ref().map(|record| &record.gone).filter(|gone| !gone.is_empty()) {
            // The star channel may name it still.
            let gone = numbers(gone);
            above.retain(|(entry, _)| !gone.contains(&entry.position()));
        }
        let superseded = above.iter().filter(|(_, channels)| !channels.is_empty());
        State {
            missing: Arc::new(missing.sequences()),
            lacks,
            cut: Cut::of(&clock),
            clock,
            status: Status::Ready,
            tails: ChannelMap::default(),
            superseded: superseded.map(|(entry, channels)| (entry.position().rank(), channels.clone())).collect(),
            pending: above.into_iter().map(|(entry, _)| (entry.position().rank(), entry)).collect(),
            late: VecDeque::new(),
            unsettled: ChannelMap::default(),
            withdrawals: 0,
            ages: VecDeque::new(),
        }
    }

    /// Whether these records do not suffice to follow the writer. They have the changes since a
    /// list that this state has not read, and it lacked the list before that one.
    pub(crate) fn lacks_list_before(&self, records: &[Arc<BatchRecord>]) -> bool {
        let base = records.last().and_then(|record| record.base.as_ref());
        self.lacks.is_some() && base.is_some_and(|base| Some(base.id()) != self.lacks)
    }

    /// Follows the writer to `clock`, over all records in between.
    pub(crate) fn advance(&mut self, records: &[Arc<BatchRecord>], clock: PublishedClock, config: &ReaderConfig) {
        let mut touched = ChannelMap::default();
        let stable = clock.stable;
        // First: an entry that was published above high may be missing by the last record, because
        // a later term has skipped it before the feed brought it again. It will be announced.
        missing::follow(&mut self.missing, records);
        if records.last().is_some_and(|record| record.base.is_none()) {
            self.lacks = None;
        }
        for record in records {
            self.withdraw(&record.gone);
            for entry in &record.entries {
                if entry.sequence() > clock.high {
                    self.wait(entry);
                } else if !self.missing.contains(entry.position().0) {
                    self.stop_waiting(entry);
                    self.insert(entry, &[], stable, &mut touched);
                }
            }
            self.note_superseded(&record.entries);
            if !record.late.is_empty() {
                let entries: FxHashMap<Sequence, &Arc<ChangeEntry>> =
                    record.entries.iter().map(|entry| (entry.position(), entry)).collect();
                let known = record.late.iter().filter_map(|late| Some((*late, Arc::clone(entries.get(&late.sequence)?))));
                self.late.extend(known);
            }
        }
        while let Some(first) = self.pending.first_entry()
            && first.key().0 <= clock.high
        {
            let entry = first.remove();
            let superseded = self.superseded.remove(&entry.position().rank()).unwrap_or_default();
            // What was found above high may be of a batch that is not published yet; its record
            // brings it again.
            if !self.missing.contains(entry.position().0) {
                self.insert(&entry, &superseded, stable, &mut touched);
            }
        }
        while self.late.len() > config.late_kept {
            self.late.pop_front();
        }
        if clock.stable > self.clock.stable || clock.settled > self.clock.settled {
            touched.extend(std::mem::take(&mut self.unsettled));
        }
        self.cut = Cut::of(&clock);
        self.clock = clock;
        for channel in touched.into_keys() {
            let Some(tail) = self.tails.get_mut(&channel) else { continue };
            tail.settle(stable);
            tail.prune(config.tail_max, stable);
            tail.changed_at = self.clock.batch;
            tail.changed.notify_waiters();
            if tail.is_unsettled(stable) {
                self.unsettled.insert(channel, ());
            }
        }
    }

    /// Keeps an entry until high has passed it. What superseded another document's entry there does
    /// not supersede this one.
    fn wait(&mut self, entry: &Arc<ChangeEntry>) {
        let rank = entry.position().rank();
        if self.pending.insert(rank, entry.clone()).is_some_and(|before| before.document() != entry.document()) {
            self.superseded.remove(&rank);
        }
    }

    /// An entry is shown. Another document's that waits at its position is not: a killed writer
    /// stored it, and this one took its place.
    fn stop_waiting(&mut self, shown: &ChangeEntry) {
        if !self.pending.is_empty()
            && let Entry::Occupied(waiting) = self.pending.entry(shown.position().rank())
            && waiting.get().document() != shown.document()
        {
            self.superseded.remove(waiting.key());
            waiting.remove();
        }
    }

    /// Notes which entries above high these supersede. A later revision may have a lower sequence:
    /// once high has passed the earlier one, a reader that goes on from the later one would be
    /// shown it.
    fn note_superseded(&mut self, entries: &[Arc<ChangeEntry>]) {
        if self.pending.is_empty() {
            return;
        }
        let is_low =
            |entry: &&Arc<ChangeEntry>| entry.supersedes().iter().any(|earlier| earlier.rank() > entry.position().rank());
        for entry in entries.iter().filter(is_low) {
            entry_marks(entry, |mark| {
                let rank = mark.sequence.rank();
                let is_waiting = || self.pending.get(&rank).is_some_and(|earlier| entry.counts_on(earlier));
                if rank > entry.position().rank() && is_waiting() {
                    self.superseded.entry(rank).or_default().push(mark.channel.clone());
                }
            });
        }
    }

    /// Forgets what is gone, and everything about the channels it was in: what they show instead is
    /// in their blocks by now.
    fn withdraw(&mut self, gone: &[Arc<ChangeEntry>]) {
        if gone.is_empty() {
            return;
        }
        self.withdrawals += 1;
        let numbers = numbers(gone);
        self.late.retain(|(late, _)| !numbers.contains(&late.sequence));
        self.pending.retain(|_, entry| !numbers.contains(&entry.position()));
        for earlier in gone.iter().flat_map(|entry| entry.supersedes()) {
            self.superseded.remove(&earlier.rank());
        }
        self.superseded.retain(|rank, _| self.pending.contains_key(rank));
        for entry in gone {
            for channel in entry.channels().iter().map(|change| &change.channel).chain([entry.star()]) {
                if let Some(tail) = self.tails.remove(channel) {
                    tail.changed.notify_waiters();
                }
            }
        }
    }

    /// Inserts the rows of an entry, except in channels in which it is `superseded`.
    fn insert(&mut self, entry: &Arc<ChangeEntry>, superseded: &[Channel], stable: Sequence, touched: &mut ChannelMap<()>) {
        if self.tails.is_empty() {
            return;
        }
        for change in entry.channels().iter().filter(|change| !superseded.contains(&change.channel)) {
            if let Some(tail) = self.tails.get_mut(&change.channel) {
                tail.insert(Row::new(entry.clone(), change.membership), stable);
                touched.insert(change.channel.clone(), ());
            }
        }
        if entry.in_star()
            && !superseded.contains(entry.star())
            && let Some(tail) = self.tails.get_mut(entry.star())
        {
            tail.insert(Row::new(entry.clone(), crate::Membership::Present), stable);
            touched.insert(entry.star().clone(), ());
        }
    }

    /// Adds a tail that is to be filled. Whoever waits for one that it replaces looks again.
    pub(crate) fn open_tail(&mut self, channel: Channel, tail: Tail) {
        if let Some(replaced) = self.tails.insert(channel, tail) {
            replaced.changed.notify_waiters();
        }
    }

    /// Puts what was read from blocks into a new tail, and opens it for readers. Whoever found it
    /// unready looks again: what they wait for may be in it.
    pub(crate) fn fill(&mut self, channel: &Channel, rows: Vec<Row>) {
        let stable = self.clock.stable;
        let batch = self.clock.batch;
        if let Some(tail) = self.tails.get_mut(channel) {
            rows.into_iter().for_each(|row| tail.insert(row, stable));
            tail.ready = true;
            tail.changed_at = batch;
            tail.changed.notify_waiters();
            if tail.is_unsettled(stable) {
                self.unsettled.insert(channel.clone(), ());
            }
        }
    }

    /// Lets old rows go. `now` counts from anywhere.
    pub(crate) fn age(&mut self, now: Duration, config: &ReaderConfig) {
        self.ages.push_back((now, self.clock.stable));
        let mut aged = None;
        while let Some((at, stable)) = self.ages.front()
            && now.saturating_sub(*at) >= Duration::from_millis(config.tail_age_ms)
        {
            aged = Some(*stable);
            self.ages.pop_front();
        }
        if let Some(stable) = aged {
            self.tails.values_mut().for_each(|tail| tail.prune_aged(config.tail_min, stable));
        }
    }

    /// If there are more than `max` tails, evicts the least recently read down to nine tenths of
    /// `max`. Tails that are `pinned` by requests and waiters are not counted, and stay.
    pub(crate) fn evict(&mut self, max: usize, pinned: usize) -> usize {
        if self.tails.len().saturating_sub(pinned) <= max {
            return 0;
        }
        let unpinned = self.tails.iter().filter(|(_, tail)| !tail.is_pinned());
        let mut by_read: Vec<(u64, Channel)> =
            unpinned.map(|(channel, tail)| (tail.last_read.load(Ordering::Relaxed), channel.clone())).collect();
        by_read.sort_unstable_by_key(|(read, _)| *read);
        by_read.truncate(by_read.len().saturating_sub(max * 9 / 10));
        for (_, channel) in &by_read {
            if let Some(tail) = self.tails.remove(channel) {
                tail.changed.notify_waiters();
            }
        }
        by_read.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Gap;
    use crate::clock::CacheId;
    use crate::sequence::SequenceRange;
    use crate::{EntryFlags, Epoch, Membership};

    fn entry(sequence: u64) -> Arc<ChangeEntry> {
        Arc::new(ChangeEntry::new(Sequence(sequence), &format!("d{sequence}"), "1-a", EntryFlags::default()).unwrap())
    }

    fn seen(state: &State) -> Vec<u64> {
        let view = state.tails[&Channel::star()].view(Sequence::ZERO, Sequence::MAX);
        view.rows().iter().map(|row| row.sequence.0).collect()
    }

    #[test]
    fn another_entry_in_the_place_of_a_superseded_one_is_shown() {
        let id = CacheId::random();
        let clock = |batch, high| PublishedClock { batch, stable: high, high, ..PublishedClock::new(id.clone()) };
        let of = |sequence, document: &str, over: &[u64]| {
            let entry = ChangeEntry::new(Sequence(sequence), document, "1-a", EntryFlags::default()).unwrap();
            Arc::new(entry.with_supersedes(over.iter().copied().map(Sequence)))
        };
        let record = |batch, entries: Vec<_>, gone: Vec<_>| {
            let mut record = BatchRecord::new(batch, Epoch::default());
            (record.entries, record.gone) = (entries.into(), gone.into());
            [Arc::new(record)]
        };
        let open = |state: &mut State| {
            state.open_tail(Channel::star(), Tail::new(Sequence(2)));
            state.fill(&Channel::star(), Vec::new());
        };
        let config = ReaderConfig::default();
        for is_withdrawn in [false, true] {
            let mut state = State::new(clock(1, Sequence(1)).into(), vec![(of(4, "d", &[]), Vec::new())]);
            open(&mut state);
            state.advance(&record(2, vec![of(2, "d", &[4])], Vec::new()), clock(2, Sequence(2)), &config);
            if is_withdrawn {
                // The tail is gone with it.
                state.advance(&record(3, Vec::new(), vec![of(4, "d", &[])]), clock(3, Sequence(2)), &config);
                open(&mut state);
            }
            state.advance(&record(4, vec![of(4, "e", &[])], Vec::new()), clock(4, Sequence(3)), &config);
            state.advance(&record(5, Vec::new(), Vec::new()), clock(5, Sequence(4)), &config);
            assert_eq!(seen(&state), if is_withdrawn { vec![4] } else { vec![2, 4] });
        }
    }

    #[test]
    fn an_entry_is_not_shown_whose_position_another_document_took() {
        let id = CacheId::random();
        let clock = |batch, high| PublishedClock { batch, stable: high, high, ..PublishedClock::new(id.clone()) };
        let entry = |document: &str, channel: &str| {
            let entry = ChangeEntry::new(Sequence(4), document, "1-a", EntryFlags::default()).unwrap();
            Arc::new(entry.with_channel(Channel::new(channel).unwrap(), Membership::Present))
        };
        let mut state = State::new(clock(1, Sequence(1)).into(), vec![(entry("d", "a"), Vec::new())]);
        let channel = Channel::new("a").unwrap();
        state.open_tail(channel.clone(), Tail::new(Sequence(2)));
        state.fill(&channel, Vec::new());
        let mut record = BatchRecord::new(2, Epoch::default());
        record.entries = vec![entry("e", "b")].into();
        state.advance(&[Arc::new(record)], clock(2, Sequence(4)), &ReaderConfig::default());
        assert!(state.tails[&channel].view(Sequence::ZERO, Sequence::MAX).rows().is_empty());
    }

    /// A withdrawal takes the tail away, and whoever asks next makes another. Who waits may have
    /// found either of them before it was filled.
    #[test]
    fn who_waits_for_a_tail_that_is_replaced_or_filled_looks_again() {
        let mut state = State::new(PublishedClock::new(CacheId::random()).into(), Vec::new());
        for fills in [false, true] {
            state.open_tail(Channel::star(), Tail::new(Sequence(1)));
            let changed = state.tails[&Channel::star()].changed.clone();
            let mut waits = std::pin::pin!(changed.notified());
            assert!(!waits.as_mut().enable());
            if fills {
                state.fill(&Channel::star(), Vec::new());
            } else {
                state.open_tail(Channel::star(), Tail::new(Sequence(1)));
            }
            assert!(waits.as_mut().enable(), "filled: {fills}");
        }
    }

    #[test]
    fn of_many_lines_one_a_minute_is_admitted_and_tells_of_the_others() {
        let (mut seldom, now) = (Seldom::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        let admitted: Vec<_> = [0, 1, 59, 60, 61, 300].map(|seconds| seldom.admit(after(seconds))).to_vec();
        assert_eq!(admitted, [Some(0), None, None, Some(2), None, Some(1)]);
    }

    /// An entry was published above high. The next term has skipped its sequence before the feed
    /// brought it again, and announces it then.
    #[test]
    fn what_a_later_term_has_skipped_is_not_seen_before_it_is_announced() {
        let id = CacheId::random();
        let clock = |batch, stable, high, late| PublishedClock {
            batch,
            stable: Sequence(stable),
            high: Sequence(high),
            late,
            gaps: u64::from(stable < high),
            ..PublishedClock::new(id.clone())
        };
        let record =
            |batch, entries: Vec<_>| BatchRecord { entries: entries.into(), ..BatchRecord::new(batch, Epoch::default()) };
        let gaps = vec![Gap { range: SequenceRange::one(Sequence(3)), age_ms: 0 }];
        let skipped = BatchRecord { gaps, ..record(3, vec![entry(4)]) };
        let mut state = State::new(clock(1, 1, 1, 0).into(), Vec::new());
        state.open_tail(Channel::star(), Tail::new(Sequence(2)));
        state.fill(&Channel::star(), Vec::new());
        let both = [Arc::new(record(2, vec![entry(2), entry(3)])), Arc::new(skipped)];
        state.advance(&both, clock(3, 2, 4, 0), &ReaderConfig::default());
        assert_eq!(seen(&state), [2, 4]);
        let late = vec![LateEntry { number: 1, sequence: Sequence(3) }];
        let came = BatchRecord { late, ..record(4, vec![entry(3)]) };
        state.advance(&[Arc::new(came)], clock(4, 4, 4, 1), &ReaderConfig::default());
        assert_eq!(seen(&state), [2, 3, 4]);
    }

    /// A node that opens while batches are in flight finds their entries stored. When high passes
    /// such a number as skipped, before the batch that brings it is published, it must not be seen:
    /// it will be announced as late.
    #[test]
    fn what_is_stored_and_skipped_is_not_seen_before_it_is_announced() {
        let config = ReaderConfig::default();
        let id = CacheId::random();
        let clock = |stable, high, batch| PublishedClock {
            stable: Sequence(stable),
            high: Sequence(high),
            batch,
            gaps: u64::from(stable < high),
            ..PublishedClock::new(id.clone())
        };
        let mut state = State::new(clock(1, 1, 1).into(), vec![(entry(2), Vec::new()), (entry(4), Vec::new())]);
        state.open_tail(Channel::star(), Tail::new(Sequence(2)));
        state.fill(&Channel::star(), Vec::new());

        let gap = Gap { range: SequenceRange::one(Sequence(2)), age_ms: 0 };
        let skipped = BatchRecord {
            entries: [entry(3), entry(4)].into_iter().collect(),
            gaps: vec![gap],
            ..BatchRecord::new(2, Epoch::default())
        };
        state.advance(&[Arc::new(skipped)], clock(1, 4, 2), &config);
        assert_eq!(seen(&state), [3, 4]);

        let late = LateEntry { number: 1, sequence: Sequence(2) };
        let came =
            BatchRecord { entries: [entry(2)].into_iter().collect(), late: vec![late], ..BatchRecord::new(3, Epoch::default()) };
        state.advance(&[Arc::new(came)], PublishedClock { late: 1, ..clock(4, 4, 3) }, &config);
        assert_eq!(seen(&state), [2, 3, 4]);
    }
}
