//! Those who look on while a writer writes: one keeps the clock, one follows all channels.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_core::commit::read_clock;
use sluicegate_core::{CacheStore, PublishedClock};
use sluicegate_testkit::{Follower, Rows};
use tokio::sync::watch;
use tokio::task::JoinHandle;

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

/// A client that follows over a store that may fail.
#[derive(Default)]
pub(crate) struct Client(Follower);

impl Client {
    /// Looks, if the store lets it.
    pub(crate) async fn look(&mut self, store: &Arc<dyn CacheStore>) -> bool {
        self.0.look(store).await.unwrap_or_else(|error| {
            assert!(error.is_retryable(), "{error:?}");
            false
        })
    }

    /// What it was told must be what the star channel shows, after a last look.
    pub(crate) async fn check(mut self, store: &Arc<dyn CacheStore>, star: &Rows, what: &str) {
        super::until("a client looks", async || self.look(store).await).await;
        self.0.check(star, what);
    }
}
