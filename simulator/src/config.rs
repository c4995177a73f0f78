//! What a cluster is to be like.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use sluicegate_mcbp::sasl::{Mechanism, Password};

use crate::tls::TlsConfig;

/// How a [`Cluster`](crate::Cluster) starts. The same configuration and the same calls give the same identities, times and documents.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterConfig {
    /// How many nodes, at least 1.
    pub nodes: usize,
    /// How many vbuckets, at least 1.
    pub vbuckets: u16,
    /// How many copies of a vbucket besides the active one; fewer if there are not enough nodes.
    pub replicas: usize,
    /// From which identities and random choices follow.
    pub seed: u64,
    /// The bucket's name.
    pub bucket: String,
    /// The user's name.
    pub user: String,
    /// The user's password. Not shown by `Debug`.
    pub password: Password,
    /// Ways to authenticate that are offered.
    pub mechanisms: Vec<Mechanism>,
    /// The address of the loopback interface that all nodes listen on.
    pub host: IpAddr,
    /// The port of the first node, the next ones follow; 0 for any free ports.
    pub port: u16,
    /// TLS, on ports beside those without, which are any free ones.
    pub tls: Option<TlsConfig>,
    /// How many changes of a vbucket stay in memory; older ones come from disk, de-duplicated. What [`Cluster::load`] writes is not in
    /// memory.
    ///
    /// [`Cluster::load`]: crate::Cluster::load
    pub memory_items: u64,
    /// How many positions a snapshot from memory spans at most.
    pub snapshot_items: u64,
    /// When a connection that does not answer is closed.
    pub liveness: Liveness,
    /// Whether a stream of one collection from the start comes in the order of keys, if the client has asked for that (protocol,
    /// section 4.13).
    pub allows_oso: bool,
    /// Whether the bucket is an ephemeral one: it says so, and that nothing of it is on a disk.
    pub is_ephemeral: bool,
    /// Whether the bucket keeps all changes, until they are purged, for clients that ask for them (`change_streams`; protocol, section 3.3).
    pub retains_history: bool,
}

/// When a DCP connection with no-ops is closed (protocol, section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// When a no-op is due and the one before is unanswered, as servers up to 4.6 do.
    NextNoop,
    /// When nothing was received for so long, as later servers do.
    Idle(Duration),
}

impl Default for ClusterConfig {
    fn default() -> Self {
        ClusterConfig {
            nodes: 1,
            vbuckets: 1024,
            replicas: 1,
            seed: 1,
            bucket: "default".to_owned(),
            user: "Administrator".to_owned(),
            password: Password::new("password"),
            mechanisms: Mechanism::ALL.to_vec(),
            host: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            tls: None,
            memory_items: 1000,
            snapshot_items: u64::MAX,
            liveness: Liveness::Idle(Duration::from_secs(360)),
            allows_oso: true,
            is_ephemeral: false,
            retains_history: false,
        }
    }
}

/// Documents to begin with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Load {
    /// How many.
    pub documents: u64,
    /// Bytes of each value, at least; a value is JSON and has a few fields.
    pub value_len: usize,
    /// What keys begin with; a number follows.
    pub prefix: String,
    /// The collection.
    pub collection: u32,
}

impl Default for Load {
    fn default() -> Self {
        Load { documents: 1000, value_len: 500, prefix: "document-".to_owned(), collection: 0 }
    }
}
