//! Cluster maps: which node has which vbucket, and where nodes are (protocol, section 2.4).

mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;

use crate::error::Result;

/// The longest JSON that is read, in bytes.
pub const MAX_CONFIG_LEN: usize = 16 << 20;

/// The most nodes, and the most servers of a bucket, that a map may have. No cluster comes near it.
pub const MAX_NODES: usize = 1024;

/// The port of the binary protocol.
pub const DEFAULT_PORT: u16 = 11210;

/// The port of the binary protocol over TLS.
pub const DEFAULT_TLS_PORT: u16 = 11207;

/// Which of two cluster maps is newer: the order is by epoch, then by revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// Counts losses of the cluster's agreement; 0 if it is not said.
    pub epoch: i64,
    /// Counts changes; 0 if it is not said.
    pub rev: i64,
}

/// Which nodes a cluster has, and which of them has a vbucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterMap {
    /// How new it is.
    pub revision: Revision,
    /// The bucket; empty for the whole cluster's.
    pub name: String,
    /// Identity of the bucket: another one means that it was created again, and that nothing known of it holds.
    pub uuid: String,
    /// Whether the bucket is said to be in memory alone, so that nothing of it is ever on a disk. Older servers do not say.
    pub is_ephemeral: bool,
    /// What the bucket can do.
    pub capabilities: Vec<String>,
    /// How many copies a vbucket is to have besides the active one.
    pub num_replicas: usize,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// For each server of the bucket, its place in `nodes`.
    servers: Vec<usize>,
    /// For each vbucket, the servers that have it, the active one first.
    vbuckets: Vec<Vec<Option<ServerIndex>>>,
}

/// Number of a server within one [`ClusterMap`]; another map may number them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerIndex(pub usize);

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// Its name or address, without brackets.
    pub hostname: String,
    /// Its ports.
    pub ports: Ports,
    /// Where it is from other networks, by their names.
    pub alternates: BTreeMap<String, Alternate>,
    /// Whether it has sent this map.
    pub is_this_node: bool,
    /// Its identity, if it says so.
    pub uuid: Option<String>,
    /// Its group, for example a zone.
    pub server_group: Option<String>,
    /// Whether it serves this bucket already.
    pub is_serving: bool,
}

/// Ports of one node, as far as they are needed here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ports {
    /// The binary protocol; a node without it has no data.
    pub kv: Option<u16>,
    /// The binary protocol over TLS.
    pub kv_tls: Option<u16>,
    /// Management.
    pub mgmt: Option<u16>,
    /// Management over TLS.
    pub mgmt_tls: Option<u16>,
}

/// Where a node is from another network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Alternate {
    /// Its name or address there, without brackets.
    pub hostname: String,
    /// Its ports there. If none are named they are the usual ones; a service not among those named cannot be reached.
    pub ports: Option<Ports>,
}

/// From which network nodes are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Network {
    /// The cluster's own.
    #[default]
    Default,
    /// Another, by its name in the map, usually `external`.
    Named(String),
}

/// Where to connect to. `Display` puts an IPv6 address into brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl ClusterMap {
    /// Reads a map that was received from `host`: it stands where the map says `$HOST` or names no host.
    ///
    /// # Errors
    /// `TooLarge` over [`MAX_CONFIG_LEN`]; `Unsupported` for a bucket without vbuckets; `Malformed` if it is no such JSON, has over
    /// [`MAX_NODES`], or contradicts itself.
    pub fn parse(json: &[u8], host: &str) -> Result<ClusterMap> {
        text::parse(json, host)
    }

    /// Whether this map should replace `known`. A map without revision always should.
    pub fn is_newer_than(&self, known: Revision) -> bool {
        self.revision.rev == 0 || self.revision > known
    }

    /// Whether the bucket can do something, for example `collections`.
    pub fn has_capability(&self, name: &str) -> bool {
        self.capabilities.iter().any(|capability| capability == name)
    }

    /// How many vbuckets the bucket has. 0 right after it was created, and in a map of the whole cluster: wait for the next map.
    pub fn num_vbuckets(&self) -> usize {
        self.vbuckets.len()
    }

    /// The servers of the bucket.
    pub fn servers(&self) -> impl ExactSizeIterator<Item = ServerIndex> + use<> {
        (0..self.servers.len()).map(ServerIndex)
    }

    /// The server that has the active copy of a vbucket; none if no server has, or there is no such vbucket.
    pub fn owner(&self, vbucket: u16) -> Option<ServerIndex> {
        *self.vbuckets.get(usize::from(vbucket))?.first()?
    }

    /// The servers that have the other copies of a vbucket. A place that no server fills is none.
    pub fn replicas(&self, vbucket: u16) -> &[Option<ServerIndex>] {
        self.vbuckets.get(usize::from(vbucket)).and_then(|copies| copies.get(1..)).unwrap_or_default()
    }

    /// The vbuckets whose active copy a server has.
    pub fn active_vbuckets(&self, server: ServerIndex) -> impl Iterator<Item = u16> {
        let has = move |vbucket: &u16| self.owner(*vbucket) == Some(server);
        (0..=u16::MAX).take(self.vbuckets.len()).filter(has)
    }

    /// The node of a server of this map.
    pub fn node(&self, server: ServerIndex) -> Option<&Node> {
        self.nodes.get(*self.servers.get(server.0)?)
    }

    /// The servers of the bucket, each with where to connect to; none if it cannot be reached from `network`.
    pub fn data_nodes(&self, network: &Network, is_tls: bool) -> Vec<(ServerIndex, Option<Address>)> {
        self.servers().map(|server| (server, self.node(server).and_then(|node| node.address(network, is_tls)))).collect()
    }

    /// The network from which `host` and `port`, by which the cluster was reached, are a node's. Decide once per bootstrap.
    pub fn network_of(&self, host: &str, port: u16) -> Network {
        let host = unbracketed(host);
        let is_at = |name: &str, ports: &Ports| name.eq_ignore_ascii_case(host) && ports.all().contains(&Some(port));
        if self.nodes.iter().any(|node| is_at(&node.hostname, &node.ports)) {
            return Network::Default;
        }
        let mut alternates = self.nodes.iter().flat_map(|node| node.alternates.iter().map(move |named| (node, named)));
        let found = alternates.find(|(node, (_, there))| is_at(&there.hostname, there.ports.as_ref().unwrap_or(&node.ports)));
        found.map_or(Network::Default, |(_, (name, _))| Network::Named(name.clone()))
    }
}

impl Node {
    /// Where to connect to for data; none if that cannot be from `network`.
    pub fn address(&self, network: &Network, is_tls: bool) -> Option<Address> {
        let (host, ports) = match network {
            Network::Default => (&self.hostname, self.ports),
            Network::Named(name) => {
                let there = self.alternates.get(name)?;
                (&there.hostname, there.ports.unwrap_or(self.ports))
            }
        };
        let port = if is_tls { ports.kv_tls } else { ports.kv };
        Some(Address { host: host.clone(), port: port? })
    }
}

impl Ports {
    fn all(&self) -> [Option<u16>; 4] {
        [self.kv, self.kv_tls, self.mgmt, self.mgmt_tls]
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", bracketed(&self.host), self.port)
    }
}

/// The host as it stands in an address with a port.
fn bracketed(host: &str) -> String {
    if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() }
}

/// The host alone.
fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}
