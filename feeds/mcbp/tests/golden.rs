//! Every frame of the table decodes to what it is said to be, and encodes to the same bytes.

mod common;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use common::{frame, hex, prepare};
use sluicegate_mcbp::config::Revision;
use sluicegate_mcbp::dcp::*;
use sluicegate_mcbp::hello::{ClusterMapChanged, Feature, Features, GetClusterConfig, GetErrorMap, Granted};
use sluicegate_mcbp::sasl::Exchange;
use sluicegate_mcbp::tap::{self, ConnectFlags, MessageFlags};
use sluicegate_mcbp::value::{Attribute, split_attributes};
use sluicegate_mcbp::{
    Command, Datatype, Empty, Message, Notice, Opcode, Parts, Reply, Request, Response, Secret, ServerRequest, Status,
};
use sluicegate_mcbp::{hello, kv};

const OPAQUE: u32 = 0xdead_beef;

fn b(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn ask(command: Command) -> Request {
    Request::new(command)
}

fn told(opcode: Opcode, status: Status, opaque: u32, reply: Reply) -> Message {
    let (cas, datatype, framing) = (0, Datatype(0), Bytes::new());
    Message::Response(Response { opcode, status, opaque, cas, datatype, framing, reply })
}

fn plain(opcode: Opcode, status: Status, value: &'static str) -> Message {
    told(opcode, status, 0, Reply::Plain(Parts::from_value(opcode, b(value))))
}

fn auth(mechanism: &'static str, data: &'static str) -> Exchange {
    Exchange { mechanism: b(mechanism), data: Secret(b(data)) }
}

fn log(entries: &[(u64, u64)]) -> Histories {
    let entries = entries.iter().map(|(vbucket_uuid, seqno)| FailoverEntry { vbucket_uuid: *vbucket_uuid, seqno: *seqno });
    Histories { log: FailoverLog(entries.collect()) }
}

fn marker(start: u64, end: u64, flags: MarkerFlags, detail: Option<MarkerDetail>) -> Request {
    ask(Command::DcpSnapshotMarker(SnapshotMarker { start, end, flags, detail })).with_opaque(OPAQUE)
}

fn hello_world() -> Mutation {
    Mutation { by_seqno: 4, rev_seqno: 1, nru: Some(0), key: b("hello"), value: b("world"), ..Mutation::default() }
}

fn removal(delete_time: Option<u32>) -> Removal {
    Removal { by_seqno: 5, rev_seqno: 1, delete_time, key: b("hello"), ..Removal::default() }
}

fn at_0x210(command: Command) -> Request {
    ask(command).with_vbucket(0x210).with_opaque(0x1210)
}

fn item(ttl: u8, flags: u16, engine: &[u8]) -> tap::Item {
    tap::Item { ttl, flags: MessageFlags(flags), engine: Bytes::copy_from_slice(engine), ..tap::Item::default() }
}

fn connect(flags: u32, options: &tap::Options) -> Request {
    let (flags, options) = options.encode(ConnectFlags(flags));
    ask(Command::TapConnect(tap::Connect { flags: Some(flags), name: b("node1"), options }))
}

fn dcp_messages() -> Vec<(&'static str, Message)> {
    let features = |codes: std::ops::RangeInclusive<u16>| Features(codes.map(Feature::from).collect());
    let requests = [
        ("D01", ask(Command::Hello(hello::Hello { agent: b("mchello v1.0"), features: features(1..=5) }))),
        ("D04", ask(Command::SaslAuth(auth("PLAIN", "\0user\0pencil")))),
        ("D05", ask(Command::SaslAuth(auth("SCRAM-SHA1", "n,,n=user,r=d40a02e348040590")))),
        ("D09", ask(Command::SelectBucket(kv::Key { key: b("engineering") })).with_opaque(0xefbe_adde)),
        (
            "D10",
            ask(Command::DcpOpen(Open {
                reserved: 0,
                flags: OpenFlags(0),
                name: b("bucketstream vb[100-105]"),
                value: Bytes::new(),
            }))
            .with_opaque(1),
        ),
        (
            "D11",
            ask(Command::DcpOpen(Open {
                reserved: 0,
                flags: OpenFlags::PRODUCER | OpenFlags::INCLUDE_XATTRS | OpenFlags::INCLUDE_DELETE_TIMES,
                name: b("rs:feed-1"),
                value: Bytes::new(),
            }))
            .with_opaque(1),
        ),
        ("D12", ask(Command::DcpControl(Control { name: b("enable_noop"), value: b("true") })).with_opaque(1)),
        (
            "D13",
            ask(Command::DcpStreamRequest(StreamRequest {
                flags: StreamFlags(0),
                reserved: 0,
                start: 0x00ff_eedd,
                end: u64::MAX,
                vbucket_uuid: 0xfeed_deca,
                snapshot_start: 0,
                snapshot_end: 0x00ff_eeff,
                filter: Bytes::new(),
            }))
            .with_opaque(0x1000),
        ),
        ("D16", ask(Command::DcpGetFailoverLog(Empty {})).with_opaque(OPAQUE)),
        ("D17", marker(0, 8, MarkerFlags::MEMORY, None)),
        ("D18", marker(1, 8, MarkerFlags::DISK, Some(MarkerDetail::v2_0(8, 7)))),
        ("D19", marker(1, 8, MarkerFlags::DISK, Some(MarkerDetail::v2_2(8, 7, 3, 6)))),
        ("D20", at_0x210(Command::DcpMutation(hello_world()))),
        ("D21", at_0x210(Command::DcpDeletion(removal(None)))),
        ("D22", at_0x210(Command::DcpDeletion(removal(Some(0x5f5e_1000))))),
        ("D23", at_0x210(Command::DcpExpiration(removal(Some(0))))),
        (
            "D24",
            at_0x210(Command::DcpSystemEvent(SystemEvent {
                by_seqno: 4,
                event: SystemEventKind::BeginCollection,
                version: 1,
                name: b("mycollection"),
                value: Change::CollectionCreated { manifest_uid: 2, scope: 0, collection: 8, max_ttl: Some(72000) }.encode().1,
            })),
        ),
        ("D25", ask(Command::DcpOsoSnapshot(OsoSnapshot { boundary: OsoBoundary::Start })).with_opaque(OPAQUE)),
        ("D26", ask(Command::DcpSeqnoAdvanced(SeqnoAdvanced { by_seqno: 4 })).with_opaque(OPAQUE)),
        ("D27", ask(Command::DcpNoop(Empty {})).with_opaque(5)),
        ("D29", ask(Command::DcpBufferAck(BufferAck { bytes: 4096 })).with_opaque(5)),
        ("D30", ask(Command::DcpCloseStream(Empty {})).with_vbucket(5).with_opaque(OPAQUE)),
        ("D31", ask(Command::DcpStreamEnd(StreamEnd { reason: EndReason::Ok })).with_opaque(OPAQUE)),
        ("D32", at_0x210(Command::DcpPrepare(prepare(4, "hello", "world"))).with_cas(1)),
        ("D33", at_0x210(Command::DcpCommit(Commit { prepared_seqno: 4, commit_seqno: 5, key: b("hello") }))),
        ("D34", at_0x210(Command::DcpAbort(Abort { prepared_seqno: 4, abort_seqno: 5, key: b("hello") }))),
        (
            "D35",
            ask(Command::GetAllVbSeqnos(GetAllVbSeqnos { state: Some(VbucketState::Replica), collection: None }))
                .with_opaque(OPAQUE),
        ),
        ("D36", ask(Command::GetAllVbSeqnos(GetAllVbSeqnos { state: None, collection: Some(0xcafe_f00d) })).with_opaque(OPAQUE)),
        ("D38", ask(Command::DcpSetVbucketState(SetVbucketState { state: VbucketState::Dead })).with_opaque(OPAQUE)),
        (
            "D40",
            at_0x210(Command::DcpMutation(Mutation { key: b("\x08hello"), ..hello_world() }))
                .with_stream_id(71)
                .with_opaque(0x1210)
                .with_cas(0),
        ),
        (
            "D41",
            ask(Command::Add(kv::Store {
                flags: OPAQUE,
                expiry: 0xe10,
                key: [&[0xab, 0x04][..], b"Hello"].concat().into(),
                value: b("World"),
            })),
        ),
        (
            "D42",
            ask(Command::GetClusterConfig(GetClusterConfig { known: Some(Revision { epoch: 1, rev: 1073 }) })).with_opaque(7),
        ),
        ("D44", ask(Command::ObserveSeqno(ObserveSeqno { vbucket_uuid: 0xfeed_deca })).with_vbucket(5).with_opaque(9)),
        ("D46", ask(Command::GetErrorMap(GetErrorMap { max_version: 2 }))),
    ];
    let observed = ObservedSeqno { vbucket: 5, vbucket_uuid: 0xfeed_deca, persisted: 58, current: 65, failed_over: None };
    let seqnos = SeqnoList(vec![(10, 0x5432), (0xd, 0x0134_3214), (0x7f, 4), (0x2d0, 0x6524)]);
    let four = [(0xfeed_deca, 0x5432), (0x00de_cafe, 0x0134_3214), (0xfeed_face, 4), (0xdead_beef, 0x6524)];
    let responses = [
        ("D02", told(Opcode::Hello, Status::Success, 0, Reply::Hello(Granted { features: features(3..=4) }))),
        ("D03", plain(Opcode::SaslListMechs, Status::Success, "SCRAM-SHA1 CRAM-MD5 PLAIN")),
        ("D14", told(Opcode::DcpStreamRequest, Status::Rollback, 0x1000, Reply::Rollback(0))),
        ("D15", told(Opcode::DcpStreamRequest, Status::Success, 0x1000, Reply::FailoverLog(log(&four)))),
        ("D28", told(Opcode::DcpNoop, Status::Success, 5, Reply::Plain(Parts::from_value(Opcode::DcpNoop, Bytes::new())))),
        ("D37", told(Opcode::GetAllVbSeqnos, Status::Success, OPAQUE, Reply::VbSeqnos(VbSeqnos { seqnos }))),
        ("D45", told(Opcode::ObserveSeqno, Status::Success, 9, Reply::ObservedSeqno(observed))),
    ];
    let pushed = ServerRequest {
        opaque: 0,
        datatype: Datatype(0),
        notice: Notice::ClusterMapChanged(ClusterMapChanged {
            revision: Revision { epoch: 1, rev: 1074 },
            is_short: false,
            bucket: b("default"),
            config: b("{}"),
        }),
    };
    let requests = requests.into_iter().map(|(id, request)| (id, Message::Request(request)));
    requests.chain(responses).chain([("D43", Message::ServerRequest(pushed))]).collect()
}

fn tap_messages() -> Vec<(&'static str, Request)> {
    let options = tap::Options::default();
    let future = tap::Options { backfill: Some(u64::MAX), ..options.clone() };
    let listed = tap::Options { vbuckets: Some(vec![0, 1, 2]), ..options.clone() };
    let both = tap::Options { backfill: Some(5), vbuckets: Some((0..5).collect()), ..options.clone() };
    let written = |item: tap::Item, item_flags| {
        let item = tap::Item { key: b("mykey"), value: b("value"), ..item };
        Command::TapMutation(tap::Mutation { item, item_flags, expiry: 0 })
    };
    let checkpoint = tap::Item { key: b("checkpoint_start"), value: hex("00000000000000ff").into(), ..item(0xff, 1, &[0; 8]) };
    vec![
        ("T01", connect(0, &options)),
        ("T02", connect(0, &future)),
        ("T03", connect(2, &options)),
        ("T04", connect(0, &listed)),
        ("T05", connect(8, &listed)),
        ("T06", connect(0x30, &both)),
        ("T07", ask(written(item(0xff, 0, &[]), 0)).with_vbucket(0x66).with_cas(3)),
        (
            "T08",
            ask(written(item(0xff, 5, &[0, 0, 0, 0, 0, 0, 0, 7, 2]), 0xcafe)).with_vbucket(0x66).with_opaque(1000).with_cas(3),
        ),
        ("T09", ask(Command::TapDelete(tap::Item { key: b("mykey"), ..item(0xff, 0, &[]) })).with_vbucket(0x66)),
        ("T10", ask(Command::TapFlush(item(0xff, 0, &[])))),
        ("T11", ask(Command::TapOpaque(item(0xff, 0, &[0xff; 4]))).with_vbucket(1023)),
        ("T12", ask(Command::TapOpaque(item(0xff, 1, &[0, 0, 0, 8]))).with_vbucket(5).with_opaque(42)),
        ("T15", ask(Command::TapVbucketSet(item(0xff, 1, &[0, 0, 0, 3]))).with_vbucket(56).with_opaque(57)),
        (
            "T16",
            ask(Command::TapCheckpointStart(tap::Mutation { item: checkpoint, ..tap::Mutation::default() }))
                .with_vbucket(56)
                .with_opaque(57),
        ),
        ("T17", ask(Command::Noop(Empty {}))),
    ]
}

#[test]
fn golden_frames_decode_to_what_they_say_and_encode_to_themselves() {
    let text = include_str!("../testdata/golden.txt");
    let table: BTreeMap<&str, Vec<u8>> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split(' ');
            (words.next().unwrap(), hex(words.next().unwrap()))
        })
        .collect();
    assert_eq!(table.len(), 46 + 17);
    let mut expected: BTreeMap<&str, Message> = dcp_messages().into_iter().collect();
    expected.extend(tap_messages().into_iter().map(|(id, request)| (id, Message::Request(request))));
    for (id, bytes) in &table {
        if *id == "D39" {
            continue;
        }
        let decoded = Message::decode(frame(bytes)).unwrap_or_else(|error| panic!("{id}: {error}"));
        match expected.remove(id) {
            Some(message) => {
                assert_eq!(decoded, message, "{id}");
                // What an application builds, too, becomes these bytes.
                let mut out = BytesMut::new();
                message.encode(&mut out).unwrap();
                assert_eq!(out, bytes[..], "{id}");
            }
            None => assert!(["D06", "D07", "D08", "T13", "T14"].contains(id), "{id} is not checked"),
        }
        let mut out = BytesMut::new();
        decoded.encode(&mut out).unwrap();
        assert_eq!(out, bytes[..], "{id}");
    }
    assert!(expected.is_empty(), "{:?}", expected.keys());

    let (attributes, body) = split_attributes(table["D39"].clone().into()).unwrap();
    let attributes: Vec<Attribute> = attributes.map(Result::unwrap).collect();
    let names: Vec<&[u8]> = attributes.iter().map(|attribute| &attribute.name[..]).collect();
    assert_eq!(names, [&b"_sync"[..], b"meta"]);
    assert_eq!(attributes[0].value, b(r#"{"cas":"deadbeefcafefeed"}"#));
    assert!(body.is_empty());
    assert_eq!(sluicegate_mcbp::value::join_attributes(&attributes, b"").unwrap(), table["D39"]);
}
