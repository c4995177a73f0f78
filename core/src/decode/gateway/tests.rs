use bytes::Bytes;
use proptest::prelude::*;

use super::*;
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
        // Attributes of others may stay, and the gateway's may be there without saying anything.
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
    // A deletion keeps no body, so what is there is not looked at.
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
fn users_and_roles_are_principals() {
    let body = r#"{"name":"jo","sequence":9007199254740993,"x":{"sequence":1}}"#;
    let expected = |kind, name: &str| {
        let (sequence, document) = (Sequence((1 << 53) + 1), Bytes::from_static(body.as_bytes()));
        Decoded::Principal(Principal { sequence, kind, name: name.into(), document })
    };
    assert_eq!(decode(&Mutation::new("_sync:user:jo", body)), expected(PrincipalKind::User, "jo"));
    assert_eq!(decode(&Mutation::new("_sync:role:r", body)), expected(PrincipalKind::Role, "r"));
    let deleted = r#"{"name":"r","deleted":true,"sequence":5}"#;
    assert!(matches!(decode(&Mutation::new("_sync:role:r", deleted)), Decoded::Principal(p) if p.sequence == Sequence(5)));
    assert_eq!(decode(&Mutation::new("_sync:user:", body)), expected(PrincipalKind::User, ""));

    let mut mutation = Mutation::new("_sync:user:jo", attributes::encode([("_sync", "{}")], body.as_bytes()).unwrap());
    mutation.datatype = Datatype(Datatype::XATTR);
    assert_eq!(decode(&mutation), expected(PrincipalKind::User, "jo"));
    mutation.kind = MutationKind::Deletion;
    assert_eq!(decode(&mutation), Decoded::Ignored(Ignored::Deletion));

    for body in [r#"{"name":"jo"}"#, r#"{"sequence":0}"#] {
        assert_eq!(decode(&Mutation::new("_sync:user:jo", body)), Decoded::Ignored(Ignored::Internal));
    }
    for body in ["", "[]", r#"{"sequence":"1"}"#, r#"{"sequence":1"#, r#"{"sequence":1}}"#] {
        assert!(reason(&Mutation::new("_sync:user:jo", body)).starts_with("a principal: "), "{body}");
    }
}

#[test]
fn markers_of_unused_sequences_are_understood_from_their_keys() {
    for kind in [MutationKind::Mutation, MutationKind::Deletion, MutationKind::Expiration] {
        let marker = |key: &'static str| {
            let mut mutation = Mutation::new(key, "\u{1}");
            mutation.kind = kind;
            decode(&mutation)
        };
        let range = |a: u64, b: u64| Decoded::Unused(SequenceRange::new(a, b).unwrap());
        assert_eq!(marker("_sync:unusedSeq:17"), range(17, 17));
        assert_eq!(marker("_sync:unusedSeqs:17:10000016"), range(17, 10_000_016));
        assert_eq!(marker("_sync:unusedSeqs:5:5"), range(5, 5));
        assert_eq!(marker("_sync:unusedSeq:18446744073709551614"), range(u64::MAX - 1, u64::MAX - 1));
        let last = "_sync:unusedSeqs:18446744073699551615:18446744073709551614";
        assert_eq!(marker(last), range(u64::MAX - 10_000_000, u64::MAX - 1));
        for key in [
            "_sync:unusedSeqs:2:18446744073709551615",
            "_sync:unusedSeqs:17:10000017",
            "_sync:unusedSeqs:18446744073699551614:18446744073709551614",
            "_sync:unusedSeqs:18446744073709551615:18446744073709551615",
            "_sync:unusedSeq:18446744073709551615",
        ] {
            let Decoded::Invalid(invalid) = marker(key) else { panic!("{key}") };
            assert!(
                invalid.reason.contains("10000000") && invalid.reason.contains(key.rsplit_once(':').unwrap().1),
                "{invalid:?}"
            );
        }
        for key in [
            "_sync:unusedSeq:",
            "_sync:unusedSeq:0",
            "_sync:unusedSeq:x",
            "_sync:unusedSeq:+5",
            "_sync:unusedSeq: 5",
            "_sync:unusedSeq:5:6",
            "_sync:unusedSeq:18446744073709551616",
            "_sync:unusedSeqs:5",
            "_sync:unusedSeqs:6:5",
            "_sync:unusedSeqs:0:5",
            "_sync:unusedSeqs:5:6:7",
            "_sync:unusedSeqs::6",
        ] {
            assert!(matches!(marker(key), Decoded::Invalid(_)), "{key}");
        }
    }
}

#[test]
fn other_keys_of_the_gateway_are_internal() {
    for key in
        ["_sync:m_db1:seq", "_sync:rev:x:1", "_sync:", "_sync:users:x", "_sync:unusedSeqX:1", "_sync:att2:a", "_sync:session:s"]
    {
        assert_eq!(decode(&Mutation::new(key, "5")), Decoded::Ignored(Ignored::Internal), "{key}");
    }
    assert_eq!(decode(&Mutation::new("_sync", "5")), Decoded::Ignored(Ignored::NoMetadata));
}

#[test]
fn the_counter_tells_how_many_sequences_there_are() {
    let named = GatewayDecoder::new(&GatewayOptions { metadata_id: Some("db1".into()), ..GatewayOptions::default() });
    for body in ["12", "\"12\"", " 12\n"] {
        assert_eq!(decode(&Mutation::new("_sync:seq", body)), Decoded::Counter(Sequence(12)), "{body:?}");
        assert_eq!(named.decode(&Mutation::new("_sync:m_db1:seq", body)), Decoded::Counter(Sequence(12)));
        assert_eq!(named.decode(&Mutation::new("_sync:seq", body)), Decoded::Ignored(Ignored::Internal));
    }
    for body in ["", "x", "-1", "1.5", "18446744073709551616"] {
        assert_eq!(decode(&Mutation::new("_sync:seq", body)), Decoded::Ignored(Ignored::Internal), "{body:?}");
    }
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
fn each_database_has_keys_of_its_own() {
    let other = |id: &str| Decoded::Ignored(Ignored::OtherDatabase(id.into()));
    let body = r#"{"sequence":1}"#;
    let decode = |id: Option<&str>, key: &str| {
        let options = GatewayOptions { metadata_id: id.map(str::to_owned), ..Default::default() };
        GatewayDecoder::new(&options).decode(&Mutation::new(key.to_owned(), body))
    };
    let is_principal = |id, key: &str, of: &str| matches!(decode(id, key), Decoded::Principal(p) if &*p.name == of);
    let unused = |a: u64, b: u64| Decoded::Unused(SequenceRange::new(a, b).unwrap());

    assert!(is_principal(Some("db1"), "_sync:user:db1:jo", "jo"));
    assert!(is_principal(Some("db1"), "_sync:role:db1:jo", "jo"));
    assert!(is_principal(Some("db1"), "_sync:user:db1:", ""));
    assert_eq!(decode(Some("db1"), "_sync:m_db1:unusedSeq:6"), unused(6, 6));
    assert_eq!(decode(Some("db1"), "_sync:m_db1:unusedSeqs:3:5"), unused(3, 5));
    for key in ["_sync:m_db1:unusedSeq:", "_sync:m_db1:unusedSeqs:5", "_sync:m_db1:unusedSeqs:5:6:7"] {
        assert!(matches!(decode(Some("db1"), key), Decoded::Invalid(_)), "{key}");
    }
    for (key, id) in [
        ("_sync:user:jo", DEFAULT_ID),
        ("_sync:user:", DEFAULT_ID),
        ("_sync:user:db1", DEFAULT_ID),
        ("_sync:user:db10:jo", "db10"),
        ("_sync:role:db:jo", "db"),
        ("_sync:unusedSeq:1", DEFAULT_ID),
        ("_sync:unusedSeqs:1:18446744073709551615", DEFAULT_ID),
        ("_sync:m_db10:unusedSeq:1", "db10"),
        ("_sync:m_db:unusedSeqs:x", "db"),
    ] {
        assert_eq!(decode(Some("db1"), key), other(id), "{key}");
    }

    for default in [None, Some(DEFAULT_ID)] {
        assert!(is_principal(default, "_sync:user:jo", "jo"));
        assert!(is_principal(default, "_sync:user:", ""));
        assert_eq!(decode(default, "_sync:unusedSeqs:3:5"), unused(3, 5));
        for (key, id) in
            [("_sync:user:db2:bob", "db2"), ("_sync:role:db2:", "db2"), ("_sync:user::x", ""), ("_sync:m_db1:unusedSeq:1", "db1")]
        {
            assert_eq!(decode(default, key), other(id), "{key}");
        }
    }
    for id in [None, Some("db1"), Some("")] {
        for key in [
            "_sync:seq",
            "_sync:m_db1:seq",
            "_sync:m_:x",
            "_sync:m_",
            "_sync:m_unusedSeq:1",
            "_sync:useremail:db1:x",
            "_sync:session:db1:s",
        ] {
            assert_eq!(decode(id, key), Decoded::Ignored(Ignored::Internal), "{key}");
        }
    }
    let deleted = Mutation { kind: MutationKind::Deletion, ..Mutation::new("_sync:user:db2:bob", "") };
    assert_eq!(GatewayDecoder::default().decode(&deleted), other("db2"));
}

#[test]
fn options_that_select_nothing_are_refused() {
    let with = |id: Option<&str>, collections: Option<&[u32]>| GatewayOptions {
        metadata_id: id.map(str::to_owned),
        collections: collections.map(|ids| ids.iter().copied().collect()),
        ..Default::default()
    };
    for (options, word) in
        [(with(Some(""), None), "metadata_id"), (with(Some("a:b"), None), "`a:b`"), (with(None, Some(&[])), "collections")]
    {
        let error = options.validate().unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    for options in [with(None, None), with(Some(DEFAULT_ID), Some(&[0])), with(Some("db1"), Some(&[8, 9]))] {
        options.validate().unwrap();
    }
}

#[test]
fn a_principal_with_a_long_name_has_it_in_its_document() {
    let long = "a-name-of-over-forty-bytes-which-keys-do-not-hold";
    let body = format!(r#"{{"name":"{long}","sequence":7}}"#);
    let name = |id: Option<&str>, in_key: &str| {
        let options = GatewayOptions { metadata_id: id.map(str::to_owned), ..Default::default() };
        let prefix = id.map(|id| format!("{id}:")).unwrap_or_default();
        let mutation = Mutation::new(format!("_sync:user:{prefix}{in_key}"), body.clone());
        let Decoded::Principal(principal) = GatewayDecoder::new(&options).decode(&mutation) else { panic!() };
        principal.name
    };
    assert_eq!(&*name(Some("db1"), &name_in_key(long)), long);
    assert_eq!(&*name(None, long), long);
    assert_eq!(&*name(Some("db1"), "jo"), "jo");
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
            // What it is does not matter there.
            let broken = Mutation { kind, value: Bytes::new(), ..mutation.clone() };
            assert_eq!(matches!(decoder.decode(&broken), Decoded::Ignored(Ignored::OtherCollection(_))), !is_ours);
        }
        let user = Mutation { collection, ..Mutation::new("_sync:user:jo", r#"{"sequence":1}"#) };
        assert!(matches!(decoder.decode(&user), Decoded::Principal(_)));
        let marker = Mutation { collection, ..Mutation::new("_sync:unusedSeq:3", "") };
        assert!(matches!(decoder.decode(&marker), Decoded::Unused(_)));
    }
}

#[test]
fn recent_sequences_that_were_used_are_superseded() {
    let d = revision(r#""sequence":9,"recent_sequences":[8,3,9,8,12,0,5,6],"unused_sequences":[6]"#);
    assert_eq!(superseded(&d), [3, 5, 8, 12], "one that is higher too");
    assert_eq!(superseded(&revision(r#""sequence":9,"recent_sequences":null"#)), [0; 0]);
    let many = |count: u64| {
        let list: Vec<String> = (1..=count).map(|n| n.to_string()).collect();
        with_attribute(&format!(r#""rev":"1-a","sequence":100000,"recent_sequences":[{}]"#, list.join(",")))
    };
    assert_eq!(superseded(&document(&many(1000))).len(), 1000);
    assert!(document(&many(1000)).accounted.is_empty());
    let d = document(&many(1101));
    assert!(superseded(&d).into_iter().eq(102..=1101), "the newest");
    let mut earlier: Vec<u64> = d.earlier().map(|s| s.0).collect();
    earlier.sort_unstable();
    assert!(earlier.into_iter().eq(1..=1101), "all are accounted for");
    assert_eq!(d.left_out, None);
    let d = document(&many(10_005));
    assert_eq!((d.earlier().count(), d.left_out.as_ref().unwrap().sequences), (10_000, 5));
    assert!(d.left_out.unwrap().to_string().starts_with("5 of its earlier or unused sequences"));
}

#[test]
fn departures_from_very_many_channels_do_not_take_the_place_of_recent_sequences() {
    let names = |f: &dyn Fn(u64) -> String| (0..1_500).map(f).collect::<Vec<_>>().join(",");
    let d = revision(&format!(
        r#""sequence":9000,"recent_sequences":[{}],"channels":{{{}}},"channel_set":[{}],"channel_set_history":[{}]"#,
        (7_000..8_100).map(|n| n.to_string()).collect::<Vec<_>>().join(","),
        names(&|n| format!(r#""c{n}":null"#)),
        names(&|n| format!(r#"{{"name":"c{n}","start":9000}}"#)),
        names(&|n| format!(r#"{{"name":"c{n}","start":1,"end":{}}}"#, n + 2)),
    ));
    assert!(superseded(&d).into_iter().eq((502..1_502).chain(7_100..8_100)));
    let mut accounted: Vec<u64> = d.accounted.iter().map(|s| s.0).collect();
    accounted.sort_unstable();
    assert!(accounted.into_iter().eq((2..502).chain(7_000..7_100)));
    assert_eq!((d.entry.channels().len(), d.left_out), (1_500, None));
}

#[test]
fn rows_before_a_stay_are_out_of_reach() {
    let d = revision(
        r#""sequence":9,"recent_sequences":[3,5,8,9],"channels":{"a":null,"b":null,"c":{"seq":9,"rev":"1-a"},"d":{"seq":7}},
        "channel_set":[{"name":"b","start":9},{"name":"a","start":5},{"name":"c","start":8,"end":9},{"name":"d","start":3,"end":7}]"#,
    );
    assert_eq!(channels(&d), [("a", Present, 5), ("b", Present, 9), ("c", Removed, 8)]);
    assert_eq!(superseded(&d), [3, 5, 8]);
    // It left `d` at 7, which is no recent sequence, but may still never have been a row.
    assert_eq!(d.departures[0].sequence, Sequence(7));
}

#[test]
fn entering_again_supersedes_the_departure_however_long_ago_it_was() {
    let again = |recent: &str, own: u64| {
        revision(&format!(
            r#""sequence":{own},"recent_sequences":[{recent}],"channels":{{"a":null,"b":null}},
            "channel_set":[{{"name":"a","start":40}},{{"name":"b","start":1}}],
            "channel_set_history":[{{"name":"a","start":2,"end":3}},{{"name":"b","start":1,"end":7}},{{"name":"a","start":5,"end":8}}]"#
        ))
    };
    let d = again("30,35,40", 40);
    assert_eq!((superseded(&d), channels(&d)[0]), (vec![7, 8, 30, 35], ("a", Present, 2)));
    // Revisions after that say so too, in case the feed leaves the first out.
    assert_eq!(superseded(&again("35,40,45", 45)), [7, 8, 35, 40]);
    assert_eq!(superseded(&again("45,50,55", 55)), [7, 8, 45, 50]);
    // The lowest recent sequence may be one that was never used: it does not tell what is older than the recent revisions.
    assert_eq!(superseded(&again("6,40", 40)), [6, 7, 8]);
    assert_eq!(superseded(&again("", 55)), [7, 8]);
}

#[test]
fn removals_at_superseded_sequences_are_departures() {
    let d = revision(
        r#""sequence":20,"recent_sequences":[12,15,18,20],"channels":{"a":{"seq":15,"rev":{"rev":"3-c"}},"b":{"seq":15,"rev":"3-c","del":true},
        "c":{"seq":4,"rev":"0-z"},"d":null,"e":{"seq":16}},"channel_set":[{"name":"a","start":12,"end":15},{"name":"b","start":13,"end":14},{"name":"d","start":18}],
        "channel_set_history":[{"name":"a","start":2,"end":6}]"#,
    );
    assert_eq!(channels(&d), [("d", Present, 18)]);
    assert_eq!(superseded(&d), [6, 12, 14, 15, 18]);
    let departures: Vec<_> =
        d.departures.iter().map(|d| (d.sequence.0, d.channel.name(), &*d.revision, d.membership, d.since.0)).collect();
    let expected = [
        (15, "a", "3-c", Removed, 2),
        (15, "b", "3-c", RemovedByDeletion, 0),
        (4, "c", "0-z", Removed, 0),
        (16, "e", "", Removed, 0),
    ];
    assert_eq!(departures, expected);
}

#[test]
fn removals_at_impossible_sequences_are_left_out() {
    let d = revision(r#""sequence":9,"channels":{"a":{"seq":10},"b":{"rev":"1-a"},"c":{}}"#);
    assert!(d.departures.is_empty() && d.entry.channels().is_empty());
}

#[test]
fn without_a_channel_set_everything_is_within_reach() {
    let d =
        revision(r#""sequence":9,"recent_sequences":[3,9],"channels":{"a":null},"channel_set":null,"channel_set_history":null"#);
    assert_eq!(channels(&d), [("a", Present, 0)]);
    // A channel set that does not fit the channel map tells nothing either.
    let d =
        revision(r#""sequence":9,"recent_sequences":[3,9],"channels":{"a":null},"channel_set":[{"name":"a","start":3,"end":5}]"#);
    assert_eq!((channels(&d), superseded(&d)), (vec![("a", Present, 0)], vec![3, 5]));
}

/// What a document did at a sequence: which of three channels it was then in.
fn histories() -> impl Strategy<Value = (Vec<u8>, Vec<bool>)> {
    (1usize..60).prop_flat_map(|len| (prop::collection::vec(0u8..8, len), prop::collection::vec(prop::bool::weighted(0.4), len)))
}

/// The metadata that the gateway writes at each step of `history`, at sequences 1, 2 and so on.
fn metadata_of(history: &[u8]) -> Vec<String> {
    let names = ["a", "b", "c"];
    let (mut recent, mut was) = (Vec::new(), 0);
    let mut left = [0; 3];
    let mut stays: [Vec<(usize, usize)>; 3] = Default::default();
    let mut out = Vec::new();
    for (step, &now) in history.iter().enumerate() {
        let sequence = step + 1;
        recent.push(sequence);
        if recent.len() > 20 {
            recent.drain(..15);
        }
        let (mut map, mut set, mut earlier) = (Vec::new(), Vec::new(), Vec::new());
        for (c, name) in names.iter().enumerate() {
            let (is, was) = (now >> c & 1 == 1, was >> c & 1 == 1);
            if is && !was {
                stays[c].push((sequence, 0));
            } else if was && !is {
                left[c] = sequence;
                stays[c].last_mut().unwrap().1 = sequence;
            }
            if is {
                map.push(format!(r#""{name}":null"#));
            } else if left[c] > 0 {
                map.push(format!(r#""{name}":{{"seq":{},"rev":"{}-x"}}"#, left[c], left[c]));
            }
            if stays[c].len() > 6 {
                let (first, second) = (stays[c][0], stays[c][1]);
                stays[c].splice(..2, [(first.0, second.1)]);
            }
            let text = |(start, end): &(usize, usize)| match end {
                0 => format!(r#"{{"name":"{name}","start":{start}}}"#),
                _ => format!(r#"{{"name":"{name}","start":{start},"end":{end}}}"#),
            };
            if let Some((last, before)) = stays[c].split_last() {
                set.push(text(last));
                earlier.extend(before.iter().map(text));
            }
        }
        was = now;
        out.push(format!(
            r#""rev":"{sequence}-x","sequence":{sequence},"recent_sequences":{recent:?},"channels":{{{}}},"channel_set":[{}],"channel_set_history":[{}]"#,
            map.join(","),
            set.join(","),
            earlier.join(",")
        ));
    }
    out
}

proptest! {
    /// Of a document that comes and goes, with a feed that leaves out revisions (but never so many that the last one delivered is
    /// forgotten), each channel shows exactly the newest row.
    #[test]
    fn a_document_has_one_live_row_a_channel_whatever_the_feed_leaves_out((history, delivered) in histories()) {
        let mut last = 0;
        let mut rows: std::collections::BTreeMap<(usize, u64), bool> = Default::default();
        let mut accounted = std::collections::BTreeSet::new();
        for (step, fields) in metadata_of(&history).iter().enumerate() {
            let sequence = step as u64 + 1;
            if !delivered[step] && sequence - last < 5 && step + 1 < history.len() {
                continue;
            }
            last = sequence;
            let d = document(&with_attribute(fields));
            let column = |name: &str| usize::from(name.as_bytes()[0] - b'a');
            // The rows of departures first, then this one; each marks what it supersedes.
            let mut made: Vec<(u64, usize, u64)> = Vec::new();
            for departure in &d.departures {
                if !accounted.contains(&departure.sequence.0) {
                    made.push((departure.sequence.0, column(departure.channel.name()), departure.since.0));
                }
            }
            accounted.extend(d.entry.supersedes().iter().map(|s| s.0));
            made.extend(d.entry.channels().iter().map(|c| (sequence, column(c.channel.name()), c.since.0)));
            made.push((sequence, 3, 0));
            accounted.insert(sequence);
            for (row, channel, since) in made {
                rows.entry((channel, row)).or_insert(true);
                for &old in d.entry.supersedes() {
                    if old.0 < row && old.0 >= since {
                        rows.insert((channel, old.0), false);
                    }
                }
            }
            let live: Vec<(usize, u64)> = rows.iter().filter(|(_, live)| **live).map(|(row, _)| *row).collect();
            let mut expected = Vec::new();
            for channel in 0..3 {
                let member = |step: usize| history[step] >> channel & 1 == 1;
                let touched = (0..=step).rev().find(|&s| member(s) || s > 0 && member(s - 1));
                expected.extend(touched.map(|s| (channel, s as u64 + 1)));
            }
            expected.push((3, sequence));
            prop_assert_eq!(live, expected, "at {}", sequence);
        }
    }
}
