//! The gateway's own documents: users, roles, markers, the counter, and their databases.

use super::*;

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
fn the_debug_text_of_a_user_has_no_password() {
    let body = r#"{"name":"jo","sequence":7,"passwordhash_bcrypt":"JDJhJDEw"}"#;
    let text = format!("{:?}", decode(&Mutation::new("_sync:user:jo", body)));
    assert!(text.contains("jo") && !text.contains("JDJhJDEw"), "{text}");
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
