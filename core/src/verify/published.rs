//! What is published beside the channels: clock, batch records, late pages, checkpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::findings::{Action, Finding, Problem};
use super::pass::{Change, Document, Pass};
use crate::batch::{BatchRecord, Checkpoint, LATE_PAGE, LateEntry, LatePage};
use crate::block::BlockState;
use crate::clock::Epoch;
use crate::commit::{clock_lost, read_clock};
use crate::directory::Directory;
use crate::entry::ChangeEntry;
use crate::error::{ErrorKind, Result};
use crate::intent::Intent;
use crate::key::CacheKey;
use crate::missing::{Missing, MissingBase, MissingList};
use crate::scan;
use crate::sequence::{RangeSet, Sequence, SequenceRange};

/// What the ring of batch records tells.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// The skipped list: one of it that comes just now may be stored in part.
    pub(super) missing: RangeSet,
    /// What has been given up. A document of it belongs to nothing that is announced.
    pub(super) given_up: RangeSet,
    /// Both, as the last record and its list have them.
    after_last: Option<Missing>,
    /// The batch of each entry in a published record.
    pub(super) batches: BTreeMap<Sequence, u64>,
    /// The same of a record that is announced, and not published yet.
    announced: BTreeMap<Sequence, u64>,
    /// The sequences of late numbers.
    late: BTreeMap<u64, Sequence>,
}

/// What was read, if the store could read it, and what it is.
fn apart<T>(stored: Result<Bytes>, decode: impl FnOnce(&[u8]) -> Result<T>) -> (Option<Bytes>, Result<T>) {
    match stored {
        Ok(bytes) => {
            let read = decode(&bytes);
            (Some(bytes), read)
        }
        Err(e) => (None, Err(e)),
    }
}

impl Pass<'_> {
    /// The clock beside itself. It is the only commit point: nothing else can tell what is right.
    pub(super) fn check_clock(&mut self) {
        let clock = self.clock.clone();
        let rules = [
            (clock.stable <= clock.settled, format!("stable is {}, above settled, {}", clock.stable, clock.settled)),
            (clock.settled <= clock.high, format!("settled is {}, above high, {}", clock.settled, clock.high)),
            (clock.marked <= clock.stable, format!("marked is {}, above stable, {}", clock.marked, clock.stable)),
            (clock.checkpoint <= clock.batch, format!("the checkpoint is of batch {}, after {}", clock.checkpoint, clock.batch)),
            (
                (clock.gaps == 0) == (clock.stable == clock.high),
                format!("{} sequences are missing between stable, {}, and high, {}", clock.gaps, clock.stable, clock.high),
            ),
        ];
        for (_, detail) in rules.into_iter().filter(|(holds, _)| !holds) {
            self.found(Problem::Contradiction, CacheKey::Clock, detail);
        }
    }

    /// The ring of batch records: what readers follow the writer by. One that is gone is no fault,
    /// unless it is the last: whoever needs it is behind, and begins again from the clock. So a
    /// broken one is best gone.
    pub(super) async fn records(&mut self) -> Result<()> {
        let ring = self.meta.ring.max(1);
        let last = self.clock.batch;
        for number in last.saturating_sub(ring - 1).max(1)..=last {
            let key = CacheKey::Batch(number % ring);
            let Some(stored) = self.get(&key).await? else {
                if number == last {
                    let detail =
                        format!("the record of batch {number}, the last, is not there; a writer's next batch makes the next");
                    self.found(Problem::Missing, key, detail);
                }
                continue;
            };
            let (bytes, read) = apart(stored, BatchRecord::from_bytes);
            let wrong = match read {
                // Announced, and not published yet.
                Ok(record) if record.number > last => {
                    self.remember_late(&record, |number, clock| number > clock);
                    let entries = record.entries.iter().map(|entry| (entry.position(), record.number));
                    self.published.announced.extend(entries);
                    continue;
                }
                Ok(record) => {
                    let missing = if number == last { self.missing_after(&record).await? } else { None };
                    let wrong = self.wrong_record(&key, number, &record, missing.as_ref());
                    if wrong.is_none() {
                        self.remember(record, missing);
                    }
                    wrong
                }
                Err(e) => Some(Finding::unreadable(key.clone(), &e)),
            };
            let Some(wrong) = wrong else { continue };
            self.push(wrong);
            if self.term.is_some() && self.remove_if(&key, |now| Some(now) == bytes.as_deref()).await? {
                let follows = if number == last { "; a writer's next batch makes the next" } else { "" };
                let detail = format!(
                    "the record of batch {number} contradicts the clock or cannot be read; readers that are behind begin again{follows}"
                );
                self.did(Action::Removed, key, detail);
            }
        }
        Ok(())
    }

    /// The lists of what is missing. A broken one is removed: the writer stores others in their
    /// places.
    pub(super) async fn lists(&mut self) -> Result<()> {
        let then = "if the last batch refers to it, the next writer announces again what was missing";
        for key in [0, 1].map(CacheKey::Missing) {
            self.remove_broken_of_epoch(key, |bytes| Ok(MissingList::from_bytes(bytes)?.epoch), then).await?;
        }
        Ok(())
    }

    /// What is missing after the last record. The list that it is relative to is there, unless a
    /// writer has replaced it since. Without it, the next writer announces again what was missing.
    async fn missing_after(&mut self, record: &BatchRecord) -> Result<Option<Missing>> {
        let Some(base) = &record.base else { return Ok(record.missing(None)) };
        let key = MissingList::key(base.list);
        let missing = match self.get(&key).await? {
            Some(stored) => match stored.and_then(|stored| MissingList::from_bytes(&stored)) {
                Ok(list) => record.missing(Some(&list)),
                // It is found by itself.
                Err(_) => return Ok(None),
            },
            None => None,
        };
        if missing.is_none() {
            self.find_no_list(key, base).await?;
        }
        Ok(missing)
    }

    async fn find_no_list(&mut self, key: CacheKey, base: &MissingBase) -> Result<()> {
        let now = read_clock(self.store).await?.ok_or_else(clock_lost)?;
        if now.value.batch == self.clock.batch {
            let detail = format!(
                "the last batch record refers to list {} of epoch {}, which is not there; a writer that takes over announces \
                 again what was missing",
                base.list, base.epoch
            );
            self.found(Problem::Missing, key, detail);
        }
        Ok(())
    }

    /// The list of commits in progress. Without it, the next writer takes entries of a commit that
    /// was cut off for published ones if something else accounts for their sequences before they
    /// come again. No reader needs it, so a broken one is removed.
    pub(super) async fn intent(&mut self) -> Result<()> {
        let then = "the next writer makes a new one; entries of a commit that was cut off may be taken for duplicates";
        self.remove_broken_of_epoch(CacheKey::Intent, |bytes| Ok(Intent::from_bytes(bytes)?.epoch), then).await
    }

    /// Removes a document that cannot be read, or is of an epoch after the clock's. `then` says
    /// what follows.
    async fn remove_broken_of_epoch(
        &mut self,
        key: CacheKey,
        epoch_of: impl FnOnce(&[u8]) -> Result<Epoch>,
        then: &str,
    ) -> Result<()> {
        let Some(stored) = self.get(&key).await? else { return Ok(()) };
        let (bytes, epoch) = apart(stored, epoch_of);
        let wrong = match epoch {
            Ok(epoch) if !self.is_after_the_clock(epoch).await? => return Ok(()),
            Ok(epoch) => {
                let detail = format!("it is of epoch {epoch}, after the clock's, {}", self.clock.epoch);
                Finding { problem: Problem::Contradiction, key: key.clone(), detail }
            }
            Err(e) => Finding::unreadable(key.clone(), &e),
        };
        self.push(wrong);
        if self.term.is_some() && self.remove_if(&key, |now| Some(now) == bytes.as_deref()).await? {
            self.did(Action::Removed, key, then);
        }
        Ok(())
    }

    /// Whether an epoch is later than that of the clock, which a writer may have moved meanwhile.
    async fn is_after_the_clock(&self, epoch: Epoch) -> Result<bool> {
        if !epoch.supersedes(self.clock.epoch) {
            return Ok(false);
        }
        let clock = read_clock(self.store).await?.ok_or_else(clock_lost)?;
        Ok(epoch.supersedes(clock.value.epoch))
    }

    /// The clock's batch, which a writer may have moved meanwhile.
    async fn batch_now(&self) -> Result<u64> {
        Ok(read_clock(self.store).await?.ok_or_else(clock_lost)?.value.batch)
    }

    /// What is wrong with a record by itself and beside the clock.
    fn wrong_record(&self, key: &CacheKey, number: u64, record: &BatchRecord, missing: Option<&Missing>) -> Option<Finding> {
        let wrong = |detail| Some(Finding { problem: Problem::Contradiction, key: key.clone(), detail });
        if record.number != number {
            return wrong(format!("it holds batch {} in the place of {number}", record.number));
        }
        if record.epoch.supersedes(self.clock.epoch) {
            return wrong(format!("batch {number} is of epoch {}, after the clock's, {}", record.epoch, self.clock.epoch));
        }
        let gaps = &missing?.gaps;
        let count: u64 = gaps.iter().map(|gap| gap.range.count()).sum();
        if count != self.clock.gaps {
            return wrong(format!("{count} sequences are missing in it, {} by the clock", self.clock.gaps));
        }
        let first = gaps.iter().map(|gap| gap.range.first()).min();
        let first = first.filter(|first| *first != self.clock.stable.next())?;
        wrong(format!("the first missing sequence is {}, and stable is {}", first.shown(), self.clock.stable))
    }

    fn remember(&mut self, record: BatchRecord, missing: Option<Missing>) {
        self.remember_late(&record, |number, clock| number <= clock);
        if record.number == self.clock.batch && missing.is_none() {
            // Its list is gone. Any sequence above stable may be missing, so none is promised.
            let (first, last) = (self.clock.stable.next(), self.clock.high);
            if let Some(range) = SequenceRange::new(first, last) {
                self.published.missing.insert(range.first().0, range.last().0);
            }
        }
        if let Some(missing) = missing {
            for gap in &missing.gaps {
                self.published.missing.insert(gap.range.first().0, gap.range.last().0);
            }
            self.published.given_up = missing.abandoned.with_readmitted();
            self.published.after_last = Some(missing);
        }
        for entry in &record.gone {
            self.published.batches.remove(&entry.position());
        }
        for entry in &record.entries {
            // What came again is stored as it came first.
            self.published.batches.entry(entry.position()).or_insert(record.number);
        }
    }

    fn remember_late(&mut self, record: &BatchRecord, counts: impl Fn(u64, u64) -> bool) {
        for late in record.late.iter().filter(|late| counts(late.number, self.clock.late)) {
            self.published.late.insert(late.number, late.sequence);
        }
    }

    /// An entry as the record of its batch has it, stored again where its document is gone or
    /// broken.
    pub(super) async fn restore(&mut self, sequence: Sequence) -> Result<Option<Arc<ChangeEntry>>> {
        let Published { batches, announced, .. } = &self.published;
        let Some(&batch) = batches.get(&sequence).or_else(|| announced.get(&sequence)) else { return Ok(None) };
        let record = self.store.record(batch, self.meta.ring).await?;
        let same = |entry: &&Arc<ChangeEntry>| entry.position() == sequence;
        let Some(entry) = record.as_ref().and_then(|record| record.entries.iter().find(same)).cloned() else { return Ok(None) };
        let key = CacheKey::Sequence(sequence);
        let is_sound = |bytes: &[u8]| ChangeEntry::from_bytes(bytes).is_ok_and(|stored| stored.position() == sequence);
        let change =
            |stored: Option<&[u8]>| Ok(if stored.is_some_and(is_sound) { Change::Keep } else { Change::Put(entry.to_bytes()) });
        if self.rewrite(&key, change).await? {
            self.did(Action::Rebuilt, key, format!("from the record of batch {batch}"));
        }
        Ok(Some(entry))
    }

    /// The pages of late entries, and those after them that a writer looks at.
    pub(super) async fn late_pages(&mut self) -> Result<()> {
        let late = self.clock.late;
        for page in 0..=LatePage::of(late + LATE_PAGE) {
            let key = CacheKey::Late(page);
            let stored = self.get(&key).await?;
            let is_published = page * LATE_PAGE < late;
            let (stored, read) = match stored {
                None => (None, Ok(None)),
                Some(stored) => {
                    let (bytes, read) = apart(stored, LatePage::from_bytes);
                    (bytes, read.map(Some))
                }
            };
            let entries = match read {
                Ok(None) if !is_published => continue,
                Ok(None) => {
                    self.found(Problem::Missing, key.clone(), format!("there have been {late} late entries"));
                    Vec::new()
                }
                Ok(Some(read)) => {
                    if self.late_entries(page, &read.entries) == read.entries {
                        self.check_late(&key, &read.entries).await?;
                        continue;
                    }
                    let (first, last) = (page * LATE_PAGE + 1, ((page + 1) * LATE_PAGE).min(late));
                    let detail =
                        format!("it does not hold the late numbers {first} to {last}, each once, as the batch records have them");
                    self.found(Problem::Contradiction, key.clone(), detail);
                    read.entries
                }
                Err(e) => {
                    self.push(Finding::unreadable(key.clone(), &e));
                    Vec::new()
                }
            };
            if let Some(epoch) = self.term {
                let entries = self.late_entries(page, &entries);
                let put = || Change::Put(LatePage { epoch, entries: entries.clone() }.to_bytes());
                let change = |now: Option<&[u8]>| {
                    Ok(if now != stored.as_deref() {
                        Change::Keep
                    } else if entries.is_empty() {
                        Change::Remove
                    } else {
                        put()
                    })
                };
                if self.rewrite(&key, change).await? {
                    let action = if entries.is_empty() { Action::Removed } else { Action::Rebuilt };
                    self.did(action, key.clone(), "from what is known of its late numbers");
                }
            }
        }
        Ok(())
    }

    /// What a page must hold, given what it holds: each late number once, in order. One whose
    /// sequence is not known has the sequence 0: so the writer can go on with the page, and readers
    /// that need that one fail rather than miss it.
    fn late_entries(&self, page: u64, stored: &[LateEntry]) -> Vec<LateEntry> {
        let range = page * LATE_PAGE + 1..=(page + 1) * LATE_PAGE;
        let mut by_number: BTreeMap<u64, Sequence> = BTreeMap::new();
        for late in stored.iter().filter(|late| range.contains(&late.number)) {
            let sequence = by_number.entry(late.number).or_insert(late.sequence);
            if *sequence != late.sequence {
                *sequence = Sequence::ZERO;
            }
        }
        for (&number, &sequence) in self.published.late.range(range.clone()) {
            // Above the clock nothing is promised, and what a page says is as good.
            let known = by_number.entry(number).or_insert(sequence);
            if number <= self.clock.late || *known == Sequence::ZERO {
                *known = sequence;
            }
        }
        for number in range.take_while(|number| *number <= self.clock.late) {
            by_number.entry(number).or_insert(Sequence::ZERO);
        }
        by_number.into_iter().map(|(number, sequence)| LateEntry { number, sequence }).collect()
    }

    /// Whether the entries of a page are there.
    async fn check_late(&mut self, key: &CacheKey, entries: &[LateEntry]) -> Result<()> {
        let published = entries.iter().filter(|late| late.number <= self.clock.late);
        let (unknown, known): (Vec<LateEntry>, Vec<LateEntry>) = published.partition(|late| late.sequence == Sequence::ZERO);
        if let Some(last) = unknown.last() {
            let (count, number) = (unknown.len(), last.number);
            let detail = format!(
                "which sequences {count} of its late numbers are is not known: late cursors below {number} must begin anew"
            );
            self.found(Problem::Missing, key.clone(), detail);
        }
        let sequences: Vec<Sequence> = known.iter().map(|late| late.sequence).collect();
        for page in sequences.chunks(scan::PAGE) {
            for (sequence, read) in self.documents(page).await? {
                // What has been withdrawn since, the star channel does not show.
                if matches!(read, Document::Missing) && self.is_shown(sequence).await? {
                    let detail = format!("{key} announces it as late, and it is not there");
                    self.found(Problem::Missing, CacheKey::Sequence(sequence), detail);
                }
            }
        }
        Ok(())
    }

    /// Whether a star channel shows a sequence, or cannot tell.
    async fn is_shown(&self, sequence: Sequence) -> Result<bool> {
        match scan::is_live_in_a_star(self.store, self.codec.as_ref(), sequence).await {
            Err(e) if e.kind() == ErrorKind::Corrupt => Ok(true),
            shown => shown,
        }
    }

    /// The checkpoint of `feed`. A repair puts one that is of no use back to the feed's beginning:
    /// what is cached already comes as duplicates.
    pub(super) async fn checkpoint(&mut self, feed: &str, forget: bool) -> Result<()> {
        let key = CacheKey::Checkpoint(feed.to_owned());
        let (batch, high) = (self.clock.batch, self.clock.high);
        let Some(stored) = self.get(&key).await? else {
            if self.clock.checkpoint > 0 {
                let detail = format!("the clock says that there is one, of batch {}", self.clock.checkpoint);
                self.found(Problem::Missing, key, detail);
            }
            return Ok(());
        };
        let mut older = None;
        let mut usable = !forget;
        let (bytes, read) = apart(stored, Checkpoint::from_bytes);
        let wrong = match read {
            Err(e) => Some(Finding::unreadable(key.clone(), &e)),
            Ok(checkpoint) => {
                let of = checkpoint.batch;
                let seen = checkpoint.sequencer.next.previous();
                let wrong = |detail| Some(Finding { problem: Problem::Contradiction, key: key.clone(), detail });
                // It is stored just before the clock, so it may be one batch ahead.
                if of > batch + 1 && of > self.batch_now().await? + 1 {
                    wrong(format!("it is of batch {of}, the clock of {batch}"))
                } else if self.is_after_the_clock(checkpoint.epoch).await? {
                    wrong(format!("it is of epoch {}, after the clock's, {}", checkpoint.epoch, self.clock.epoch))
                } else if of <= batch && seen > high {
                    wrong(format!("it accounts for everything up to {seen}, the clock only up to {high}"))
                } else if of < self.clock.checkpoint {
                    // An earlier position: more comes again.
                    older = Some(of);
                    wrong(format!("it is of batch {of}, and one was stored with {}", self.clock.checkpoint))
                } else {
                    None
                }
            }
        };
        if let Some(wrong) = wrong {
            usable &= older.is_some();
            self.push(wrong);
        }
        let Some(epoch) = self.term else { return Ok(()) };
        if !usable {
            // Not removed: that would let a writer of an earlier term store its own.
            let beginning = Checkpoint::beginning(epoch).to_bytes();
            let put_back = |stored: Option<&[u8]>| {
                Ok(if stored == bytes.as_deref() { Change::Put(beginning.clone()) } else { Change::Keep })
            };
            if self.rewrite(&key, put_back).await? {
                self.set_checkpoint_batch(0).await?;
                self.did(Action::Rebuilt, key, "the next writer reads the feed from its beginning");
            }
        } else if let Some(of) = older {
            self.set_checkpoint_batch(of).await?;
            self.did(
                Action::Rebuilt,
                CacheKey::Clock,
                format!("the checkpoint is of batch {of}: the next writer goes on from there"),
            );
        }
        Ok(())
    }

    /// Puts sequences that are lost among those given up, so that a writer takes them when the feed
    /// brings them again, and announces them as late; whether that is done.
    async fn give_up(&mut self, lost: &RangeSet, feed: Option<&str>) -> Result<bool> {
        let Some(epoch) = self.term else { return Ok(false) };
        let add = |set: &mut RangeSet| lost.iter().fold(false, |any, (first, last)| set.insert(first, last) | any);
        let batch = self.clock.batch;
        let mut told = false;
        if let Some(feed) = feed {
            let found = &mut told;
            self.rewrite(&CacheKey::Checkpoint(feed.to_owned()), |stored| {
                let Some(Ok(mut checkpoint)) = stored.map(Checkpoint::from_bytes) else { return Ok(Change::Keep) };
                *found = true;
                let new = add(&mut checkpoint.sequencer.abandoned);
                Ok(if new { Change::Put(checkpoint.to_bytes()) } else { Change::Keep })
            })
            .await?;
        }
        let found = &mut told;
        let after_last = self.published.after_last.clone();
        self.rewrite(&CacheKey::Batch(batch % self.meta.ring.max(1)), |stored| {
            let record = stored.map(BatchRecord::from_bytes).and_then(Result::ok);
            let Some(mut record) = record.filter(|record| record.number == batch) else { return Ok(Change::Keep) };
            if record.base.is_some() {
                let Some(missing) = &after_last else { return Ok(Change::Keep) };
                (record.gaps, record.abandoned, record.base) = (missing.gaps.clone(), missing.abandoned.clone(), None);
            }
            *found = true;
            let new = add(&mut record.abandoned);
            record.epoch = epoch;
            Ok(if new { Change::Put(record.to_bytes()) } else { Change::Keep })
        })
        .await?;
        Ok(told)
    }

    /// Lists sequences as lost in the directories of the star channels that name them.
    async fn list_lost(&self, lost: &RangeSet) -> Result<()> {
        for star in scan::stars(self.store).await? {
            let mut named = RangeSet::new();
            for sequence in lost.iter().flat_map(|(first, last)| first..=last) {
                let state = scan::star_state(self.store, self.codec.as_ref(), star.collection(), Sequence(sequence));
                let is_named = match state.await {
                    Err(e) if e.kind() == ErrorKind::Corrupt => true,
                    state => state? != BlockState::Absent,
                };
                if is_named {
                    named.insert(sequence, sequence);
                }
            }
            if named.is_empty() {
                continue;
            }
            self.rewrite(&CacheKey::Directory(star.clone()), |stored| {
                let Some(stored) = stored else { return Ok(Change::Keep) };
                let mut directory = Directory::from_bytes(stored, &star)?;
                let new = named.iter().fold(false, |any, (first, last)| directory.lost.insert(first, last) | any);
                directory.generation += 1;
                Ok(if new { Change::Put(directory.to_bytes()) } else { Change::Keep })
            })
            .await?;
        }
        Ok(())
    }

    /// Reports sequences as lost, and takes away what is left of their documents: nothing could be
    /// stored in their place.
    pub(super) async fn lose(&mut self, lost: &RangeSet, feed: Option<&str>) -> Result<()> {
        if lost.is_empty() {
            return Ok(());
        }
        // First: what is given up and not known to be lost, readers leave out.
        self.list_lost(lost).await?;
        let next = match self.give_up(lost, feed).await? {
            true => "a writer that reads the feed from before it takes it again, as late",
            false => {
                "the last batch record, or the list that it refers to, is gone: repair again when a writer has published, \
                 before the feed is read anew"
            }
        };
        for sequence in lost.iter().flat_map(|(first, last)| first..=last).map(Sequence) {
            self.remove_broken(sequence).await?;
            self.did(Action::Lost, CacheKey::Sequence(sequence), format!("requests that need it fail; {next}"));
        }
        Ok(())
    }
}
