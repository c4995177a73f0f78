//! What comes before streams: authentication, features, cluster maps, documents, bad input.

mod common;

use bytes::Bytes;
use common::{Client, Options, login, plain_value, session, small};
use sluicegate_mcbp::client::{Fault, Login};
use sluicegate_mcbp::config::{ClusterMap, Network};
use sluicegate_mcbp::dcp::{GetAllVbSeqnos, ObserveSeqno, ObservedSeqno, OpenFlags, VbucketState};
use sluicegate_mcbp::errormap::ErrorMap;
use sluicegate_mcbp::hello::{Feature, Features, GetClusterConfig, GetErrorMap, Hello};
use sluicegate_mcbp::sasl::{Mechanism, Password};
use sluicegate_mcbp::{Command, Empty, Parts, Reply, Request, Status, kv};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const BASE: [Feature; 3] = [Feature::Xerror, Feature::SelectBucket, Feature::Json];

fn set(key: &'static str, value: &'static str) -> Command {
    Command::Set(kv::Store { flags: 7, expiry: 0, key: key.into(), value: value.into() })
}

fn get(key: &'static str) -> Command {
    Command::Get(kv::Key { key: key.into() })
}

#[tokio::test]
async fn only_the_right_password_opens() {
    for mechanism in Mechanism::ALL {
        let cluster = small(|config| config.mechanisms = vec![mechanism]).await;
        let refused = async |login| session(&cluster, 0, login, &BASE).await.unwrap_err().fault();
        assert_eq!(refused(login("wrong")).await, Fault::Authentication, "{mechanism}");
        let nobody = Login::Password { user: "nobody".to_owned(), password: Password::new("password"), allow_plain: true };
        assert_eq!(refused(nobody).await, Fault::Authentication, "{mechanism}");
        let mut client = Client::connect(&cluster, 0).await;
        assert_eq!(client.ask(Command::GetClusterConfig(GetClusterConfig::default())).await.status, Status::AccessDenied);
        let mut client = Client::ready(&cluster, 0, &[]).await;
        assert_eq!(client.ask(get("a")).await.status, Status::NoBucket);
        let bucket = |name: &'static str| Command::SelectBucket(kv::Key { key: name.into() });
        assert_eq!(client.ask(bucket("other")).await.status, Status::AccessDenied);
        assert_eq!(client.ask(bucket("default")).await.status, Status::Success);
    }
    let cluster = small(|_| ()).await;
    let mut client = Client::connect(&cluster, 0).await;
    let mechanisms = plain_value(client.ask(Command::SaslListMechs(Empty {})).await);
    assert_eq!(&mechanisms[..], b"SCRAM-SHA512 SCRAM-SHA256 SCRAM-SHA1 PLAIN");
}

#[tokio::test]
async fn features_are_granted_as_they_are_asked_for() {
    let cluster = small(|_| ()).await;
    let mut client = Client::connect(&cluster, 0).await;
    let hello = |features: &[Feature]| Command::Hello(Hello { agent: "t".into(), features: Features(features.to_vec()) });
    let response = client.ask(hello(&[Feature::Snappy, Feature::UnorderedExecution, Feature::Other(0x7777)])).await;
    let Reply::Hello(granted) = response.reply else { panic!() };
    assert_eq!(granted.features.0, [Feature::Snappy]);
    assert_eq!(client.ask(hello(&[Feature::ClusterMapNotification])).await.status, Status::InvalidArguments);
    let map = plain_value(client.ask(Command::GetErrorMap(GetErrorMap { max_version: 2 })).await);
    assert!(ErrorMap::parse(&map).unwrap().errors.contains_key(&7));
}

#[tokio::test]
async fn a_map_names_all_nodes_and_the_wrong_one_sends_it() {
    let cluster = small(|config| (config.nodes, config.vbuckets, config.replicas) = (3, 12, 1)).await;
    let mut client = Client::ready(&cluster, 1, &BASE).await;
    let json = plain_value(client.ask(Command::GetClusterConfig(GetClusterConfig::default())).await);
    let map = ClusterMap::parse(&json, "127.0.0.1").unwrap();
    let ports: Vec<u16> = map.data_nodes(&Network::Default, false).iter().map(|(_, at)| at.as_ref().unwrap().port).collect();
    assert_eq!(ports, cluster.addresses().iter().map(|address| address.port()).collect::<Vec<_>>());
    assert_eq!((map.num_vbuckets(), map.num_replicas, map.name.as_str()), (12, 1, "default"));
    for vbucket in 0..12 {
        assert_eq!(map.owner(vbucket).map(|server| server.0), cluster.owner(vbucket));
        assert_eq!(map.replicas(vbucket)[0].unwrap().0, (cluster.owner(vbucket).unwrap() + 1) % 3);
    }
    let known = Command::GetClusterConfig(GetClusterConfig { known: Some(map.revision) });
    assert!(plain_value(client.ask(known).await).is_empty());
    let refused = client.ask_vbucket(0, set("a", "1")).await;
    assert_eq!(refused.status, Status::NotMyVbucket);
    assert_eq!(ClusterMap::parse(&plain_value(refused), "127.0.0.1").unwrap(), map);
}

#[tokio::test]
async fn documents_are_written_and_read() {
    let cluster = small(|_| ()).await;
    let mut features = BASE.to_vec();
    features.push(Feature::MutationSeqno);
    let mut client = Client::ready(&cluster, 0, &features).await;
    let stored = client.ask_vbucket(2, set("a", r#"{"a":1}"#)).await;
    let Reply::Stored(kv::Stored { written: Some(written) }) = stored.reply else { panic!() };
    assert_eq!((written.seqno, written.vbucket_uuid), (1, cluster.failover_log(2).newest().unwrap().vbucket_uuid));
    let read = client.ask_vbucket(2, get("a")).await;
    assert_eq!((read.cas, read.datatype.0), (stored.cas, 1));
    let Reply::Document(document) = read.reply else { panic!() };
    assert_eq!((document.flags, &document.value[..]), (7, &br#"{"a":1}"#[..]));
    assert_eq!(client.ask_vbucket(2, get("b")).await.status, Status::KeyNotFound);
    let stale = Request::new(set("a", "2")).with_vbucket(2).with_cas(1);
    assert_eq!(client.request(stale).await.status, Status::KeyExists);
    let count = kv::Count { delta: 3, initial: 10, expiry: 0, key: "n".into() };
    for expected in [10, 13] {
        let Reply::Counter(counter) = client.ask(Command::Increment(count.clone())).await.reply else { panic!() };
        assert_eq!(counter.value, expected);
    }
    let append = kv::Extend { key: "a".into(), value: "!".into() };
    assert_eq!(client.ask_vbucket(2, Command::Append(append)).await.status, Status::Success);
    let touch = kv::Touch { expiry: 60, key: "a".into() };
    assert_eq!(client.ask_vbucket(2, Command::Touch(touch)).await.status, Status::Success);
    assert_eq!(cluster.advance_clock(60), 1);
    assert_eq!(client.ask_vbucket(2, get("a")).await.status, Status::KeyNotFound);
    let delete = || Command::Delete(kv::Key { key: "n".into() });
    assert_eq!(client.ask(delete()).await.status, Status::Success);
    assert_eq!(client.ask(delete()).await.status, Status::KeyNotFound);
    let version = plain_value(client.ask(Command::Version(Empty {})).await);
    assert!(version.starts_with(b"7."));
    let unknown = Parts::from_value(sluicegate_mcbp::Opcode::Other(0xee), Bytes::new());
    assert_eq!(client.ask(Command::Unknown(unknown)).await.status, Status::UnknownCommand);
}

#[tokio::test]
async fn positions_of_all_copies_can_be_asked_for() {
    let cluster = small(|config| config.nodes = 2).await;
    let owner = cluster.owner(0).unwrap();
    let (mut active, mut replica) =
        (Client::ready(&cluster, owner, &BASE).await, Client::ready(&cluster, 1 - owner, &BASE).await);
    cluster.hold_persistence(0, owner, true);
    let uuid = cluster.failover_log(0).newest().unwrap().vbucket_uuid;
    active.ask_vbucket(0, set("a", "1")).await;
    let observe = |vbucket_uuid| Command::ObserveSeqno(ObserveSeqno { vbucket_uuid });
    let expected = ObservedSeqno { vbucket: 0, vbucket_uuid: uuid, persisted: 0, current: 1, failed_over: None };
    assert_eq!(active.ask_vbucket(0, observe(uuid)).await.reply, Reply::ObservedSeqno(expected));
    let expected = ObservedSeqno { persisted: 1, ..expected };
    assert_eq!(replica.ask_vbucket(0, observe(uuid)).await.reply, Reply::ObservedSeqno(expected));
    assert_eq!(active.ask_vbucket(0, observe(uuid + 1)).await.status, Status::KeyNotFound);
    cluster.fail_over_vbucket(0, 0);
    let newest = cluster.failover_log(0).newest().unwrap().vbucket_uuid;
    let expected = ObservedSeqno { vbucket_uuid: newest, persisted: 0, current: 0, failed_over: Some((uuid, 0)), vbucket: 0 };
    assert_eq!(active.ask_vbucket(0, observe(uuid)).await.reply, Reply::ObservedSeqno(expected));
    active.ask_vbucket(0, set("a", "1")).await;
    for (state, count) in [(Some(VbucketState::Active), 2), (Some(VbucketState::Replica), 2), (None, 4)] {
        let all = Command::GetAllVbSeqnos(GetAllVbSeqnos { state, collection: None });
        let Reply::VbSeqnos(seqnos) = active.ask(all).await.reply else { panic!() };
        assert_eq!(seqnos.seqnos.0.len(), count);
        assert_eq!(seqnos.seqnos.0.contains(&(0, 1)), state != Some(VbucketState::Replica));
    }
}

#[tokio::test]
async fn bad_input_closes_its_own_connection_only() {
    let cluster = small(|_| ()).await;
    let mut good = Client::ready(&cluster, 0, &BASE).await;
    // No frame; a body that is too large for a stranger; extras longer than the body.
    let mut large = [0_u8; 24];
    (large[0], large[1], large[8]) = (0x80, 0x01, 0x01);
    let mut contradiction = [0_u8; 24];
    (contradiction[0], contradiction[4]) = (0x80, 8);
    for bytes in [[0xff; 24], large, contradiction] {
        let mut socket = TcpStream::connect(cluster.addresses()[0]).await.unwrap();
        socket.write_all(&bytes).await.unwrap();
        assert!(matches!(socket.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    }
    // A frame whose content is wrong is answered.
    let mut client = Client::ready(&cluster, 0, &BASE).await;
    let no_extras = Parts::from_slices(sluicegate_mcbp::Opcode::Set, &[], b"key", b"value").unwrap();
    let refused = client.ask(Command::Unknown(no_extras)).await;
    assert_eq!(refused.status, Status::InvalidArguments);
    assert!(String::from_utf8_lossy(&plain_value(refused)).contains("context"));
    client.round_trip().await;
    good.round_trip().await;
}

#[tokio::test]
async fn a_dcp_connection_is_opened_once_with_flags_that_exist() {
    let cluster = small(|_| ()).await;
    let mut client = Client::ready(&cluster, 0, &BASE).await;
    for flags in [0x003, 0x1001, 0x049, 0x101, 0x201, 0] {
        assert_eq!(client.open("x", OpenFlags(flags)).await, Status::InvalidArguments, "{flags:#x}");
    }
    assert_eq!(client.open("", OpenFlags::PRODUCER).await, Status::InvalidArguments);
    assert_eq!(client.open("x", OpenFlags::PRODUCER).await, Status::Success);
    client.send(&Request::new(Command::Noop(Empty {}))).await;
    let open = sluicegate_mcbp::dcp::Open { reserved: 0, flags: OpenFlags::PRODUCER, name: "x".into(), value: Bytes::new() };
    client.send(&Request::new(Command::DcpOpen(open))).await;
    assert!(client.is_closed().await);
    let mut client = Client::ready(&cluster, 0, &BASE).await;
    client.send(&Request::new(Command::DcpGetFailoverLog(Empty {}))).await;
    assert!(client.is_closed().await, "it was not opened");
}

#[tokio::test]
async fn the_newer_of_two_connections_of_one_name_stays() {
    let cluster = small(|_| ()).await;
    let mut older = Client::dcp(&cluster, 0, &Options::default()).await;
    let mut newer = Client::dcp(&cluster, 0, &Options::default()).await;
    assert!(older.is_closed().await);
    newer.round_trip().await;
}

#[tokio::test]
async fn options_are_taken_as_a_server_takes_them() {
    let cluster = small(|_| ()).await;
    let mut client = Client::dcp(&cluster, 0, &Options::default()).await;
    use Status::{InvalidArguments as Invalid, NotSupported, Success};
    for (name, value, status) in [
        ("connection_buffer_size", "65536", Success),
        ("connection_buffer_size", "many", Invalid),
        ("stream_buffer_size", "1", NotSupported),
        ("enable_noop", "true", Success),
        ("set_noop_interval", "120", Success),
        ("set_noop_interval", "-1", Invalid),
        ("set_priority", "high", Success),
        ("set_priority", "highest", Invalid),
        ("enable_ext_metadata", "true", Invalid),
        ("force_value_compression", "true", Invalid),
        ("enable_expiry_opcode", "true", Success),
        ("include_deleted_user_xattrs", "true", Invalid),
        ("max_marker_version", "2.2", NotSupported),
        ("change_streams", "true", NotSupported),
        ("enable_stream_id", "true", Success),
        ("enable_sync_writes", "true", NotSupported),
        ("no such option", "true", Invalid),
    ] {
        assert_eq!(client.control(name, value).await, status, "{name}={value}");
    }
}
