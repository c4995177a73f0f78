//! One host without a port: what the DNS says of it. And addresses of IPv6.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use simple_dns::rdata::{RData, SRV};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};
use sluicegate_core::FeedStart;
use sluicegate_dcp::DcpFeed;
use sluicegate_simulator::certificates::Authority;
use sluicegate_simulator::{Cluster, ClusterConfig, TlsConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use crate::{Follower, cluster, keys, load, write};

/// A name server for one service.
struct NameServer {
    address: SocketAddr,
    says: Arc<Mutex<Says>>,
    asked: Arc<Mutex<Vec<String>>>,
}

/// What it says.
#[derive(Clone)]
enum Says {
    /// Records: priority, port of `localhost`.
    Records(Vec<(u16, u16)>),
    /// There is no such service.
    NoService,
    /// That it went so, and nothing else.
    Only(RCODE),
    /// First that the answer is cut, then over a connection what it is: records as above.
    OverTcp(Vec<(u16, u16)>),
}

async fn name_server(says: Says) -> NameServer {
    // The same port of both protocols.
    let (connections, socket) = loop {
        let connections = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(socket) = UdpSocket::bind(connections.local_addr().unwrap()).await {
            break (connections, socket);
        }
    };
    let address = socket.local_addr().unwrap();
    let (says, asked) = (Arc::new(Mutex::new(says)), Arc::new(Mutex::new(Vec::new())));
    let server = NameServer { address, says: says.clone(), asked: asked.clone() };
    let over_tcp = says.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let answer = answer(&buffer[..len], &says.lock().clone(), &asked, false);
            let _ = socket.send_to(&answer, from).await;
        }
    });
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = connections.accept().await {
            let mut query = vec![0; socket.read_u16().await.unwrap().into()];
            socket.read_exact(&mut query).await.unwrap();
            let answer = answer(&query, &over_tcp.lock().clone(), &Mutex::default(), true);
            socket.write_u16(answer.len() as u16).await.unwrap();
            socket.write_all(&answer).await.unwrap();
        }
    });
    server
}

fn answer(query: &[u8], says: &Says, asked: &Mutex<Vec<String>>, over_tcp: bool) -> Vec<u8> {
    let mut packet = Packet::parse(query).unwrap().into_reply();
    let [question] = &packet.questions[..] else { panic!() };
    assert_eq!(question.qtype, QTYPE::TYPE(TYPE::SRV));
    let name = question.qname.clone();
    asked.lock().push(name.to_string());
    let record = |(priority, port): &(u16, u16), target| {
        let srv = SRV { priority: *priority, weight: 0, port: *port, target: Name::new_unchecked(target) };
        ResourceRecord::new(name.clone(), CLASS::IN, 60, RData::SRV(srv))
    };
    match says {
        Says::OverTcp(_) if !over_tcp => packet.set_flags(PacketFlag::TRUNCATION),
        Says::Records(records) | Says::OverTcp(records) => {
            packet.answers = records.iter().map(|there| record(there, "localhost")).collect();
        }
        Says::NoService => packet.answers = vec![record(&(0, 0), "")],
        Says::Only(rcode) => *packet.rcode_mut() = *rcode,
    }
    packet.build_bytes_vec_compressed().unwrap()
}

impl NameServer {
    fn url(&self, scheme: &str, options: &str) -> String {
        format!("{scheme}://db.invalid/default?user=Administrator&password=password&dns={}&{options}", self.address)
    }
}

fn ports(cluster: &Cluster) -> Vec<(u16, u16)> {
    cluster.addresses().iter().map(|address| (1, address.port())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_say_where_to_begin_and_the_most_wanted_is_tried_first() {
    let cluster = cluster(16, 100).await;
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let server = name_server(Says::Records([vec![(0, gone)], ports(&cluster)].concat())).await;
    let mut follower = Follower::open_url(&server.url("dcp", ""), FeedStart::Beginning).await;
    follower.catch_up().await;
    follower.has_exactly(keys("document-", 100));
    assert!(server.asked.lock().iter().all(|name| name == "_couchbase._tcp.db.invalid"), "{:?}", server.asked.lock());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_the_service_with_tls_are_others() {
    let authority = Authority::new("test").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let mut config = ClusterConfig::default();
    (config.vbuckets, config.tls) = (16, Some(TlsConfig::new(authority.server(&["localhost", "127.0.0.1"]).unwrap())));
    let cluster = Cluster::start(config).await.unwrap();
    load(&cluster, "document-", 50);
    let server = name_server(Says::Records(vec![(1, cluster.tls_addresses()[0].port())])).await;
    let mut follower = Follower::open_url(&server.url("dcps", &format!("ca={}", ca.display())), FeedStart::Beginning).await;
    follower.catch_up().await;
    follower.has_exactly(keys("document-", 50));
    assert_eq!(server.asked.lock()[0], "_couchbases._tcp.db.invalid");
}

#[tokio::test]
async fn without_records_the_host_is_taken_as_it_is_named() {
    let server = name_server(Says::Only(RCODE::NameError)).await;
    let options = "connect_timeout_ms=2000";
    let error = DcpFeed::connect(&server.url("dcp", options)).await.unwrap_err().to_string();
    assert!(error.contains("db.invalid:11210") && !error.contains("SRV"), "{error}");
    for (says, expected) in [(Says::NoService, "there is no such service"), (Says::Only(RCODE::Refused), "answers Refused")] {
        *server.says.lock() = says;
        let error = DcpFeed::connect(&server.url("dcp", options)).await.unwrap_err().to_string();
        assert!(error.contains("db.invalid:11210"), "{error}");
        assert!(error.contains("SRV records of _couchbase._tcp.db.invalid") && error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_asked_for_over_a_connection() {
    let cluster = cluster(16, 10).await;
    let server = name_server(Says::OverTcp(ports(&cluster))).await;
    DcpFeed::connect(&server.url("dcp", "")).await.unwrap();
}

#[tokio::test]
async fn nothing_is_asked_where_the_url_says_more() {
    let cluster = cluster(16, 10).await;
    let server = name_server(Says::Only(RCODE::Refused)).await;
    let url = crate::follower::url(&cluster, &format!("dns={}", server.address));
    DcpFeed::connect(&url).await.unwrap();
    assert!(server.asked.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_nodes_are_lost_the_records_are_asked_for_again() {
    let old = cluster(16, 100).await;
    let server = name_server(Says::Records(ports(&old))).await;
    let mut follower = Follower::open_url(&server.url("dcp", ""), FeedStart::Beginning).await;
    follower.catch_up().await;
    let mut config = ClusterConfig::default();
    (config.nodes, config.vbuckets, config.seed) = (2, 16, 77);
    let new = Cluster::start(config).await.unwrap();
    load(&new, "moved-", 50);
    *server.says.lock() = Says::Records(ports(&new));
    drop(old);
    follower.has(keys("moved-", 50)).await;
    follower.has_exactly(keys("moved-", 50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_may_be_of_ipv6() {
    if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("this machine has no ::1, so nothing is tested");
        return;
    }
    let authority = Authority::new("test").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let mut config = ClusterConfig::default();
    (config.nodes, config.vbuckets, config.host) = (2, 16, Ipv6Addr::LOCALHOST.into());
    config.tls = Some(TlsConfig::new(authority.server(&["::1"]).unwrap()));
    let cluster = Cluster::start(config).await.unwrap();
    load(&cluster, "document-", 100);
    let plain = crate::follower::url(&cluster, "");
    let tls = cluster.tls_connection_string().replace("couchbases:", "dcps:");
    let tls = format!("{tls}/default?user=Administrator&password=password&ca={}", ca.display());
    assert!(plain.starts_with("dcp://[::1]:"), "{plain}");
    for (round, url) in [plain, tls].into_iter().enumerate() {
        let mut follower = Follower::open_url(&url, FeedStart::Beginning).await;
        follower.catch_up().await;
        let prefix = format!("new{round}-");
        write(&cluster, &prefix, 20);
        follower.has(keys(&prefix, 20)).await;
        let status = follower.feed.status();
        assert!(status.vbuckets.iter().all(|vbucket| vbucket.node.as_ref().is_some_and(|node| node.starts_with("[::1]:"))));
    }
}
