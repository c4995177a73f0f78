//! The writer of a run: called for each event, or following a feed in a task.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_core::engine::WriterStats;
use sluicegate_core::writer::{Ended, WriterProgress};
use sluicegate_core::{CacheStore, Error, ErrorKind, FeedEvent, GatewayDecoder, Mutation, Result, Writer, WriterConfig};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::script::Script;
use super::variation::Variation;
use super::watched::Pace;

/// The writer over all its terms.
#[derive(Debug)]
pub(super) struct Writing {
    store: Arc<dyn CacheStore>,
    config: WriterConfig,
    pace: Pace,
    by_feed: bool,
    restarts: bool,
    script: Arc<Script>,
    /// The counters of earlier terms.
    before: WriterStats,
    term: Term,
}

#[derive(Debug)]
enum Term {
    Called(Box<Writer>),
    Running(Running),
    /// Between two terms, or after the last.
    None,
}

/// A writer in its own task.
#[derive(Debug)]
struct Running {
    task: JoinHandle<(Box<Writer>, Result<Ended>)>,
    stop: oneshot::Sender<()>,
    progress: watch::Receiver<WriterProgress>,
    /// Events that were added to its feed.
    given: u64,
}

impl Writing {
    /// The name of the writer's checkpoint.
    pub(super) fn feed_name() -> String {
        Script::about().checkpoint_name()
    }

    pub(super) async fn begin(
        store: Arc<dyn CacheStore>,
        config: WriterConfig,
        variation: Variation,
        pace: Pace,
    ) -> Result<Self> {
        let mut writing = Writing {
            store,
            config,
            pace,
            by_feed: variation.has(Variation::Feed),
            restarts: variation.has(Variation::Restarts),
            script: Arc::new(Script::new()),
            before: WriterStats::default(),
            term: Term::None,
        };
        writing.take_over().await?;
        Ok(writing)
    }

    async fn take_over(&mut self) -> Result<()> {
        let decoder = Arc::new(GatewayDecoder::default());
        let name = Writing::feed_name();
        let writer = Writer::alone(self.store.clone(), decoder, &name, self.config.clone());
        let mut writer = Box::new(self.pace.drive(writer).await?);
        if !self.by_feed {
            self.term = Term::Called(writer);
            return Ok(());
        }
        let progress = writer.progress();
        let (stop, stopped) = oneshot::channel();
        let script = self.script.clone();
        let task = tokio::spawn(async move {
            let stopped = async {
                // Also if the sender was dropped.
                let _ = stopped.await;
            };
            let ended = writer.run(script.as_ref(), stopped).await;
            (writer, ended)
        });
        self.term = Term::Running(Running { task, stop, progress, given: 0 });
        self.pace.settle().await
    }

    /// The period of the writer's timer, if it has one.
    pub(super) fn period(&self) -> Option<Duration> {
        self.by_feed.then(|| Duration::from_millis((self.config.max_wait_ms / 2).clamp(1, 1_000)))
    }

    /// Takes one batch, and returns when all of it is published.
    pub(super) async fn take(&mut self, batch: Vec<Mutation>) -> Result<()> {
        if self.restarts {
            for mutation in batch {
                self.restart().await?;
                self.give(vec![mutation]).await?;
            }
            return Ok(());
        }
        self.give(batch).await
    }

    async fn give(&mut self, batch: Vec<Mutation>) -> Result<()> {
        match &mut self.term {
            Term::Called(writer) => {
                let events: Vec<FeedEvent> = batch.into_iter().map(FeedEvent::Mutation).collect();
                self.pace.drive(writer.process(events.into())).await?;
                self.pace.drive(writer.flush()).await
            }
            Term::Running(running) => {
                running.given += batch.len() as u64;
                self.script.add(&batch);
                self.settle().await
            }
            Term::None => Err(ended()),
        }
    }

    /// Time has passed.
    pub(super) async fn tick(&mut self) -> Result<()> {
        match &mut self.term {
            Term::Called(writer) => self.pace.drive(writer.flush()).await,
            _ => self.settle().await,
        }
    }

    async fn settle(&mut self) -> Result<()> {
        self.pace.settle().await?;
        match &self.term {
            Term::Running(running) if running.task.is_finished() => self.end().await.and(Err(ended())),
            _ => Ok(()),
        }
    }

    /// Ends the term; the events that were taken are published.
    pub(super) async fn end(&mut self) -> Result<()> {
        let stats = match std::mem::replace(&mut self.term, Term::None) {
            Term::Called(writer) => writer.stats(),
            Term::Running(running) => {
                // It may have ended already.
                let _ = running.stop.send(());
                let failed = |e| Error::new(ErrorKind::Unexpected, "the writer's task failed").with_source(e);
                let task = async { running.task.await.map_err(failed) };
                let (writer, ended) = self.pace.drive(task).await?;
                ended?;
                writer.stats()
            }
            Term::None => WriterStats::default(),
        };
        self.before += stats;
        Ok(())
    }

    /// A new writer takes over.
    pub(super) async fn restart(&mut self) -> Result<()> {
        self.end().await?;
        self.take_over().await
    }

    /// The counters of all terms, and the number of pending sequences.
    pub(super) async fn numbers(&mut self) -> Result<(WriterStats, usize)> {
        if let (Term::Running(running), Some(period)) = (&self.term, self.period())
            && running.progress.borrow().stats.received < running.given
        {
            // The progress for an event without a batch is reported with the next tick.
            tokio::time::advance(period).await;
            self.settle().await?;
        }
        let (now, pending) = match &self.term {
            Term::Called(writer) => (writer.stats(), writer.pending()),
            Term::Running(running) => {
                let progress = running.progress.borrow();
                (progress.stats, progress.pending)
            }
            Term::None => return Err(ended()),
        };
        let mut all = self.before;
        all += now;
        Ok((all, pending))
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Closed, "the writer has ended")
}
