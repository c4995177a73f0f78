//! The state of the whole cluster, without I/O: the bucket, the nodes, what is to go wrong.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use bytes::Bytes;
use serde_json::{Value, json};
use sluicegate_mcbp::config::Revision;
use sluicegate_mcbp::dcp::{EndReason, VbucketState};
use sluicegate_mcbp::hello::ClusterMapChanged;
use sluicegate_mcbp::sasl::Mechanism;
use sluicegate_mcbp::sasl::scram::Credentials;

use crate::bucket::{Bucket, Identity, NodeCopy};
use crate::config::ClusterConfig;
use crate::faults::Faults;

/// Rounds of the password's hash; servers take more, tests would only wait.
const ITERATIONS: u32 = 1000;

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) config: ClusterConfig,
    pub(crate) bucket: Bucket,
    pub(crate) nodes: Vec<Node>,
    pub(crate) revision: i64,
    pub(crate) faults: Faults,
    pub(crate) is_paused: bool,
    /// Connections older than this number are to close.
    pub(crate) oldest_connection: u64,
    pub(crate) next_connection: u64,
    /// Which connection of a node has a DCP name.
    pub(crate) dcp_names: HashMap<(usize, Bytes), u64>,
    /// How often a DCP name was taken.
    pub(crate) dcp_names_taken: u64,
    /// Streams that are to end: their vbucket, why, and up to which number.
    pub(crate) endings: HashMap<u16, (EndReason, u64)>,
    pub(crate) next_stream: u64,
    /// The lowest position at which a stream of each vbucket began lately.
    pub(crate) lowest_starts: BTreeMap<u16, u64>,
    credentials: Vec<(Mechanism, Credentials)>,
}

/// A node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) uuid: String,
    pub(crate) port: u16,
    /// Its port with TLS.
    pub(crate) tls_port: Option<u16>,
    /// Whether it runs.
    pub(crate) is_up: bool,
    /// Whether it belongs to the cluster; not if it was failed over.
    pub(crate) is_member: bool,
    /// Counts starts: connections of an older one are to close.
    pub(crate) life: u64,
}

impl State {
    pub(crate) fn new(config: ClusterConfig, ports: &[(u16, Option<u16>)]) -> sluicegate_mcbp::Result<State> {
        let mut identity = Identity::new(config.seed);
        let node = |&(port, tls_port): &(u16, Option<u16>)| Node {
            uuid: identity.uuid(),
            port,
            tls_port,
            is_up: true,
            is_member: true,
            life: 0,
        };
        let nodes: Vec<Node> = ports.iter().map(node).collect();
        let salt: [u8; 16] = identity.bytes();
        let scram = Mechanism::ALL.into_iter().filter(|mechanism| *mechanism != Mechanism::Plain);
        let credentials = |mechanism| Ok((mechanism, Credentials::new(mechanism, &config.password, &salt, ITERATIONS)?));
        let credentials = scram.map(credentials).collect::<sluicegate_mcbp::Result<_>>()?;
        let mut bucket = Bucket::new(&config.bucket, config.vbuckets, identity, |vbucket| chain(&config, vbucket));
        bucket.keep_in_memory(config.memory_items);
        Ok(State {
            bucket,
            nodes,
            revision: 1,
            faults: Faults::default(),
            is_paused: false,
            oldest_connection: 0,
            next_connection: 0,
            dcp_names: HashMap::new(),
            dcp_names_taken: 0,
            endings: HashMap::new(),
            next_stream: 0,
            lowest_starts: BTreeMap::new(),
            credentials,
            config,
        })
    }

    pub(crate) fn credentials(&self, mechanism: Mechanism) -> Option<Credentials> {
        self.credentials.iter().find(|(known, _)| *known == mechanism).map(|(_, credentials)| credentials.clone())
    }

    /// A node's copy of a vbucket.
    pub(crate) fn copy(&self, vbucket: u16, node: usize) -> Option<&NodeCopy> {
        self.bucket.vbucket(vbucket)?.copy(node)
    }

    pub(crate) fn is_active(&self, vbucket: u16, node: usize) -> bool {
        self.copy(vbucket, node).is_some_and(|copy| copy.state == VbucketState::Active)
    }

    /// The members of the cluster, in the order of the map.
    fn members(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, node)| node.is_member)
    }

    /// The cluster map as `node` sends it; the whole cluster's has no vbuckets (protocol, section 2.4).
    pub(crate) fn map(&self, node: usize, of_bucket: bool) -> Value {
        let nodes_ext = |(i, member): (usize, &Node)| {
            // Clients want to know where a node is managed, and tell nodes apart by it; who speaks HTTP there is disconnected.
            let mut services = json!({ "kv": member.port, "mgmt": member.port });
            if let Some(port) = member.tls_port {
                (services["kvSSL"], services["mgmtSSL"]) = (port.into(), port.into());
            }
            let mut value = json!({ "hostname": self.config.host.to_string(), "services": services, "nodeUUID": member.uuid });
            if i == node {
                value["thisNode"] = true.into();
            }
            value
        };
        let nodes_ext: Vec<Value> = self.members().map(nodes_ext).collect();
        let mut map = json!({ "rev": self.revision, "revEpoch": 1, "nodesExt": nodes_ext });
        if !of_bucket {
            return map;
        }
        let places: Vec<usize> = self.members().map(|(i, _)| i).collect();
        let place = |node: &Option<usize>| {
            let place = node.and_then(|node| places.iter().position(|there| *there == node));
            place.map_or(-1, |place| place as i64)
        };
        let slots = 1 + self.replicas();
        let chain = |chain: &[Option<usize>]| {
            let all = chain.iter().chain(std::iter::repeat(&None));
            all.take(slots).map(place).collect::<Vec<i64>>()
        };
        let vbucket_map: Vec<Vec<i64>> = self.bucket.vbuckets().iter().map(|vbucket| chain(vbucket.chain())).collect();
        let at = |port: u16| SocketAddr::new(self.config.host, port).to_string();
        let servers: Vec<String> = self.members().map(|(_, member)| at(member.port)).collect();
        let node = |(_, member): (usize, &Node)| json!({ "hostname": at(member.port), "ports": { "direct": member.port } });
        map["name"] = self.bucket.name().into();
        map["uuid"] = self.bucket.uuid().into();
        map["nodeLocator"] = "vbucket".into();
        map["bucketType"] = if self.config.is_ephemeral { "ephemeral" } else { "membase" }.into();
        map["bucketCapabilitiesVer"] = "".into();
        map["bucketCapabilities"] = json!([
            "collections",
            "cbhello",
            "cccp",
            "dcp",
            "dcp.IgnorePurgedTombstones",
            "durableWrite",
            "nodesExt",
            "touch",
            "xattr"
        ]);
        map["nodes"] = self.members().map(node).collect();
        map["vBucketServerMap"] = json!({
            "hashAlgorithm": "CRC",
            "numReplicas": self.replicas(),
            "serverList": servers,
            "vBucketMap": vbucket_map,
        });
        map
    }

    /// The notice of the cluster map (protocol, section 2.6).
    pub(crate) fn notice(&self, node: usize, is_brief: bool) -> ClusterMapChanged {
        let config = if is_brief { Bytes::new() } else { self.map(node, true).to_string().into() };
        let bucket = Bytes::copy_from_slice(self.bucket.name().as_bytes());
        ClusterMapChanged { revision: self.map_revision(), is_short: false, bucket, config }
    }

    pub(crate) fn map_revision(&self) -> Revision {
        Revision { epoch: 1, rev: self.revision }
    }

    fn replicas(&self) -> usize {
        self.config.replicas.min(self.config.nodes - 1)
    }
}

/// Who has a vbucket at first: contiguous ranges for the nodes, replicas on the nodes that follow.
fn chain(config: &ClusterConfig, vbucket: u16) -> Vec<Option<usize>> {
    let nodes = config.nodes;
    let active = usize::from(vbucket) * nodes / usize::from(config.vbuckets);
    (0..=config.replicas.min(nodes - 1)).map(|i| Some((active + i) % nodes)).collect()
}

/// Changes of the topology.
impl State {
    /// Takes a node out of the cluster: of each vbucket it had, the first replica on a running node takes over with what it has,
    /// less the last `lose` positions, and begins a new history.
    pub(crate) fn fail_over(&mut self, node: usize, lose: u64) {
        self.nodes[node].is_member = false;
        for id in 0..self.bucket.num_vbuckets() {
            let Some(vbucket) = self.bucket.vbucket(id) else { continue };
            let chain = vbucket.chain().to_vec();
            if !chain.contains(&Some(node)) {
                continue;
            }
            let is_lost = chain.first() == Some(&Some(node));
            let mut rest: Vec<Option<usize>> = chain.iter().copied().filter(|there| *there != Some(node)).collect();
            if is_lost {
                let promoted = rest.iter().position(|there| there.is_some_and(|there| self.nodes[there].is_up));
                match promoted {
                    Some(place) => {
                        let promoted = rest.remove(place);
                        rest.insert(0, promoted);
                        let copy = promoted.and_then(|there| vbucket.copy(there));
                        let keep = copy.map_or(0, |copy| copy.high_seqno).min(vbucket.high_seqno().saturating_sub(lose));
                        self.bucket.fail_over(id, keep);
                    }
                    None => rest.insert(0, None),
                }
            }
            if let Some(vbucket) = self.bucket.vbucket_mut(id) {
                vbucket.set_chain(rest);
            }
        }
        self.revision += 1;
    }

    /// Makes `to` the active node of a vbucket. If it had no copy the one before has none any more, otherwise they change roles.
    pub(crate) fn move_vbucket(&mut self, id: u16, to: usize) {
        let Some(vbucket) = self.bucket.vbucket_mut(id) else { return };
        let mut chain = vbucket.chain().to_vec();
        match chain.iter().position(|there| *there == Some(to)) {
            Some(place) => chain.swap(0, place),
            None if chain.is_empty() => chain.push(Some(to)),
            None => chain[0] = Some(to),
        }
        vbucket.set_chain(chain);
    }

    /// A node has crashed and is back: what its active copies did not have on disk is gone, and they begin new histories.
    pub(crate) fn recover(&mut self, node: usize) {
        for id in 0..self.bucket.num_vbuckets() {
            if self.is_active(id, node) {
                let keep = self.copy(id, node).map_or(0, |copy| copy.persisted_seqno);
                self.bucket.fail_over(id, keep);
            }
        }
    }
}

impl State {
    /// Changes whenever something does that other connections may be waiting for.
    pub(crate) fn version(&self) -> (u64, u64) {
        (self.bucket.changes(), self.dcp_names_taken)
    }
}
