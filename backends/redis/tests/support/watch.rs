//! Those who look on while a writer writes: one keeps the clock, one follows all channels.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sluicegate_core::changes::{ChangesOptions, Delivery};
use sluicegate_core::commit::read_clock;
use sluicegate_core::{CacheStore, Channel, PublishedClock, ReaderConfig, ReaderNode};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::load::{Rows, rows};

/// Reads the clock all the time, with whatever errors, and follows all channels. Never may the clock go back, and nothing may be told twice.
pub(crate) struct Watcher {
    batches: watch::Receiver<u64>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    task: JoinHandle<Client>,
}

impl Watcher {
    pub(crate) fn new(store: Arc<dyn CacheStore>) -> Watcher {
        let (told, batches) = watch::channel(0);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut client = Client::default();
            let mut last: Option<PublishedClock> = None;
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                if let Ok(Some(clock)) = read_clock(store.as_ref()).await {
                    let clock = clock.value;
                    if let Some(last) = &last {
                        assert_eq!(clock.lost_since(last), None, "from {last:?} to {clock:?}");
                    }
                    told.send_replace(clock.batch);
                    last = Some(clock);
                }
                client.look(&store).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            client
        });
        Watcher { batches, stop, task }
    }

    /// Waits until `batch` is published; `false` if `task` ends first.
    pub(crate) async fn reaches<T>(&mut self, batch: u64, task: &JoinHandle<T>) -> bool {
        while *self.batches.borrow_and_update() < batch {
            if task.is_finished() {
                return false;
            }
            let _ = tokio::time::timeout(Duration::from_millis(20), self.batches.changed()).await;
        }
        true
    }

    /// How far the clock is.
    pub(crate) fn batch(&self) -> u64 {
        *self.batches.borrow()
    }

    /// The client, when nothing more will happen.
    pub(crate) async fn end(self) -> Client {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// A client that follows all channels, with the late cursor, and keeps what it is told.
#[derive(Default)]
pub(crate) struct Client {
    reader: Option<ReaderNode>,
    options: ChangesOptions,
    rows: BTreeMap<String, (u64, String, bool)>,
    seen: BTreeSet<u64>,
    repeats: usize,
}

impl Client {
    /// Looks, if the store lets it.
    pub(crate) async fn look(&mut self, store: &Arc<dyn CacheStore>) -> bool {
        if self.reader.is_none() {
            self.reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.ok();
            self.options = ChangesOptions::new().delivery(Delivery::Eager).late(Default::default());
        }
        let Some(reader) = &self.reader else { return false };
        if let Err(error) = reader.refresh().await {
            assert!(error.is_retryable(), "{error:?}");
            return false;
        }
        let answer = match reader.changes(&[Channel::star()], &self.options).await {
            Ok(changes) => changes.answer(),
            Err(error) => {
                assert!(error.is_retryable(), "{error:?}");
                return false;
            }
        };
        self.options.since = answer.last.sequence.into();
        self.options.late = Some(answer.late);
        for (sequence, document, revision, deleted, _) in rows(&answer) {
            self.repeats += usize::from(!self.seen.insert(sequence));
            let newest = self.rows.entry(document).or_default();
            if newest.0 < sequence {
                *newest = (sequence, revision, deleted);
            }
        }
        true
    }

    /// What it knows must be what the star channel shows, after a last look.
    pub(crate) async fn check(mut self, store: &Arc<dyn CacheStore>, star: &Rows, what: &str) {
        super::until("a client looks", async || self.look(store).await).await;
        let shown: BTreeMap<String, (u64, String, bool)> = star
            .iter()
            .map(|(sequence, document, revision, deleted, _)| (document.clone(), (*sequence, revision.clone(), *deleted)))
            .collect();
        assert_eq!(self.rows, shown, "{what}: what a following client was told, and what is there");
        assert_eq!(self.repeats, 0, "{what}: rows that it was told twice");
    }
}
