//! The parts of messages: frames and their limits, framing extras, values, keys, texts; and messages built here that read back.

mod common;

use bytes::{Bytes, BytesMut};
use common::{frame, prepare};
use proptest::prelude::*;
use sluicegate_mcbp::collections::{join_key, put_id, read_id, split_key};
use sluicegate_mcbp::dcp::*;
use sluicegate_mcbp::errormap::{Attribute as ErrorAttribute, ErrorMap};
use sluicegate_mcbp::framing::{FrameInfo, Kind, frame_infos, put_frame_info};
use sluicegate_mcbp::status::{Failure, Reaction};
use sluicegate_mcbp::value::{Attribute, compress, decompress, join_attributes, split_attributes};
use sluicegate_mcbp::{
    Command, Datatype, Empty, ErrorKind, FrameDecoder, Message, Opcode, Parts, Reply, Request, Response, Status, kv,
};

#[test]
fn collection_numbers_are_the_published_ones() {
    for (id, bytes) in [
        (0, &[0x00][..]),
        (1, &[0x01]),
        (0x7f, &[0x7f]),
        (0x80, &[0x80, 0x01]),
        (0x555, &[0xd5, 0x0a]),
        (0x5555, &[0xd5, 0xaa, 0x01]),
        (0x7fff, &[0xff, 0xff, 0x01]),
        (0x8000, &[0x80, 0x80, 0x02]),
        (0xbfff, &[0xff, 0xff, 0x02]),
        (0xffff, &[0xff, 0xff, 0x03]),
        (0x0caf_ef00, &[0x80, 0xde, 0xbf, 0x65]),
        (0xcafe_f00d, &[0x8d, 0xe0, 0xfb, 0xd7, 0x0c]),
        (u32::MAX, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
    ] {
        let mut out = Vec::new();
        put_id(&mut out, id);
        assert_eq!(out, bytes);
        assert_eq!(read_id(bytes).unwrap(), (id, bytes.len()));
        assert_eq!(split_key(join_key(id, b"key")).unwrap(), (id, Bytes::from("key")));
    }
    for bad in [&[][..], &[0x80], &[0x80, 0x00], &[0xff, 0xff, 0xff, 0xff, 0x1f], &[0x80, 0x80, 0x80, 0x80, 0x80, 0x01]] {
        assert_eq!(read_id(bad).unwrap_err().kind(), ErrorKind::Malformed, "{bad:?}");
    }
}

#[test]
fn framing_extras_have_escapes_for_large_numbers_and_lengths() {
    let long = [7; 20];
    for (info, bytes) in [
        (FrameInfo::StreamId(71), &[0x22, 0x00, 0x47][..]),
        (FrameInfo::Barrier, &[0x00]),
        (FrameInfo::Other { id: 14, data: &[1] }, &[0xe1, 1]),
        (FrameInfo::Other { id: 15, data: &[] }, &[0xf0, 0]),
        (FrameInfo::Other { id: 17, data: &long }, &[&[0xff, 2, 5][..], &long].concat()),
        (FrameInfo::Other { id: 1, data: &long[..15] }, &[&[0x1f, 0][..], &long[..15]].concat()),
    ] {
        let mut out = BytesMut::new();
        put_frame_info(&mut out, info).unwrap();
        assert_eq!(out, bytes);
        out.extend_from_slice(&[0x22, 0, 9]);
        let mut infos = frame_infos(Kind::Request, &out);
        assert_eq!(infos.next().unwrap().unwrap(), info);
        assert_eq!(infos.stream_id().unwrap(), Some(9));
        for end in 1..bytes.len() {
            assert!(frame_infos(Kind::Request, &bytes[..end]).next().unwrap().is_err());
        }
    }
    // In a response, number 0 is a duration.
    let duration = FrameInfo::ServerDuration(1_000_000);
    let mut out = BytesMut::new();
    put_frame_info(&mut out, duration).unwrap();
    let Some(Ok(FrameInfo::ServerDuration(micros))) = frame_infos(Kind::Response, &out).next() else { panic!("{out:?}") };
    assert!((995_000..1_005_000).contains(&micros), "{micros}");
    assert!(put_frame_info(&mut out, FrameInfo::Other { id: 271, data: &[] }).is_err());
}

#[test]
fn what_is_no_frame_is_fatal_before_its_body_is_there() {
    let error = |header: &[u8], decoder: FrameDecoder| {
        let mut bytes = [0; 24];
        bytes[..header.len()].copy_from_slice(header);
        let one = decoder.decode(&mut BytesMut::from(&bytes[..])).unwrap_err();
        let many = decoder.frames(&mut BytesMut::from(&bytes[..])).unwrap_err();
        assert_eq!(one.to_string(), many.to_string());
        one
    };
    let decoder = FrameDecoder::default();
    assert!(error(b"HTTP/1.1 400 Bad Request", decoder).is_fatal());
    // Extras and key longer than the body.
    let negative = error(&[0x80, 0x57, 0, 5, 31, 0, 0, 0, 0, 0, 0, 35], decoder);
    assert_eq!((negative.is_fatal(), negative.opcode(), negative.offset()), (true, Some(0x57), Some(8)));
    let large = error(&[0x80, 0x57, 0, 5, 31, 0, 0, 0, 0xff, 0, 0, 0], decoder);
    assert_eq!(large.kind(), ErrorKind::TooLarge);
    assert_eq!(error(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 101], FrameDecoder::new(100)).kind(), ErrorKind::TooLarge);
}

#[test]
fn what_precedes_a_bad_frame_is_delivered() {
    let mut buffer = BytesMut::new();
    Request::new(Command::Noop(sluicegate_mcbp::Empty {})).encode(&mut buffer).unwrap();
    buffer.extend_from_slice(&[0xff; 24]);
    let frames: Vec<_> = FrameDecoder::default().frames(&mut buffer).unwrap().collect();
    assert!(frames.len() == 1 && frames[0].is_ok());
    assert!(FrameDecoder::default().frames(&mut buffer).is_err());
}

#[test]
fn flow_control_counts_whole_messages_but_not_noops() {
    let empty = || sluicegate_mcbp::Empty {};
    for (command, counted) in [
        (Command::DcpNoop(empty()), 0),
        (Command::DcpStreamEnd(StreamEnd { reason: EndReason::Ok }), 28),
        (Command::DcpSeqnoAdvanced(SeqnoAdvanced { by_seqno: 1 }), 32),
        (Command::DcpCacheTransferEnd(empty()), 24),
        (Command::DcpPrepare(prepare(1, "k", "v")), 24 + 31 + 2 + 2),
    ] {
        let mut out = BytesMut::new();
        Request::new(command).encode(&mut out).unwrap();
        assert_eq!(frame(&out).flow_control_len(), counted);
    }
}

#[test]
fn compressed_values_are_bounded_by_what_they_claim() {
    let text = Bytes::from(vec![b'x'; 10_000]);
    let compressed = compress(&text).unwrap();
    let datatype = Datatype::SNAPPY | Datatype::JSON;
    assert_eq!(decompress(compressed.clone(), datatype, 10_000).unwrap(), (text.clone(), Datatype::JSON));
    assert_eq!(decompress(compressed.clone(), datatype, 9_999).unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(decompress(text.clone(), Datatype::JSON, 1).unwrap(), (text, Datatype::JSON));
    assert_eq!(decompress(Bytes::new(), datatype, 1).unwrap(), (Bytes::new(), Datatype::JSON));
    for bad in [&compressed[..20], &[0xff, 0xff, 0xff, 0xff, 0x0f], &[0xff; 12]] {
        assert!(decompress(Bytes::copy_from_slice(bad), datatype, usize::MAX).is_err(), "{bad:?}");
    }
}

#[test]
fn attributes_are_refused_where_they_cannot_be() {
    for bad in [&b"\0\0\0"[..], b"\0\0\0\x05\0\0\0"] {
        assert!(split_attributes(Bytes::from_static(bad)).is_err());
    }
    for bad in
        [&b"\0\0\0\x06\0\0\0\x02a\0"[..], b"\0\0\0\x07\0\0\0\x03\0b\0", b"\0\0\0\x07\0\0\0\x03a\0b", b"\0\0\0\x06\0\0\0\x09a\0"]
    {
        let (mut attributes, _) = split_attributes(Bytes::from_static(bad)).unwrap();
        assert!(attributes.next().unwrap().is_err(), "{bad:?}");
        assert!(attributes.next().is_none());
    }
    let attribute = |name: &'static str| Attribute { name: name.into(), value: "1".into() };
    for bad in [vec![attribute("")], vec![attribute("a\0")], vec![attribute("a"), attribute("a")]] {
        assert_eq!(join_attributes(&bad, b"").unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn error_maps_and_failures_explain_statuses() {
    let json = br#"{"version":2,"revision":5,"errors":{"86":{"name":"ETMPFAIL","desc":"later","attrs":["temp","retry-later","new"]},"x":{}}}"#;
    let map = ErrorMap::parse(json).unwrap();
    assert_eq!((map.version, map.revision, map.errors.len()), (2, 5, 1));
    assert!(map.has(0x86, &ErrorAttribute::RetryLater) && map.has(0x86, &ErrorAttribute::Other("new".to_owned())));
    assert!(!map.has(0x86, &ErrorAttribute::Auth) && !map.has(1, &ErrorAttribute::Temp));
    assert!(ErrorMap::parse(b"[]").is_err());
    let long = vec![b' '; sluicegate_mcbp::errormap::MAX_ERROR_MAP_LEN + 1];
    assert_eq!(ErrorMap::parse(&long).unwrap_err().kind(), ErrorKind::TooLarge);

    let failure = Failure::parse(br#"{"error":{"context":"no such key","ref":"42"},"manifest_uid":"1f"}"#);
    assert_eq!(
        (failure.context.as_deref(), failure.reference.as_deref(), failure.manifest_uid),
        (Some("no such key"), Some("42"), Some(31))
    );
    assert_eq!(Failure::parse(b"not JSON"), Failure::default());

    assert_eq!(Status::from(0x86).reaction(), Some(Reaction::BackOff));
    assert_eq!(Status::from(0x07).reaction(), Some(Reaction::RefreshConfig));
    assert_eq!(Status::from(0xabcd), Status::Other(0xabcd));
    assert_eq!(Status::Other(0xabcd).reaction(), None);
    assert!(Status::KNOWN.iter().all(|status| Status::from(status.code()) == *status));
    assert!(Opcode::KNOWN.iter().all(|opcode| Opcode::from(opcode.code()) == *opcode));
}

#[test]
fn stream_filters_are_json_with_numbers_as_text() {
    let filter = StreamFilter {
        manifest_uid: Some(0x1f),
        stream_id: Some(7),
        collections: vec![8, 0xab],
        scope: None,
        purge_seqno: Some(12),
    };
    let text = filter.encode().unwrap();
    assert_eq!(text, r#"{"uid":"1f","sid":7,"collections":["8","ab"],"purge_seqno":"12"}"#);
    assert_eq!(StreamFilter::parse(&text).unwrap(), filter);
    assert!(StreamFilter::default().encode().unwrap().is_empty());
    assert_eq!(StreamFilter::parse(b"").unwrap(), StreamFilter::default());
    assert!(StreamFilter { scope: Some(1), ..filter }.encode().is_err());
    let bad =
        [r"{}", "1", r#"{"sid":0}"#, r#"{"sid":65536}"#, r#"{"uid":"x"}"#, r#"{"scope":"8","collections":["8"]}"#, r#"{"x":1}"#];
    for bad in bad {
        assert_eq!(StreamFilter::parse(bad.as_bytes()).unwrap_err().kind(), ErrorKind::Malformed, "{bad}");
    }
}

#[test]
fn collections_change_by_system_events() {
    let event = |event, version, value: Bytes| SystemEvent { by_seqno: 1, event, version, name: Bytes::new(), value };
    for (kind, change) in [
        (SystemEventKind::BeginCollection, Change::CollectionCreated { manifest_uid: 1, scope: 2, collection: 3, max_ttl: None }),
        (
            SystemEventKind::BeginCollection,
            Change::CollectionCreated { manifest_uid: 1, scope: 2, collection: 3, max_ttl: Some(4) },
        ),
        (SystemEventKind::EndCollection, Change::CollectionDropped { manifest_uid: 1, scope: 2, collection: 3 }),
        (SystemEventKind::CreateScope, Change::ScopeCreated { manifest_uid: 1, scope: 2 }),
        (SystemEventKind::DropScope, Change::ScopeDropped { manifest_uid: 1, scope: 2 }),
    ] {
        let (version, value) = change.encode();
        assert_eq!(event(kind, version, value.clone()).change().unwrap(), Some(change));
        assert!(event(kind, version, value.slice(1..)).change().is_err());
        assert_eq!(event(kind, 3, value).change().unwrap(), None);
        let flat = change.encode_flat(b"name");
        assert_eq!((event(kind, 2, flat.clone()).change().unwrap(), change.manifest_uid()), (Some(change), 1));
        assert!(event(kind, 2, flat.slice(..20)).change().is_err());
    }
    let change = Change::CollectionModified { manifest_uid: 1, scope: 2, collection: 3, max_ttl: Some(0) };
    let (version, value) = change.encode();
    assert_eq!(event(SystemEventKind::ModifyCollection, version, value).change().unwrap(), Some(change));
    assert_eq!(event(SystemEventKind::Other(99), 0, Bytes::new()).change().unwrap(), None);
}

#[test]
fn a_durable_write_says_what_must_hold() {
    let request = Request::new(Command::Delete(kv::Key { key: "k".into() })).with_durability(Durability::PersistToMajority);
    let mut out = BytesMut::new();
    request.encode(&mut out).unwrap();
    assert_eq!(out[..4], [0x08, 0x04, 2, 1], "a flex frame, and two bytes of framing extras");
    assert_eq!(out[24..26], [0x11, 3]);
    assert_eq!(Request::decode(frame(&out)).unwrap().durability().unwrap(), Some(Durability::PersistToMajority));
    let mut with_timeout = BytesMut::new();
    let info = FrameInfo::Durability { level: Durability::Majority, timeout_ms: Some(0x1234) };
    put_frame_info(&mut with_timeout, info).unwrap();
    assert_eq!(with_timeout[..], [0x13, 1, 0x12, 0x34]);
    assert_eq!(frame_infos(Kind::Request, &with_timeout).next().unwrap().unwrap(), info);
    assert_eq!(Request::new(Command::Noop(Empty {})).durability().unwrap(), None);
}

#[test]
fn metadata_of_old_servers_stands_behind_the_value() {
    let meta = Bytes::from_static(&[1, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 5, 2, 0, 1, 1]);
    let mutation = Mutation { key: "k".into(), value: "v".into(), ext_meta: meta, nru: None, ..Mutation::default() };
    let request = Request::new(Command::DcpMutation(mutation.clone()));
    let mut out = BytesMut::new();
    request.encode(&mut out).unwrap();
    assert_eq!((out[4], out[24 + 28], out[24 + 29]), (30, 0, 16));
    assert_eq!(Request::decode(frame(&out)).unwrap(), request);
    let entries: Vec<_> = ext_meta(&mutation.ext_meta).map(Result::unwrap).collect();
    assert_eq!(entries, [(1, &[0, 0, 0, 0, 0, 0, 0, 5][..]), (2, &[1])]);
    assert!(ext_meta(&[1, 1, 0]).next().unwrap().is_err());
    // More metadata than there is value.
    out[24 + 29] = 18;
    assert_eq!(Request::decode(frame(&out)).unwrap_err().kind(), ErrorKind::Malformed);
}

#[test]
fn what_has_no_encoding_is_refused_and_leaves_nothing_behind() {
    let mut out = BytesMut::from(&b"before"[..]);
    let both = Removal { delete_time: Some(1), ext_meta: "x".into(), ..Removal::default() };
    let long_key = Bytes::from(vec![b'k'; 65_536]);
    for request in [
        Request::new(Command::DcpDeletion(both)),
        Request::new(Command::Get(kv::Key { key: long_key.clone() })),
        Request::new(Command::Get(kv::Key { key: long_key.slice(..256) })).with_stream_id(1),
    ] {
        assert_eq!(request.encode(&mut out).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(out, b"before"[..]);
    }
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

prop_compose! {
    fn mutation()(
        numbers: (u64, u64, u32, u32, u32),
        nru: Option<u8>,
        key in bytes(250),
        value in bytes(500),
        ext_meta in bytes(40),
    ) -> Mutation {
        let (by_seqno, rev_seqno, flags, expiry, lock_time) = numbers;
        Mutation { by_seqno, rev_seqno, flags, expiry, lock_time, nru, key, value, ext_meta }
    }
}

prop_compose! {
    fn marker()(start: u64, end: u64, flags: u32, version: Option<bool>, more: (u64, u64, u64, u64)) -> SnapshotMarker {
        let (visible, completed, purge, prepared) = more;
        let detail = version.map(|is_2_2| match is_2_2 {
            true => MarkerDetail::v2_2(visible, completed, purge, prepared),
            false => MarkerDetail::v2_0(visible, completed),
        });
        SnapshotMarker { start, end, flags: MarkerFlags(flags), detail }
    }
}

fn command() -> impl Strategy<Value = Command> {
    let removal = || {
        (mutation(), any::<Option<u32>>()).prop_map(|(m, delete_time)| Removal {
            by_seqno: m.by_seqno,
            rev_seqno: m.rev_seqno,
            delete_time,
            key: m.key,
            value: m.value,
            ext_meta: if delete_time.is_some() { Bytes::new() } else { m.ext_meta },
        })
    };
    let event = (any::<(u64, u32, u8)>(), bytes(30), bytes(40)).prop_map(|((by_seqno, event, version), name, value)| {
        Command::DcpSystemEvent(SystemEvent { by_seqno, event: event.into(), version, name, value })
    });
    let unknown = (bytes(255), bytes(300), bytes(300)).prop_map(|(extras, key, value)| {
        Command::Unknown(Parts::from_slices(Opcode::Other(0xf0), &extras, &key, &value).unwrap())
    });
    prop_oneof![
        mutation().prop_map(Command::DcpMutation),
        marker().prop_map(Command::DcpSnapshotMarker),
        removal().prop_map(Command::DcpDeletion),
        removal().prop_map(Command::DcpExpiration),
        event,
        any::<u32>().prop_map(|reason| Command::DcpStreamEnd(StreamEnd { reason: reason.into() })),
        (bytes(200), bytes(100)).prop_map(|(name, value)| Command::DcpControl(Control { name, value })),
        (any::<(u32, u32)>(), bytes(200), bytes(100)).prop_map(|((flags, expiry), key, value)| Command::Set(kv::Store {
            flags,
            expiry,
            key,
            value
        })),
        unknown,
    ]
}

proptest! {
    #[test]
    fn requests_read_back(command in command(), head: (u16, u32, u64, u8), stream_id: Option<u16>) {
        let (vbucket, opaque, cas, datatype) = head;
        let mut request =
            Request::new(command).with_vbucket(vbucket).with_opaque(opaque).with_cas(cas).with_datatype(Datatype(datatype));
        let long_key = matches!(&request.command, Command::Unknown(parts) if parts.key().len() > 255);
        if let (Some(id), false) = (stream_id, long_key) {
            request = request.with_stream_id(id);
            prop_assert_eq!(request.stream_id().unwrap(), Some(id));
        }
        let mut out = BytesMut::new();
        request.encode(&mut out).unwrap();
        prop_assert_eq!(Message::decode(frame(&out)).unwrap(), Message::Request(request));
    }

    #[test]
    fn responses_read_back(log in prop::collection::vec(any::<(u64, u64)>(), 0..30), status: u16, value in bytes(100), seqno: u64) {
        let entries = log.into_iter().map(|(vbucket_uuid, seqno)| FailoverEntry { vbucket_uuid, seqno }).collect();
        let asked = Request::new(Command::DcpGetFailoverLog(sluicegate_mcbp::Empty {})).with_opaque(9);
        let opened = Response { opcode: Opcode::DcpStreamRequest, ..Response::bare(&asked, Status::Success) };
        let parts = Parts::from_value(Opcode::DcpGetFailoverLog, value);
        let status = Status::from(status);
        let mut responses = vec![
            Response::to(&asked, Status::Success, Reply::FailoverLog(Histories { log: FailoverLog(entries) })),
            Response { status: Status::Rollback, reply: Reply::Rollback(seqno), ..opened },
        ];
        if !matches!(status, Status::Success | Status::AuthContinue) {
            responses.push(Response::to(&asked, status, Reply::Failed(parts)));
        }
        for response in responses {
            let mut out = BytesMut::new();
            response.encode(&mut out).unwrap();
            prop_assert_eq!(Message::decode(frame(&out)).unwrap(), Message::Response(response));
        }
    }
}
