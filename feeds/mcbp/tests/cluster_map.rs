//! Cluster maps: which node has a vbucket, and where it is from which network.

use serde_json::{Value, json};
use sluicegate_mcbp::config::{ClusterMap, MAX_CONFIG_LEN, MAX_NODES, Network, Revision, ServerIndex};
use sluicegate_mcbp::{Error, ErrorKind};

fn bucket() -> Value {
    json!({
        "rev": 7, "revEpoch": 2, "name": "b", "uuid": "u", "nodeLocator": "vbucket",
        "bucketCapabilities": ["collections", "durableWrite"],
        "nodes": [{}, {}, {}],
        "vBucketServerMap": {
            "numReplicas": 1,
            "serverList": ["$HOST:11210", "b.example:11210"],
            "vBucketMap": [[0, 1], [1, -1], [-1, 0], [1]],
            "vBucketMapForward": [[1, 0], [1, 0], [0, 1], [0, 1]],
        },
        "nodesExt": [
            {"services": {"kv": 11210, "kvSSL": 11207, "mgmt": 8091, "mgmtSSL": 18091}, "thisNode": true, "nodeUUID": "n0",
             "alternateAddresses": {"external": {"hostname": "1.2.3.4", "ports": {"kv": 30000, "mgmt": 30001}}}},
            {"services": {"n1ql": 8093}, "hostname": "query.example"},
            {"services": {"kv": 11210, "kvSSL": 11207}, "hostname": "b.example", "serverGroup": "zone 2",
             "alternateAddresses": {"external": {"hostname": "5.6.7.8"}}},
            {"services": {"kv": 11210}, "hostname": "joining.example"},
        ],
    })
}

fn parse(map: &Value, host: &str) -> Result<ClusterMap, Error> {
    ClusterMap::parse(map.to_string().as_bytes(), host)
}

fn addresses(map: &ClusterMap, network: &Network, is_tls: bool) -> Vec<Option<String>> {
    map.data_nodes(network, is_tls).into_iter().map(|(_, address)| address.map(|address| address.to_string())).collect()
}

#[test]
fn vbuckets_have_owners_and_replicas() {
    let map = parse(&bucket(), "a.example").unwrap();
    assert_eq!((map.num_vbuckets(), map.num_replicas, map.servers().len()), (4, 1, 2));
    let (first, second) = (Some(ServerIndex(0)), Some(ServerIndex(1)));
    assert_eq!([0, 1, 2, 3, 4].map(|vbucket| map.owner(vbucket)), [first, second, None, second, None]);
    assert_eq!(map.replicas(0), [second]);
    assert_eq!(map.replicas(1), [None]);
    assert!(map.replicas(3).is_empty() && map.replicas(9).is_empty());
    assert_eq!(map.active_vbuckets(ServerIndex(1)).collect::<Vec<_>>(), [1, 3]);
    assert!(map.has_capability("collections") && !map.has_capability("x"));
    // Nodes without data, and nodes that do not serve the bucket yet, are none of its servers.
    assert_eq!(map.node(ServerIndex(1)).unwrap().hostname, "b.example");
    assert!(map.node(ServerIndex(2)).is_none());
    assert!(!map.nodes[3].is_serving);
}

#[test]
fn addresses_follow_network_and_tls() {
    let map = parse(&bucket(), "a.example").unwrap();
    let external = Network::Named("external".to_owned());
    let some = |address: &str| Some(address.to_owned());
    assert_eq!(addresses(&map, &Network::Default, false), [some("a.example:11210"), some("b.example:11210")]);
    assert_eq!(addresses(&map, &Network::Default, true), [some("a.example:11207"), some("b.example:11207")]);
    assert_eq!(addresses(&map, &external, false), [some("1.2.3.4:30000"), some("5.6.7.8:11210")]);
    // Where an alternate address names ports, a service that is not among them cannot be reached.
    assert_eq!(addresses(&map, &external, true), [None, some("5.6.7.8:11207")]);
    assert_eq!(addresses(&map, &Network::Named("other".to_owned()), false), [None, None]);
}

#[test]
fn the_network_is_that_of_the_address_used() {
    let map = parse(&bucket(), "a.example").unwrap();
    let external = Network::Named("external".to_owned());
    for (host, port, network) in [
        ("b.example", 11210, Network::Default),
        ("B.example", 11207, Network::Default),
        ("1.2.3.4", 30000, external.clone()),
        ("1.2.3.4", 11210, Network::Default),
        ("5.6.7.8", 11210, external),
        ("unknown.example", 11210, Network::Default),
    ] {
        assert_eq!(map.network_of(host, port), network, "{host}:{port}");
    }
}

#[test]
fn an_ipv6_host_gets_brackets_where_a_port_follows() {
    for host in ["fd00::1", "[fd00::1]"] {
        let map = parse(&bucket(), host).unwrap();
        assert_eq!(map.nodes[0].hostname, "fd00::1");
        assert_eq!(addresses(&map, &Network::Default, false)[0].as_deref(), Some("[fd00::1]:11210"));
        assert_eq!(map.network_of(host, 11210), Network::Default);
    }
}

#[test]
fn a_map_without_a_list_of_nodes_uses_that_of_the_servers() {
    let mut old = bucket();
    old.as_object_mut().unwrap().retain(|key, _| !["nodes", "nodesExt"].contains(&key.as_str()));
    let map = parse(&old, "fd00::1").unwrap();
    let some = |address: &str| Some(address.to_owned());
    assert_eq!(addresses(&map, &Network::Default, false), [some("[fd00::1]:11210"), some("b.example:11210")]);
    assert_eq!(addresses(&map, &Network::Default, true), [None, None]);
}

#[test]
fn a_newer_epoch_wins_over_any_revision() {
    let revision = |epoch, rev| Revision { epoch, rev };
    let map = parse(&bucket(), "a").unwrap();
    assert_eq!(map.revision, revision(2, 7));
    assert!(map.is_newer_than(revision(1, 100)) && map.is_newer_than(revision(2, 6)));
    assert!(!map.is_newer_than(revision(2, 7)) && !map.is_newer_than(revision(3, 0)));
    let unversioned = parse(&json!({}), "a").unwrap();
    assert!(unversioned.is_newer_than(revision(2, 7)));
    assert_eq!(unversioned.num_vbuckets(), 0);
}

#[test]
fn what_is_no_usable_map_is_refused() {
    let kind = |map: &Value| parse(map, "a").unwrap_err().kind();
    assert_eq!(kind(&json!({"nodeLocator": "ketama"})), ErrorKind::Unsupported);
    assert_eq!(kind(&json!([])), ErrorKind::Malformed);
    assert_eq!(kind(&json!({"vBucketServerMap": {"serverList": ["a:1"], "vBucketMap": [[1]]}})), ErrorKind::Malformed);
    assert_eq!(kind(&json!({"vBucketServerMap": {"serverList": ["a"], "vBucketMap": []}})), ErrorKind::Malformed);
    assert_eq!(ClusterMap::parse(b"{}", "a\"b").unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(ClusterMap::parse(b"\xff", "a").unwrap_err().kind(), ErrorKind::Malformed);
    let huge = vec![b' '; MAX_CONFIG_LEN + 1];
    assert_eq!(ClusterMap::parse(&huge, "a").unwrap_err().kind(), ErrorKind::TooLarge);
}

#[test]
fn a_map_takes_no_more_memory_than_its_text_may_have() {
    let nodes = |count| parse(&json!({"nodesExt": vec![json!({}); count]}), "a");
    assert_eq!(nodes(MAX_NODES).unwrap().nodes.len(), MAX_NODES);
    assert_eq!(nodes(MAX_NODES + 1).unwrap_err().kind(), ErrorKind::Malformed);
    let servers =
        |count| parse(&json!({"vBucketServerMap": {"serverList": vec!["a:1"; count]}}), "a").map(|map| map.servers().len());
    assert_eq!(servers(MAX_NODES).unwrap(), MAX_NODES);
    assert_eq!(servers(MAX_NODES + 1).unwrap_err().kind(), ErrorKind::Malformed);
    let vbuckets =
        |count| parse(&json!({"vBucketServerMap": {"vBucketMap": vec![[-1]; count]}}), "a").map(|map| map.num_vbuckets());
    assert_eq!(vbuckets(1 << 16).unwrap(), 1 << 16);
    assert_eq!(vbuckets((1 << 16) + 1).unwrap_err().kind(), ErrorKind::Malformed);
    // A short text that a long name makes long.
    let names = json!({"name": "$HOST".repeat(MAX_CONFIG_LEN / 100)});
    assert!(parse(&names, "a.example").is_ok());
    assert_eq!(parse(&names, &"a".repeat(200)).unwrap_err().kind(), ErrorKind::TooLarge);
}
