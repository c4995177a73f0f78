//! `countdown:N`, documents with the sequences N to 1, in this order: the worst that a writer can get.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use serde::Deserialize;
use sluicegate_core::feed::{FeedCapabilities, FeedInfo};
use sluicegate_core::registry::{FeedFactory, Location, Opening};
use sluicegate_core::{Error, ErrorKind, Feed, FeedBatch, FeedEvent, FeedStart, FeedStream, Mutation, PartitionSeqno, Result};

const SCHEME: &str = "countdown";
const BATCH: u64 = 16;

/// The feed.
#[derive(Debug)]
pub struct Countdown {
    from: u64,
}

impl Countdown {
    /// Counts from `from` down to 1.
    pub fn new(from: u64) -> Self {
        Countdown { from }
    }

    /// The event at a position of the feed, from 1; as a gateway writes a document.
    fn event(&self, position: u64) -> FeedEvent {
        let sequence = self.from + 1 - position;
        let body = format!(
            r#"{{"_sync":{{"rev":"1-a","sequence":{sequence},"recent_sequences":[{sequence}],"channels":{{"numbers":null}}}}}}"#
        );
        let mut mutation = Mutation::new(format!("number-{sequence}"), body);
        mutation.datatype.0 = sluicegate_core::feed::Datatype::JSON;
        mutation.seqno = PartitionSeqno(position);
        FeedEvent::Mutation(mutation)
    }
}

#[async_trait]
impl Feed for Countdown {
    fn info(&self) -> FeedInfo {
        let capabilities = FeedCapabilities { positions: false, snapshots: false, deletions: false, finite: true };
        FeedInfo { scheme: SCHEME, name: self.from.to_string(), partitions: 1, capabilities }
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let first = match start {
            FeedStart::Beginning => 1,
            FeedStart::Now => self.from + 1,
            FeedStart::At(_) => return Err(Error::new(ErrorKind::Unsupported, "a countdown begins at its beginning")),
        };
        // The next batch is made when it is asked for.
        let feed = Countdown { from: self.from };
        let batches = futures::stream::iter((first..=self.from).step_by(BATCH as usize)).map(move |at| {
            let events: Vec<FeedEvent> = (at..at + BATCH).take_while(|at| *at <= feed.from).map(|at| feed.event(at)).collect();
            Ok(FeedBatch::from(events))
        });
        let end = futures::stream::iter([Ok(FeedBatch::from(vec![FeedEvent::CaughtUp]))]);
        Ok(batches.chain(end).boxed())
    }
}

/// There are none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {}

fn open(location: Location) -> Opening<dyn Feed> {
    Box::pin(async move {
        let Options {} = location.options()?;
        let from = location.rest().parse().map_err(|e| Error::config("countdown:N needs a number").with_source(e))?;
        Ok(Arc::new(Countdown::new(from)) as Arc<dyn Feed>)
    })
}

inventory::submit! {
    FeedFactory { scheme: SCHEME, about: "a third party's feed of documents; countdown:N", open }
}
