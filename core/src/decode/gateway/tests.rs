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
    mutation.kind = MutationKind::Deletion;
    assert_eq!(decode(&mutation), Decoded::Ignored(Ignored::NoMetadata));
    // A feed without values.
    mutation.value = Bytes::new();
    assert_eq!(decode(&mutation), Decoded::Ignored(Ignored::Deletion));
}

#[test]
fn a_write_by_another_program_is_left_to_the_import() {
    let mut mutation = with_attribute(r#""rev":"1-a","sequence":5"#);
    mutation.cas += 1;
    assert_eq!(decode(&mutation), Decoded::Ignored(Ignored::ForeignWrite));
    mutation.kind = MutationKind::Expiration;
    assert_eq!(decode(&mutation), Decoded::Ignored(Ignored::ForeignWrite));
    let without_cas = attributes::encode([("_sync", r#"{"rev":"1-a","sequence":5}"#)], b"").unwrap();
    mutation.value = without_cas.into();
    assert_eq!(decode(&mutation), Decoded::Ignored(Ignored::ForeignWrite));
    for cas in ["0x", "0x12", "1122334455667788", "0x112233445566778g", "0x11223344556677889", "0x+122334455667788"] {
        let value = attributes::encode([("_sync", format!(r#"{{"cas":"{cas}"}}"#))], b"").unwrap();
        mutation.value = value.into();
        assert!(reason(&mutation).contains("CAS"), "{cas}");
    }
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
    assert_eq!(decode(&deletion), Decoded::Ignored(Ignored::Deletion));
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
        (r#""rev":"1-a","sequence":1,"channels":{"":null}"#, "channel name"),
        (r#""rev":"1-a","sequence":1,"channels":["a"]"#, "object"),
        (r#""rev":"1-a","sequence":1,"channels":{"\ud800":null}"#, "surrogate"),
        (r#""rev":"1-a","sequence":1,}"#, "string"),
    ] {
        let reason = reason(&with_attribute(fields));
        assert!(reason.contains(word), "{fields}: {reason}");
    }
    let long = format!(r#""rev":"1-a","sequence":1,"channels":{{"{}":null}}"#, "x".repeat(5000));
    assert!(reason(&with_attribute(&long)).contains("5000"));

    let good = with_attribute(r#""rev":"1-a","sequence":1"#);
    for end in 1..good.value.len() - br#"{"a":1}"#.len() {
        let mut cut = good.clone();
        cut.value = good.value.slice(..end);
        assert!(matches!(decode(&cut), Decoded::Invalid(_)), "{end}");
    }
    for (body, word) in [
        (r#"{"_sync":5}"#, "object"),
        (r#"{"_sync":null}"#, "object"),
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
fn of_a_property_that_comes_twice_the_last_counts() {
    let body = r#"{"_sync":{"rev":"1-a","sequence":1,"channels":{"a":null}},"_sync":{"rev":"2-b","sequence":2}}"#;
    let d = document(&Mutation::new("doc", body));
    assert_eq!((d.entry.sequence(), d.entry.channels().len()), (Sequence(2), 0));
}

#[test]
fn compressed_values_are_refused() {
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
    assert_eq!(decode(&Mutation::new("_sync:role:a:b", body)), expected(PrincipalKind::Role, "a:b"));
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
        assert_eq!(marker("_sync:unusedSeq:18446744073709551615"), range(u64::MAX, u64::MAX));
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
    for key in ["_sync:seq", "_sync:rev:x:1", "_sync:", "_sync:users:x", "_sync:unusedSeqX:1", "_sync:att2:a", "_sync:session:s"]
    {
        assert_eq!(decode(&Mutation::new(key, "5")), Decoded::Ignored(Ignored::Internal), "{key}");
    }
    assert_eq!(decode(&Mutation::new("_sync", "5")), Decoded::Ignored(Ignored::NoMetadata));
}

#[test]
fn a_database_with_a_metadata_id_has_keys_of_its_own() {
    let options = GatewayOptions { metadata_prefix: "_sync:m_db1".into(), ..Default::default() };
    let decoder = GatewayDecoder::new(&options);
    assert!(matches!(decoder.decode(&Mutation::new("_sync:m_db1:user:jo", r#"{"sequence":1}"#)), Decoded::Principal(_)));
    assert!(matches!(decoder.decode(&Mutation::new("_sync:m_db1:unusedSeq:1", "")), Decoded::Unused(_)));
    for key in ["_sync:user:jo", "_sync:unusedSeq:1", "_sync:m_db1:seq", "_sync:m_db2:user:jo"] {
        assert_eq!(decoder.decode(&Mutation::new(key, r#"{"sequence":1}"#)), Decoded::Ignored(Ignored::Internal), "{key}");
    }
}

#[test]
fn recent_sequences_below_its_own_that_were_used_are_superseded() {
    let d = revision(r#""sequence":9,"recent_sequences":[8,3,9,8,12,0,5,6],"unused_sequences":[6]"#);
    assert_eq!(superseded(&d), [3, 5, 8]);
    assert_eq!(superseded(&revision(r#""sequence":9,"recent_sequences":null"#)), [0; 0]);
    let many = |count: u64| {
        let list: Vec<String> = (1..=count).map(|n| n.to_string()).collect();
        with_attribute(&format!(r#""rev":"1-a","sequence":100000,"recent_sequences":[{}]"#, list.join(",")))
    };
    assert_eq!(superseded(&document(&many(1000))).len(), 1000);
    assert!(reason(&many(1001)).contains("1000"));
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
