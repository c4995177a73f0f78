//! What nodes are told and what they say.

use std::sync::Arc;

use bytes::Bytes;
use sluicegate_mcbp::client::{ClientError, ClientResult};
use sluicegate_mcbp::config::{Address, ClusterMap};
use sluicegate_mcbp::dcp::StreamFilter;
use tokio::sync::mpsc;

use crate::horizon::Horizon;
use crate::names::Names;
use crate::options::Target;
use crate::parcel::Outlet;
use crate::resume::Context;
use crate::status::Board;
use crate::tally::Tally;
use crate::vbucket::{Next, Vbucket};

/// What a node is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// Stream this vbucket.
    Open(Box<Vbucket>),
    /// Ask for the cluster map.
    AskForMap,
    /// These vbuckets are not this node's any more, says the newest map. All others are.
    Moved(Vec<u16>),
}

/// What a node says. `id` is that of the connection.
#[derive(Debug)]
pub(crate) enum Report {
    /// The connection streams.
    Up { id: u64, announces_maps: bool },
    /// Some node has said that this is the map.
    Map { map: ClusterMap, from: Address },
    /// A vbucket has no stream here any more.
    Released { vbucket: Box<Vbucket>, next: Next, why: String },
    /// Some vbuckets have found out where they begin; so many are caught up.
    Progress { resolved: Vec<u16>, caught_up: usize },
    /// A map was asked for from the beginning, since all nodes were lost.
    Bootstrapped(ClientResult<(ClusterMap, Address)>),
    /// The connection is gone, or was none. These vbuckets had been given to it.
    Down { id: u64, error: ClientError, vbuckets: Vec<Vbucket> },
}

/// What a node needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) address: Address,
    pub(crate) target: Arc<Target>,
    /// Name of the connection.
    pub(crate) name: String,
    /// What the streams are limited to.
    pub(crate) filter: Filter,
    /// The names of collections.
    pub(crate) names: Arc<Names>,
    /// How far vbuckets are on disk, if events wait for that.
    pub(crate) horizon: Option<Arc<Horizon>>,
    pub(crate) board: Arc<Board>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) outlet: Outlet,
    pub(crate) reports: mpsc::UnboundedSender<Report>,
}

/// What streams are limited to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// The scope, if it is one.
    pub(crate) scope: Option<u32>,
    /// The collections, if it is collections.
    pub(crate) collections: Vec<u32>,
}

impl Filter {
    pub(crate) fn is_everything(&self) -> bool {
        self.scope.is_none() && self.collections.is_empty()
    }

    /// The value of a stream request, on a connection with collections (protocol, section 3.5).
    pub(crate) fn encode(&self, context: Context) -> sluicegate_mcbp::Result<Bytes> {
        let known = |number: u64| Some(number).filter(|number| *number > 0);
        let filter = StreamFilter {
            manifest_uid: known(context.manifest_uid),
            stream_id: None,
            collections: self.collections.clone(),
            scope: self.scope,
            purge_seqno: known(context.purge_seqno),
        };
        filter.encode()
    }
}
