//! What comes from a feed: a gateway's documents, recordings; and the strings in which Redis keeps documents.

use std::sync::LazyLock;

use bytes::{BufMut as _, Bytes};
use sluicegate_core::decode::databases::Databases;
use sluicegate_core::feed::{Datatype, FeedCapabilities, FeedInfo, MutationKind};
use sluicegate_core::store::Version;
use sluicegate_core::{ChangeEntry, Decoded, FeedEvent, GatewayDecoder, Mutation, MutationDecoder as _};
use sluicegate_redis::pages;
use sluicegate_replay::{Recorder, Recording};

use crate::testdata::mutations;
use crate::{Target, json_limit, presented, round_trip, within};

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "gateway-document", seeds: document_seeds, check: document },
    Target { name: "recording", seeds: recording_seeds, check: recording },
    Target { name: "redis-page", seeds: page_seeds, check: page },
];

fn document_seeds() -> Vec<Vec<u8>> {
    let seed = |mutation: Mutation| {
        let kind = mutation.kind as usize;
        let mut bytes = vec![kind as u8, mutation.datatype.0, mutation.key.len() as u8];
        bytes.put_u64(mutation.cas);
        bytes.extend_from_slice(&mutation.key);
        bytes.extend_from_slice(&mutation.value);
        bytes
    };
    mutations().into_iter().map(seed).collect()
}

/// Kind, datatype, length of the key, eight bytes of compare-and-swap value, key, value.
fn document(bytes: &[u8]) -> bool {
    // So few names are remembered that they come and go.
    static DECODER: LazyLock<GatewayDecoder> = LazyLock::new(|| {
        let mut options = sluicegate_core::decode::GatewayOptions::default();
        options.channel_capacity = 64;
        GatewayDecoder::new(&options)
    });
    // The highest bit of the kind selects a decoder of another database.
    static OTHER: LazyLock<GatewayDecoder> = LazyLock::new(|| {
        let mut options = sluicegate_core::decode::GatewayOptions::default();
        (options.channel_capacity, options.attributes_only) = (64, true);
        (options.metadata_id, options.collections) = (Some("db1".to_owned()), Some([0].into()));
        GatewayDecoder::new(&options)
    });
    let Some(([kind, datatype, key_len, cas @ ..], rest)) = bytes.split_first_chunk::<11>() else { return false };
    let (key, value) = rest.split_at(rest.len().min((*key_len).into()));
    let mutation = Mutation {
        kind: MutationKind::ALL[usize::from(*kind) % MutationKind::ALL.len()],
        datatype: Datatype(*datatype),
        cas: u64::from_be_bytes(*cas),
        ..Mutation::new(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
    };
    let decoder = if *kind < 128 { &*DECODER } else { &*OTHER };
    let decoded = within(json_limit(bytes), || decoder.decode(&mutation));
    assert_eq!(decoder.decode(&mutation), decoded, "it means something else the second time");
    let mut databases = Databases::new([(8, "s.c".to_owned())]);
    databases.observe(&mutation);
    assert!(!databases.observe(&mutation), "nothing new");
    if let Decoded::Document(document) | Decoded::Foreign(document) = &decoded {
        let entry = &document.entry;
        assert!(entry.supersedes().iter().all(|superseded| *superseded != entry.sequence()));
        assert_eq!(ChangeEntry::from_bytes(&entry.to_bytes()).expect("what was encoded decodes"), *entry);
    }
    !matches!(decoded, Decoded::Invalid(_))
}

fn recording_seeds() -> Vec<Vec<u8>> {
    let line = r#"{"n":1,"vb":3,"op":"mutation","key":"k\u00e9","cas":"7","datatype":5,"rev_no":9,"coll":8,"xattrs":{"b":{"x": 1.0e3}},"body":{ "s":[1 ,2]}}"#;
    let markers = r#"{"marker":1,"phase":"begin"}
{"n":2,"vb":0,"op":"deletion","key":"","cas":"0","datatype":4,"xattrs_b64":{"b":"/w=="},"body_b64":""}
{"marker":1,"phase":"end","after_n":2,"high_seq":9}"#;
    let written = r#"{"recording":1,"feed":"dcp:b","partitions":64,"snapshots":true}
{"n":1,"vb":3,"seqno":1,"op":"expiration","key_b64":"/w==","cas":"7","datatype":0,"value_b64":"AA=="}"#;
    let told = r#"{"recording":1,"feed":"dcp:b","partitions":64}
{"n":1,"event":"history","vb":3,"uuid":"18446744073709551615","log":[["5",9],["4",0]]}
{"n":2,"event":"snapshot","vb":3,"start":1,"end":9}"#;
    let names = r#"{"collections":{"0":"_default._default","8":"s.c"}}"#;
    let named = format!("{names}\n{line}\n");
    vec![line.into(), markers.into(), format!("{line}\n\n{markers}\n").into(), written.into(), told.into(), named.into()]
}

/// The lines of a recording, not compressed.
fn recording(bytes: &[u8]) -> bool {
    let limit = json_limit(bytes);
    if let Some(recording) = presented(within(limit, || Recording::from_reader(bytes))) {
        assert!(recording.mutations.is_sorted_by(|a, b| a.seqno < b.seqno));
        assert!(recording.mutations.iter().map(|mutation| mutation.key.len()).sum::<usize>() <= bytes.len());
    }
    let written = |events: &Vec<FeedEvent>| {
        let mut recorder = Recorder::new(Vec::new(), &recorded_feed(), false).expect("memory");
        events.iter().for_each(|event| recorder.write(event).expect("memory"));
        recorder.finish().expect("memory").0
    };
    round_trip(bytes, limit, |bytes| Recording::events(bytes).collect(), written)
}

fn recorded_feed() -> FeedInfo {
    let capabilities = FeedCapabilities::default();
    FeedInfo { scheme: "some", name: "feed".to_owned(), partitions: u16::MAX, capabilities }
}

fn page_seeds() -> Vec<Vec<u8>> {
    let mut page = Vec::new();
    for (place, value) in [(3, "three"), (0, ""), (3, "another"), (7, "seven")] {
        pages::append(&mut page, place, Version(7), value.as_bytes());
    }
    vec![page, Vec::new()]
}

/// A string of sequence documents: the first record of each place is the document.
fn page(bytes: &[u8]) -> bool {
    let page = Bytes::copy_from_slice(bytes);
    let mut again = Vec::new();
    let mut found = Vec::new();
    for place in 0..8 {
        let Some(document) = presented(within(1 << 10, || pages::find(page.clone(), place))) else { return false };
        if let Some(document) = &document {
            pages::append(&mut again, place, document.version, &document.value);
        }
        found.push(document);
    }
    assert!(again.len() <= bytes.len());
    let again = Bytes::from(again);
    for (place, document) in (0..8).zip(found) {
        assert_eq!(pages::find(again.clone(), place).expect("what was encoded decodes"), document);
    }
    true
}
