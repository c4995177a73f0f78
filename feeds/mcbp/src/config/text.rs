//! The JSON of cluster maps.

use std::borrow::Cow;
use std::collections::BTreeMap;

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Alternate, ClusterMap, MAX_CONFIG_LEN, MAX_NODES, Node, Ports, Revision, ServerIndex, bracketed, unbracketed};
use crate::error::{Error, ErrorKind, Result};

/// As many as there are numbers.
const MAX_VBUCKETS: usize = 1 << 16;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Text<'a> {
    #[serde(default)]
    rev: i64,
    #[serde(default)]
    rev_epoch: i64,
    #[serde(default)]
    name: String,
    #[serde(default)]
    uuid: String,
    #[serde(default, borrow)]
    node_locator: Cow<'a, str>,
    #[serde(default, borrow)]
    bucket_type: Cow<'a, str>,
    #[serde(default)]
    bucket_capabilities: Vec<String>,
    v_bucket_server_map: Option<VbucketText>,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_NODES>")]
    nodes_ext: Vec<NodeText>,
    nodes: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VbucketText {
    #[serde(default)]
    num_replicas: usize,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_NODES>")]
    server_list: Vec<String>,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_VBUCKETS>")]
    v_bucket_map: Vec<Vec<i64>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeText {
    #[serde(default)]
    services: PortsText,
    hostname: Option<String>,
    #[serde(default)]
    this_node: bool,
    #[serde(default)]
    alternate_addresses: BTreeMap<String, AlternateText>,
    #[serde(rename = "nodeUUID")]
    node_uuid: Option<String>,
    server_group: Option<String>,
}

#[derive(Deserialize)]
struct AlternateText {
    hostname: String,
    ports: Option<PortsText>,
}

#[derive(Default, Deserialize)]
struct PortsText {
    kv: Option<u16>,
    #[serde(rename = "kvSSL")]
    kv_tls: Option<u16>,
    mgmt: Option<u16>,
    #[serde(rename = "mgmtSSL")]
    mgmt_tls: Option<u16>,
}

impl From<PortsText> for Ports {
    fn from(text: PortsText) -> Ports {
        Ports { kv: text.kv, kv_tls: text.kv_tls, mgmt: text.mgmt, mgmt_tls: text.mgmt_tls }
    }
}

/// What stands for the host that sent the map.
const HOST: &str = "$HOST";

pub(super) fn parse(json: &[u8], host: &str) -> Result<ClusterMap> {
    if json.len() > MAX_CONFIG_LEN {
        return Err(too_large("a cluster map"));
    }
    let host = unbracketed(host);
    if host.contains(|c: char| c.is_control() || matches!(c, '"' | '\\')) {
        return Err(Error::invalid("the name of the host that sent a cluster map cannot be a host's name"));
    }
    let json = std::str::from_utf8(json).map_err(|error| malformed("a cluster map is not UTF-8").with_source(error))?;
    let bracketed = bracketed(host);
    if json.len() + json.matches(HOST).count() * bracketed.len() > MAX_CONFIG_LEN {
        return Err(too_large("a cluster map with the names of its hosts"));
    }
    let json = json.replace(HOST, &bracketed);
    let text: Text<'_> = serde_json::from_str(&json)
        .map_err(|error| malformed("a cluster map is not the JSON it should be").with_source(error))?;
    if text.node_locator == "ketama" {
        let message = "a memcached bucket has no vbuckets and no feed; use a Couchbase or Ephemeral bucket";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let serving = text.nodes.map_or(usize::MAX, |nodes| nodes.len());
    let mut nodes: Vec<Node> = text.nodes_ext.into_iter().enumerate().map(|(i, node)| node.build(host, i < serving)).collect();
    let vbuckets =
        text.v_bucket_server_map.unwrap_or(VbucketText { num_replicas: 0, server_list: Vec::new(), v_bucket_map: Vec::new() });
    let servers = match_servers(&vbuckets.server_list, &mut nodes)?;
    Ok(ClusterMap {
        revision: Revision { epoch: text.rev_epoch, rev: text.rev },
        name: text.name,
        uuid: text.uuid,
        is_ephemeral: text.bucket_type == "ephemeral",
        capabilities: text.bucket_capabilities,
        num_replicas: vbuckets.num_replicas,
        vbuckets: match_vbuckets(vbuckets.v_bucket_map, servers.len())?,
        nodes,
        servers,
    })
}

impl NodeText {
    fn build(self, bootstrap_host: &str, is_serving: bool) -> Node {
        let alternate = |text: AlternateText| Alternate {
            hostname: unbracketed(&text.hostname).to_owned(),
            ports: text.ports.map(Ports::from),
        };
        Node {
            hostname: unbracketed(self.hostname.as_deref().unwrap_or(bootstrap_host)).to_owned(),
            ports: self.services.into(),
            alternates: self.alternate_addresses.into_iter().map(|(name, text)| (name, alternate(text))).collect(),
            is_this_node: self.this_node,
            uuid: self.node_uuid,
            server_group: self.server_group,
            is_serving,
        }
    }
}

/// For each server its place in `nodes`: the servers are the data nodes that serve the bucket, in this order. Where the numbers do
/// not agree they are matched by address, and servers that `nodes` lacks (old servers name no nodes at all) are added to it.
fn match_servers(server_list: &[String], nodes: &mut Vec<Node>) -> Result<Vec<usize>> {
    let has_data = |node: &Node| node.is_serving && (node.ports.kv.is_some() || node.ports.kv_tls.is_some());
    let data: Vec<usize> = (0..nodes.len()).filter(|i| has_data(&nodes[*i])).collect();
    if data.len() == server_list.len() {
        return Ok(data);
    }
    let mut place = |server: &String| {
        let address = server.rsplit_once(':').and_then(|(host, port)| Some((unbracketed(host), port.parse().ok()?)));
        let (host, port) = address.ok_or_else(|| malformed("a server of a cluster map is not a host and a port"))?;
        if let Some(found) = nodes.iter().position(|node| node.hostname == host && node.ports.kv == Some(port)) {
            return Ok(found);
        }
        let ports = Ports { kv: Some(port), ..Ports::default() };
        nodes.push(Node { hostname: host.to_owned(), ports, is_serving: true, ..Node::default() });
        Ok(nodes.len() - 1)
    };
    server_list.iter().map(&mut place).collect()
}

fn match_vbuckets(map: Vec<Vec<i64>>, servers: usize) -> Result<Vec<Vec<Option<ServerIndex>>>> {
    // A negative number: no server has this copy.
    let copy = |number: i64| match usize::try_from(number) {
        Ok(server) if server < servers => Ok(Some(ServerIndex(server))),
        Ok(_) => Err(malformed("a cluster map gives a vbucket to a server it does not name")),
        Err(_) => Ok(None),
    };
    map.into_iter().map(|copies| copies.into_iter().map(copy).collect()).collect()
}

/// A list; one that is longer is refused before it is held in memory.
fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct List<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of {MAX} at most")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while list.len() < MAX {
                match from.next_element()? {
                    Some(element) => list.push(element),
                    None => return Ok(list),
                }
            }
            match from.next_element::<IgnoredAny>()? {
                Some(_) => Err(A::Error::invalid_length(MAX + 1, &self)),
                None => Ok(list),
            }
        }
    }

    deserializer.deserialize_seq(List::<T, MAX>(PhantomData))
}

fn too_large(what: &'static str) -> Error {
    Error::new(ErrorKind::TooLarge, format!("{what} is over the limit of {MAX_CONFIG_LEN} bytes"))
}

fn malformed(message: &'static str) -> Error {
    Error::malformed(message)
}
