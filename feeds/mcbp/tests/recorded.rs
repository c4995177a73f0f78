//! What a real server has sent and was sent: decoded as an independent decoder has it, however the bytes arrive, and encoded back.

mod common;

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use common::{Recording, frame, recordings, wire};
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sluicegate_mcbp::{Command, Frame, FrameDecoder, Message, Reply};

/// What the index says of a frame, as this crate sees it.
fn describe(raw: &Frame, message: &Message) -> HashMap<&'static str, Value> {
    let header = raw.header();
    let (mut key, mut value) = (raw.key(), raw.value());
    let mut fields = HashMap::from([
        ("magic", json!(format!("{:02x}", header.magic as u8))),
        ("opcode", json!(format!("{:02x}", header.opcode))),
        ("datatype", json!(header.datatype.0)),
        ("vbucket_or_status", json!(header.vbucket_or_status)),
        ("opaque", json!(header.opaque)),
        ("cas", json!(header.cas.to_string())),
    ]);
    let mut say = |entries: &[(&'static str, u64)]| fields.extend(entries.iter().map(|(name, number)| (*name, json!(number))));
    let mut tap_item = None;
    match message {
        Message::Request(request) => match &request.command {
            Command::DcpMutation(m) => {
                say(&[("seqno", m.by_seqno), ("rev", m.rev_seqno), ("flags", m.flags.into()), ("expiry", m.expiry.into())]);
                say(&[("lock", m.lock_time.into()), ("nmeta", m.ext_meta.len() as u64), ("nru", m.nru.unwrap().into())]);
                value = m.value.clone();
            }
            Command::DcpDeletion(m) => {
                say(&[("seqno", m.by_seqno), ("rev", m.rev_seqno), ("nmeta", m.ext_meta.len() as u64)]);
                value = m.value.clone();
            }
            Command::DcpSnapshotMarker(m) => {
                say(&[("snap_start", m.start), ("snap_end", m.end), ("marker_flags", m.flags.0.into())]);
            }
            Command::DcpStreamEnd(m) => say(&[("end_reason", m.reason.code().into())]),
            Command::DcpSetVbucketState(m) => say(&[("state", m.state.code().into())]),
            Command::TapMutation(m) | Command::TapCheckpointStart(m) | Command::TapCheckpointEnd(m) => {
                say(&[("flags", m.item_flags.into()), ("expiry", m.expiry.into())]);
                tap_item = Some(&m.item);
            }
            Command::TapDelete(m) | Command::TapFlush(m) | Command::TapOpaque(m) | Command::TapVbucketSet(m) => {
                tap_item = Some(m)
            }
            Command::Unknown(parts) => panic!("unknown opcode {:?}", parts.opcode()),
            _ => {}
        },
        Message::Response(response) => match &response.reply {
            Reply::Rollback(seqno) => say(&[("rollback_to", *seqno)]),
            Reply::FailoverLog(histories) => {
                let entries = histories.log.0.iter().map(|entry| json!([format!("{:016x}", entry.vbucket_uuid), entry.seqno]));
                fields.insert("failover_log", entries.collect());
            }
            _ => {}
        },
        other => panic!("a message of another kind: {other:?}"),
    }
    if let Some(item) = tap_item {
        let engine: String = item.engine.iter().map(|byte| format!("{byte:02x}")).collect();
        fields.extend([("tap_flags", json!(item.flags.0)), ("engine_hex", json!(engine))]);
        (key, value) = (item.key.clone(), item.value.clone());
    }
    if !key.is_empty() {
        fields.insert("key", json!(String::from_utf8_lossy(&key)));
    }
    fields.insert("value_len", json!(value.len()));
    if !value.is_empty() {
        let digest: String = Sha256::digest(&value)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        fields.insert("value_sha256", json!(digest));
    }
    fields
}

#[test]
fn every_recorded_frame_is_what_the_index_says_and_encodes_to_itself() {
    let recordings: HashMap<String, Recording> = recordings().into_iter().map(|r| (r.name.clone(), r)).collect();
    let index = std::fs::read_to_string(wire().join("index.ndjson")).unwrap();
    let mut count = 0;
    for line in index.lines() {
        let mut said: HashMap<String, Value> = serde_json::from_str(line).unwrap();
        let (file, number) = (said.remove("file").unwrap(), said.remove("frame").unwrap());
        let (by_client, bytes) = &recordings[file.as_str().unwrap()].frames[number.as_u64().unwrap() as usize];
        assert_eq!(said.remove("dir").unwrap(), if *by_client { "out" } else { "in" }, "{line}");
        let raw = frame(bytes);
        let mut out = BytesMut::new();
        raw.encode(&mut out);
        assert_eq!(out, bytes[..], "{line}");
        let message = Message::decode(raw.clone()).unwrap_or_else(|error| panic!("{line}: {error}"));
        let seen: HashMap<String, Value> =
            describe(&raw, &message).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        for (name, value) in &said {
            assert_eq!(seen.get(name), Some(value), "{name} of {line}");
        }
        out.clear();
        message.encode(&mut out).unwrap();
        assert_eq!(out, bytes[..], "{line}");
        count += 1;
    }
    assert_eq!(count, recordings.values().map(|recording| recording.frames.len()).sum::<usize>());
}

/// The frames that a decoder gets when the bytes arrive in pieces of the given lengths, repeated.
fn decode_pieces(stream: &[u8], lengths: &[usize], by_chunk: bool) -> Vec<Frame> {
    let decoder = FrameDecoder::default();
    let (mut buffer, mut frames, mut rest) = (BytesMut::new(), Vec::new(), stream);
    for length in lengths.iter().cycle() {
        let (piece, later) = rest.split_at((*length).min(rest.len()));
        rest = later;
        buffer.extend_from_slice(piece);
        if by_chunk {
            frames.extend(decoder.frames(&mut buffer).unwrap().map(Result::unwrap));
        } else {
            frames.extend(std::iter::from_fn(|| decoder.decode(&mut buffer).unwrap()));
        }
        if rest.is_empty() {
            break;
        }
    }
    assert!(buffer.is_empty(), "{} bytes are left", buffer.len());
    frames
}

#[test]
fn streams_decode_byte_by_byte() {
    for recording in recordings() {
        for by_client in [true, false] {
            let stream = recording.stream(by_client);
            let whole = decode_pieces(&stream, &[usize::MAX], true);
            assert_eq!(whole.len(), recording.frames.iter().filter(|(client, _)| *client == by_client).count());
            for by_chunk in [true, false] {
                assert!(decode_pieces(&stream, &[1], by_chunk) == whole, "{}", recording.name);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn streams_decode_however_they_are_split(lengths in prop::collection::vec(1_usize..200, 1..20), by_chunk: bool, pick: prop::sample::Index) {
        let recordings = recordings();
        let stream = pick.get(&recordings).stream(false);
        prop_assert!(decode_pieces(&stream, &lengths, by_chunk) == decode_pieces(&stream, &[usize::MAX], true));
    }
}

#[test]
fn a_stream_of_frames_shares_the_bytes_that_were_read() {
    let recording = recordings().into_iter().find(|recording| recording.name == "dcp_snapshots.txt").unwrap();
    let mut buffer = BytesMut::from(&recording.stream(false)[..]);
    let range = buffer.as_ptr_range();
    for frame in FrameDecoder::default().frames(&mut buffer).unwrap() {
        let Ok(Message::Request(request)) = Message::decode(frame.unwrap()) else { continue };
        if let Command::DcpMutation(mutation) = request.command {
            let shared = |bytes: &Bytes| bytes.is_empty() || range.contains(&bytes.as_ptr());
            assert!(shared(&mutation.key) && shared(&mutation.value));
        }
    }
}
