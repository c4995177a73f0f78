use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::*;
use crate::feed::Datatype;

const LONG: &str = "db1-with-a-name-so-long-that-its-metadata-id-is-hashed";
const DIGEST: &str = "199a5884a60a79376549c820e9d1402d139b8f1e";

#[derive(Deserialize)]
struct Names {
    collections: BTreeMap<u32, String>,
}

#[derive(Deserialize)]
struct Line {
    key: String,
    coll: u32,
    datatype: u8,
    body: Option<Box<RawValue>>,
    body_b64: Option<String>,
}

/// The names of the collections, and the documents about databases.
fn recorded(name: &str) -> (BTreeMap<u32, String>, Vec<Mutation>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/databases").join(format!("{name}.ndjson"));
    let text = std::fs::read_to_string(path).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let names: Names = serde_json::from_str(first).unwrap();
    let mutation = |line: &str| {
        let line: Line = serde_json::from_str(line).unwrap();
        let body = match (line.body, line.body_b64) {
            (Some(body), _) => body.get().as_bytes().to_vec(),
            (None, body) => BASE64_STANDARD.decode(body.unwrap()).unwrap(),
        };
        let mut mutation = Mutation::new(line.key, body);
        (mutation.collection, mutation.datatype) = (line.coll, Datatype(line.datatype));
        mutation
    };
    (names.collections, rest.lines().map(mutation).collect())
}

fn observed(names: BTreeMap<u32, String>, mutations: &[Mutation]) -> Databases {
    let mut databases = Databases::new(names);
    for mutation in mutations {
        databases.observe(mutation);
    }
    databases
}

fn database(name: &str, metadata_id: Option<&str>, collections: &[(u32, &str)]) -> Database {
    let collection = |(id, name): &(u32, &str)| Collection { name: Some((*name).to_owned()), id: Some(*id) };
    Database {
        name: Some(name.to_owned()),
        metadata_id: metadata_id.map(str::to_owned),
        collections: collections.iter().map(collection).collect(),
    }
}

#[test]
fn the_databases_of_recorded_buckets_are_found() {
    for (set, default_id) in [("collections", Some("db0")), ("system-collection", Some("db0")), ("default-id", None)] {
        let expected = [
            database("db0", default_id, &[(0, "_default._default")]),
            database("db1", Some("db1"), &[(2, "s1.c1"), (3, "s1.c2"), (4, "s1.c3")]),
            database(LONG, Some(DIGEST), &[(7, "s1.d1")]),
            database("db2", Some("db2"), &[(5, "s2.c1"), (6, "s2.c2")]),
        ];
        let (names, mutations) = recorded(set);
        assert_eq!(observed(names.clone(), &mutations).list(), expected, "{set}");
        // The order does not matter, and either of the two kinds of documents that name databases
        // is enough.
        let reversed: Vec<Mutation> = mutations.iter().rev().cloned().collect();
        assert_eq!(observed(names.clone(), &reversed).list(), expected, "{set}");
        for kind in [REGISTRY, CONFIG] {
            let without: Vec<Mutation> = mutations.iter().filter(|m| !m.key.starts_with(kind)).cloned().collect();
            assert!(without.len() < mutations.len());
            assert_eq!(observed(names.clone(), &without).list(), expected, "{set}");
        }
        let again = observed(names, &mutations);
        assert!(mutations.iter().all(|mutation| !again.clone().observe(mutation)), "{set}: nothing new");
    }
    let (names, mutations) = recorded("version-3.3");
    let expected = [
        database("db1", Some("db1"), &[(1, "s1.c1"), (2, "s1.c2"), (3, "s1.c3")]),
        database(LONG, Some(DIGEST), &[(6, "s1.d1")]),
        database("db2", Some("db2"), &[(4, "s2.c1"), (5, "s2.c2")]),
    ];
    assert_eq!(observed(names, &mutations).list(), expected);
}

#[test]
fn collections_tell_of_databases_that_nothing_else_names() {
    let (names, mutations) = recorded("default-id");
    let infos: Vec<Mutation> = mutations.into_iter().filter(|mutation| mutation.key == INFO).collect();
    let list = observed(names, &infos).list();
    assert!(list.iter().all(|database| database.name.is_none()));
    let of = |id: Option<&str>| {
        let database = list.iter().find(|database| database.metadata_id.as_deref() == id).unwrap();
        database.collections.iter().map(|c| (c.id.unwrap(), c.name.as_deref().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(of(None), [(0, "_default._default")]);
    assert_eq!(of(Some("db2")), [(5, "s2.c1"), (6, "s2.c2")]);
    assert_eq!(of(Some(DIGEST)), [(7, "s1.d1")]);
    // Without the names of collections their numbers are still known, once each.
    let list = observed(BTreeMap::new(), &infos).list();
    let db2 = list.iter().find(|database| database.metadata_id.as_deref() == Some("db2")).unwrap();
    assert_eq!(db2.collections, [Collection { name: None, id: Some(5) }, Collection { name: None, id: Some(6) }]);
    assert_eq!(db2.options().unwrap().collections, Some(BTreeSet::from([5, 6])));
}

#[test]
fn options_are_those_of_the_database() {
    let (names, mutations) = recorded("collections");
    let list = observed(names, &mutations).list();
    let options = list[1].options().unwrap();
    assert_eq!((options.metadata_id.as_deref(), options.collections), (Some("db1"), Some(BTreeSet::from([2, 3, 4]))));
    assert_eq!(list[1].counter_key(), "_sync:m_db1:seq");
    // As long as a collection's number is not known, its documents cannot be told from others.
    let list = observed(BTreeMap::new(), &mutations).list();
    assert_eq!(list[1].options(), None);
    assert_eq!(list[0].options().unwrap().collections, Some(BTreeSet::from([0])));
}

#[test]
fn a_database_without_an_id_has_the_default_one_or_its_name() {
    let config =
        |name: &str, rest: &str| Mutation::new(format!("_sync:dbconfig:{name}:default"), format!(r#"{{"name":"{name}"{rest}}}"#));
    let ids = |mutations: &[Mutation]| -> Vec<_> {
        observed([(8, "s.c".to_owned())].into(), mutations).list().into_iter().map(|d| (d.name.unwrap(), d.metadata_id)).collect()
    };
    let named = |name: &str, id: Option<&str>| (name.to_owned(), id.map(str::to_owned));
    let other = r#","scopes":{"s":{"collections":{"c":{}}}}"#;
    assert_eq!(ids(&[config("a", ""), config("b", other)]), [named("a", None), named("b", Some("b"))]);
    assert_eq!(ids(&[config("a", ""), config("b", r#","metadata_id":"_default""#)]), [named("a", Some("a")), named("b", None)]);
    let mut info = Mutation::new("_sync:syncInfo", r#"{"metadataID":"x"}"#);
    assert_eq!(ids(&[config("a", ""), info.clone()]), [named("a", Some("x"))]);
    info.collection = 8;
    assert_eq!(ids(&[config("a", ""), config(LONG, other), info]), [named("a", None), named(LONG, Some("x"))]);
    assert_eq!(ids(&[config(LONG, other)]), [named(LONG, Some(DIGEST))]);
    // The key of before 3.1 names the group.
    let old = Mutation::new("_sync:dbconfig:group", r#"{"name":"a"}"#);
    assert_eq!(ids(&[old]), [named("a", None)]);
}

#[test]
fn what_is_deleted_or_broken_says_nothing() {
    let (names, mutations) = recorded("collections");
    let mut databases = observed(names, &mutations);
    for mutation in &mutations {
        for value in ["", "{", "[]", "5", "\u{1}"] {
            let broken = Mutation { value: Bytes::from_static(value.as_bytes()), ..mutation.clone() };
            databases.observe(&broken);
        }
    }
    assert_eq!(databases.list().len(), 4);
    for key in ["_sync:registr", "_sync:dbconfig", "_sync:seq", "doc", "_sync:dbconfig:\u{fffd}"] {
        assert!(!databases.observe(&Mutation::new(key, "{}")), "{key}");
    }
    for mutation in &mutations {
        databases.observe(&Mutation { kind: MutationKind::Deletion, value: Bytes::new(), ..mutation.clone() });
    }
    assert_eq!(databases.list(), []);
}

#[test]
fn long_names_are_replaced_by_a_digest() {
    assert_eq!(metadata_id_of(LONG), DIGEST);
    assert_eq!(name_in_key(&"x".repeat(39)), "x".repeat(39));
    assert_eq!(name_in_key(&"x".repeat(40)).len(), 40);
    assert_ne!(name_in_key(&"x".repeat(40)), "x".repeat(40));
    // Bytes count, not characters.
    assert_eq!(name_in_key(&"é".repeat(20)).len(), 40);
    assert_eq!((counter_key(None), counter_key(Some(DEFAULT_ID))), ("_sync:seq".to_owned(), "_sync:seq".to_owned()));
}
