//! Answers of a real gateway for collections of several databases in one bucket, reproduced answer for answer.

#![cfg(all(feature = "memory", feature = "replay"))]

use std::collections::BTreeMap;
use std::sync::Arc;

use sluicegate::WriterConfig;
use sluicegate::compare::{ComparedDatabase, Ids, KeyspacesReport, Truth, compare_keyspaces};
use sluicegate::databases::{DatabaseConfig, discover};
use sluicegate::decode::GatewayOptions;
use sluicegate_memory::MemoryStore;
use sluicegate_replay::Recording;

const LONG: &str = "db1-with-a-name-so-long-that-its-metadata-id-is-hashed";

fn recording(set: &str) -> Recording {
    Recording::read(format!("testdata/collections/mutations-collections{set}.ndjson.gz")).unwrap()
}

fn found(recording: &Recording) -> BTreeMap<String, DatabaseConfig> {
    let names = recording.collections.iter().map(|(id, name)| (*id, name.to_string()));
    discover(names, &recording.mutations).unwrap()
}

async fn compared(set: &str) -> KeyspacesReport {
    let recording = recording(set);
    let truth = Truth::read(format!("testdata/collections/changes-truth-collections{set}.ndjson.gz")).unwrap();
    let of = |(name, config): (&String, &DatabaseConfig)| {
        let mut decoder = config.decoder(name, &GatewayOptions::default()).unwrap();
        let own = |(_, known): &(&u32, &Box<str>)| config.collections().contains(&***known);
        decoder.collections = Some(recording.collections.iter().filter(own).map(|(id, _)| *id).collect());
        ComparedDatabase { name: name.clone(), decoder, store: Arc::new(MemoryStore::new()) }
    };
    let databases: Vec<ComparedDatabase> = found(&recording).iter().map(of).collect();
    let config = WriterConfig::default();
    compare_keyspaces(&databases, &recording.collections, recording.parts(), &truth, Ids::Exact, config).await.unwrap()
}

#[tokio::test]
async fn what_the_bucket_says_of_its_databases_is_found() {
    let databases = found(&recording("-system"));
    assert_eq!(databases.keys().collect::<Vec<_>>(), ["db0", "db1", LONG, "db2"]);
    let of = |name: &str| (databases[name].metadata_id(name), databases[name].collections().into_iter().collect::<Vec<_>>());
    assert_eq!(of("db1"), (Some("db1".to_owned()), ["s1.c1", "s1.c2", "s1.c3"].map(str::to_owned).to_vec()));
    assert_eq!(of(LONG), (Some("199a5884a60a79376549c820e9d1402d139b8f1e".to_owned()), vec!["s1.d1".to_owned()]));
    assert_eq!(of("db0").1, ["_default._default"]);
    assert_eq!(found(&recording("-33")).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_the_gateways_where_metadata_lie_in_the_default_collection() {
    let report = compared("-33").await;
    assert_eq!(report.total.differences, Vec::<String>::new());
    assert_eq!((report.total.answers, report.keyspaces.len()), (567, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_the_gateways_where_metadata_lie_in_a_collection_of_their_own() {
    let report = compared("-system").await;
    assert_eq!(report.total.differences, Vec::<String>::new());
    assert_eq!((report.total.answers, report.keyspaces.len()), (663, 7));
}
