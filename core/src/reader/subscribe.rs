//! Waiting for changes and for late entries.

use std::pin::pin;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered, StreamExt as _};

use super::follow::is_building;
use super::state::Status;
use super::{Cut, Node, ReaderNode, closed};
use crate::batch::{LateEntry, LatePage};
use crate::changes::{Answer, AnswerRow, ChangesOptions, LateCursor};
use crate::channel::Channel;
use crate::entry::ChangeEntry;
use crate::error::{Error, Result};
use crate::key::CacheKey;
use crate::scan;

impl ReaderNode {
    /// Waits until something may have changed in one of `channels` after `seen`; the cut then. Others' changes do not wake it, and a
    /// waiting call costs nothing meanwhile. It may come back without a row for the request's delivery mode.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` when the node is offline; `ConfigInvalid` without a channel, for
    /// which nothing can change.
    pub fn wait_for_change<'a>(&'a self, channels: &'a [Channel], seen: &'a Cut) -> BoxFuture<'a, Result<Cut>> {
        Box::pin(self.wait(channels, seen))
    }

    async fn wait(&self, channels: &[Channel], seen: &Cut) -> Result<Cut> {
        if channels.is_empty() {
            return Err(Error::config("no channel is named to wait for, so that nothing can ever change; name at least one"));
        }
        loop {
            self.ready().await?;
            match self.wait_while_ready(channels, seen).await {
                Err(e) if is_building(&e) => {}
                waited => return waited,
            }
        }
    }

    async fn wait_while_ready(&self, channels: &[Channel], seen: &Cut) -> Result<Cut> {
        loop {
            let mut pins = Vec::with_capacity(channels.len());
            for channel in channels {
                pins.push(self.node.ensure_tail(channel).await?);
            }
            let mut notifies = Vec::with_capacity(channels.len());
            {
                let state = self.node.state.read();
                state.status.check()?;
                notifies.extend(channels.iter().filter_map(|c| Some(state.tails.get(c)?.changed.clone())));
            }
            if notifies.len() < channels.len() {
                // Something was withdrawn from one of them meanwhile.
                tokio::task::yield_now().await;
                continue;
            }
            let mut waits: FuturesUnordered<_> = notifies.iter().map(|notify| Box::pin(notify.notified())).collect();
            waits.iter_mut().for_each(|wait| {
                wait.as_mut().enable();
            });
            {
                let state = self.node.state.read();
                state.status.check()?;
                let changed = |c: &Channel| state.tails.get(c).is_none_or(|tail| !tail.ready || tail.changed_at > seen.batch);
                if state.cut.batch > seen.batch && channels.iter().any(changed) {
                    return Ok(state.cut);
                }
            }
            waits.next().await;
        }
    }

    /// The rows of `channels` since `options.since`, and then every new one, as they come; late
    /// ones included. Ends only with an error, of which `ConfigInvalid` says that no channel is
    /// named.
    ///
    /// `limit` ends the stream after so many rows, and those of other documents that have the
    /// sequence of the last.
    pub fn follow(&self, channels: Vec<Channel>, options: ChangesOptions) -> BoxStream<'static, Result<AnswerRow>> {
        let node = self.clone();
        let left = options.limit;
        // Without a late cursor of its own, a feed begins at what is late now.
        let state = (node, channels, options, left, std::collections::VecDeque::<AnswerRow>::new(), None::<Cut>);
        futures::stream::try_unfold(state, |(node, channels, mut options, mut left, mut rows, mut seen)| async move {
            loop {
                // Those beyond the limit have the sequence of the last: whoever goes on after it
                // does not get them any more.
                if let Some(row) = rows.pop_front() {
                    left = left.map(|left| left.saturating_sub(1));
                    return Ok(Some((row, (node, channels, options, left, rows, seen))));
                }
                if left == Some(0) {
                    return Ok(None);
                }
                if let Some(seen) = &seen {
                    node.wait_for_change(&channels, seen).await?;
                }
                options.late.get_or_insert(node.cut().late);
                options.limit = left;
                let changes = node.changes_when_ready(&channels, &options).await?;
                let answer: Answer = changes.answer();
                // With everything below `last` sent, what is missing there comes through the late cursor.
                options.since = answer.last.sequence.into();
                options.late = Some(answer.late);
                seen = Some(*changes.cut());
                rows.extend(answer.rows);
            }
        })
        .boxed()
    }

    /// Follows the late entries of the whole cache from now on. Dropping it releases it; the server keeps nothing for it.
    pub fn late_subscription(&self) -> LateSubscription {
        LateSubscription { cursor: self.cut().late, node: self.clone() }
    }
}

/// A place among the late entries of the cache.
#[derive(Clone, Debug)]
pub struct LateSubscription {
    node: ReaderNode,
    cursor: LateCursor,
}

impl LateSubscription {
    /// Goes on from a place that an earlier subscription or answer gave.
    pub fn resume(node: &ReaderNode, cursor: LateCursor) -> Self {
        LateSubscription { node: node.clone(), cursor }
    }

    /// Everything at or below it has been returned.
    pub fn cursor(&self) -> LateCursor {
        self.cursor
    }

    /// Waits for late entries after the cursor; at least one, in the order of their numbers. What has been withdrawn since is left out; what is shown
    /// again in its place is late once more.
    ///
    /// Cancel safe: the cursor moves only with what is returned.
    ///
    /// # Errors
    /// `Unavailable` or `Corrupt` when the node is offline or the store cannot be read.
    pub async fn next(&mut self) -> Result<Vec<Arc<ChangeEntry>>> {
        let mut followed = self.node.node.followed.subscribe();
        loop {
            let cursor = self.cursor;
            let told = pin!(followed.wait_for(|followed| followed.cut.late > cursor || followed.status != Status::Ready));
            told.await.map_err(closed)?.status.check()?;
            let to = self.node.cut().late;
            let late = self.node.node.late_entries(self.cursor, to).await?;
            self.cursor = to;
            if !late.is_empty() {
                return Ok(late.into_iter().map(|(_, entry)| entry).collect());
            }
        }
    }
}

impl Node {
    /// The late entries with numbers in `(after, to]`, by number.
    pub(super) async fn late_entries(&self, after: LateCursor, to: LateCursor) -> Result<Vec<(LateEntry, Arc<ChangeEntry>)>> {
        if after >= to {
            return Ok(Vec::new());
        }
        let wanted = |late: &LateEntry| late.number > after.0 && late.number <= to.0;
        {
            let state = self.state.read();
            if state.late.front().is_some_and(|(first, _)| first.number <= after.0 + 1) {
                return Ok(state.late.iter().filter(|(late, _)| wanted(late)).cloned().collect());
            }
        }
        let pages: Vec<CacheKey> = (LatePage::of(after.0 + 1)..=LatePage::of(to.0)).map(CacheKey::Late).collect();
        let mut late = Vec::new();
        for (key, page) in pages.iter().zip(self.store.get_many(&pages).await?) {
            let page = page.ok_or_else(|| Error::corrupt("a page of late entries is missing").with_context("key", key))?;
            let page = LatePage::from_bytes(&page.value).map_err(|e| e.with_context("key", key))?;
            late.extend(page.entries.into_iter().filter(wanted));
        }
        let sequences: Vec<_> = late.iter().map(|late| late.sequence).collect();
        let missing = self.state.read().missing.clone();
        let entries = scan::entries(self.store.as_ref(), self.codec.as_ref(), &sequences, &missing).await?;
        let is_there = |(late, entry): (LateEntry, Option<_>)| entry.map(|entry| (late, entry));
        Ok(late.into_iter().zip(entries).filter_map(is_there).collect())
    }
}
