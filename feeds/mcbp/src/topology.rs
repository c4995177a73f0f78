//! Where to connect to: addresses to begin with; the newest cluster map, and the network from which nodes are reached
//! (protocol, sections 2.4 and 9). Pure: maps come in, addresses go out.

use std::collections::BTreeSet;

use crate::config::{Address, ClusterMap, DEFAULT_PORT, DEFAULT_TLS_PORT, Network};
use crate::error::{Error, Result};

/// Which network's addresses to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetworkChoice {
    /// That in which the address that answered first is a node's.
    #[default]
    Auto,
    /// This one.
    Fixed(Network),
}

/// What became of a map that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It is no newer than the one known.
    Ignored,
    /// It is the newest now.
    Accepted,
    /// It is the newest now, and its bucket is another one of the same name: nothing known of the bucket holds any more.
    Recreated,
}

/// The newest cluster map, and what follows from it.
#[derive(Clone, Debug)]
pub struct Topology {
    choice: NetworkChoice,
    is_tls: bool,
    /// Decided with the first map.
    network: Option<Network>,
    map: Option<ClusterMap>,
    /// The next map counts as newer, whatever its revision.
    is_stale: bool,
}

impl Topology {
    /// Knows nothing yet.
    pub fn new(choice: NetworkChoice, is_tls: bool) -> Self {
        Topology { choice, is_tls, network: None, map: None, is_stale: false }
    }

    /// Takes a map into account that was received from `from`. A map that names no vbuckets yet is ignored: a bucket that was just
    /// created sends one.
    pub fn offer(&mut self, map: ClusterMap, from: &Address) -> Offer {
        let known = self.map.as_ref();
        if map.num_vbuckets() == 0 || (!self.is_stale && known.is_some_and(|known| !is_news(&map, known))) {
            return Offer::Ignored;
        }
        let is_recreated = known.is_some_and(|known| !known.uuid.is_empty() && !map.uuid.is_empty() && known.uuid != map.uuid);
        self.network.get_or_insert_with(|| match &self.choice {
            NetworkChoice::Auto => map.network_of(&from.host, from.port),
            NetworkChoice::Fixed(network) => network.clone(),
        });
        self.map = Some(map);
        self.is_stale = false;
        if is_recreated { Offer::Recreated } else { Offer::Accepted }
    }

    /// Lets the next map count as newer, whatever its revision: all nodes were lost, and revisions may have begun anew.
    pub fn expect_anything(&mut self) {
        self.is_stale = true;
    }

    /// The newest map.
    pub fn map(&self) -> Option<&ClusterMap> {
        self.map.as_ref()
    }

    /// How many vbuckets the bucket has; 0 before the first map.
    pub fn num_vbuckets(&self) -> usize {
        self.map.as_ref().map_or(0, ClusterMap::num_vbuckets)
    }

    /// Where the active copy of a vbucket is; none if no node has it, or if it cannot be reached from this network.
    pub fn owner(&self, vbucket: u16) -> Option<Address> {
        let map = self.map.as_ref()?;
        map.node(map.owner(vbucket)?)?.address(self.network.as_ref()?, self.is_tls)
    }

    /// Where all copies of a vbucket are, the active one first; none for a copy that cannot be reached. A place that no node fills is
    /// left out.
    pub fn copies(&self, vbucket: u16) -> Vec<Option<Address>> {
        let (Some(map), Some(network)) = (&self.map, &self.network) else { return Vec::new() };
        let servers = [map.owner(vbucket)].into_iter().chain(map.replicas(vbucket).iter().copied()).flatten();
        servers.map(|server| map.node(server).and_then(|node| node.address(network, self.is_tls))).collect()
    }

    /// The bucket's nodes that can be reached.
    pub fn nodes(&self) -> BTreeSet<Address> {
        let (Some(map), Some(network)) = (&self.map, &self.network) else { return BTreeSet::new() };
        map.data_nodes(network, self.is_tls).into_iter().filter_map(|(_, address)| address).collect()
    }
}

/// A map without a revision is news only if it says something else.
fn is_news(map: &ClusterMap, known: &ClusterMap) -> bool {
    map.is_newer_than(known.revision) && (map.revision.rev != 0 || map != known)
}

/// Reads `host[:port],host[:port]…`: an IPv6 address stands in brackets. Without a port it is the usual one of the binary protocol.
///
/// # Errors
/// `Invalid`, saying what is wrong and what to write instead.
pub fn parse_seeds(text: &str, is_tls: bool) -> Result<Vec<Address>> {
    let usual = if is_tls { DEFAULT_TLS_PORT } else { DEFAULT_PORT };
    let seeds: Vec<Address> = text.split(',').map(|seed| parse_seed(seed, usual)).collect::<Result<_>>()?;
    match seeds.iter().find(|seed| matches!(seed.port, 8091 | 18091)) {
        Some(seed) => Err(Error::invalid(format!(
            "port {} is that of management; leave the port out, or name that of the binary protocol (usually {usual})",
            seed.port
        ))),
        None => Ok(seeds),
    }
}

/// A record of the DNS that says where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvRecord {
    /// The lowest is wanted most.
    pub priority: u16,
    /// Of the same priority, the highest is wanted most.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The host's name. The root alone says that there is no such service.
    pub target: String,
}

/// The name whose SRV records say where to begin, if there are any (protocol, section 2.4): for one host that is a name, without a
/// port. None for anything else, and for `localhost`, which is no name of the DNS.
pub fn srv_name(hosts: &str, is_tls: bool) -> Option<String> {
    let is_name = !hosts.is_empty() && !hosts.contains([',', ':', '[']) && hosts.parse::<std::net::IpAddr>().is_err();
    let service = if is_tls { "_couchbases" } else { "_couchbase" };
    (is_name && !hosts.eq_ignore_ascii_case("localhost")).then(|| format!("{service}._tcp.{hosts}"))
}

/// Where to begin by these records: those of the lowest priority first, and among them each as often first as its weight says (RFC 2782). Nothing if
/// they say that there is no such service. `random` gives a number from 0 to the one that it is given.
pub fn srv_seeds(mut records: Vec<SrvRecord>, mut random: impl FnMut(u64) -> u64) -> Vec<Address> {
    // Those without weight first: they are taken only where the number is 0.
    records.sort_by(|a, b| (a.priority, a.weight, &a.target, a.port).cmp(&(b.priority, b.weight, &b.target, b.port)));
    for first in 0..records.len() {
        let equal = records[first..].iter().take_while(|record| record.priority == records[first].priority);
        let weights: Vec<u64> = equal.map(|record| u64::from(record.weight)).collect();
        let mut left = random(weights.iter().sum());
        let chosen = weights.iter().position(|weight| {
            let is_it = left <= *weight;
            left = left.saturating_sub(*weight);
            is_it
        });
        records[first..=first + chosen.unwrap_or(0)].rotate_right(1);
    }
    let address = |record: SrvRecord| {
        let host = record.target.strip_suffix('.').unwrap_or(&record.target);
        (!host.is_empty() && record.port != 0).then(|| Address { host: host.to_owned(), port: record.port })
    };
    records.into_iter().filter_map(address).collect()
}

fn parse_seed(seed: &str, usual: u16) -> Result<Address> {
    let wrong = || Error::invalid("an address is host[:port], with an IPv6 address in brackets: [::1]:11210");
    let (host, port) = match seed.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(wrong)?) })
        }
        None => match seed.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (seed, None),
        },
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control() || "\"\\/@?#".contains(c)) {
        return Err(wrong());
    }
    let port = port.map_or(Ok(usual), |port| port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong))?;
    Ok(Address { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(rev: i64, uuid: &str, owners: &[i64]) -> ClusterMap {
        let owners: Vec<_> = owners.iter().map(|owner| vec![*owner, -1]).collect();
        let json = serde_json::json!({
            "rev": rev, "name": "b", "uuid": uuid, "nodeLocator": "vbucket",
            "vBucketServerMap": {"serverList": ["a:11210", "b:11210"], "vBucketMap": owners},
            "nodesExt": [
                {"services": {"kv": 11210, "kvSSL": 11207}, "hostname": "a", "alternateAddresses": {"external": {"hostname": "x.a", "ports": {"kv": 31}}}},
                {"services": {"kv": 11210, "kvSSL": 11207}, "hostname": "b", "alternateAddresses": {"external": {"hostname": "x.b"}}},
            ],
        });
        ClusterMap::parse(json.to_string().as_bytes(), "a").unwrap()
    }

    fn at(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    #[test]
    fn the_newest_map_decides_and_a_new_uuid_is_told() {
        let mut topology = Topology::new(NetworkChoice::Auto, false);
        assert!(topology.nodes().is_empty());
        assert_eq!(topology.offer(map(4, "u", &[]), &at("a", 11210)), Offer::Ignored);
        assert_eq!(topology.offer(map(5, "u", &[0, 1]), &at("a", 11210)), Offer::Accepted);
        assert_eq!(topology.owner(1), Some(at("b", 11210)));
        assert_eq!(topology.offer(map(5, "u", &[0, 0]), &at("a", 11210)), Offer::Ignored);
        assert_eq!(topology.offer(map(6, "u", &[0, -1]), &at("a", 11210)), Offer::Accepted);
        assert_eq!((topology.owner(1), topology.owner(2)), (None, None));
        assert_eq!(topology.offer(map(7, "v", &[0, 1]), &at("a", 11210)), Offer::Recreated);
        assert_eq!(topology.offer(map(2, "v", &[1, 1]), &at("a", 11210)), Offer::Ignored);
        topology.expect_anything();
        assert_eq!(topology.offer(map(2, "v", &[1, 1]), &at("a", 11210)), Offer::Accepted);
        assert!(topology.nodes().into_iter().eq([at("a", 11210), at("b", 11210)]));
        assert_eq!(topology.copies(0), [Some(at("b", 11210))]);
    }

    #[test]
    fn maps_without_revision_are_taken_if_they_say_something_else() {
        let mut topology = Topology::new(NetworkChoice::Auto, false);
        assert_eq!(topology.offer(map(0, "u", &[0, 1]), &at("a", 11210)), Offer::Accepted);
        assert_eq!(topology.offer(map(0, "u", &[0, 1]), &at("a", 11210)), Offer::Ignored);
        assert_eq!(topology.offer(map(0, "u", &[1, 1]), &at("a", 11210)), Offer::Accepted);
    }

    #[test]
    fn the_network_is_that_of_the_address_that_answered() {
        let mut outside = Topology::new(NetworkChoice::Auto, false);
        outside.offer(map(5, "u", &[0, 1]), &at("x.a", 31));
        assert_eq!((outside.owner(0), outside.owner(1)), (Some(at("x.a", 31)), Some(at("x.b", 11210))));
        let mut tls = Topology::new(NetworkChoice::Auto, true);
        tls.offer(map(5, "u", &[0, 1]), &at("x.a", 31));
        assert_eq!((tls.owner(0), tls.owner(1)), (None, Some(at("x.b", 11207))));
        let mut fixed = Topology::new(NetworkChoice::Fixed(Network::Default), false);
        fixed.offer(map(5, "u", &[0, 1]), &at("x.a", 31));
        assert_eq!(fixed.owner(0), Some(at("a", 11210)));
    }

    #[test]
    fn records_are_asked_for_only_where_one_name_says_nothing_more() {
        assert_eq!(srv_name("db.example", false).as_deref(), Some("_couchbase._tcp.db.example"));
        assert_eq!(srv_name("db.example", true).as_deref(), Some("_couchbases._tcp.db.example"));
        for other in ["", "a,b", "a:1", "10.0.0.1", "[::1]", "LocalHost"] {
            assert_eq!(srv_name(other, false), None, "{other}");
        }
    }

    #[test]
    fn the_lowest_priority_comes_first_and_weights_decide_among_equals() {
        let record = |priority, weight, target: &str, port| SrvRecord { priority, weight, port, target: target.to_owned() };
        let records =
            vec![record(2, 9, "c.", 3), record(1, 1, "b.", 2), record(1, 5, "a", 1), record(1, 1, "b.", 1), record(0, 0, ".", 7)];
        assert_eq!(srv_seeds(records.clone(), |_| 0), [at("b", 1), at("b", 2), at("a", 1), at("c", 3)]);
        assert_eq!(srv_seeds(records.clone(), |sum| sum), [at("a", 1), at("b", 2), at("b", 1), at("c", 3)]);
        let mut numbers = [0, 2, 4, 0, 0].into_iter();
        let first = srv_seeds(records.clone(), |_| numbers.next().unwrap());
        assert_eq!(first, [at("b", 2), at("a", 1), at("b", 1), at("c", 3)]);
        let first = |number| srv_seeds(records.clone(), |sum| if sum == 7 { number } else { 0 })[0].clone();
        assert_eq!((0..=7).filter(|number| first(*number) == at("a", 1)).count(), 5, "of eight numbers");
        assert_eq!(srv_seeds(vec![record(0, 0, ".", 0)], |_| 0), []);
    }

    #[test]
    fn seeds_are_hosts_with_or_without_ports() {
        let seeds = parse_seeds("a,b:9,[::1],[fe80::2]:7,10.0.0.1", false).unwrap();
        assert_eq!(seeds, [at("a", 11210), at("b", 9), at("::1", 11210), at("fe80::2", 7), at("10.0.0.1", 11210)]);
        assert_eq!(parse_seeds("a", true).unwrap(), [at("a", 11207)]);
        for wrong in ["", "a,", ":9", "a:", "a:x", "a:0", "a:70000", "[::1", "[::1]9", "[a]:9", "a b", "::1", "a/b"] {
            assert!(parse_seeds(wrong, false).is_err(), "{wrong}");
        }
        assert!(parse_seeds("a:8091", false).unwrap_err().to_string().contains("management"));
    }
}
