//! Documents and their metadata.

mod keys;
mod superseded;

use bytes::Bytes;

use super::*;
use crate::decode::attributes;
use crate::feed::{Datatype, PartitionId, PartitionSeqno};

const CAS: u64 = 0x18ea_ff3c_0500_0001;

fn decode(mutation: &Mutation) -> Decoded {
    GatewayDecoder::default().decode(mutation)
}

fn cas_text(cas: u64) -> String {
    format!("0x{:016x}", cas.swap_bytes())
}

/// A document with its metadata in an attribute; `fields` follow `cas`.
fn with_attribute(fields: &str) -> Mutation {
    let metadata = format!(r#"{{"cas":"{}",{fields}}}"#, cas_text(CAS));
    let value = attributes::encode([("_vv", "{}"), ("_sync", &metadata)], br#"{"a":1}"#).unwrap();
    let mut mutation = Mutation::new("doc", value);
    (mutation.cas, mutation.datatype) = (CAS, Datatype(Datatype::JSON | Datatype::XATTR));
    (mutation.partition, mutation.seqno) = (PartitionId(7), PartitionSeqno(70));
    mutation
}

fn document(mutation: &Mutation) -> DecodedDocument {
    match decode(mutation) {
        Decoded::Document(document) => document,
        other => panic!("{other:?}"),
    }
}

/// The document with these metadata.
fn revision(fields: &str) -> DecodedDocument {
    document(&with_attribute(&format!(r#""rev":"1-a",{fields}"#)))
}

fn reason(mutation: &Mutation) -> String {
    match decode(mutation) {
        Decoded::Invalid(invalid) => invalid.reason,
        other => panic!("{other:?}"),
    }
}

fn superseded(document: &DecodedDocument) -> Vec<u64> {
    document.entry.supersedes().iter().map(|s| s.0).collect()
}

/// Name, membership, since.
fn channels(document: &DecodedDocument) -> Vec<(&str, Membership, u64)> {
    document.entry.channels().iter().map(|c| (c.channel.name(), c.membership, c.since.0)).collect()
}

use Membership::{Present, Removed, RemovedByDeletion};

#[test]
fn metadata_in_an_attribute_make_an_entry() {
    let d = document(&with_attribute(
        r#""rev":{"rev":"2-b","src":"s","ver":"v"},"sequence":9007199254740993,"recent_sequences":[3,9007199254740993],
        "flags":17,"channels":{"a":null,"\u00e9:[b]":{"seq":9007199254740993,"rev":{"rev":"2-b"}},"c":{"seq":2,"rev":"1-a","del":true},"*":null},
        "unused_sequences":[5,4],"new":{"x":[1,"}"]}"#,
    ));
    assert_eq!(d.entry.sequence(), Sequence((1 << 53) + 1));
    assert_eq!((d.entry.key(), d.entry.revision(), d.entry.flags()), ("doc", "2-b", EntryFlags(17)));
    assert_eq!((d.entry.origin().partition, d.entry.origin().seqno), (PartitionId(7), PartitionSeqno(70)));
    assert_eq!(channels(&d), [("a", Present, 0), ("é:[b]", Removed, 0)]);
    assert_eq!(superseded(&d), [3]);
    assert_eq!(d.unused.to_vec(), [Sequence(4), Sequence(5)]);
    assert_eq!((d.departures.len(), d.departures[0].sequence), (1, Sequence(2)));
}

#[test]
fn metadata_in_the_body_are_found_wherever_they_are_and_need_no_cas() {
    let sync = r#""_sync":{"rev":"1-a","sequence":5,"recent_sequences":[5],"channels":{"a":null},"cas":""}"#;
    let nested = r#""x":{"_sync":{"sequence":1}},"y":["_sync",{"_sync":2}],"z":"\"_sync\"""#;
    for body in [
        format!("{{{sync}}}"),
        format!(" {{ {sync} , {nested} }} "),
        format!("{{{nested},{sync}}}"),
        format!(r#"{{"\u005fsync":{{"sequence":1}},{sync}}}"#),
        format!(r#"{{{}}}"#, sync.replace("_sync", "\\u005fsync")),
    ] {
        let mut mutation = Mutation::new("doc", body.clone());
        mutation.cas = CAS;
        assert_eq!(document(&mutation).entry.sequence(), Sequence(5), "{body}");
        // An attribute section without the gateway's attribute changes nothing.
        mutation.value = attributes::encode([("x", "1")], body.as_bytes()).unwrap().into();
        mutation.datatype = Datatype(Datatype::XATTR);
        assert_eq!(document(&mutation).entry.sequence(), Sequence(5), "{body}");
    }
}

#[test]
fn the_attribute_comes_before_the_body() {
    let mut mutation = with_attribute(r#""rev":"1-a","sequence":5"#);
    let attribute = attributes::find(&mutation.value, "_sync").unwrap().unwrap().to_vec();
    mutation.value = attributes::encode([("_sync", attribute)], br#"{"_sync":{"rev":"1-z","sequence":8}}"#).unwrap().into();
    assert_eq!(document(&mutation).entry.sequence(), Sequence(5));
}

#[test]
fn documents_that_are_not_the_gateways_are_ignored() {
    for body in
        ["", "{}", r#"{"a":{"_sync":{}}}"#, "[]", "5", "not json", r#"{"a":"#, r#"{"a":1} x"#, "\u{0}\u{1}", "{\"a\":\"\u{1}\"}"]
    {
        assert_eq!(decode(&Mutation::new("doc", body)), Decoded::Ignored(Ignored::NoMetadata), "{body}");
    }
    let mut mutation = Mutation::new("doc", attributes::encode([("x", "1")], b"{}").unwrap());
    mutation.datatype = Datatype(Datatype::XATTR);
    assert_eq!(decode(&mutation), Decoded::Ignored(Ignored::NoMetadata));
}

#[test]
fn a_key_that_is_gone_with_all_it_had_is_purged() {
    let purged = |key: &str, collection| {
        let document = crate::DocumentId::new(crate::CollectionId(collection), key);
        Decoded::Purged(Purged { document, cas: 0 })
    };
    for kind in [MutationKind::Deletion, MutationKind::Expiration] {
        let mut mutation = Mutation::new("temp", "");
        (mutation.kind, mutation.collection) = (kind, 9);
        assert_eq!(decode(&mutation), purged("temp", 9));
        mutation.datatype = Datatype(Datatype::JSON);
        assert_eq!(decode(&mutation), purged("temp", 9));
        // Attributes of other programs may stay, and the gateway's attribute may be empty.
        mutation.datatype = Datatype(Datatype::XATTR);
        for pairs in [&[("x", "1"), ("_vv", "{}")][..], &[("_sync", "{}")], &[]] {
            mutation.value = attributes::encode(pairs.iter().copied(), b"").unwrap().into();
            assert_eq!(decode(&mutation), purged("temp", 9), "{pairs:?}");
        }
        // A feed without values: there may be attributes.
        mutation.value = Bytes::new();
        assert_eq!(decode(&mutation), Decoded::Ignored(Ignored::Deletion));
        for key in [&b""[..], b"\xff"] {
            mutation.key = Bytes::from_static(key);
            mutation.datatype = Datatype(0);
            assert_eq!(decode(&mutation), Decoded::Ignored(Ignored::Deletion));
        }
        for key in ["_sync:rev:x:1", "_sync:att2:a", "_sync:seq"] {
            mutation.key = Bytes::from_static(key.as_bytes());
            assert_eq!(decode(&mutation), Decoded::Ignored(Ignored::Internal), "{key}");
        }
    }
    let mutation = Mutation::new("temp", attributes::encode([("_sync", "{}")], b"{}").unwrap());
    let mutation = Mutation { datatype: Datatype(Datatype::XATTR), ..mutation };
    assert_eq!(decode(&mutation), Decoded::Ignored(Ignored::NoMetadata));
}

#[test]
fn a_write_by_another_program_is_not_shown_and_accounts_for_its_numbers() {
    let mut mutation = with_attribute(
        r#""rev":"3-c","sequence":9,"recent_sequences":[4,6,9],"unused_sequences":[8],"value_crc32c":"0x12345678",
        "channels":{"a":null,"b":{"seq":5,"rev":"2-b"}}"#,
    );
    let own = document(&mutation);
    mutation.cas += 1;
    for kind in [MutationKind::Mutation, MutationKind::Deletion, MutationKind::Expiration] {
        mutation.kind = kind;
        let Decoded::Foreign(foreign) = decode(&mutation) else { panic!("{kind:?}") };
        assert_eq!(foreign, own, "the metadata say what they said before");
    }
    assert_eq!(own.earlier().map(|s| s.0).collect::<Vec<_>>(), [4, 6, 5]);
    // Metadata without a CAS are of no write.
    let without_cas = attributes::encode([("_sync", r#"{"rev":"1-a","sequence":5}"#)], b"").unwrap();
    mutation.value = without_cas.into();
    assert!(matches!(decode(&mutation), Decoded::Foreign(_)));
    for cas in ["0x", "0x12", "1122334455667788", "0x112233445566778g", "0x11223344556677889", "0x+122334455667788"] {
        let value = attributes::encode([("_sync", format!(r#"{{"rev":"1-a","cas":"{cas}"}}"#))], b"").unwrap();
        mutation.value = value.into();
        assert!(reason(&mutation).contains("CAS"), "{cas}");
    }
}

#[test]
fn what_only_moved_the_cas_is_still_the_gateways_write() {
    let sum = r#""value_crc32c":"0xcff7d56a""#;
    assert_eq!(crc32c::crc32c(br#"{"a":1}"#), 0xcff7_d56a);
    let mut mutation = with_attribute(&format!(r#""rev":"1-a","sequence":5,{sum}"#));
    let own = document(&mutation);
    mutation.cas += 1;
    assert_eq!(document(&mutation), own);
    // The same metadata over another body.
    let attribute = attributes::find(&mutation.value, "_sync").unwrap().unwrap().to_vec();
    let with = |others: &[(&str, &str)], body: &[u8]| {
        let mut mutation = mutation.clone();
        let others = others.iter().map(|(name, value)| (*name, value.as_bytes()));
        mutation.value = attributes::encode(others.chain([("_sync", &attribute[..])]), body).unwrap().into();
        mutation
    };
    assert!(matches!(decode(&with(&[], br#"{"a":2}"#)), Decoded::Foreign(_)));
    assert!(matches!(decode(&with(&[], b"")), Decoded::Foreign(_)));
    assert_eq!(document(&with(&[("_eventing", r#"{"seen":true}"#), ("txn", "{}")], br#"{"a":1}"#)), own);
    // A deletion has no body, whatever the event has; the checksum of none is zero.
    let mut gone = with(&[], br#"{"a":1}"#);
    gone.kind = MutationKind::Deletion;
    assert!(matches!(decode(&gone), Decoded::Foreign(_)));
    let mut tombstone = with_attribute(r#""rev":"2-b","sequence":6,"flags":1,"value_crc32c":"0x00000000""#);
    (tombstone.kind, tombstone.cas) = (MutationKind::Deletion, CAS + 1);
    assert!(document(&tombstone).entry.is_deleted());
}

#[test]
fn the_cas_is_little_endian() {
    assert_eq!(parse_cas(b"0x0000053cff36ea18"), Ok(1_795_307_871_312_084_992));
    assert_eq!(parse_cas(b"0x0000053CFF36EA18"), Ok(1_795_307_871_312_084_992));
}

#[test]
fn tombstones_are_deletions_with_attributes_or_mutations_with_the_flag() {
    let mut mutation = with_attribute(r#""rev":"2-b","sequence":5,"flags":1,"channels":{"a":{"seq":5,"rev":"2-b","del":true}}"#);
    for kind in [MutationKind::Deletion, MutationKind::Expiration] {
        mutation.kind = kind;
        let d = document(&mutation);
        assert!(d.entry.is_deleted());
        assert_eq!(channels(&d), [("a", RemovedByDeletion, 0)]);
    }
    let body = r#"{"_sync":{"rev":"2-b","sequence":5,"flags":1,"cas":""}}"#;
    assert!(document(&Mutation::new("doc", body)).entry.is_deleted());
    // A deletion has no body, so the value is not read as one.
    let mut deletion = Mutation::new("doc", body);
    deletion.kind = MutationKind::Deletion;
    assert_eq!(decode(&deletion), Decoded::Purged(Purged { document: "doc".into(), cas: deletion.cas }));
}

#[test]
fn flags_of_ours_are_never_taken_from_a_document() {
    assert_eq!(revision(r#""sequence":5,"flags":255"#).entry.flags(), EntryFlags(0x7f));
    assert_eq!(revision(r#""sequence":5,"flags":65537"#).entry.flags(), EntryFlags(1));
}

#[test]
fn what_should_have_metadata_and_cannot_be_read_is_invalid() {
    for (fields, word) in [
        (r#""rev":"1-a""#, "sequence"),
        (r#""rev":"1-a","sequence":0"#, "sequence"),
        (r#""rev":"1-a","sequence":-1"#, "unsigned"),
        (r#""rev":"1-a","sequence":18446744073709551616"#, "64 bits"),
        (r#""rev":"1-a","sequence":1e3"#, "unsigned"),
        (r#""sequence":1"#, "revision"),
        (r#""rev":"","sequence":1"#, "revision"),
        (r#""rev":"1-a","sequence":1,"channels":["a"]"#, "object"),
        (r#""rev":"1-a","sequence":1,}"#, "string"),
    ] {
        let reason = reason(&with_attribute(fields));
        assert!(reason.contains(word), "{fields}: {reason}");
    }
    let good = with_attribute(r#""rev":"1-a","sequence":1"#);
    for end in 1..good.value.len() - br#"{"a":1}"#.len() {
        let mut cut = good.clone();
        cut.value = good.value.slice(..end);
        assert!(matches!(decode(&cut), Decoded::Invalid(_)), "{end}");
    }
    for (body, word) in [
        (r#"{"_sync":{"rev":"1-a","sequence":"1","history":{}}}"#, "unsigned"),
        (r#"{"_sync":{"rev":"1-a","history":{}}}"#, "sequence"),
        (r#"{"_sync":{"sequence":1,"channels":{}}}"#, "revision"),
        (r#"{"_sync":{"rev":"1-a","sequence":1}"#, "end"),
        (r#"{"_sync":{"rev":"1-a","sequence":1}} x"#, "trailing"),
        (r#"{"_sync":{"rev":"1-a","sequence":1},"a":tru}"#, "value"),
    ] {
        let reason = reason(&Mutation::new("doc", body));
        assert!(reason.contains(word), "{body}: {reason}");
    }
    let mut nameless = good.clone();
    nameless.key = Bytes::new();
    assert!(reason(&nameless).contains("id"));
    nameless.key = Bytes::from_static(b"\xff");
    assert!(reason(&nameless).contains("UTF-8"));
}

#[test]
fn a_property_of_another_program_is_no_metadata() {
    for property in
        ["5", "null", "[]", "\"x\"", "{}", r#"{"status":"pending"}"#, r#"{"sequence":3,"state":{"rev":"1-a"}}"#, r#"{"rev":7}"#]
    {
        for rest in ["", r#","a":1e400,"\ud800":"\udfff""#] {
            let body = format!(r#"{{"n":0,"_sync":{property}{rest}}}"#);
            assert_eq!(decode(&Mutation::new("job:0", body.clone())), Decoded::Ignored(Ignored::ForeignProperty), "{body}");
        }
    }
}

#[test]
fn with_attributes_only_bodies_are_not_looked_at() {
    let options = GatewayOptions { attributes_only: true, ..Default::default() };
    let decoder = GatewayDecoder::new(&options);
    for body in [r#"{"_sync":{"rev":"1-a","sequence":1000000000000}}"#, r#"{"_sync":{"rev":"1-a","sequence":1"#] {
        assert_eq!(decoder.decode(&Mutation::new("doc", body)), Decoded::Ignored(Ignored::NoMetadata));
    }
    let mutation = with_attribute(r#""rev":"1-a","sequence":5"#);
    assert_eq!(decoder.decode(&mutation), decode(&mutation));
    assert!(matches!(decoder.decode(&Mutation::new("_sync:user:jo", r#"{"sequence":1}"#)), Decoded::Principal(_)));
}

#[test]
fn odd_text_elsewhere_hides_no_document() {
    let sync = r#""_sync":{"rev":"1-\ud83d","sequence":2,"x":{"\ude00":1e400},"channels":{"A":null,"\ud800":null}}"#;
    for odd in [r#""\ud83d":1"#, r#""a":"\ude00""#, r#""n":-1e999"#, r#""a":1,"a":2"#, r#""\u0000":"\u0000""#] {
        for body in [format!("{{{odd},{sync}}}"), format!("{{{sync},{odd}}}")] {
            let d = document(&Mutation::new("d2", body.clone()));
            assert_eq!(channels(&d), [("A", Present, 0), ("\u{fffd}", Present, 0)], "{body}");
            assert_eq!((d.entry.revision(), d.left_out), ("1-\u{fffd}", None));
        }
    }
    let deep = format!(r#"{{"x":{}1{},{sync}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(document(&Mutation::new("d2", deep)).entry.sequence(), Sequence(2));
    let mut bytes = b"{\"x\":\"\xff\xfe\",".to_vec();
    bytes.extend_from_slice(b"\"\xc3\":1,");
    bytes.extend_from_slice(sync.as_bytes());
    bytes.push(b'}');
    assert_eq!(document(&Mutation::new("d2", bytes)).entry.sequence(), Sequence(2));
}

#[test]
fn channels_that_cannot_be_kept_are_left_out_and_the_document_is_shown_in_the_others() {
    let long = "x".repeat(5000);
    let d =
        revision(&format!(r#""sequence":9,"channels":{{"":null,"A":null,"{long}":{{"seq":4,"rev":"1-a"}},"B":{{"seq":9}}}}"#));
    assert_eq!(channels(&d), [("A", Present, 0), ("B", Removed, 0)]);
    let left_out = d.left_out.as_ref().unwrap();
    assert_eq!((left_out.channels, left_out.sequences), (2, 0));
    let text = left_out.to_string();
    assert!(text.starts_with("2 of its channels: \"\" (") && text.contains("5000") && text.len() < 400, "{text}");
    assert_eq!(d.earlier().collect::<Vec<_>>(), [Sequence(4)], "the number at which it left is no other's");

    let metadata = [
        format!(r#"{{"cas":"{}","rev":"1-a","sequence":5,"channels":{{""#, cas_text(CAS)).as_bytes(),
        b"\xff\":null,\"A\":null}}",
    ]
    .concat();
    let mut mutation = with_attribute("");
    mutation.value = attributes::encode([("_sync", metadata)], b"{}").unwrap().into();
    let d = document(&mutation);
    assert_eq!((channels(&d), d.left_out.as_ref().unwrap().channels), (vec![("A", Present, 0)], 1));
    assert!(d.left_out.unwrap().to_string().contains("\\xff"));

    let many: Vec<String> = (0..9).map(|n| format!(r#""{n}{long}":null"#)).collect();
    let d = revision(&format!(r#""sequence":9,"channels":{{{}}}"#, many.join(",")));
    let left_out = d.left_out.unwrap();
    assert_eq!((left_out.channels, left_out.named.len()), (9, LeftOut::NAMED));
    assert!(left_out.to_string().ends_with("and others"));
    assert!(d.entry.channels().is_empty());
}

#[test]
fn of_a_property_that_comes_twice_the_last_counts() {
    let body = r#"{"_sync":{"rev":"1-a","sequence":1,"channels":{"a":null}},"_sync":{"rev":"2-b","sequence":2}}"#;
    let d = document(&Mutation::new("doc", body));
    assert_eq!((d.entry.sequence(), d.entry.channels().len()), (Sequence(2), 0));
}

#[test]
fn values_that_are_still_compressed_are_refused() {
    let mut mutation = with_attribute(r#""rev":"1-a","sequence":1"#);
    mutation.datatype = Datatype(mutation.datatype.0 | Datatype::SNAPPY);
    assert!(reason(&mutation).starts_with("a compressed value"));
    mutation.key = Bytes::from_static(b"_sync:user:x");
    assert!(reason(&mutation).starts_with("a compressed value"));
    mutation.value = Bytes::new();
    mutation.key = Bytes::from_static(b"doc");
    assert_eq!(decode(&mutation), Decoded::Ignored(Ignored::NoMetadata));
}

#[test]
fn a_revision_has_the_current_version_that_clients_see() {
    let versioned = |rev: &str| revision(&format!(r#""rev":{rev},"sequence":5"#)).entry.version().to_owned();
    let rev = r#"{"rev":"1-a","src":"WqC6ejslOTocPFXm2QRsxQ","ver":"0x000019b8f136ea18"}"#;
    assert_eq!(versioned(rev), "18ea36f1b8190000@WqC6ejslOTocPFXm2QRsxQ");
    assert_eq!(versioned(r#"{"rev":"1-a","src":"s","ver":"0x0100000000000000"}"#), "1@s");
    for none in [r#""1-a""#, r#"{"rev":"1-a"}"#, r#"{"rev":"1-a","src":"s"}"#, r#"{"rev":"1-a","src":"s","ver":"7"}"#] {
        assert_eq!(versioned(none), "", "{none}");
    }
    assert_eq!(versioned(r#"{"rev":"1-a","src":5,"ver":[]}"#), "");
}

#[test]
fn documents_of_other_collections_are_left_out_and_users_are_not() {
    let options = GatewayOptions { collections: Some([8, 10].into()), ..Default::default() };
    let decoder = GatewayDecoder::new(&options);
    let mut mutation = with_attribute(r#""rev":"1-a","sequence":5"#);
    for (collection, is_ours) in [(0, false), (8, true), (9, false), (10, true), (u32::MAX, false)] {
        mutation.collection = collection;
        let expected = if is_ours { decode(&mutation) } else { Decoded::Ignored(Ignored::OtherCollection(collection)) };
        assert_eq!(decoder.decode(&mutation), expected);
        for kind in [MutationKind::Mutation, MutationKind::Deletion] {
            // The content does not matter in another collection.
            let broken = Mutation { kind, value: Bytes::new(), ..mutation.clone() };
            assert_eq!(matches!(decoder.decode(&broken), Decoded::Ignored(Ignored::OtherCollection(_))), !is_ours);
        }
        let user = Mutation { collection, ..Mutation::new("_sync:user:jo", r#"{"sequence":1}"#) };
        assert!(matches!(decoder.decode(&user), Decoded::Principal(_)));
        let marker = Mutation { collection, ..Mutation::new("_sync:unusedSeq:3", "") };
        assert!(matches!(decoder.decode(&marker), Decoded::Unused(_)));
    }
}
