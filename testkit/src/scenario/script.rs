//! A feed of a scenario's events.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use parking_lot::Mutex;
use sluicegate_core::feed::{FeedCapabilities, FeedInfo};
use sluicegate_core::{Error, ErrorKind, Feed, FeedBatch, FeedEvent, FeedPosition, FeedStart, FeedStream, Mutation, Result};
use tokio::sync::watch;

use super::gateway::PARTITIONS;

/// The events that a feed has delivered and has yet to deliver. It does not end.
#[derive(Debug)]
pub(super) struct Script {
    log: Arc<Mutex<Vec<Mutation>>>,
    length: watch::Sender<usize>,
}

impl Script {
    pub(super) fn new() -> Self {
        Script { log: Arc::default(), length: watch::Sender::new(0) }
    }

    /// The description of the feed.
    pub(super) fn about() -> FeedInfo {
        FeedInfo {
            scheme: "scenario",
            name: "events".to_owned(),
            partitions: PARTITIONS,
            capabilities: FeedCapabilities { positions: true, snapshots: false, deletions: true, finite: false },
        }
    }

    /// Adds events.
    pub(super) fn add(&self, mutations: &[Mutation]) {
        let length = {
            let mut log = self.log.lock();
            log.extend_from_slice(mutations);
            log.len()
        };
        self.length.send_replace(length);
    }
}

fn is_before(mutation: &Mutation, position: &FeedPosition) -> bool {
    position.partitions.get(&mutation.partition).is_some_and(|at| mutation.seqno.0 <= at.seqno)
}

#[async_trait]
impl Feed for Script {
    fn info(&self) -> FeedInfo {
        Script::about()
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let position = match start {
            FeedStart::Beginning => FeedPosition::default(),
            FeedStart::At(position) => position,
            FeedStart::Now => return Err(Error::new(ErrorKind::Unsupported, "a scenario's feed does not open at its end")),
        };
        let state = (self.log.clone(), self.length.subscribe(), 0, position);
        let batches = futures::stream::unfold(state, |(log, mut length, mut at, position)| async move {
            loop {
                // The feed lives as long as events can be added.
                let there = *length.wait_for(|length| *length > at).await.ok()?;
                let next = log.lock()[at..there].iter().position(|mutation| !is_before(mutation, &position));
                let found = next.map(|next| at + next);
                at = found.map_or(there, |found| found + 1);
                if let Some(mutation) = found.and_then(|found| log.lock().get(found).cloned()) {
                    let batch = FeedBatch::from(vec![FeedEvent::Mutation(mutation)]);
                    return Some((Ok(batch), (log, length, at, position)));
                }
            }
        });
        Ok(batches.boxed())
    }
}
