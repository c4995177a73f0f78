//! The feed, and its registration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use sluicegate_core::feed::{FeedCapabilities, FeedIdentity, FeedInfo};
use sluicegate_core::registry::{FeedFactory, Location, Opening};
use sluicegate_core::{Error, ErrorKind, Feed, FeedEvent, FeedStart, FeedStream, PartitionId, Result};
use sluicegate_mcbp::topology::Topology;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use crate::bootstrap::{bootstrap, core_error, filter, names};
use crate::driver::{Driver, Plan};
use crate::options::{Target, Until};
use crate::parcel::{self, Inlet};
use crate::status::{Board, DcpStatus};
use crate::vbucket::Begin;

/// A bucket's changes, over DCP.
///
/// It follows the bucket through everything that happens to a cluster: nodes that go and come back, vbuckets that move, histories that
/// are taken back. Streams are opened again for as long as it takes; only what no waiting can help, such as a password that is refused
/// again and again, ends the feed with an error. A bucket that was emptied or created again is reported as a
/// [`Rollback`](sluicegate_core::FeedEvent::Rollback) of all its vbuckets to 0.
pub struct DcpFeed {
    target: Arc<Target>,
    partitions: u16,
    /// The bucket's UUID; empty if the server does not report it.
    uuid: String,
    board: Mutex<Arc<Board>>,
}

impl DcpFeed {
    /// Connects to the bucket at `url`, to learn how many vbuckets it has. What follows the question mark is in
    /// [`DcpOptions`](crate::DcpOptions).
    ///
    /// Cancel safe: dropping the future closes the connection.
    ///
    /// # Errors
    /// `ConfigInvalid` for a wrong URL, option, user or password; `NotFound` if there is no such bucket; `Unavailable` or `Timeout` where
    /// no node answers.
    pub async fn connect(url: &str) -> Result<DcpFeed> {
        DcpFeed::connect_location(Location::parse(url)?).await
    }

    async fn connect_location(location: Location) -> Result<DcpFeed> {
        let scheme = if location.scheme() == "dcps" { "dcps" } else { "dcp" };
        let target = tokio::task::spawn_blocking(move || Target::new(&location, scheme)).await;
        let target = Arc::new(target.map_err(|e| Error::new(ErrorKind::Closed, "the runtime is shutting down").with_source(e))??);
        let (_, map) = bootstrap(&target, BTreeSet::new()).await.map_err(core_error)?;
        if map.is_ephemeral && target.options.mitigate_rollbacks {
            let message = "the bucket is ephemeral: nothing of it is ever on a disk, which mitigate_rollbacks would wait for";
            return Err(Error::config(message).with_next_step("leave mitigate_rollbacks out"));
        }
        let partitions = u16::try_from(map.num_vbuckets())
            .map_err(|_| Error::new(ErrorKind::Unsupported, "the bucket has more vbuckets than a feed can have partitions"))?;
        Ok(DcpFeed { target, partitions, uuid: map.uuid, board: Mutex::new(Arc::new(Board::new(usize::from(partitions)))) })
    }

    /// What the stream that was opened last is doing.
    pub fn status(&self) -> DcpStatus {
        let board = self.board.lock().clone();
        board.snapshot()
    }

    fn is_finite(&self) -> bool {
        self.target.options.until == Some(Until::Now)
    }
}

impl fmt::Debug for DcpFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.target.name();
        f.debug_struct("DcpFeed").field("name", &name).field("partitions", &self.partitions).finish_non_exhaustive()
    }
}

#[async_trait]
impl Feed for DcpFeed {
    fn info(&self) -> FeedInfo {
        let finite = self.is_finite();
        FeedInfo {
            // With and without TLS it is the same feed, with one checkpoint.
            scheme: "dcp",
            name: self.target.name(),
            partitions: self.partitions,
            capabilities: FeedCapabilities { positions: true, snapshots: true, deletions: true, finite },
        }
    }

    /// The bucket, for any part of it and any connection.
    fn identity(&self) -> FeedIdentity {
        FeedIdentity::new(format!("dcp:{}", self.target.connect.bucket))
            .with_instance(self.uuid.clone())
            .with_former_checkpoint(format!("dcps:{}", self.target.name()))
    }

    /// Where `scope` or `collections` restrict it.
    fn is_partial(&self) -> bool {
        self.target.is_partial()
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let target = self.target.clone();
        let (mut session, map) = bootstrap(&target, BTreeSet::new()).await.map_err(core_error)?;
        if map.num_vbuckets() != usize::from(self.partitions) {
            let message = format!("the bucket has {} vbuckets now, and had {}", map.num_vbuckets(), self.partitions);
            return Err(
                Error::new(ErrorKind::RolledBack, message).with_next_step("open the feed again by its URL, from the beginning")
            );
        }
        let filter = filter(&mut session, &target).await.map_err(core_error)?;
        let (names, told) = names(&mut session).await.map_err(core_error)?;
        let mut topology = Topology::new(target.network.clone(), target.connect.tls.is_some());
        topology.offer(map, session.address());
        drop(session);
        if topology.nodes().is_empty() {
            return Err(Error::config("no node of the bucket can be reached from this network")
                .with_next_step("set the option network to the name of one that the cluster has, or to default"));
        }
        let board = Arc::new(Board::new(usize::from(self.partitions)));
        *self.board.lock() = board.clone();
        let (outlet, inlet) = parcel::channel();
        let (resolved, is_resolved) = oneshot::channel();
        let (is_now, positions) = match start {
            FeedStart::Beginning => (false, BTreeMap::new()),
            FeedStart::Now => (true, BTreeMap::new()),
            FeedStart::At(position) => (false, position.partitions),
        };
        let begin = |id| match positions.get(&PartitionId(id)) {
            _ if is_now => Begin::Now,
            Some(position) => Begin::At(position.clone()),
            None => Begin::Zero,
        };
        let name = format!("sluicegate:{:016x}", rand::random::<u64>());
        let plan = Plan { target, filter, names: Arc::new(names), name, is_finite: self.is_finite() };
        let driver = Driver::new(plan, topology, outlet, board, begin, resolved);
        let task = AbortOnDropHandle::new(tokio::spawn(driver.run()));
        let mut open = Open { inlet, names: told, failed: None, _task: task };
        // What is written from now on must come, so where it begins must be known.
        if is_resolved.await.is_err() {
            match open.inlet.take().await {
                Some(Err(error)) => return Err(error),
                _ => open.failed = Some(Error::new(ErrorKind::Closed, "the feed was closed while it was being opened")),
            }
        }
        Ok(stream::unfold(open, |mut open| async move { Some((open.next().await?, open)) }).boxed())
    }
}

/// An open feed. Dropped, it closes all connections.
struct Open {
    inlet: Inlet,
    /// The names of collections: they come before all other events.
    names: Option<FeedEvent>,
    failed: Option<Error>,
    _task: AbortOnDropHandle<()>,
}

impl Open {
    async fn next(&mut self) -> Option<Result<sluicegate_core::FeedBatch>> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let mut batch = self.inlet.take().await?;
        if let Ok(batch) = &mut batch
            && let Some(names) = self.names.take()
        {
            batch.events.insert(0, names);
        }
        Some(batch)
    }
}

fn open(location: Location) -> Opening<dyn Feed> {
    Box::pin(async move {
        let feed: Arc<dyn Feed> = Arc::new(DcpFeed::connect_location(location).await?);
        Ok(feed)
    })
}

inventory::submit! {
    FeedFactory {
        scheme: "dcp",
        about: "a Couchbase bucket, followed over DCP: dcp://host[:port],host2/bucket?user=…&password=…",
        open,
    }
}

inventory::submit! {
    FeedFactory {
        scheme: "dcps",
        about: "the same over TLS: dcps://host[:port],host2/bucket?user=…&password=…&ca=FILE",
        open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(url: &str) -> DcpFeed {
        let location = Location::parse(url).unwrap();
        let target = Arc::new(Target::new(&location, if location.scheme() == "dcps" { "dcps" } else { "dcp" }).unwrap());
        DcpFeed { target, partitions: 4, uuid: "instance".to_owned(), board: Mutex::new(Arc::new(Board::new(4))) }
    }

    #[test]
    fn a_bucket_is_one_feed_with_and_without_tls_and_so_is_each_part_of_it() {
        let (plain, tls) = (feed("dcp://a/b?user=u&password=p"), feed("dcps://other/b?user=v&password=q"));
        assert_eq!(plain.identity(), tls.identity());
        assert_eq!(plain.info().checkpoint_name(), tls.info().checkpoint_name());
        let part = feed("dcp://a/b?user=u&password=p&scope=inventory");
        assert_eq!(part.identity().name(), plain.identity().name());
        assert_ne!(part.info().checkpoint_name(), plain.info().checkpoint_name());
        assert!(part.is_partial() && !plain.is_partial());
        assert_ne!(feed("dcp://a/c?user=u&password=p").identity(), plain.identity());
    }
}
