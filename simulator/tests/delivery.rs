//! How streams are delivered: flow control, no-ops, collections, compression, attributes.

mod common;

use bytes::Bytes;
use common::{Client, Options, briefs, from, is_noop, small};
use sluicegate_mcbp::dcp::{Change, MarkerFlags, OpenFlags, StreamFilter, StreamFlags, StreamRequest};
use sluicegate_mcbp::hello::Feature;
use sluicegate_mcbp::value::{Attribute, compress, decompress, join_attributes};
use sluicegate_mcbp::{Command, Datatype, Empty, Message, Opcode, Parts, Reply, Request, Response, Status};
use sluicegate_simulator::{Content, EndReason, Liveness, Load};

fn filtered(filter: &StreamFilter, end: u64) -> StreamRequest {
    StreamRequest { filter: filter.encode().unwrap(), ..from(0, 0, end) }
}

fn collections(collections: &[u32]) -> StreamFilter {
    StreamFilter { collections: collections.to_vec(), ..StreamFilter::default() }
}

#[tokio::test]
async fn sending_stops_at_the_window_and_goes_on_after_an_acknowledgement() {
    let cluster = small(|config| config.vbuckets = 1).await;
    let mut load = Load::default();
    (load.documents, load.value_len) = (50, 100);
    cluster.load(&load).unwrap();
    let mut client = Client::dcp(&cluster, 0, &Options::default().control("connection_buffer_size", "1000")).await;
    client.stream(0, 50).await;
    let (mut received, mut outstanding, mut rounds) = (0, 0, 0);
    while received < 52 {
        // The first answer may be before what an acknowledgement has set free, the second is after it.
        client.round_trip().await;
        client.round_trip().await;
        assert!(!client.pending.is_empty(), "it must go on");
        let arrived: Vec<usize> = client.pending.drain(..).map(|(_, counted)| counted).collect();
        let last = arrived[arrived.len() - 1];
        outstanding += arrived.iter().sum::<usize>();
        received += arrived.len();
        assert!(outstanding - last < 1000, "it sends only while less than the window is outstanding");
        if received < 52 {
            assert!(outstanding >= 1000, "it sends as long as that is so");
            client.round_trip().await;
            assert!(client.pending.is_empty(), "nothing is sent at the window");
        }
        client.acknowledge(outstanding).await;
        (outstanding, rounds) = (0, rounds + 1);
    }
    assert!(rounds > 5);
}

#[tokio::test]
async fn a_client_that_does_not_answer_no_ops_is_closed() {
    let cluster = small(|config| config.liveness = Liveness::NextNoop).await;
    let options = Options::default().control("enable_noop", "true").control("set_noop_interval", "0.05");
    let mut client = Client::dcp(&cluster, 0, &options).await;
    client.stream(0, u64::MAX).await;
    let (noop, counted) = client.next().await.unwrap();
    assert!(is_noop(&noop) && counted == 0 && noop.opaque > 10_000_000);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_client_that_is_silent_for_too_long_is_closed() {
    let cluster = small(|config| config.liveness = Liveness::Idle(std::time::Duration::from_millis(100))).await;
    let mut client = Client::dcp(&cluster, 0, &Options::default().control("enable_noop", "true")).await;
    client.stream(0, u64::MAX).await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn wrong_responses_close_the_connection() {
    let cluster = small(|_| ()).await;
    for opcode in [Opcode::DcpNoop, Opcode::DcpSeqnoAdvanced] {
        let mut client = Client::dcp(&cluster, 0, &Options::default()).await;
        let request = Request::new(Command::Unknown(Parts::from_value(opcode, Bytes::new())));
        client.writer.push_message(&Message::Response(Response::bare(&request, Status::Success))).unwrap();
        client.writer.flush().await.unwrap();
        assert!(client.is_closed().await, "{opcode:?}");
    }
}

#[tokio::test]
async fn streams_are_limited_to_collections_or_a_scope() {
    let cluster = small(|config| config.vbuckets = 1).await;
    let scope = cluster.create_scope("s").unwrap();
    let first = cluster.create_collection("s", "first", None).unwrap();
    let second = cluster.create_collection("s", "second", None).unwrap();
    let content = |value: &'static str| Content { value: value.into(), ..Content::default() };
    cluster.write(first, "a", content("1")).unwrap();
    cluster.write(second, "b", content("2")).unwrap();
    cluster.set("c", "3").unwrap();
    let options = Options::with_collections();
    let of = |filter: StreamRequest| {
        let (cluster, options) = (&cluster, &options);
        async move {
            let mut client = Client::dcp(cluster, 0, options).await;
            client.stream_request(0, filter).await.unwrap();
            briefs(&client.until_end().await)
        }
    };
    let all = [
        "[1..6 5]",
        "CreateScope s@1",
        "BeginCollection first@2",
        "BeginCollection second@3",
        "\ta=1@4",
        "\nb=2@5",
        "\0c=3@6",
        "end Ok",
    ];
    assert_eq!(of(from(0, 0, 6)).await, all);
    let one = ["[1..6 5]", "BeginCollection first@2", "\ta=1@4", ">6", "end Ok"];
    assert_eq!(of(filtered(&collections(&[first]), 6)).await, one);
    let scoped = StreamFilter { scope: Some(scope), ..StreamFilter::default() };
    assert_eq!(of(filtered(&scoped, 6)).await, [&all[..6], &[">6", "end Ok"]].concat());
    let mut without = Client::dcp(&cluster, 0, &Options { name: "other", ..Options::default() }).await;
    without.stream(0, 6).await;
    assert_eq!(briefs(&without.until_end().await), ["[1..6 5]", "c=3@6", "end Ok"]);

    let mut client = Client::dcp(&cluster, 0, &options).await;
    let unknown = client.stream_request(0, filtered(&collections(&[77]), 6)).await.unwrap_err();
    let (Status::UnknownCollection, Reply::Failed(parts)) = unknown else { panic!("{unknown:?}") };
    assert_eq!(&parts.value()[..], br#"{"manifest_uid":"3"}"#);
    let no_scope = StreamFilter { scope: Some(77), ..StreamFilter::default() };
    assert_eq!(client.stream_request(0, filtered(&no_scope, 6)).await.unwrap_err().0, Status::UnknownScope);
    let garbage = StreamRequest { filter: "{}".into(), ..from(0, 0, 6) };
    assert_eq!(client.stream_request(0, garbage).await.unwrap_err().0, Status::InvalidArguments);
    client.stream_request(0, filtered(&collections(&[first]), u64::MAX)).await.unwrap();
    for _ in 0..4 {
        client.event().await;
    }
    cluster.drop_collection(first);
    assert_eq!(briefs(&client.until_end().await), ["[7..7 5]", "EndCollection @7", "end FilterEmpty"]);
}

#[tokio::test]
async fn changes_of_collections_are_told_in_both_forms() {
    let cluster = small(|config| config.vbuckets = 1).await;
    let scope = cluster.create_scope("s").unwrap();
    let collection = cluster.create_collection("s", "c", Some(60)).unwrap();
    assert!(cluster.modify_collection(collection, None));
    cluster.drop_scope(scope);
    let created = Change::ScopeCreated { manifest_uid: 1, scope };
    let begun = Change::CollectionCreated { manifest_uid: 2, scope, collection, max_ttl: Some(60) };
    let modified = Change::CollectionModified { manifest_uid: 3, scope, collection, max_ttl: None };
    let ended = Change::CollectionDropped { manifest_uid: 4, scope, collection };
    let dropped = Change::ScopeDropped { manifest_uid: 5, scope };
    let numbers = Options::with_collections();
    let flat = numbers.clone().control("flatbuffers_system_events", "true");
    for (options, expected) in [
        (numbers, vec![(0, created), (1, begun), (0, ended), (0, dropped)]),
        (flat, vec![(2, created), (2, begun), (2, modified), (2, ended), (2, dropped)]),
    ] {
        let mut client = Client::dcp(&cluster, 0, &options).await;
        client.stream(0, 5).await;
        let events = client.until_end().await;
        let told = events.iter().filter_map(|event| match event {
            Command::DcpSystemEvent(event) => Some((event.version, event.change().unwrap().unwrap())),
            _ => None,
        });
        assert_eq!(told.collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn stream_requests_are_checked_in_the_servers_order() {
    let cluster = small(|config| config.nodes = 2).await;
    let owner = cluster.owner(0).unwrap();
    let mut options = Options::with_collections();
    options.controls.clear();
    let mut client = Client::dcp(&cluster, owner, &options).await;
    let bad_range = StreamRequest { snapshot_end: 4, ..from(5, 0, 9) };
    let mut refused = async |vbucket, request| client.stream_request(vbucket, request).await.unwrap_err().0;
    assert_eq!(refused(9, bad_range.clone()).await, Status::NotMyVbucket, "there is none");
    assert_eq!(refused(3, bad_range.clone()).await, Status::NotMyVbucket, "it is a replica");
    assert_eq!(refused(0, bad_range.clone()).await, Status::NotSupported, "no-ops are missing");
    let unknown_flag = StreamRequest { flags: StreamFlags(0x400), ..from(0, 0, 9) };
    assert_eq!(refused(0, unknown_flag).await, Status::InvalidArguments);
    assert_eq!(client.control("enable_noop", "true").await, Status::Success);
    let mut refused = async |request| client.stream_request(0, request).await.unwrap_err().0;
    assert_eq!(refused(bad_range).await, Status::Range);
    assert_eq!(refused(from(5, 0, 4)).await, Status::Range);
    assert_eq!(refused(from(5, 99, 9)).await, Status::Rollback);
    let ahead = StreamFilter { manifest_uid: Some(1), ..StreamFilter::default() };
    assert_eq!(refused(filtered(&ahead, 9)).await, Status::ManifestAhead);
    let sid = StreamFilter { stream_id: Some(1), ..StreamFilter::default() };
    assert_eq!(refused(filtered(&sid, 9)).await, Status::DcpStreamIdInvalid);
}

#[tokio::test]
async fn a_vbucket_has_several_streams_if_they_have_ids() {
    let cluster = small(|config| config.vbuckets = 1).await;
    cluster.set("a", "1").unwrap();
    let mut client = Client::dcp(&cluster, 0, &Options::with_collections().control("enable_stream_id", "true")).await;
    assert_eq!(client.stream_request(0, from(0, 0, 9)).await.unwrap_err().0, Status::DcpStreamIdInvalid);
    for id in [3, 4] {
        let filter = StreamFilter { stream_id: Some(id), ..StreamFilter::default() };
        client.stream_request(0, filtered(&filter, 1)).await.unwrap();
        for expected in ["[1..1 5]", "\0a=1@1", "end Ok"] {
            let (message, _) = client.next().await.unwrap();
            assert_eq!((message.stream_id().unwrap(), common::brief(&message.command).as_str()), (Some(id), expected));
        }
    }
}

#[tokio::test]
async fn one_collection_from_the_start_may_come_in_the_order_of_keys() {
    let cluster = small(|config| config.vbuckets = 1).await;
    for key in ["c", "a", "b"] {
        cluster.set(key, "1").unwrap();
    }
    cluster.evict();
    for (mode, advanced) in [("true", false), ("true_with_seqno_advanced", true)] {
        let options = Options::with_collections().control("enable_out_of_order_snapshots", mode);
        let mut client = Client::dcp(&cluster, 0, &options).await;
        client.stream_request(0, filtered(&collections(&[0]), 3)).await.unwrap();
        let mut expected = vec!["oso Start", "\0a=1@2", "\0b=1@3", "\0c=1@1", ">3", "oso End", "end Ok"];
        if !advanced {
            expected.remove(4);
        }
        assert_eq!(briefs(&client.until_end().await), expected);
    }
}

#[tokio::test]
async fn all_changes_are_sent_to_who_asks_if_the_bucket_keeps_them() {
    let options = || Options::with_collections().control("change_streams", "true");
    let cluster = small(|config| (config.vbuckets, config.retains_history) = (1, true)).await;
    for (key, value) in [("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")] {
        cluster.set(key, value).unwrap();
    }
    for evicted in [false, true] {
        for (options, expected) in [
            (options(), vec!["\0a=1@1", "\0b=2@2", "\0a=3@3", "\0a=4@4", "end Ok"]),
            (Options::with_collections(), vec!["\0b=2@2", "\0a=4@4", "end Ok"]),
        ] {
            let has_history = expected.len() > 3;
            let mut client = Client::dcp(&cluster, 0, &options).await;
            client.stream(0, 4).await;
            let (first, _) = client.next().await.unwrap();
            let Command::DcpSnapshotMarker(marker) = first.command else { panic!("{first:?}") };
            let all = MarkerFlags::HISTORY | MarkerFlags::DUPLICATE_KEYS;
            assert_eq!((marker.flags.contains(all), marker.flags.contains(MarkerFlags::DISK)), (has_history, evicted));
            assert_eq!(briefs(&client.until_end().await), expected);
        }
        cluster.evict();
    }
    let without = small(|_| ()).await;
    let mut client = Client::dcp(&without, 0, &Options::with_collections()).await;
    assert_eq!(client.control("change_streams", "true").await, Status::NotSupported);
}

#[tokio::test]
async fn values_are_compressed_as_agreed() {
    let cluster = small(|config| config.vbuckets = 1).await;
    let text: &'static str = Box::leak("abcdefgh".repeat(100).into_boxed_str());
    cluster.set("plain", text).unwrap();
    let stored = Content { value: compress(text.as_bytes()).unwrap(), datatype: Datatype::SNAPPY, ..Content::default() };
    cluster.write(0, "stored", stored).unwrap();
    let mut snappy = Options::default();
    snappy.features.push(Feature::Snappy);
    let forced = snappy.clone().control("force_value_compression", "true");
    for (options, expected) in [(Options::default(), [false, false]), (snappy, [false, true]), (forced, [true, true])] {
        let mut client = Client::dcp(&cluster, 0, &options).await;
        client.stream(0, 2).await;
        client.event().await;
        for is_compressed in expected {
            let (message, _) = client.next().await.unwrap();
            assert_eq!(message.datatype.contains(Datatype::SNAPPY), is_compressed);
            let Command::DcpMutation(mutation) = message.command else { panic!() };
            assert_eq!(mutation.value.len() < text.len(), is_compressed);
            assert_eq!(decompress(mutation.value, message.datatype, 1 << 20).unwrap().0, text.as_bytes());
        }
    }
}

#[tokio::test]
async fn attributes_and_bodies_are_sent_as_the_flags_say() {
    let cluster = small(|config| config.vbuckets = 1).await;
    let attributes = [Attribute { name: "_sync".into(), value: "{}".into() }];
    let value = join_attributes(&attributes, b"{}").unwrap();
    let datatype = Datatype::XATTR | Datatype::JSON;
    cluster.write(0, "a", Content { value: value.clone(), datatype, ..Content::default() }).unwrap();
    let only_attributes = join_attributes(&attributes, &[]).unwrap();
    for (flags, expected, expected_datatype) in [
        (0x000, Bytes::from("{}"), Datatype::JSON),
        (0x004, value, datatype),
        (0x008, Bytes::new(), Datatype(0)),
        (0x00c, only_attributes.clone(), Datatype::XATTR),
        (0x044, only_attributes, datatype),
        (0x040, Bytes::new(), Datatype::JSON),
    ] {
        let options = Options { flags: OpenFlags(1 | flags), ..Options::default() }.control("enable_noop", "true");
        let mut client = Client::dcp(&cluster, 0, &options).await;
        client.stream(0, 1).await;
        client.event().await;
        let (message, _) = client.next().await.unwrap();
        assert_eq!(message.datatype, expected_datatype, "{flags:#x}");
        let Command::DcpMutation(mutation) = message.command else { panic!() };
        assert_eq!(mutation.value, expected, "{flags:#x}");
    }
}

#[tokio::test]
async fn expirations_are_told_as_such_only_if_both_options_are_set() {
    let cluster = small(|config| config.vbuckets = 1).await;
    cluster.write(0, "a", Content { value: "1".into(), expiry: 10, ..Content::default() }).unwrap();
    cluster.advance_clock(10);
    let times = OpenFlags::PRODUCER | OpenFlags::INCLUDE_DELETE_TIMES;
    for (flags, opcode, has_time) in [(OpenFlags::PRODUCER, "-a@2", false), (times, "~a@2", true)] {
        let options = Options { flags, ..Options::default() }.control("enable_expiry_opcode", "true");
        let mut client = Client::dcp(&cluster, 0, &options).await;
        client.stream(0, 2).await;
        let events = client.until_end().await;
        assert_eq!(briefs(&events), ["[1..2 5]", opcode, "end Ok"]);
        let (Command::DcpDeletion(removal) | Command::DcpExpiration(removal)) = &events[1] else { panic!() };
        assert_eq!(removal.delete_time.is_some_and(|time| time > 0), has_time);
    }
}

#[tokio::test]
async fn markers_have_the_version_asked_for() {
    let cluster = small(|config| config.vbuckets = 1).await;
    cluster.set("a", "1").unwrap();
    cluster.purge(0, 1);
    for (version, purge) in [("1.0", None), ("2.0", None), ("2.2", Some(1))] {
        let mut client = Client::dcp(&cluster, 0, &Options::with_collections().control("max_marker_version", version)).await;
        client.stream(0, 1).await;
        let Command::DcpSnapshotMarker(marker) = client.event().await else { panic!() };
        assert_eq!((marker.detail.is_some(), marker.purge_seqno()), (version != "1.0", purge));
    }
}

#[tokio::test]
async fn a_stream_from_disk_only_ends_at_what_is_there() {
    let cluster = small(|config| config.vbuckets = 1).await;
    cluster.set("a", "1").unwrap();
    cluster.hold_persistence(0, 0, true);
    cluster.set("b", "2").unwrap();
    let mut client = Client::dcp(&cluster, 0, &Options::default()).await;
    let with = |flags| StreamRequest { flags, ..from(0, 0, u64::MAX) };
    client.stream_request(0, with(StreamFlags::DISK_ONLY)).await.unwrap();
    assert_eq!(briefs(&client.until_end().await), ["[0..1 6]", "a=1@1", "end Ok"]);
    client.stream_request(0, with(StreamFlags::TO_LATEST)).await.unwrap();
    assert_eq!(briefs(&client.until_end().await), ["[1..2 5]", "a=1@1", "b=2@2", "end Ok"]);
    client.stream_request(0, with(StreamFlags::FROM_LATEST)).await.unwrap();
    cluster.set("c", "3").unwrap();
    assert_eq!(briefs(&[client.event().await, client.event().await]), ["[3..3 5]", "c=3@3"]);
    cluster.end_streams(0, EndReason::BackfillFailed);
    assert_eq!(briefs(&client.until_end().await), ["end BackfillFailed"]);
    client.ask(Command::Noop(Empty {})).await;
}

#[tokio::test]
async fn whoever_was_away_since_before_a_purge_begins_anew() {
    let cluster = small(|config| config.vbuckets = 1).await;
    for key in ["a", "b", "c"] {
        cluster.set(key, "1").unwrap();
    }
    cluster.delete("a").unwrap();
    cluster.set("d", "1").unwrap();
    cluster.purge(0, 4);
    let uuid = cluster.failover_log(0).newest().unwrap().vbucket_uuid;
    let mut client = Client::dcp(&cluster, 0, &Options::with_collections()).await;
    let rolled_back = (Status::Rollback, Reply::Rollback(0));
    assert_eq!(client.stream_request(0, from(2, uuid, 5)).await.unwrap_err(), rolled_back);
    let knows = StreamFilter { purge_seqno: Some(4), ..StreamFilter::default() };
    let request = StreamRequest { filter: knows.encode().unwrap(), ..from(2, uuid, 5) };
    client.stream_request(0, request).await.unwrap();
    assert_eq!(briefs(&client.until_end().await), ["[2..5 6]", "\0c=1@3", "\0d=1@5", "end Ok"]);
    let ignores = StreamRequest { flags: StreamFlags::IGNORE_PURGED_TOMBSTONES, ..from(2, uuid, 5) };
    client.stream_request(0, ignores).await.unwrap();
    assert_eq!(client.until_end().await.len(), 4);
    client.stream_request(0, from(0, 0, 5)).await.unwrap();
    assert_eq!(briefs(&client.until_end().await), ["[0..5 6]", "\0b=1@2", "\0c=1@3", "\0d=1@5", "end Ok"]);
}
