//! A feed of one's own: where mutations come from. Two methods: what it is, and how it is opened at a position.
//!
//! This one makes up some documents with a gateway's metadata, in two partitions, so that their sequences come out of order. It can be
//! opened at a position: so a second writer goes on where the first was stopped.
//!
//! ```text
//! cargo run --example custom_feed [-- --store URL]
//! ```

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use sluicegate::changes::ChangesOptions;
use sluicegate::feed::{Datatype, FeedCapabilities, FeedInfo};
use sluicegate::{
    CacheStore, Channel, Error, ErrorKind, Feed, FeedEvent, FeedStart, FeedStream, Mutation, PartitionId, PartitionSeqno, Result,
    Sluicegate,
};

/// Documents `doc-1` to `doc-{count}` with sequences 1 to `count`: odd ones in partition 0, even ones in partition 1.
#[derive(Debug)]
struct Documents {
    count: u64,
}

impl Documents {
    fn document(sequence: u64) -> Mutation {
        let channel = if sequence.is_multiple_of(3) { "fizz" } else { "other" };
        let value = format!(
            r#"{{"_sync":{{"rev":"1-a","sequence":{sequence},"recent_sequences":[{sequence}],"channels":{{"{channel}":null}},"history":{{"revs":["1-a"],"parents":[-1],"channels":[["{channel}"]]}}}}}}"#
        );
        let mut mutation = Mutation::new(format!("doc-{sequence}"), value);
        mutation.datatype = Datatype(Datatype::JSON);
        mutation.partition = PartitionId(u16::from(sequence.is_multiple_of(2)));
        mutation.seqno = PartitionSeqno(sequence.div_ceil(2));
        mutation
    }
}

#[async_trait]
impl Feed for Documents {
    fn info(&self) -> FeedInfo {
        let capabilities = FeedCapabilities { positions: true, snapshots: false, deletions: false, finite: true };
        // Its name is part of the checkpoint's key: it is the same feed when there is more in it.
        FeedInfo { scheme: "documents", name: "made-up".to_owned(), partitions: 2, capabilities }
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let seen = |partition: u16| match &start {
            FeedStart::Beginning => 0,
            FeedStart::Now => self.count,
            FeedStart::At(position) => position.partitions.get(&PartitionId(partition)).map_or(0, |at| at.seqno),
        };
        let seen = [seen(0), seen(1)];
        // All of one partition, then all of the other: the writer puts the sequences in order.
        let odd_then_even = (1..=self.count).step_by(2).chain((2..=self.count).step_by(2));
        let events: Vec<FeedEvent> = odd_then_even
            .map(Documents::document)
            .filter(|mutation| mutation.seqno.0 > seen[usize::from(mutation.partition.0)])
            .map(FeedEvent::Mutation)
            .chain([FeedEvent::CaughtUp])
            .collect();
        let [odd, even] = seen;
        println!("  it is opened after {odd} odd and {even} even ones: {} events to come", events.len() - 1);
        // In small batches, each made when there is room for it: never queue without limit.
        let batches: Vec<_> = events.chunks(10).map(|chunk| Ok(chunk.to_vec().into())).collect();
        Ok(futures::stream::iter(batches).boxed())
    }
}

/// Writes what the feed has, and says what there is in the channel then.
async fn write(store: &Arc<dyn CacheStore>, count: u64) -> Result<usize> {
    let feed = Arc::new(Documents { count });
    let mut cache = Sluicegate::builder().with_store(store.clone()).with_feed(feed).start().await?;
    let cut = cache.caught_up().await?;
    let answer = cache.changes(&[Channel::new("fizz")?], &ChangesOptions::new()).await?;
    let received = cache.shutdown().await?.map_or(0, |status| status.stats.received);
    println!("  {received} events received; stable {}; channel fizz has {} rows", cut.stable, answer.rows.len());
    let expected = (count as usize / 3, count);
    if (answer.rows.len(), cut.stable.0) != expected {
        return Err(Error::new(ErrorKind::Unexpected, "the channel does not have what the feed delivered"));
    }
    Ok(received as usize)
}

#[tokio::main]
async fn main() -> Result<()> {
    let store = std::env::args().skip_while(|arg| arg != "--store").nth(1).unwrap_or("memory:".to_owned());
    let store = sluicegate::open_store(&store).await?;
    println!("A writer takes 60 documents from the feed:");
    let first = write(&store, 60).await?;
    println!("40 more were written meanwhile. The next writer goes on from the stored position:");
    let second = write(&store, 100).await?;
    if (first, second) != (60, 40) {
        return Err(Error::new(ErrorKind::Unexpected, "the second writer did not go on where the first had stopped"));
    }
    println!("Nothing was read twice.");
    Ok(())
}
