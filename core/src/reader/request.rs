//! One request: from memory if that is possible, and otherwise from blocks, which then may fill tails.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::tail::{Pin, Tail};
use super::{Changes, ChannelView, Cut, Node};
use crate::batch::LateEntry;
use crate::block::{Block, BlockState};
use crate::changes::{ChangesOptions, LateCursor, Row, keep_newest};
use crate::channel::Channel;
use crate::document::DocumentRef;
use crate::entry::ChangeEntry;
use crate::error::{Error, ErrorKind, Result};
use crate::scan::{self, Shown};
use crate::sequence::{Sequence, SequenceRange};

/// The newest entry of each document that is shown above what is read.
type Above<'a> = FxHashMap<DocumentRef<'a>, &'a ChangeEntry>;

fn has_newer(above: &Above<'_>, entry: &ChangeEntry) -> bool {
    above.get(&entry.document()).is_some_and(|newer| newer.is_newer_than(entry))
}

impl Node {
    /// Answers from memory alone, if that is possible.
    pub(super) fn cached(&self, channels: &[Channel], options: &ChangesOptions) -> Result<Option<Changes>> {
        let state = self.state.read();
        state.status.check()?;
        let cut = state.cut;
        if options.late.is_some_and(|late| late < cut.late) {
            return Ok(None);
        }
        let (start, position) = (options.since.start(cut.low()), cut.position(options.delivery));
        let mut views = SmallVec::new();
        for channel in channels {
            let Some(tail) = state.tails.get(channel).filter(|t| t.ready && t.valid_from() <= start.next()) else {
                return Ok(None);
            };
            tail.last_read.store(self.counters.reads.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            views.push((channel.clone(), tail.view(start, position)));
        }
        drop(state);
        self.counters.hits.fetch_add(channels.len() as u64, Ordering::Relaxed);
        let late_cursor = options.late.unwrap_or(cut.late);
        Ok(Some(Changes { cut, options: options.clone(), start, channels: views, late: Vec::new(), late_cursor }))
    }

    pub(super) async fn changes_from_blocks(&self, channels: &[Channel], options: &ChangesOptions) -> Result<Changes> {
        // A document that a block names but that is not there may be one whose commit is under way.
        let mut patience = [10, 50, 250].into_iter();
        loop {
            match self.try_from_blocks(channels, options).await {
                Err(e) if e.kind() == ErrorKind::Corrupt && e.is_retryable() => match patience.next() {
                    Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                    None => return Err(e.with_status(crate::Status::Permanent)),
                },
                answered => return answered,
            }
        }
    }

    async fn try_from_blocks(&self, channels: &[Channel], options: &ChangesOptions) -> Result<Changes> {
        let mut pins = Vec::with_capacity(channels.len());
        for channel in channels {
            pins.push(self.ensure_tail(channel).await?);
        }
        // Only an unlimited read fills a tail, and only one at a time: whoever waited finds the tail filled.
        let fills = options.limit.is_none() && !options.active_only;
        let mut guards = Vec::new();
        if fills {
            let mut sorted: Vec<&Channel> = channels.iter().collect();
            sorted.sort_unstable();
            sorted.dedup();
            for channel in sorted {
                guards.push(self.fill_lock(channel).lock_owned().await);
            }
        }
        struct Part {
            channel: Channel,
            view: ChannelView,
            below: Option<(SequenceRange, u64)>,
        }
        let (cut, missing, withdrawals, start, parts) = {
            let state = self.state.read();
            state.status.check()?;
            let cut = state.cut;
            let (start, position) = (options.since.start(cut.low()), cut.position(options.delivery));
            let mut parts = Vec::with_capacity(channels.len());
            for channel in channels {
                let Some(tail) = state.tails.get(channel).filter(|tail| tail.ready) else {
                    // Rows were withdrawn from it in the meantime, or all tails were dropped: start
                    // again.
                    return Err(Error::corrupt("a channel was let go while it was read").with_status(crate::Status::Temporary));
                };
                let below = SequenceRange::new(start.next(), tail.valid_from().previous().min(position));
                let view = tail.view(start.max(tail.valid_from().previous()), position);
                parts.push(Part { channel: channel.clone(), view, below: below.map(|range| (range, tail.refused())) });
            }
            (cut, state.missing.clone(), state.withdrawals, start.min(position), parts)
        };
        let mut views = SmallVec::new();
        for Part { channel, view, below } in parts {
            let Some((range, refused)) = below else {
                self.counters.hits.fetch_add(1, Ordering::Relaxed);
                views.push((channel, view));
                continue;
            };
            self.counters.misses.fetch_add(1, Ordering::Relaxed);
            // What the tail shows. Older rows of these documents are filled into the tail all the
            // same: a reader that sees only what is stable may need them.
            let above: Above<'_> = view.rows().iter().map(|row| (row.entry.document(), row.entry.as_ref())).collect();
            let shown = Shown { stable: cut.stable, missing: &missing };
            let (rows, complete) = self.read_rows(&channel, range, options, shown, &above).await?;
            if fills && complete {
                let mut state = self.state.write();
                let stable = state.clock.stable;
                if state.withdrawals == withdrawals
                    && let Some(tail) = state.tails.get_mut(&channel)
                    && tail.refused() == refused
                    && tail.valid_from() == range.last().next()
                {
                    tail.prepend(range.first(), &rows, self.config.tail_max, stable);
                }
            }
            let mut all = rows;
            all.retain(|row| !has_newer(&above, &row.entry));
            if complete {
                all.extend_from_slice(view.rows());
            }
            keep_newest(&mut all);
            let end = all.len();
            views.push((channel, ChannelView::new(all.into(), 0, end)));
        }
        drop((guards, pins));
        let (late, late_cursor) = match options.late {
            Some(after) => self.late_rows(channels, after, &cut, start, options.limit).await?,
            None => (Vec::new(), cut.late),
        };
        Ok(Changes { cut, options: options.clone(), start, channels: views, late, late_cursor })
    }

    /// Live rows of a channel below its tail; and whether they are all, rather than as many as the
    /// limit needs. The limit does not count rows of documents that have newer ones `above`.
    /// Entries that are not in the channel are left out, and so is what is missing by the cut: it
    /// has not been announced.
    async fn read_rows(
        &self,
        channel: &Channel,
        range: SequenceRange,
        options: &ChangesOptions,
        shown: Shown<'_>,
        above: &Above<'_>,
    ) -> Result<(Vec<Row>, bool)> {
        let limit = options.limit.unwrap_or(usize::MAX);
        let counts = |entry: &ChangeEntry, state: BlockState| {
            (!options.active_only || state == BlockState::Present && !entry.is_deleted())
                && !has_newer(above, entry)
                && entry.membership(channel).is_some()
        };
        let mut counted = (0, 0);
        let mut complete = true;
        let page = limit.saturating_add(limit / 8).clamp(16, scan::PAGE);
        let (store, codec) = (self.store.as_ref(), self.codec.as_ref());
        let found = scan::live_rows(store, codec, channel, range, page, shown, |rows| {
            counted.1 += rows[counted.0..].iter().filter(|(entry, state)| counts(entry, *state)).count();
            counted.0 = rows.len();
            complete = counted.1 < limit;
            !complete
        })
        .await?;
        let mut rows = Vec::with_capacity(found.len());
        for (entry, _) in found {
            match Row::in_channel(&entry, channel) {
                Some(row) => rows.push(row),
                None => self.tell_of_stray(channel, &entry),
            }
        }
        Ok((rows, complete))
    }

    /// Logs that a block names an entry which is not in its channel: every request for it comes
    /// upon that, so it is told once a while.
    fn tell_of_stray(&self, channel: &Channel, entry: &ChangeEntry) {
        let Some(more) = self.counters.strays.lock().admit(Instant::now()) else { return };
        tracing::warn!(
            %channel,
            position = %entry.position().shown(),
            more,
            "a block names an entry that is not in its channel, which is left out; find such rows with `sluicegate verify`, remove them with \
             `sluicegate verify --repair`"
        );
    }

    /// Late rows of each channel at or below `start`, in `(after, cut.late]`; no more late entries than `limit`. And the cursor after them.
    async fn late_rows(
        &self,
        channels: &[Channel],
        after: LateCursor,
        cut: &Cut,
        start: Sequence,
        limit: Option<usize>,
    ) -> Result<(Vec<Vec<Row>>, LateCursor)> {
        let mut late = self.late_entries(after, cut.late).await?;
        late.retain(|(_, entry)| entry.sequence() <= start && channels.iter().any(|channel| entry.membership(channel).is_some()));
        let mut rest = &late[..];
        loop {
            let (some, more) = rest.split_at(rest.len().min(limit.unwrap_or(usize::MAX)));
            let cursor = more.first().map_or(cut.late, |(next, _)| LateCursor(next.number - 1));
            let mut some = some.to_vec();
            // Another entry may have taken the place of one that was announced: the later counts.
            some.sort_unstable_by_key(|(late, _)| (late.sequence.rank(), Reverse(late.number)));
            some.dedup_by_key(|(late, _)| late.sequence);
            let mut rows = Vec::with_capacity(channels.len());
            for channel in channels {
                rows.push(self.newest_of_late(channel, &some, cut).await?);
            }
            // An answer without a row says that there is nothing more.
            if some.is_empty() || more.is_empty() || rows.iter().any(|rows| !rows.is_empty()) {
                return Ok((rows, cursor));
            }
            rest = more;
        }
    }

    /// The late entries that are the newest rows of their documents in `channel`: as its tail says; of what lies below that, its blocks.
    async fn newest_of_late(&self, channel: &Channel, late: &[(LateEntry, Arc<ChangeEntry>)], cut: &Cut) -> Result<Vec<Row>> {
        let (mut rows, valid_from, clock, missing) = {
            let state = self.state.read();
            let tail = state.tails.get(channel);
            let newest = late.iter().filter(|(_, entry)| !tail.is_some_and(|tail| tail.has_newer(entry)));
            let mut rows: Vec<Row> = newest.filter_map(|(_, entry)| Row::in_channel(entry, channel)).collect();
            keep_newest(&mut rows);
            if !rows.is_empty() {
                // A later revision may have a lower sequence, and have been told before.
                let told =
                    state.late.iter().filter(|(late, entry)| late.number <= cut.late.0 && entry.membership(channel).is_some());
                let mut above = Above::default();
                for (_, entry) in told {
                    if !has_newer(&above, entry) {
                        above.insert(entry.document(), entry);
                    }
                }
                rows.retain(|row| !has_newer(&above, &row.entry));
            }
            let valid_from = tail.map_or(cut.high.next(), |tail| tail.valid_from());
            (rows, valid_from, (state.clock.stable, state.clock.marked), state.missing.clone())
        };
        if rows.first().is_none_or(|row| row.entry.sequence() >= valid_from) {
            return Ok(rows);
        }
        let (store, codec, (stable, marked)) = (self.store.as_ref(), self.codec.as_ref(), clock);
        let shown = Shown { stable, missing: &missing };
        // Rows whose marks may not have been written yet.
        let unmarked = match SequenceRange::new(marked.next(), valid_from.previous()) {
            Some(range) => scan::live_rows(store, codec, channel, range, scan::PAGE, shown, |_| false).await?,
            None => Vec::new(),
        };
        let mut is_superseded = Vec::with_capacity(rows.len());
        let mut known = None;
        for row in &rows {
            let (sequence, position) = (row.entry.sequence(), row.entry.position());
            let (index, offset) = Block::locate(position, codec.capacity());
            let block = match known.take().filter(|(known, _)| *known == index) {
                Some((_, block)) => block,
                None => scan::block(store, codec, channel, index).await?,
            };
            let is_newer = |entry: &ChangeEntry| entry.document() == row.entry.document() && entry.is_newer_than(&row.entry);
            let is_marked = sequence < valid_from && block.get(offset) == BlockState::Superseded;
            is_superseded.push(is_marked || unmarked.iter().any(|(entry, _)| is_newer(entry)));
            known = Some((index, block));
        }
        let mut is_superseded = is_superseded.into_iter();
        rows.retain(|_| !is_superseded.next().unwrap_or(false));
        Ok(rows)
    }

    fn fill_lock(&self, channel: &Channel) -> Arc<tokio::sync::Mutex<()>> {
        let mut fills = self.fills.lock();
        if fills.len() > 2 * self.config.max_channels {
            fills.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        fills.entry(channel.clone()).or_default().clone()
    }

    /// Makes a tail for `channel` if there is none. It has only the rows between stable and high.
    /// It is not evicted while the pin lives.
    pub(super) async fn ensure_tail(&self, channel: &Channel) -> Result<Pin> {
        let pinned = &self.counters.pinned;
        if let Some(tail) = self.state.read().tails.get(channel).filter(|tail| tail.ready) {
            return Ok(tail.pin(pinned));
        }
        let _filling = self.fill_lock(channel).lock_owned().await;
        let (stable, high, missing, pin) = {
            let mut state = self.state.write();
            state.status.check()?;
            if let Some(tail) = state.tails.get(channel).filter(|tail| tail.ready) {
                return Ok(tail.pin(pinned));
            }
            let evicted = state.evict(self.config.max_channels.saturating_sub(1), pinned.load(Ordering::Acquire));
            self.counters.evicted.fetch_add(evicted as u64, Ordering::Relaxed);
            let (stable, high) = (state.clock.stable, state.clock.high);
            let tail = Tail::new(stable.next());
            tail.last_read.store(self.counters.reads.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            let pin = tail.pin(pinned);
            state.open_tail(channel.clone(), tail);
            (stable, high, state.missing.clone(), pin)
        };
        let mut rows = Vec::new();
        if let Some(range) = SequenceRange::new(stable.next(), high) {
            let (store, codec) = (self.store.as_ref(), self.codec.as_ref());
            let shown = Shown { stable, missing: &missing };
            let found = scan::live_rows(store, codec, channel, range, scan::PAGE, shown, |_| false).await?;
            rows.extend(found.iter().filter_map(|(entry, _)| Row::in_channel(entry, channel)));
        }
        self.state.write().fill(channel, rows);
        Ok(pin)
    }
}
