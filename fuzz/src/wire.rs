//! What comes from a Couchbase server, or from its client.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut as _, Bytes, BytesMut};
use sluicegate_mcbp::collections::{join_key, read_id, split_key};
use sluicegate_mcbp::config::{ClusterMap, MAX_CONFIG_LEN, MAX_NODES, Network};
use sluicegate_mcbp::dcp::{CacheTransfer, StreamFilter, SystemEvent, ext_meta};
use sluicegate_mcbp::errormap::ErrorMap;
use sluicegate_mcbp::framing::{FrameInfo, Kind, frame_infos, put_frame_info};
use sluicegate_mcbp::sasl::scram::{Client, ClientFirst, Credentials};
use sluicegate_mcbp::sasl::{Mechanism, Password, plain, read_plain};
use sluicegate_mcbp::status::Failure;
use sluicegate_mcbp::tap::{Connect, ConnectFlags, Options};
use sluicegate_mcbp::topology::parse_seeds;
use sluicegate_mcbp::value::{compress, decompress, join_attributes, split_attributes};
use sluicegate_mcbp::{Datatype, Frame, FrameDecoder, HEADER_LEN, Header, Magic, Message, Secret};

use crate::testdata::{frames as recorded, golden};
use crate::{Target, json_limit, presented, round_trip, within};

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "frames", seeds: streams, check: frames },
    Target { name: "message", seeds: messages, check: message },
    Target { name: "framing-extras", seeds: framing_extras_seeds, check: framing_extras },
    Target { name: "snappy", seeds: snappy_seeds, check: snappy },
    Target { name: "attributes", seeds: attributes_seeds, check: attributes },
    Target { name: "collection-key", seeds: collection_key_seeds, check: collection_key },
    Target { name: "system-event", seeds: system_event_seeds, check: system_event },
    Target { name: "extended-metadata", seeds: extended_metadata_seeds, check: extended_metadata },
    Target { name: "cached-documents", seeds: cached_documents_seeds, check: cached_documents },
    Target { name: "tap-options", seeds: tap_options_seeds, check: tap_options },
    Target { name: "stream-filter", seeds: stream_filter_seeds, check: stream_filter },
    Target { name: "cluster-map", seeds: cluster_map_seeds, check: cluster_map },
    Target { name: "error-map", seeds: error_map_seeds, check: error_map },
    Target { name: "failure", seeds: failure_seeds, check: failure },
    Target { name: "addresses", seeds: addresses_seeds, check: addresses },
    Target { name: "plain", seeds: plain_seeds, check: sasl_plain },
    Target { name: "scram-client", seeds: scram_client_seeds, check: scram_client },
    Target { name: "scram-server", seeds: scram_server_seeds, check: scram_server },
];

/// What an error may hold, and the handle of shared bytes.
const SMALL: usize = 1 << 10;

/// The limit of a body in the stream of frames.
const MAX_BODY: usize = 64 << 10;

fn streams() -> Vec<Vec<u8>> {
    recorded().chunks(5).map(<[_]>::concat).collect()
}

/// A stream of frames: by chunk and one by one the same, each encoding to the bytes it was read from.
fn frames(bytes: &[u8]) -> bool {
    let decoder = FrameDecoder::new(MAX_BODY);
    let mut buffer = BytesMut::from(bytes);
    let (mut one_by_one, mut rest) = (Vec::with_capacity(bytes.len() / HEADER_LEN + 1), buffer.clone());
    let error = within(SMALL, || {
        loop {
            match decoder.decode(&mut rest) {
                Ok(Some(frame)) => one_by_one.push(frame),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        }
    });
    let mut by_chunk = Vec::with_capacity(one_by_one.capacity());
    let cut = within(SMALL, || decoder.frames(&mut buffer).map(|chunk| by_chunk.extend(chunk.map_while(Result::ok))));
    presented(cut);
    assert!(by_chunk == one_by_one, "by chunk there are other frames than one by one");
    let mut out = BytesMut::new();
    for frame in &by_chunk {
        assert!(frame.flow_control_len() <= frame.wire_len() + 2);
        frame.encode(&mut out);
        frame.frame_infos().take_while(Result::is_ok).for_each(drop);
    }
    assert_eq!(out, bytes[..out.len()]);
    error.is_none_or(|error| presented(Err::<(), _>(error)).is_some()) && !by_chunk.is_empty()
}

const MAGICS: [Magic; 6] =
    [Magic::Request, Magic::Response, Magic::FlexRequest, Magic::FlexResponse, Magic::ServerRequest, Magic::ServerReply];

/// Magic, opcode, bytes of framing extras, of extras and of key (two), datatype, vbucket or status (two).
const HEAD: usize = 9;

fn messages() -> Vec<Vec<u8>> {
    let message = |frame: Vec<u8>| {
        let header = Header::parse(frame.first_chunk().expect("a header")).expect("a recorded header");
        let magic = MAGICS.iter().position(|magic| *magic == header.magic).expect("one of them");
        let mut bytes = vec![magic as u8, header.opcode, header.framing_len, header.extras_len];
        bytes.put_u16(header.key_len);
        bytes.put_u8(header.datatype.0);
        bytes.put_u16(header.vbucket_or_status);
        bytes.extend_from_slice(&frame[HEADER_LEN..]);
        bytes
    };
    recorded().into_iter().map(message).collect()
}

/// The frame that `bytes` tell: its lengths always fit.
fn frame_of(bytes: &[u8]) -> Option<Frame> {
    let (&[magic, opcode, framing_len, extras_len, k, l, datatype, v, s], body) = bytes.split_first_chunk::<HEAD>()?;
    let magic = MAGICS[usize::from(magic) % MAGICS.len()];
    let mut left = body.len();
    let mut take = |wanted: usize| {
        let taken = wanted.min(left);
        left -= taken;
        taken
    };
    let framing_len = take(if magic.is_flex() { framing_len.into() } else { 0 }) as u8;
    let extras_len = take(extras_len.into()) as u8;
    let longest_key = if magic.is_flex() { 255 } else { u16::MAX };
    let header = Header {
        magic,
        opcode,
        framing_len,
        key_len: take(u16::from_be_bytes([k, l]).min(longest_key).into()) as u16,
        extras_len,
        datatype: Datatype(datatype),
        vbucket_or_status: u16::from_be_bytes([v, s]),
        body_len: u32::try_from(body.len()).ok()?,
        opaque: 7,
        cas: 1 << 40,
    };
    let mut buffer = BytesMut::from(&header.encode()[..]);
    buffer.extend_from_slice(body);
    let frame = FrameDecoder::new(body.len()).decode(&mut buffer).expect("its lengths fit");
    Some(frame.expect("it is there entirely"))
}

fn message(bytes: &[u8]) -> bool {
    let Some(frame) = frame_of(bytes) else { return false };
    // Lists of numbers are all that is not a slice of the frame.
    let limit = SMALL + 2 * bytes.len();
    let Some(message) = presented(within(limit, || Message::decode(frame))) else { return false };
    let mut out = BytesMut::new();
    message.encode(&mut out).expect("what was decoded has an encoding");
    let again = FrameDecoder::new(bytes.len()).decode(&mut out).expect("a frame").expect("all of it");
    assert!(out.is_empty(), "nothing follows the frame");
    assert_eq!(Message::decode(again).expect("what was encoded decodes"), message);
    if let Message::Request(request) = &message {
        presented(request.stream_id());
    }
    true
}

fn framing_extras_seeds() -> Vec<Vec<u8>> {
    vec![vec![0x22, 0, 71], vec![0, 0x22, 0, 9], vec![0xe1, 1], vec![0xf0, 0], [&[0xff, 2, 5][..], &[7; 20]].concat()]
}

fn framing_extras(bytes: &[u8]) -> bool {
    for kind in [Kind::Request, Kind::Response] {
        let mut again = BytesMut::new();
        for info in frame_infos(kind, bytes).map_while(Result::ok) {
            if !matches!(info, FrameInfo::ServerDuration(_)) {
                again.clear();
                put_frame_info(&mut again, info).expect("what was read can be written");
                assert_eq!(frame_infos(kind, &again).next().expect("one").expect("whole"), info);
            }
        }
    }
    let all: Option<Vec<_>> = frame_infos(Kind::Request, bytes).map(presented).collect();
    all.is_some_and(|all| all.len() <= bytes.len())
}

fn snappy_seeds() -> Vec<Vec<u8>> {
    let texts = [vec![b'x'; 2_000], b"some {\"json\": [1,2,3]} and some {\"json\": [1,2,3]}".to_vec(), (0..=255).collect()];
    texts.iter().map(|text| compress(text).expect("it is short").to_vec()).collect()
}

fn snappy(bytes: &[u8]) -> bool {
    const MAX_LEN: usize = 1 << 20;
    let value = Bytes::copy_from_slice(bytes);
    let limit = SMALL + MAX_LEN.min(64 * (bytes.len() + 1));
    let Some((text, datatype)) = presented(within(limit, || decompress(value, Datatype::SNAPPY, MAX_LEN))) else { return false };
    assert!(text.len() <= MAX_LEN && datatype == Datatype(0));
    let again = compress(&text).expect("it is short");
    assert!(decompress(again, Datatype::SNAPPY, MAX_LEN).expect("it was compressed").0 == text);
    true
}

fn attributes_seeds() -> Vec<Vec<u8>> {
    let section = golden().into_iter().find(|(name, _)| name == "D39").expect("the section of attributes").1;
    vec![[&section[..], b"{}"].concat(), b"\0\0\0\x08\0\0\0\x04a\x001\0".to_vec(), vec![0; 4]]
}

/// Read by the protocol's crate and by the cache's decoder: to both it says the same.
fn attributes(bytes: &[u8]) -> bool {
    use sluicegate_core::decode::attributes as cache;
    let value = Bytes::copy_from_slice(bytes);
    let split = presented(within(SMALL, || split_attributes(value.clone())));
    let theirs = presented(within(SMALL, || cache::iter(bytes)));
    assert_eq!(split.is_some(), theirs.is_some());
    let (Some((attributes, body)), Some(theirs)) = (split, theirs) else { return false };
    assert!(cache::body(bytes).is_ok_and(|theirs| theirs == body));
    let ours: Option<Vec<_>> = attributes.map(presented).collect();
    let theirs: Option<Vec<_>> = theirs.map(presented).collect();
    assert_eq!(ours.is_some(), theirs.is_some());
    let (Some(ours), Some(theirs)) = (ours, theirs) else { return false };
    assert!(ours.iter().map(|attribute| (&attribute.name[..], &attribute.value[..])).eq(theirs.iter().copied()));
    assert_eq!(cache::encode(theirs, &body).expect("what was read can be written"), bytes);
    let mut names: Vec<_> = ours.iter().map(|attribute| &attribute.name).collect();
    names.sort();
    names.dedup();
    if names.len() == ours.len() {
        assert_eq!(join_attributes(&ours, &body).expect("what was read can be written"), bytes);
    }
    true
}

fn collection_key_seeds() -> Vec<Vec<u8>> {
    [0, 0x7f, 0x5555, u32::MAX].map(|id| join_key(id, b"key").to_vec()).to_vec()
}

fn collection_key(bytes: &[u8]) -> bool {
    let Some((id, key)) = presented(within(SMALL, || split_key(Bytes::copy_from_slice(bytes)))) else { return false };
    assert_eq!(join_key(id, &key), bytes);
    assert!(read_id(bytes).is_ok_and(|(again, len)| again == id && key == bytes[len..]));
    true
}

fn system_event_seeds() -> Vec<Vec<u8>> {
    let event = |version: u8, kind: u8, len: usize| [&[version, kind][..], &vec![3; len]].concat();
    vec![event(0, 0, 16), event(1, 0, 20), event(0, 1, 16), event(1, 3, 12), event(0, 4, 12), event(2, 0, 40)]
}

/// Version, kind, value.
fn system_event(bytes: &[u8]) -> bool {
    let Some(([version, kind], value)) = bytes.split_first_chunk() else { return false };
    let (name, value) = (Bytes::new(), Bytes::copy_from_slice(value));
    let event = SystemEvent { by_seqno: 1, event: u32::from(*kind).into(), version: *version, name, value };
    let Some(change) = presented(within(SMALL, || event.change())) else { return false };
    if let Some(change) = change {
        let (version, value) = change.encode();
        assert_eq!(SystemEvent { version, value, ..event }.change().expect("what was encoded decodes"), Some(change));
    }
    true
}

fn extended_metadata_seeds() -> Vec<Vec<u8>> {
    vec![vec![1, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 5, 2, 0, 1, 1], vec![1], Vec::new()]
}

fn extended_metadata(bytes: &[u8]) -> bool {
    let Some(entries) = ext_meta(bytes).map(presented).collect::<Option<Vec<_>>>() else { return false };
    let mut again = bytes.get(..1).unwrap_or_default().to_vec();
    for (id, content) in &entries {
        again.put_u8(*id);
        again.put_u16(content.len() as u16);
        again.extend_from_slice(content);
    }
    // Of other versions nothing is read.
    assert!(again == bytes || (entries.is_empty() && bytes[0] != 1));
    true
}

fn cached_documents_seeds() -> Vec<Vec<u8>> {
    let mut documents = Vec::new();
    for (key, value) in [("k", "value"), ("another", "")] {
        documents.extend([7_u64, 8, 9].map(u64::to_be_bytes).concat());
        documents.put_u32(value.len() as u32);
        documents.extend([0; 8]);
        documents.put_u16(key.len() as u16);
        documents.extend([1, 2]);
        documents.extend([key, value].concat().bytes());
    }
    vec![documents]
}

fn cached_documents(bytes: &[u8]) -> bool {
    let transfer = CacheTransfer { value: Bytes::copy_from_slice(bytes) };
    let Some(documents) = transfer.documents().map(presented).collect::<Option<Vec<_>>>() else { return false };
    let told: usize = documents.iter().map(|document| 40 + document.key.len() + document.value.len()).sum();
    assert_eq!(told, bytes.len(), "a byte belongs to no document");
    true
}

fn tap_options_seeds() -> Vec<Vec<u8>> {
    let options = Options {
        backfill: Some(9),
        vbuckets: Some(vec![1, 2]),
        checkpoints: Some(vec![(1, 2), (3, 4)]),
        closed_checkpoints_only: Some(true),
    };
    let (flags, data) = options.encode(ConnectFlags::SUPPORT_ACK);
    vec![[&flags.0.to_be_bytes()[..], &data].concat(), vec![0; 4]]
}

/// Flags, and their data.
fn tap_options(bytes: &[u8]) -> bool {
    let Some((flags, data)) = bytes.split_first_chunk() else { return false };
    let flags = Some(ConnectFlags(u32::from_be_bytes(*flags)));
    let connect = Connect { flags, options: Bytes::copy_from_slice(data), ..Connect::default() };
    // A checkpoint of 10 bytes takes 16, and vectors grow by doubling.
    let Some(options) = within(SMALL + 8 * bytes.len(), || connect.options()) else { return false };
    let (flags, data) = options.encode(ConnectFlags::default());
    let again = Connect { flags: Some(flags), options: data, ..Connect::default() };
    assert_eq!(again.options(), Some(options));
    true
}

fn stream_filter_seeds() -> Vec<Vec<u8>> {
    [r#"{"uid":"1f","sid":7,"collections":["8","ab"],"purge_seqno":"12"}"#, r#"{"scope":"8"}"#, ""].map(Vec::from).to_vec()
}

fn stream_filter(bytes: &[u8]) -> bool {
    round_trip(bytes, json_limit(bytes), StreamFilter::parse, |filter| filter.encode().expect("what was read can be written"))
}

fn cluster_map_seeds() -> Vec<Vec<u8>> {
    let bucket = r#"{"rev":7,"revEpoch":2,"name":"b","uuid":"u","nodeLocator":"vbucket","bucketCapabilities":["collections"],
        "nodes":[{},{}],"vBucketServerMap":{"numReplicas":1,"serverList":["$HOST:11210","b.example:11210"],
        "vBucketMap":[[0,1],[1,-1],[-1,0],[1]]},"nodesExt":[{"services":{"kv":11210,"kvSSL":11207,"mgmt":8091},"thisNode":true,
        "nodeUUID":"n0","alternateAddresses":{"external":{"hostname":"1.2.3.4","ports":{"kv":30000}}}},
        {"services":{"kv":11210},"hostname":"b.example","serverGroup":"z"}]}"#;
    let old = r#"{"name":"b","nodes":[],"vBucketServerMap":{"serverList":["[::1]:1","$HOST:2"],"vBucketMap":[[0],[1]]}}"#;
    let recorded = recorded().into_iter().filter(|frame| frame[..2] == [0x81, 0xb5] && frame[6..8] == [0, 0]);
    let maps = recorded.map(|frame| frame[HEADER_LEN..].to_vec()).filter(|map| !map.is_empty());
    maps.chain([bucket, old].map(Vec::from)).collect()
}

fn cluster_map(bytes: &[u8]) -> bool {
    const HOST: &str = "a.example";
    assert!(bytes.len() <= MAX_CONFIG_LEN, "inputs are shorter");
    // The text is copied, for the host's name; and a node takes some 300 bytes, however short its text is.
    let limit = 2 * json_limit(bytes) + 400 * MAX_NODES;
    let Some(map) = presented(within(limit, || ClusterMap::parse(bytes, HOST))) else { return false };
    for vbucket in (0..=u16::MAX).take(map.num_vbuckets() + 1) {
        for server in map.owner(vbucket).iter().chain(map.replicas(vbucket).iter().flatten()) {
            assert!(map.node(*server).is_some(), "a vbucket is where no node is");
        }
    }
    for network in [Network::Default, map.network_of(HOST, 11210)] {
        assert_eq!(map.data_nodes(&network, true).len(), map.servers().len());
    }
    assert_eq!(ClusterMap::parse(bytes, HOST).expect("as before"), map);
    true
}

fn error_map_seeds() -> Vec<Vec<u8>> {
    let map = r#"{"version":2,"revision":5,"errors":{"86":{"name":"ETMPFAIL","desc":"later","attrs":["temp","retry-later","new"]},"x":{}}}"#;
    vec![map.into()]
}

fn error_map(bytes: &[u8]) -> bool {
    // An explanation of two bytes, `{}`, takes some eighty; so a whole map is limited to a megabyte.
    let map = presented(within(4 * json_limit(bytes), || ErrorMap::parse(bytes)));
    map.is_some_and(|map| map.errors.len() <= bytes.len())
}

fn failure_seeds() -> Vec<Vec<u8>> {
    vec![br#"{"error":{"context":"no such key","ref":"42"},"manifest_uid":"1f"}"#.to_vec()]
}

fn failure(bytes: &[u8]) -> bool {
    within(json_limit(bytes), || Failure::parse(bytes)) != Failure::default()
}

fn addresses_seeds() -> Vec<Vec<u8>> {
    ["a,b:1,[::1]:11210,[fe80::1]", "127.0.0.1"].map(Vec::from).to_vec()
}

fn addresses(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Some(addresses) = presented(within(json_limit(bytes), || parse_seeds(text, false))) else { return false };
    let again: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    assert_eq!(parse_seeds(&again.join(","), false).expect("what was printed can be read"), addresses);
    true
}

fn plain_seeds() -> Vec<Vec<u8>> {
    vec![b"\0user\0pencil".to_vec(), b"for another\0user\0".to_vec()]
}

fn sasl_plain(bytes: &[u8]) -> bool {
    if let Ok(offered) = std::str::from_utf8(bytes) {
        presented(Mechanism::choose(offered, false, true));
    }
    let said = Secret(Bytes::copy_from_slice(bytes));
    let Some((user, password)) = presented(within(SMALL + bytes.len(), || read_plain(&said))) else { return false };
    let again = plain(&user, &password).expect("neither holds a zero");
    assert!(read_plain(&again).is_ok_and(|read| read == (user, password)));
    true
}

/// Of an exchange that a client began with the nonce `abc`.
fn scram_client_seeds() -> Vec<Vec<u8>> {
    let challenges = ["r=abcdef,s=c2FsdA==,i=7", "r=abc3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=10,x=y"];
    challenges.map(Vec::from).to_vec()
}

fn scram_client(bytes: &[u8]) -> bool {
    // More iterations cost only time.
    let costly = |text: &str| text.split(',').filter_map(|part| part.strip_prefix("i=")?.parse::<u32>().ok()).any(|n| n > 64);
    if std::str::from_utf8(bytes).is_ok_and(costly) {
        return false;
    }
    let (client, _) = Client::start(Mechanism::ScramSha256, "user", Password::new("pencil"), "abc").expect("it may begin");
    let limit = (2 * SMALL) + 8 * bytes.len();
    let Some((last, proof)) = presented(within(limit, || client.answer(bytes))) else { return false };
    assert!(proof.0.starts_with(b"c=biws,r=abc"));
    assert!(presented(last.verify(bytes)).is_none(), "a challenge proves nothing");
    true
}

fn scram_server_seeds() -> Vec<Vec<u8>> {
    let proof = BASE64.encode([7; 32]);
    ["n,,n=user,r=abc".to_owned(), format!("n,,n=a=2Cb=3D,r=abc\nc=biws,r=abcdef,p={proof}")].map(Vec::from).to_vec()
}

/// The first message, and behind a line's end the last one.
fn scram_server(bytes: &[u8]) -> bool {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (first, last) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let limit = (2 * SMALL) + 8 * bytes.len();
    let Some(first) = presented(within(limit, || ClientFirst::parse(Mechanism::ScramSha256, first))) else { return false };
    let password = Password::new("pencil");
    let credentials = Credentials::new(Mechanism::ScramSha256, &password, b"salt", 1).expect("they can be kept");
    let (server, _) = first.challenge(credentials, "def").expect("the nonce is one");
    assert!(presented(within(limit, || server.finish(last))).is_none(), "nobody knows the password");
    true
}
