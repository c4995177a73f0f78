//! From decoded mutations to write batches and clocks.

mod early;
mod stats;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use early::EarlyMarks;
pub use stats::WriterStats;

use super::lists::{LIST_CHANGES, Lists, Told};
use super::sequencer::{Arrival, Noted, Sequencer};
use crate::batch::{BatchRecord, Checkpoint, Entries, Floor, LateEntry, ListedBlocks, PrincipalChange, Publication, WriteBatch};
use crate::block::BlockCodec;
use crate::clock::{Progress, PublishedClock};
use crate::decode::{Decoded, DecodedDocument, Departure, Ignored};
use crate::document::CollectionId;
use crate::entry::{ChangeEntry, ChannelChange, EntryFlags};
use crate::feed::{Delivered, FeedPosition};
use crate::missing::MissingList;
use crate::sequence::{RangeSet, Sequence, SequenceList, SequenceRange};

/// Marks are put off until so many entries wait for them for each that is stored.
const MARKS_AN_ENTRY: usize = 4;

/// The limit for entries whose marks go with one batch.
pub(crate) const MAX_MARKS: usize = 16_384;

/// One batch, ready to be committed and then published.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What to commit.
    pub batch: WriteBatch,
    /// Entries at or below [`PublishedClock::marked`] whose predecessors are to be marked before
    /// the batch is published: late ones of the batch, and those that a withdrawal has found. The
    /// documents must be stored first: marks of an entry that is not stored would hide rows, and
    /// nothing would name them.
    pub late_marks: Vec<Arc<ChangeEntry>>,
    /// The positions of its entries: runs of consecutive ones, each with its first and last, in the
    /// order in which they came.
    pub positions: Vec<(u64, u64)>,
    /// What to store before the publication, if anything.
    pub list: Option<MissingList>,
    /// What to publish when it and all before it are committed.
    pub publication: Publication,
}

/// Entries that the next batch announces as gone, and those that are shown again in their place.
#[derive(Debug, Default)]
struct Withdrawn {
    gone: Vec<Arc<ChangeEntry>>,
    /// Positions of departures among them that only make room, see [`BatchRecord::room`].
    room: Vec<Sequence>,
    restored: Vec<Arc<ChangeEntry>>,
}

/// The pure part of the writer: sequencer, late numbers and marks; collects batches.
#[derive(Debug)]
pub struct Assembler {
    sequencer: Sequencer,
    codec: Arc<dyn BlockCodec>,
    ring: u64,
    feed: String,
    /// The clock after the last prepared batch.
    clock: PublishedClock,
    /// The stable sequence that readers are known to see.
    published_stable: Sequence,
    listed: Arc<ListedBlocks>,
    /// Collections of the entries so far, without the default one.
    collections: BTreeSet<CollectionId>,
    entries: Vec<Arc<ChangeEntry>>,
    /// Their positions, as [`Prepared::positions`].
    positions: Vec<(u64, u64)>,
    /// In how many channels they are, added up.
    memberships: usize,
    late: Vec<LateEntry>,
    principals: Vec<PrincipalChange>,
    withdrawn: Withdrawn,
    /// Entries whose predecessors are not marked yet, because stable had not passed them. In the
    /// order of [`Sequence::rank`].
    unmarked: BTreeMap<(Sequence, u8), Arc<ChangeEntry>>,
    /// Late entries among these that are not published, with their batches. Stable may have passed
    /// them already.
    late_in_flight: FxHashMap<(Sequence, u8), u64>,
    /// Others whose predecessors are not marked yet, and are not stored.
    early: EarlyMarks,
    /// Sequences that entries of an earlier term supersede, and the entries that name them.
    inherited: FxHashMap<Sequence, Vec<(Sequence, u8)>>,
    /// Whether there were such entries.
    has_inherited: bool,
    /// Whether a later revision may have a lower sequence, because a gateway has lost its counter:
    /// there was one, or a departure with one, or sequences are known to have been allocated twice.
    is_reused: bool,
    /// The share of the feed that has been delivered, if that is known.
    delivered: Option<Delivered>,
    lists: Lists,
    stats: WriterStats,
}

impl Assembler {
    /// One that goes on from `clock`.
    pub fn new(
        sequencer: Sequencer,
        codec: Arc<dyn BlockCodec>,
        ring: u64,
        feed: String,
        clock: PublishedClock,
        late: u64,
    ) -> Self {
        Assembler {
            sequencer,
            codec,
            ring,
            feed,
            published_stable: clock.stable,
            clock: PublishedClock { late: clock.late.max(late), ..clock },
            listed: Arc::default(),
            collections: BTreeSet::new(),
            entries: Vec::new(),
            positions: Vec::new(),
            memberships: 0,
            late: Vec::new(),
            principals: Vec::new(),
            withdrawn: Withdrawn::default(),
            unmarked: BTreeMap::new(),
            late_in_flight: FxHashMap::default(),
            early: EarlyMarks::default(),
            inherited: FxHashMap::default(),
            has_inherited: false,
            is_reused: false,
            delivered: None,
            lists: Lists::after(0, LIST_CHANGES),
            stats: WriterStats::default(),
        }
    }

    /// The same where the last list of missing sequences has this number, and records repeat up to
    /// `changes` ranges before the next one is due.
    #[must_use]
    pub fn with_lists(self, last: u64, changes: usize) -> Self {
        Assembler { lists: Lists::after(last, changes), ..self }
    }

    /// What it has seen.
    pub fn stats(&self) -> WriterStats {
        self.stats
    }

    /// The sequencer.
    pub fn sequencer(&self) -> &Sequencer {
        &self.sequencer
    }

    /// The clock after the last prepared batch.
    pub fn clock(&self) -> &PublishedClock {
        &self.clock
    }

    /// The blocks known to be in their directory.
    pub fn listed(&self) -> &ListedBlocks {
        &self.listed
    }

    /// The collections of all entries of this term, without the default one.
    pub fn collections(&self) -> &BTreeSet<CollectionId> {
        &self.collections
    }

    /// About how many bytes a checkpoint has, besides the feed's position.
    pub fn checkpoint_bytes(&self) -> usize {
        let unmarked = if self.sequencer.holds() { self.unmarked.len() } else { 0 };
        self.sequencer.state_bytes() + unmarked * size_of::<Sequence>()
    }

    /// How many entries wait to be prepared.
    pub fn waiting(&self) -> usize {
        self.entries.len()
    }

    /// In how many channels these entries are, added up.
    pub fn waiting_memberships(&self) -> usize {
        self.memberships
    }

    /// Takes an entry stored in an earlier term whose marks may not have been written.
    pub fn remember_unmarked(&mut self, entry: Arc<ChangeEntry>) {
        if !entry.supersedes().is_empty() {
            self.has_inherited = true;
            for older in entry.supersedes() {
                let naming = self.inherited.entry(*older).or_default();
                if !naming.contains(&entry.position().rank()) {
                    naming.push(entry.position().rank());
                }
            }
            self.unmarked.insert(entry.position().rank(), entry);
        }
    }

    /// Removes a sequence from the lists of inherited entries if another document has come there,
    /// or a later revision of their own: the sequence was allocated again.
    fn disown(&mut self, came: &ChangeEntry) {
        for rank in self.inherited.remove(&came.position()).unwrap_or_default() {
            if let Some(entry) = self.unmarked.get_mut(&rank)
                && !entry.counts_on(came)
            {
                let kept: Vec<Sequence> = entry.supersedes().iter().copied().filter(|older| *older != came.position()).collect();
                *entry = Arc::new(ChangeEntry::clone(entry).with_supersedes(kept));
            }
        }
    }

    /// Takes one decoded mutation. Returns whether the mutation is a new document, whose entry will
    /// be stored.
    pub fn apply(&mut self, mut decoded: Decoded, now: Duration) -> bool {
        self.take(&mut decoded, now)
    }

    /// As [`apply`](Self::apply), and leaves of a document only an empty one. It is large: it would
    /// be copied several times.
    pub(crate) fn take(&mut self, decoded: &mut Decoded, now: Duration) -> bool {
        self.stats.received += u64::from(!matches!(decoded, Decoded::Document(_)));
        match decoded {
            Decoded::Document(document) => return self.take_document(document, now),
            Decoded::Foreign(document) => {
                self.stats.foreign += 1;
                self.document(document, false, now);
            }
            Decoded::Purged(_) => self.stats.purged += 1,
            Decoded::Principal(principal) => {
                let arrival = self.sequencer.arrived(principal.sequence, now);
                if self.count(arrival).is_new() {
                    self.stats.principals += 1;
                    let (sequence, kind, name) = (principal.sequence, principal.kind, std::mem::take(&mut principal.name));
                    self.principals.push(PrincipalChange { sequence, kind, name });
                }
            }
            Decoded::Unused(range) => self.stats.unused += self.sequencer.unused(*range, now),
            Decoded::Counter(counter) => {
                self.stats.ignored += 1;
                self.sequencer.counter(*counter, now);
            }
            Decoded::Ignored(Ignored::OtherDatabase(_)) => self.stats.other_database += 1,
            Decoded::Ignored(Ignored::OtherCollection(_)) => self.stats.other_collection += 1,
            Decoded::Ignored(_) => self.stats.ignored += 1,
            Decoded::Invalid(_) => self.stats.invalid += 1,
        }
        false
    }

    /// As [`take`](Self::take), for a document.
    #[inline]
    pub(crate) fn take_document(&mut self, document: &mut DecodedDocument, now: Duration) -> bool {
        self.stats.received += 1;
        self.document(document, true, now)
    }

    /// Takes a document. A document that is not shown accounts for its sequences, too. Returns
    /// whether its entry will be stored.
    fn document(&mut self, document: &mut DecodedDocument, is_shown: bool, now: Duration) -> bool {
        if self.is_reused || document.entry.is_low() || self.has_low_departure(document) {
            self.is_reused = true;
            reach_all(document);
        }
        let DecodedDocument { entry, unused, departures, accounted, left_out, names_all_channels: _ } = document;
        if let Some(left_out) = left_out {
            self.stats.bad_channels += left_out.channels;
            self.stats.cut_numbers += left_out.sequences;
        }
        for sequence in unused.iter().copied() {
            // A counter that was lost allocates a number again at which the document left a
            // channel. This write did not use the number, and the departure has it.
            if !departures.iter().any(|departure| departure.sequence == sequence) {
                self.stats.unused += self.sequencer.unused(SequenceRange::one(sequence), now);
            }
        }
        let mut is_early = self.sequencer.holds()
            && !self.is_reused
            && entry.supersedes().iter().all(|position| position.slot() == 0)
            && are_apart(entry, departures);
        if !(entry.supersedes().is_empty() && accounted.is_empty() && departures.is_empty()) {
            is_early = self.take_earlier(entry, accounted, departures, is_early, now);
        }
        if !is_shown {
            self.stats.superseded += u64::from(self.sequencer.arrived(entry.sequence(), now).is_new());
            return false;
        }
        let arrival = self.sequencer.arrived_at(entry.position(), now);
        let is_new = self.count(arrival).is_new();
        if is_new {
            self.store(std::mem::replace(entry, ChangeEntry::empty()), arrival, is_early);
        }
        is_new
    }

    /// Takes the sequences of a document's earlier revisions. Stores a departure that has not
    /// arrived. Returns whether the document's marks hide no row; `is_early` says whether that may
    /// be.
    fn take_earlier(
        &mut self,
        entry: &ChangeEntry,
        accounted: &[Sequence],
        departures: &[Departure],
        mut is_early: bool,
        now: Duration,
    ) -> bool {
        // A sequence that only the channel map remembers is accounted for too: it was this
        // document's, and the feed may have dropped it.
        let left = departures.iter().map(|departure| departure.sequence);
        let mut earlier: SequenceList = entry.supersedes().iter().copied().chain(accounted.iter().copied()).chain(left).collect();
        // The sequence of an entry in a slot is accounted for by another document. Only a departure
        // that has been readmitted there is new.
        earlier.retain(|position| position.slot() == 0 || departures.iter().any(|d| d.sequence == *position));
        earlier.sort_unstable();
        earlier.dedup();
        let mut departed = Vec::new();
        for old in earlier {
            let arrival = match old.slot() {
                0 => self.sequencer.arrived(old, now),
                _ => self.sequencer.arrived_in_slot(old),
            };
            is_early &= arrival.is_new();
            if arrival.is_new() {
                match departure_entry(entry, old, departures, self.is_reused) {
                    Some(departure) => {
                        self.sequencer.forget_readmitted(old);
                        departed.push((departure, arrival));
                    }
                    // A killed writer may have left states there without an entry. The note stays,
                    // so that readers leave the position out.
                    None => self.stats.superseded += 1,
                }
            }
        }
        departed.into_iter().for_each(|(departure, arrival)| self.store(departure, arrival, is_early));
        is_early
    }

    /// Whether a departure that has not arrived has a lower sequence than an earlier revision that
    /// has. That revision did not name the departure, so its row must be marked, too.
    fn has_low_departure(&self, document: &DecodedDocument) -> bool {
        let is_accounted = |sequence: Sequence| self.sequencer.is_accounted(sequence);
        let is_low = |departure: &Departure| {
            let mut higher = document.entry.supersedes().iter().filter(|earlier| earlier.rank() > departure.sequence.rank());
            !is_accounted(departure.sequence) && higher.any(|earlier| is_accounted(*earlier))
        };
        document.departures.iter().any(is_low)
    }

    fn count(&mut self, arrival: Arrival) -> Arrival {
        self.stats.duplicates += u64::from(arrival == Arrival::Duplicate);
        self.stats.invalid += u64::from(arrival == Arrival::Implausible);
        arrival
    }

    /// Takes a new entry. If it `is_early`, its marks hide no row.
    fn store(&mut self, entry: ChangeEntry, arrival: Arrival, is_early: bool) {
        let entry = Arc::new(entry);
        self.stats.cached += 1;
        let position = entry.position().0;
        match self.positions.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(position) => *last = position,
            _ => self.positions.push((position, position)),
        }
        self.memberships += entry.channels().len();
        if !entry.collection().is_default() {
            self.collections.insert(entry.collection());
        }
        if arrival == Arrival::Late {
            self.stats.late += 1;
            self.clock.late += 1;
            self.late.push(LateEntry { number: self.clock.late, sequence: entry.position() });
        }
        if !self.inherited.is_empty() {
            self.disown(&entry);
        }
        // An entry that an earlier term may have stored there is replaced.
        if !entry.supersedes().is_empty() {
            let is_inherited = self.has_inherited && self.unmarked.contains_key(&entry.position().rank());
            if is_early && !is_inherited {
                self.early.push(self.clock.batch + 1, entry.clone());
            } else {
                self.unmarked.insert(entry.position().rank(), entry.clone());
                if arrival == Arrival::Late {
                    self.late_in_flight.insert(entry.position().rank(), self.clock.batch + 1);
                }
            }
        } else if self.has_inherited {
            self.unmarked.remove(&entry.position().rank());
        }
        self.entries.push(entry);
    }

    /// Says whether the feed is partial, see
    /// [`SequencerConfig::is_partial`](super::SequencerConfig::is_partial).
    pub fn set_partial(&mut self, is_partial: bool) {
        self.sequencer.set_partial(is_partial);
    }

    /// Says whether some sequences are known to have been allocated twice. Then a later revision
    /// may have a lower sequence.
    pub fn set_reused(&mut self, is_reused: bool) {
        self.is_reused = is_reused;
    }

    /// Sets the share of the feed that has been delivered. For the progress of a first read.
    pub fn set_delivered(&mut self, delivered: Option<Delivered>) {
        self.delivered = delivered;
    }

    /// Prepares for a document whose sequence is accounted for already. Makes room for its entry at
    /// `position`, so that it is new when it is applied.
    pub fn readmit(&mut self, position: Sequence) {
        self.sequencer.readmit(position);
    }

    /// Expects entries again that the former term may have stored without publishing them. Returns
    /// the sequences of those that were not expected before, as [`Sequencer::expect_again`].
    pub fn expect_again(&mut self, positions: &RangeSet) -> RangeSet {
        self.sequencer.expect_again(positions)
    }

    /// Expects no document at `position` any more.
    pub fn forget_readmitted(&mut self, position: Sequence) {
        self.sequencer.forget_readmitted(position);
    }

    /// Counts a document whose sequence was accounted for already, but not by the document itself.
    pub fn count_conflict(&mut self) {
        self.stats.conflicts += 1;
    }

    /// Counts a purge that the feed left out.
    pub fn count_purged(&mut self) {
        self.stats.purged += 1;
    }

    /// Counts a document that is left out, because no position is free for its sequence. The other
    /// sequences in its metadata are accounted for, so it counts as a duplicate, too.
    pub fn count_invalid(&mut self) {
        self.stats.invalid += 1;
    }

    /// Entries that wait to be prepared.
    pub fn entries(&self) -> &[Arc<ChangeEntry>] {
        &self.entries
    }

    /// Entries whose predecessors are not marked yet.
    pub fn unmarked(&self) -> impl Iterator<Item = &Arc<ChangeEntry>> {
        self.unmarked.values().chain(self.early.iter())
    }

    /// Takes entries back that are `gone`, and that `numbers` are accounted for, theirs among them.
    /// For the next batch; nothing may wait to be prepared. `room` are positions of departures
    /// among them that only make room, see [`BatchRecord::room`].
    pub fn withdraw(&mut self, gone: Vec<Arc<ChangeEntry>>, room: impl IntoIterator<Item = Sequence>, numbers: &[Sequence]) {
        numbers.iter().for_each(|number| self.sequencer.withdraw(*number));
        for entry in &gone {
            self.unmarked.remove(&entry.position().rank());
        }
        self.early.remove(&gone);
        self.stats.withdrawn += gone.len() as u64;
        self.withdrawn.gone.extend(gone);
        self.withdrawn.room.extend(room);
    }

    /// Announces with the next batch that entries are gone whose documents have been purged.
    /// Nothing may wait to be prepared.
    ///
    /// Their sequences stay accounted for, but for those that a deposed writer may still store:
    /// these are taken back, and readers leave out what is under such a sequence.
    pub fn purge(&mut self, gone: Vec<Arc<ChangeEntry>>, may_be_stored: impl Fn(Sequence) -> bool) {
        for entry in &gone {
            self.unmarked.remove(&entry.position().rank());
            if entry.position().slot() == 0 && may_be_stored(entry.sequence()) {
                self.sequencer.withdraw(entry.sequence());
            }
        }
        self.early.remove(&gone);
        self.stats.purged_entries += gone.len() as u64;
        self.withdrawn.gone.extend(gone);
    }

    /// Says once more what is `gone`, for the next batch, and that those `restored` are shown in
    /// its place: they are late if high has passed them. A killed writer may have stored some that
    /// nobody was told of.
    pub fn announce(
        &mut self,
        gone: Vec<Arc<ChangeEntry>>,
        room: impl IntoIterator<Item = Sequence>,
        restored: Vec<Arc<ChangeEntry>>,
    ) {
        let high = self.clock.high;
        restored.into_iter().filter(|entry| entry.sequence() <= high).for_each(|entry| self.show_again(entry));
        self.withdrawn.gone.extend(gone);
        self.withdrawn.room.extend(room);
    }

    /// Announces an entry with the next batch once more, as a late one.
    pub fn show_again(&mut self, entry: Arc<ChangeEntry>) {
        self.clock.late += 1;
        self.late.push(LateEntry { number: self.clock.late, sequence: entry.position() });
        self.withdrawn.restored.push(entry);
    }

    /// Begins the first read of a feed: see [`Sequencer::hold`].
    pub fn hold(&mut self) {
        self.sequencer.hold();
    }

    /// The first read of the feed is over; what was skipped.
    pub fn release(&mut self, now: Duration) -> Vec<Noted> {
        self.sequencer.release(now);
        self.take_noted()
    }

    /// Time has passed; what was skipped or given up meanwhile.
    pub fn tick(&mut self, now: Duration) -> Vec<Noted> {
        self.sequencer.tick(now);
        self.take_noted()
    }

    /// The feed has ended: nothing waits any longer.
    pub fn end_of_feed(&mut self, now: Duration) -> Vec<Noted> {
        self.sequencer.end_of_feed(now);
        self.take_noted()
    }

    /// What was skipped or given up since this was last asked.
    pub fn take_noted(&mut self) -> Vec<Noted> {
        let noted = self.sequencer.take_noted();
        for note in &noted {
            match note {
                Noted::Skipped(range) => self.stats.skipped += range.count(),
                Noted::Abandoned(range) => self.stats.abandoned += range.count(),
                Noted::Undelivered(range) => self.stats.undelivered += range.count(),
                Noted::Implausible(_) => self.stats.implausible += 1,
            }
        }
        noted
    }

    /// A batch has been published: readers see `stable`.
    pub fn published(&mut self, clock: &PublishedClock) {
        self.stats.batches += 1;
        self.published_stable = self.published_stable.max(clock.stable);
        self.early.published(clock.batch);
        self.late_in_flight.retain(|_, batch| *batch > clock.batch);
    }

    /// Whether everything that can be published has been prepared: nothing collected, no marks due,
    /// no clock to move.
    pub fn is_idle(&mut self, now: Duration) -> bool {
        self.entries.is_empty()
            && self.principals.is_empty()
            && self.withdrawn.gone.is_empty()
            && !self.marks_due()
            && self.next_clock(now) == self.clock
    }

    /// Whether stable has passed published entries whose predecessors are not marked.
    pub fn marks_due(&self) -> bool {
        self.early.due() > 0 || self.due().next().is_some()
    }

    /// The entries that stable has passed, that are published, and whose predecessors are not
    /// marked.
    fn due(&self) -> impl Iterator<Item = (Sequence, u8)> {
        let passed = self.unmarked.range(..=(self.published_stable, u8::MAX));
        passed.map(|(rank, _)| *rank).filter(|rank| !self.late_in_flight.contains_key(rank))
    }

    /// The entries whose marks go with a batch of what is collected. Under load they wait until
    /// there are several times as many: the more there are, the more fall into each block that has
    /// to be written. When nothing is collected all go, up to a limit.
    fn take_marks(&mut self) -> Vec<Arc<ChangeEntry>> {
        let enough = (MARKS_AN_ENTRY * self.entries.len()).min(MAX_MARKS);
        let count = self.due().take(MAX_MARKS).count();
        let is_enough = count + self.early.due() >= enough;
        let mut marks = if is_enough { self.early.take(MAX_MARKS) } else { Vec::new() };
        if is_enough && self.late_in_flight.is_empty() {
            marks.extend(std::iter::from_fn(|| self.unmarked.pop_first()).take(count).map(|(_, entry)| entry));
        } else if is_enough {
            let due: Vec<(Sequence, u8)> = self.due().take(count).collect();
            marks.extend(due.iter().filter_map(|rank| self.unmarked.remove(rank)));
        }
        if self.unmarked.is_empty() {
            self.inherited = FxHashMap::default();
            self.has_inherited = false;
        }
        marks
    }

    /// The entries whose marks never wait: the clock says that they are marked, and after a crash
    /// nobody would look for them.
    fn take_late_marks(&mut self) -> Vec<Arc<ChangeEntry>> {
        let count = self.unmarked.range(..=(self.clock.marked, u8::MAX)).count();
        std::iter::from_fn(|| self.unmarked.pop_first()).take(count).map(|(_, entry)| entry).collect()
    }

    fn next_clock(&mut self, now: Duration) -> PublishedClock {
        let (stable, high) = (self.sequencer.stable(), self.sequencer.high());
        // What was given up may still come, and its marks wait until readers see it.
        let may_come = self.sequencer.abandoned().within(self.published_stable.next().0, stable.0).next();
        let first_unmarked = self.unmarked.keys().next().map(|(sequence, _)| *sequence);
        let first = first_unmarked.into_iter().chain(self.early.first()).chain(may_come.map(|(first, _)| Sequence(first))).min();
        let first_unmarked = first.map_or(Sequence::MAX, Sequence::previous);
        PublishedClock {
            stable,
            high,
            settled: self.sequencer.settled(now).max(self.clock.settled),
            gaps: self.sequencer.skipped_count(),
            marked: stable.min(first_unmarked).max(self.clock.marked),
            building: self.sequencer.holds().then(|| self.progress()),
            ..self.clock.clone()
        }
    }

    fn progress(&self) -> Progress {
        let (progress, initial) = (self.sequencer.progress(), self.sequencer.initial().0);
        let arrived = progress.arrived.saturating_sub(initial);
        let expected = self.delivered.and_then(|delivered| delivered.whole_of(arrived));
        Progress { expected: expected.map(|expected| expected.saturating_add(initial)), ..progress }
    }

    /// Makes a batch of all that was collected, with the clock as it is after it. With a position,
    /// the batch carries a checkpoint: then everything before that position must have been applied.
    /// `floor` belongs to the position; by default it is what is reached with this batch.
    pub fn prepare(&mut self, position: Option<(FeedPosition, Option<Floor>)>, now: Duration) -> Prepared {
        let (late_marks, marks) = (self.take_late_marks(), self.take_marks());
        self.clock = self.next_clock(now);
        self.clock.batch += 1;
        let number = self.clock.batch;
        if position.is_some() {
            self.clock.checkpoint = number;
        }
        let checkpoint = position.map(|(position, floor)| {
            let sequencer = self.sequencer.state(now);
            let (epoch, late) = (self.clock.epoch, self.clock.late);
            let floor = floor.unwrap_or(Floor { stable: self.clock.stable, late });
            let unmarked = self.sequencer.holds().then(|| self.unmarked().map(|entry| entry.position().0).collect());
            (self.feed.clone(), Checkpoint { epoch, batch: number, late, position, sequencer, floor, unmarked })
        });
        self.memberships = 0;
        let entries = Entries::from(std::mem::take(&mut self.entries));
        let Withdrawn { gone, room, restored } = std::mem::take(&mut self.withdrawn);
        let announced = match restored.is_empty() {
            true => entries.clone(),
            false => entries.iter().cloned().chain(restored).collect(),
        };
        let Told { missing, base, list } = self.lists.tell(&mut self.sequencer, self.clock.epoch, now);
        let record = BatchRecord {
            number,
            epoch: self.clock.epoch,
            entries: announced,
            gone: gone.into(),
            room,
            late: std::mem::take(&mut self.late),
            principals: std::mem::take(&mut self.principals),
            gaps: missing.gaps,
            abandoned: missing.abandoned,
            base,
        };
        Prepared {
            batch: WriteBatch {
                epoch: self.clock.epoch,
                codec: self.codec.clone(),
                entries,
                marks,
                // While this batch is in flight, earlier ones may publish up to its own clock.
                stable: self.clock.stable,
                listed: self.listed.clone(),
            },
            late_marks,
            positions: std::mem::take(&mut self.positions),
            list,
            publication: Publication {
                pointers: Vec::new(),
                record: Arc::new(record),
                ring: self.ring,
                checkpoint,
                clock: self.clock.clone(),
            },
        }
    }
}

/// Marks all that a document supersedes in all its channels. Otherwise only those from the start of
/// its first stay in a channel on are marked there, and a revision within a stay may have a lower
/// sequence than its start.
#[cold]
fn reach_all(document: &mut DecodedDocument) {
    let lowest = document.entry.supersedes().iter().copied().min_by_key(|position| position.rank());
    let Some(lowest) = lowest else { return };
    let reach = |since: &mut Sequence| *since = std::cmp::min_by_key(*since, lowest, |position| position.rank());
    document.entry.channels_mut().iter_mut().for_each(|change| reach(&mut change.since));
    document.departures.iter_mut().for_each(|departure| reach(&mut departure.since));
}

/// The limit for departures that are compared with one another. With more, marks wait.
const MAX_COMPARED: usize = 64;

/// Whether no departure's row is in a channel that the entry, or another departure, is in: then
/// none of them marks another's row.
fn are_apart(entry: &ChangeEntry, departures: &[Departure]) -> bool {
    let is_apart = |(at, departure): (usize, &Departure)| {
        departure.sequence.slot() == 0
            && entry.channels().iter().all(|change| change.channel != departure.channel)
            && departures[..at].iter().all(|other| other.channel != departure.channel)
    };
    departures.len() <= MAX_COMPARED && departures.iter().enumerate().all(is_apart)
}

/// The row of a sequence that the feed never delivers: what the newer revision's channel map
/// remembers of it.
pub(crate) fn departure_entry(
    newer: &ChangeEntry,
    sequence: Sequence,
    departures: &[Departure],
    is_reused: bool,
) -> Option<ChangeEntry> {
    if departures.is_empty() {
        return None;
    }
    // A gateway that lost its counter may give a later revision a lower sequence. Then the row that
    // the departure takes the place of may have a higher one.
    let is_in_order = !is_reused && !newer.is_low();
    let is_before = |earlier: Sequence| earlier.rank() < sequence.rank() || !is_in_order && earlier != sequence;
    let mut entry: Option<ChangeEntry> = None;
    for departure in departures.iter().filter(|d| d.sequence == sequence) {
        let flags = match departure.membership {
            crate::Membership::RemovedByDeletion => EntryFlags::DEPARTURE.with(EntryFlags::DELETED),
            _ => EntryFlags::DEPARTURE,
        };
        let origin = newer.origin();
        let made = match entry.take() {
            Some(entry) => entry,
            None => ChangeEntry::new(sequence.number(), newer.key(), &departure.revision, flags)
                .ok()?
                .with_slot(sequence.slot())
                .with_collection(newer.collection())
                .with_origin(origin.partition, origin.seqno)
                .with_cas(origin.cas)
                .with_supersedes(newer.supersedes().iter().copied().filter(|s| is_before(*s))),
        };
        let (channel, membership, since) = (departure.channel.clone(), departure.membership, departure.since);
        let mut made = made;
        made.push_channel(ChannelChange { channel, membership, since });
        entry = Some(made);
    }
    entry
}

#[cfg(test)]
mod tests;
