//! The task that follows the clock.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::time::Instant;

use super::state::{State, Status};
use super::{Node, WhileBuilding};
use crate::batch::BatchRecord;
use crate::clock::{Progress, PublishedClock};
use crate::commit::read_clock;
use crate::error::{Error, Result};
use crate::missing::LastBatch;
use crate::scan;

/// How often old rows are looked for.
const AGING: Duration = Duration::from_secs(5);

/// Follows the clock until the node is gone.
pub(super) async fn follow(node: Weak<Node>, wakes: Option<BoxStream<'static, ()>>) {
    let began = Instant::now();
    let (mut answered, mut aged) = (began, began);
    let woken_by_store = wakes.is_some();
    let mut wakes = wakes.unwrap_or_else(|| futures::stream::pending().boxed());
    let Some((poll_min, poll_max)) = node.upgrade().map(|n| (n.config.poll_min_ms, n.config.poll_max_ms)) else { return };
    let (poll_min, poll_max) = (Duration::from_millis(poll_min), Duration::from_millis(poll_max));
    let mut poll = poll_min;
    loop {
        let Some(node) = node.upgrade() else { return };
        match node.catch_up().await {
            Ok(moved) => {
                answered = Instant::now();
                poll = if woken_by_store {
                    poll_max
                } else if moved {
                    poll_min
                } else {
                    (poll * 2).min(poll_max)
                };
            }
            Err(error) => {
                poll = (poll * 2).min(poll_max);
                tracing::warn!(?error, "the clock cannot be followed");
                if answered.elapsed() >= Duration::from_millis(node.config.offline_after_ms) {
                    node.set_status(Status::Offline(error.to_string()));
                }
            }
        }
        if aged.elapsed() >= AGING {
            aged = Instant::now();
            node.state.write().age(began.elapsed(), &node.config);
        }
        if matches!(node.state.read().status, Status::Lost(_)) {
            return;
        }
        drop(node);
        tokio::select! {
            wake = wakes.next() => if wake.is_none() { wakes = futures::stream::pending().boxed() },
            () = tokio::time::sleep(poll) => {}
        }
    }
}

/// What to do about a store that went back.
const OPEN_AGAIN: &str = "the store lost what it had acknowledged; open the cache again";

impl Node {
    /// Reads the clock and what was published since; whether there was anything. One at a time: of two that read different clocks, the one with
    /// the older would take the node back.
    pub(super) async fn catch_up(&self) -> Result<bool> {
        let _following = self.following.lock().await;
        let known = self.state.read().clock.clone();
        let Some(found) = read_clock(self.store.as_ref()).await? else {
            self.set_status(Status::Lost(format!("the published clock is gone: {OPEN_AGAIN}")));
            return Ok(false);
        };
        let clock = found.value;
        if let Some(why) = clock.lost_since(&known) {
            self.set_status(Status::Lost(format!("{why}: {OPEN_AGAIN}")));
            return Ok(false);
        }
        if let Some(progress) = clock.building.filter(|_| self.config.while_building == WhileBuilding::Refuse) {
            self.set_status(Status::Building(progress));
            return Ok(false);
        }
        if clock == known {
            self.set_status(Status::Ready);
            return Ok(false);
        }
        if self.was_written_anew(&known, &clock).await? {
            self.set_status(Status::Lost(format!("a later writer has written published batches anew: {OPEN_AGAIN}")));
            return Ok(false);
        }
        match self.records(&known, &clock).await? {
            Some(records) if !self.state.read().lacks_list_before(&records) => {
                self.state.write().advance(&records, clock, &self.config);
            }
            _ => self.resync(clock).await?,
        }
        self.set_status(Status::Ready);
        let cut = self.state.read().cut;
        self.followed.send_modify(|followed| followed.cut = cut);
        Ok(true)
    }

    /// Whether the batch of `known` is another one in the store by now: then the store went back, and a later writer has caught up since. The clock
    /// alone does not tell. Only a change of writer can have done it.
    async fn was_written_anew(&self, known: &PublishedClock, clock: &PublishedClock) -> Result<bool> {
        if known.batch == 0 || known.epoch == clock.epoch {
            return Ok(false);
        }
        let record = self.store.record(known.batch, self.ring).await?;
        let is_later = |record: &BatchRecord| record.epoch != known.epoch && !known.epoch.supersedes(record.epoch);
        Ok(record.is_some_and(|record| is_later(&record)))
    }

    /// The records after `known` up to `clock`; `None` if the ring no longer holds them all.
    async fn records(&self, known: &PublishedClock, clock: &PublishedClock) -> Result<Option<Vec<Arc<BatchRecord>>>> {
        if clock.batch - known.batch >= self.ring {
            return Ok(None);
        }
        let store = &self.store;
        let reads: Vec<_> = (known.batch + 1..=clock.batch).map(|number| store.record(number, self.ring)).collect();
        let found: Vec<Result<Option<Arc<BatchRecord>>>> = futures::stream::iter(reads).buffered(16).collect().await;
        found.into_iter().collect()
    }

    /// Gives up what is in memory, because the records do not lead from it to the clock. Requests
    /// see the old state until the new one is there.
    async fn resync(&self, clock: PublishedClock) -> Result<()> {
        let known = self.state.read().clock.batch;
        if known == 0 {
            tracing::info!(batch = clock.batch, "reading the state of the cache for the first time");
        } else {
            tracing::info!(
                known,
                batch = clock.batch,
                "the batch records since the last known batch are not all there or do not suffice: reading the state of the cache again"
            );
        }
        self.counters.resyncs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let last = LastBatch::read(self.store.as_ref(), self.ring, clock).await?;
        let above = scan::waiting_above(self.store.as_ref(), self.codec.as_ref(), last.clock.high).await?;
        let old = std::mem::replace(&mut *self.state.write(), State::new(last, above));
        old.tails.values().for_each(|tail| tail.changed.notify_waiters());
        Ok(())
    }

    fn set_status(&self, status: Status) {
        let before = self.followed.borrow().status.clone();
        if before == status {
            return;
        }
        match (&before, &status) {
            (_, Status::Ready) => tracing::info!("ready"),
            (Status::Building(_), Status::Building(progress)) => {
                tracing::debug!(percent = progress.percent(), "the cache is still being built");
            }
            (_, Status::Building(progress)) => tell_building(*progress),
            (_, Status::Offline(reason) | Status::Lost(reason)) => tracing::error!(reason, "offline"),
        }
        let mut state = self.state.write();
        state.status = status.clone();
        state.tails.values().for_each(|tail| tail.changed.notify_waiters());
        self.followed.send_modify(|followed| followed.status = status);
    }
}

/// Logs that no request is answered for now.
pub(super) fn tell_building(progress: Progress) {
    tracing::info!(percent = progress.percent(), "the cache is being built: requests are refused, or wait, until it is complete");
}

/// What the error of a cache that is being built has in its context, and no other.
const PERCENT: &str = "percent";

/// Whether a request was refused because the cache is being built.
pub(super) fn is_building(error: &Error) -> bool {
    error.kind() == crate::ErrorKind::Unavailable && error.context(PERCENT).is_some()
}

impl Status {
    /// An error unless the node can answer.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Status::Ready => Ok(()),
            Status::Offline(reason) => {
                Err(Error::new(crate::ErrorKind::Unavailable, format!("offline: the store does not answer: {reason}")))
            }
            Status::Building(progress) => Err(Error::new(crate::ErrorKind::Unavailable, "the cache is being built")
                .with_context(PERCENT, progress.percent())
                .with_context("arrived", progress.arrived)
                .with_context("expected", progress.total())
                .with_next_step("try again later; reader.while_building = \"show\" answers with what is complete")),
            Status::Lost(reason) => Err(Error::corrupt(format!("offline: {reason}"))),
        }
    }
}
