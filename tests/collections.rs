//! Answers of a real gateway for collections of several databases in one bucket, reproduced answer
//! for answer.

#![cfg(all(feature = "memory", feature = "replay"))]

use std::collections::BTreeMap;
use std::sync::Arc;

use sluicegate::compare::{ComparedDatabase, Ids, KeyspacesReport, Truth, compare_keyspaces};
use sluicegate::databases::{DatabaseConfig, discover};
use sluicegate::decode::GatewayOptions;
use sluicegate::feed::SharedFeed;
use sluicegate::verify::{VerifyOptions, verify};
use sluicegate::{CacheStore, Channel, GatewayDecoder, ReaderConfig, ReaderNode, WriterConfig, WriterNode};
use sluicegate_memory::MemoryStore;
use sluicegate_replay::{Recording, ReplayFeed, ReplayOptions};

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
        let own = config.collections();
        let numbers = recording.collections.iter().filter(|(_, known)| own.contains(&***known)).map(|(id, _)| *id);
        decoder.collections = Some(numbers.collect());
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

/// Runs a writer of each database from one feed to its end; returns the number of events that each
/// received.
async fn serve(databases: &BTreeMap<String, DatabaseConfig>, stores: &[Arc<dyn CacheStore>], options: ReplayOptions) -> Vec<u64> {
    let path = "testdata/collections/mutations-collections-33.ndjson.gz";
    let feed = Arc::new(ReplayFeed::open(path, options).await.unwrap());
    let territories = databases.iter().map(|(name, config)| config.territory(name)).collect();
    let nodes: Vec<WriterNode> = SharedFeed::split(feed, territories)
        .into_iter()
        .zip(databases.iter().zip(stores))
        .map(|(shared, ((name, config), store))| {
            let decoder = GatewayDecoder::new(&config.decoder(name, &GatewayOptions::default()).unwrap());
            WriterNode::new(store.clone(), Arc::new(shared)).with_decoder(Arc::new(decoder)).with_database(config.identity(name))
        })
        .collect();
    futures::future::try_join_all(nodes.iter().map(|node| node.run(std::future::pending()))).await.unwrap();
    nodes.iter().map(|node| node.status().borrow().stats.received).collect()
}

async fn everything(store: &Arc<dyn CacheStore>) -> Vec<String> {
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let stars: Vec<Channel> = reader.collections().await.unwrap().used().map(Channel::star_of).collect();
    let answer = reader.changes(&stars, &Default::default()).await.unwrap().answer();
    answer.rows.iter().map(|row| format!("{} {} {}", row.id, row.entry.document(), row.entry.revision())).collect()
}

fn stores(count: usize) -> Vec<Arc<dyn CacheStore>> {
    (0..count).map(|_| Arc::new(MemoryStore::new()) as Arc<dyn CacheStore>).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_go_on_each_from_its_own_place() {
    let databases = found(&recording("-33"));
    let whole = stores(3);
    let received = serve(&databases, &whole, ReplayOptions::default()).await;
    assert!(received.iter().all(|count| *count > 100), "{received:?}");

    let parts = stores(3);
    serve(&databases, &parts, ReplayOptions::default().with_until_marker(1)).await;
    // One cache is lost, and is created again from the beginning; the others continue.
    let lost = [parts[0].clone(), Arc::new(MemoryStore::new()), parts[2].clone()];
    let then = serve(&databases, &lost, ReplayOptions::default()).await;
    assert!(then[0] < received[0] && then[1] == received[1] && then[2] < received[2], "{then:?} of {received:?}");
    assert_eq!(serve(&databases, &lost, ReplayOptions::default()).await, [0, 0, 0]);
    for (store, expected) in lost.iter().zip(&whole) {
        assert_eq!(everything(store).await, everything(expected).await);
        let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}
