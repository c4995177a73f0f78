//! A feed over mutations in memory.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream as streams;
use sluicegate_core::feed::{FeedCapabilities, FeedIdentity, FeedInfo};
use sluicegate_core::{Error, Feed, FeedBatch, FeedEvent, FeedStart, FeedStream, Mutation, PartitionSeqno, Result};

use crate::PARTITIONS;
use crate::stream::{self, DEFAULT_BATCH};

const SCHEME: &str = "mutations";

/// A feed over mutations in memory, in the order given. It ends, and can be opened as often as one likes.
///
/// An event's position is its place in that order, from 1, whatever `seqno` it had: so positions hold for any order.
#[derive(Clone, Debug)]
pub struct MemoryFeed {
    name: String,
    identity: FeedIdentity,
    events: Arc<[Mutation]>,
    partitions: u16,
    batch: usize,
}

impl MemoryFeed {
    /// The feed called `name` over `mutations`.
    pub fn new(name: impl Into<String>, mutations: impl IntoIterator<Item = Mutation>) -> Self {
        let number = |(index, mut mutation): (usize, Mutation)| {
            mutation.seqno = PartitionSeqno(index as u64 + 1);
            mutation
        };
        let events: Arc<[Mutation]> = mutations.into_iter().enumerate().map(number).collect();
        let highest = events.iter().map(|m| m.partition.0.saturating_add(1)).max();
        let partitions = PARTITIONS.max(highest.unwrap_or_default());
        MemoryFeed { name: name.into(), identity: FeedIdentity::new(SCHEME), events, partitions, batch: DEFAULT_BATCH }
    }

    /// Sets the source, to which caches are bound. Without it, all feeds of this kind have one
    /// source: mutations in memory cannot be told from earlier ones.
    #[must_use]
    pub fn with_identity(mut self, identity: FeedIdentity) -> Self {
        self.identity = identity;
        self
    }

    /// Sets the events of a batch.
    ///
    /// # Errors
    /// `ConfigInvalid` for 0.
    pub fn with_batch(mut self, batch: usize) -> Result<Self> {
        if batch == 0 {
            return Err(Error::config("a batch holds at least 1 event, not 0"));
        }
        self.batch = batch;
        Ok(self)
    }

    /// The mutations, with the positions they are delivered at.
    pub fn mutations(&self) -> &[Mutation] {
        &self.events
    }
}

#[async_trait]
impl Feed for MemoryFeed {
    fn info(&self) -> FeedInfo {
        FeedInfo {
            scheme: SCHEME,
            name: self.name.clone(),
            partitions: self.partitions,
            capabilities: FeedCapabilities { positions: true, snapshots: false, deletions: true, finite: true },
        }
    }

    fn identity(&self) -> FeedIdentity {
        self.identity.clone()
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let position = Arc::new(stream::position_of(start, "mutations")?);
        let (events, batch) = (self.events.clone(), self.batch);
        let batches = streams::unfold(Some(0), move |at| {
            let (events, position) = (events.clone(), position.clone());
            async move {
                let mut at: usize = at?;
                let mut portion = Vec::with_capacity(batch.min(events.len() - at));
                while portion.len() < batch && at < events.len() {
                    if !stream::is_before(&events[at], &position) {
                        portion.push(FeedEvent::Mutation(events[at].clone()));
                    }
                    at += 1;
                }
                if portion.is_empty() {
                    return Some((Ok(FeedBatch::from(vec![FeedEvent::CaughtUp])), None));
                }
                Some((Ok(FeedBatch::from(portion)), Some(at)))
            }
        });
        Ok(batches.boxed())
    }
}
