//! Who may write.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::clock::Epoch;
use crate::commit::read_clock;
use crate::error::{Error, ErrorKind, Result};
use crate::store::CacheStore;

/// Name of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub String);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who campaigns.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Lower takes over sooner.
    pub priority: u32,
}

impl Candidate {
    /// A candidate of the highest priority.
    pub fn new(node: impl Into<String>) -> Self {
        Candidate { node: NodeId(node.into()), priority: 0 }
    }
}

/// What a node is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Another node writes.
    Standby {
        /// The writer, if known.
        leader: Option<NodeId>,
    },
    /// This node writes, in this epoch.
    Writer {
        /// The term.
        epoch: Epoch,
    },
    /// Nobody can tell.
    Offline {
        /// Why.
        reason: String,
    },
}

/// One node known to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Whether it writes now.
    pub is_writer: bool,
}

impl Member {
    /// A member.
    pub fn new(node: NodeId, is_writer: bool) -> Self {
        Member { node, is_writer }
    }
}

/// The roles of one candidate, as they change. Ends when the candidate has resigned.
pub type RoleStream = BoxStream<'static, Role>;

/// Elects the writer.
///
/// Contract: at most one `Writer` role is out per epoch, and each epoch's counter is higher than that of every epoch given before over
/// the same store. A deposed writer may learn late of it: the clock's compare-and-swap fences it, so a coordinator need not be
/// exact, only never give one epoch twice.
#[async_trait]
pub trait Coordinator: Send + Sync + fmt::Debug + 'static {
    /// Takes part in the election. Cancel safe: dropping the future or the stream resigns.
    ///
    /// # Errors
    /// `Unavailable` where the election cannot be reached at all.
    async fn campaign(&self, candidate: Candidate) -> Result<RoleStream>;

    /// Gives the writer's role away, to `to` or to whoever comes first.
    ///
    /// # Errors
    /// `Unsupported` where there is nobody else by construction.
    async fn hand_over(&self, to: Option<NodeId>) -> Result<()>;

    /// The nodes that take part.
    ///
    /// # Errors
    /// `Unavailable` where the election cannot be reached.
    async fn members(&self) -> Result<Vec<Member>>;
}

/// The epoch after that of the published clock.
pub(crate) async fn next_epoch(store: &dyn CacheStore) -> Result<Epoch> {
    let clock = read_clock(store).await?;
    Ok(clock.map(|clock| clock.value.epoch).unwrap_or_default().successor(rand::random()))
}

/// The trivial coordinator: whoever asks is the writer, one epoch after the last. For a single process, and for tests of what happens
/// when two nodes both believe that they write.
#[derive(Debug, Clone)]
pub struct AlwaysWriter {
    store: Arc<dyn CacheStore>,
    last: Arc<parking_lot::Mutex<Option<(Member, u64)>>>,
}

impl AlwaysWriter {
    /// Over the store whose clock holds the epoch.
    pub fn new(store: Arc<dyn CacheStore>) -> Self {
        AlwaysWriter { store, last: Arc::default() }
    }
}

#[async_trait]
impl Coordinator for AlwaysWriter {
    async fn campaign(&self, candidate: Candidate) -> Result<RoleStream> {
        let mut epoch = next_epoch(self.store.as_ref()).await?;
        let mut last = self.last.lock();
        epoch.counter = epoch.counter.max(last.as_ref().map_or(0, |(_, counter)| counter + 1));
        *last = Some((Member::new(candidate.node, true), epoch.counter));
        let role = Role::Writer { epoch };
        Ok(futures::stream::once(async { role }).chain(futures::stream::pending()).boxed())
    }

    async fn hand_over(&self, _to: Option<NodeId>) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "a single writer has nobody to hand over to; use a coordinator that elects"))
    }

    async fn members(&self) -> Result<Vec<Member>> {
        Ok(self.last.lock().iter().map(|(member, _)| member.clone()).collect())
    }
}
