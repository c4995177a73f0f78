//! Holding an operation back until the test says go on.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use parking_lot::Mutex;
use sluicegate_core::feed::{Feed, FeedIdentity, FeedInfo, FeedStart, FeedStream};
use sluicegate_core::{FeedBatch, Result};
use tokio::sync::oneshot;

/// An operation held back. Dropping it lets the operation go on.
#[derive(Debug)]
pub struct Pause {
    reached: Option<oneshot::Receiver<()>>,
    resume: oneshot::Sender<()>,
}

impl Pause {
    /// A pause, and the other end of it, for the operation.
    pub(crate) fn new() -> (Pause, Hold) {
        let (reached, reached_out) = oneshot::channel();
        let (resume, resume_out) = oneshot::channel();
        (Pause { reached: Some(reached_out), resume }, Hold { reached, resume: resume_out })
    }

    /// Waits until the operation is there and held; `false` if it never will be, because the store or feed is gone.
    pub async fn reached(&mut self) -> bool {
        match self.reached.take() {
            Some(reached) => reached.await.is_ok(),
            None => true,
        }
    }

    /// Lets the operation go on.
    pub fn resume(self) {
        // If nobody waits, there is nobody to be told.
        let _ = self.resume.send(());
    }
}

/// The operation's end of a [`Pause`].
#[derive(Debug)]
pub(crate) struct Hold {
    reached: oneshot::Sender<()>,
    resume: oneshot::Receiver<()>,
}

impl Hold {
    /// Says that the operation is there, and waits.
    pub(crate) async fn wait(self) {
        // Nobody need watch for it to hold; and a dropped `Pause` lets go.
        let _ = self.reached.send(());
        let _ = self.resume.await;
    }
}

/// A feed that can be held before a batch, as by a network that stalls.
#[derive(Debug)]
pub struct PausingFeed {
    feed: Arc<dyn Feed>,
    holds: Arc<Mutex<Vec<(u64, Hold)>>>,
}

impl PausingFeed {
    /// The feed of which batches can be held.
    pub fn new(feed: Arc<dyn Feed>) -> Self {
        PausingFeed { feed, holds: Arc::default() }
    }

    /// Holds back the `nth` batch from now (from 1), its end counted as one; over all streams opened.
    pub fn pause_at(&self, nth: u64) -> Pause {
        let (pause, hold) = Pause::new();
        self.holds.lock().push((nth, hold));
        pause
    }
}

/// The hold that is due, once each has been counted down.
fn due(holds: &Mutex<Vec<(u64, Hold)>>) -> Option<Hold> {
    let mut holds = holds.lock();
    holds.iter_mut().for_each(|(left, _)| *left = left.saturating_sub(1));
    let at = holds.iter().position(|(left, _)| *left == 0)?;
    Some(holds.swap_remove(at).1)
}

#[async_trait]
impl Feed for PausingFeed {
    fn info(&self) -> FeedInfo {
        self.feed.info()
    }

    fn identity(&self) -> FeedIdentity {
        self.feed.identity()
    }

    fn is_partial(&self) -> bool {
        self.feed.is_partial()
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let (stream, holds) = (self.feed.open(start).await?, self.holds.clone());
        let held = futures::stream::unfold(stream, move |mut stream| {
            let hold = due(&holds);
            async move {
                if let Some(hold) = hold {
                    hold.wait().await;
                }
                let batch: Result<FeedBatch> = stream.next().await?;
                Some((batch, stream))
            }
        });
        Ok(held.boxed())
    }
}
