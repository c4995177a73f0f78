//! The readers of a run, and their clients.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use sluicegate_core::changes::{Answer, AnswerRow, ChangesOptions, LateCursor, SequenceId, Source, merge};
use sluicegate_core::reader::{Changes, ReaderStats};
use sluicegate_core::{CacheStore, Channel, Error, ErrorKind, ReaderConfig, ReaderNode, Result};
use tokio_util::task::AbortOnDropHandle;

use super::step::{MergeSource, Question, StatsKey};
use super::watched::Pace;

/// Readers and clients.
pub(super) struct Asking {
    store: Arc<dyn CacheStore>,
    config: ReaderConfig,
    pace: Pace,
    /// The reader that follows during the whole run; `None` if each question has its own.
    reader: Option<ReaderNode>,
    /// The position of each client.
    clients: BTreeMap<String, SequenceId>,
    feeds: BTreeMap<String, Followed>,
    polls: BTreeMap<String, AbortOnDropHandle<Result<Answer>>>,
    /// The reader's counters at the last `stats` line.
    counted: ReaderStats,
}

/// A continuous feed of rows.
struct Followed {
    reader: ReaderNode,
    rows: BoxStream<'static, Result<AnswerRow>>,
}

impl Asking {
    pub(super) async fn begin(store: Arc<dyn CacheStore>, config: ReaderConfig, is_lazy: bool, pace: Pace) -> Result<Self> {
        let mut asking = Asking {
            store,
            config,
            pace,
            reader: None,
            clients: BTreeMap::new(),
            feeds: BTreeMap::new(),
            polls: BTreeMap::new(),
            counted: ReaderStats::default(),
        };
        if !is_lazy {
            asking.reader = Some(asking.open().await?);
        }
        Ok(asking)
    }

    async fn open(&self) -> Result<ReaderNode> {
        self.pace.drive(ReaderNode::open(self.store.clone(), self.config.clone())).await
    }

    /// The reader for a question, up to date.
    async fn reader(&self) -> Result<ReaderNode> {
        let reader = match &self.reader {
            Some(reader) => reader.clone(),
            None => self.open().await?,
        };
        self.pace.drive(reader.refresh()).await?;
        Ok(reader)
    }

    /// Brings the reader that follows during the whole run up to date.
    pub(super) async fn refresh(&self) -> Result<()> {
        match &self.reader {
            Some(reader) => self.pace.drive(reader.refresh()).await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// Opens the reader again.
    pub(super) async fn reopen(&mut self) -> Result<()> {
        if self.reader.is_some() {
            self.reader = Some(self.open().await?);
            self.counted = ReaderStats::default();
        }
        Ok(())
    }

    pub(super) fn prune(&self, keep: usize) {
        if let Some(reader) = &self.reader {
            reader.prune(keep);
        }
    }

    async fn changes(&self, reader: &ReaderNode, channels: &[Channel], options: &ChangesOptions) -> Result<Changes> {
        self.pace.drive(reader.changes(channels, options)).await
    }

    /// The answer to a question of a client, which continues from its last answer.
    pub(super) async fn ask(&mut self, client: Option<&str>, question: &Question, channels: &[Channel]) -> Result<Answer> {
        let stands = client.and_then(|client| self.clients.get(client)).copied();
        let options = options(question, stands)?;
        let reader = self.reader().await?;
        let answer = self.changes(&reader, channels, &options).await?.answer();
        if let Some(client) = client {
            self.clients.insert(client.to_owned(), answer.last);
        }
        Ok(answer)
    }

    /// Begins to follow.
    pub(super) async fn follow(&mut self, name: &str, question: &Question, channels: Vec<Channel>) -> Result<()> {
        let options = options(question, None)?;
        let reader = self.reader().await?;
        let rows = reader.follow(channels, options);
        self.feeds.insert(name.to_owned(), Followed { reader, rows });
        Ok(())
    }

    /// The rows that a feed has by now.
    pub(super) async fn next(&mut self, name: &str) -> Result<Vec<AnswerRow>> {
        let feed = self.feeds.get_mut(name).ok_or_else(|| nobody(name))?;
        self.pace.drive(feed.reader.refresh()).await?;
        let mut rows = Vec::new();
        loop {
            tokio::select! {
                biased;
                row = feed.rows.next() => rows.push(row.ok_or_else(|| nobody(name))??),
                settled = self.pace.settle() => {
                    settled?;
                    return Ok(rows);
                }
            }
        }
    }

    pub(super) fn close(&mut self, name: &str) -> Result<()> {
        self.feeds.remove(name).map(|_| ()).ok_or_else(|| nobody(name))
    }

    /// Asks, and waits until there is a row.
    pub(super) async fn poll(&mut self, name: &str, question: &Question, channels: Vec<Channel>) -> Result<()> {
        let options = options(question, None)?;
        let reader = self.reader().await?;
        let task = tokio::spawn(async move {
            loop {
                let changes = reader.changes(&channels, &options).await?;
                let answer = changes.answer();
                if !answer.rows.is_empty() {
                    return Ok(answer);
                }
                reader.wait_for_change(&channels, changes.cut()).await?;
            }
        });
        self.polls.insert(name.to_owned(), AbortOnDropHandle::new(task));
        Ok(())
    }

    /// Whether a request still waits.
    pub(super) async fn waits(&mut self, name: &str) -> Result<bool> {
        self.pace.settle().await?;
        self.polls.get(name).map(|poll| !poll.is_finished()).ok_or_else(|| nobody(name))
    }

    /// The answer to a request that waited.
    pub(super) async fn returned(&mut self, name: &str) -> Result<Answer> {
        let poll = self.polls.remove(name).ok_or_else(|| nobody(name))?;
        let failed = |e| Error::new(ErrorKind::Unexpected, "the waiting request failed").with_source(e);
        self.pace.drive(async { poll.await.map_err(failed)? }).await
    }

    /// The reader's counters since the last `stats` line; `None` if each question has its own
    /// reader.
    pub(super) fn stats(&mut self) -> Option<ReaderStats> {
        let now = self.reader.as_ref()?.stats();
        let before = std::mem::replace(&mut self.counted, now);
        let mut since = now;
        since.hits -= before.hits;
        since.misses -= before.misses;
        since.evicted -= before.evicted;
        Some(since)
    }

    /// The rows of several channels merged, as if some had been granted.
    pub(super) async fn merged(&self, low: u64, sources: &[MergeSource], channels: &[Channel]) -> Result<Vec<AnswerRow>> {
        let reader = self.reader().await?;
        let mut parts = Vec::new();
        for (source, channel) in sources.iter().zip(channels) {
            let options = ChangesOptions::new().since(source.start).delivery(sluicegate_core::changes::Delivery::Eager);
            parts.push(self.changes(&reader, std::slice::from_ref(channel), &options).await?);
        }
        let part = |((source, channel), changes)| {
            let (source, channel, changes): (&MergeSource, _, &Changes) = (source, channel, changes);
            Source::new(channel, changes.rows()).triggered_by(source.granted.into())
        };
        Ok(merge(sources.iter().zip(channels).zip(&parts).map(part), low.into(), false).collect())
    }
}

/// The value of a statistic.
pub(super) fn stat(stats: &ReaderStats, key: StatsKey) -> u64 {
    match key {
        StatsKey::Hits => stats.hits,
        StatsKey::Misses => stats.misses,
        StatsKey::Rows => stats.rows,
        StatsKey::Channels => stats.channels,
        StatsKey::Evicted => stats.evicted,
    }
}

fn options(question: &Question, stands: Option<SequenceId>) -> Result<ChangesOptions> {
    if question.user.is_some() {
        return Err(Error::new(ErrorKind::Unsupported, "`as=` needs users and their channels, which are not there"));
    }
    let since = question.since.or(stands).unwrap_or(SequenceId::ZERO);
    let mut options = ChangesOptions::new().since(since).active_only(question.active).delivery(question.delivery);
    options.limit = question.limit;
    options.late = question.late.map(LateCursor);
    Ok(options)
}

fn nobody(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("`${name}` was not begun, or has ended"))
}
