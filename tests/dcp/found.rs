//! Databases that the bucket's own documents name, found over DCP by the command; and a writer
//! that is given a part of a database only.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use sluicegate::Mutation;
use sluicegate_replay::Recording;
use sluicegate_simulator::{Cluster, ClusterConfig, Password};
use sluicegate_test_servers::{RedisServer, command};

use super::killed::PROGRAM;
use super::{PASSWORD, feed_url, write};

/// The result of a command that ends well, as JSON.
fn run(args: &[&str]) -> Value {
    let output = command(PROGRAM).args(args).args(["--format", "json"]).stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {}: {error}", output.status);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {error}"))
}

/// A recorded bucket with several databases.
struct Bucket {
    cluster: Cluster,
    /// Names of its collections.
    collections: Vec<String>,
    /// The recording as a feed.
    replay: String,
}

impl Bucket {
    /// With the collections of the recording, under the numbers that the cluster gives them.
    async fn of(set: &str) -> Bucket {
        let path = format!("testdata/collections/mutations-collections{set}.ndjson.gz");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let recording = Recording::read(&path).unwrap();
        let mut config = ClusterConfig::default();
        (config.nodes, config.vbuckets, config.retains_history) = (2, 32, true);
        (config.user, config.password) = ("gateway".to_owned(), Password::new(PASSWORD));
        let cluster = Cluster::start(config).await.unwrap();
        let mut numbers = BTreeMap::from([(0, 0)]);
        for (id, name) in recording.collections.iter().filter(|(id, _)| **id != 0) {
            let (scope, collection) = name.split_once('.').unwrap();
            // Of the collections of one scope, the first makes it.
            cluster.create_scope(scope);
            numbers.insert(*id, cluster.create_collection(scope, collection, None).unwrap());
        }
        let moved = |mutation: &Mutation| Mutation { collection: numbers[&mutation.collection], ..mutation.clone() };
        write(&cluster, &recording.mutations.iter().map(moved).collect::<Vec<_>>());
        let collections = recording.collections.values().map(|name| name.to_string()).collect();
        Bucket { cluster, collections, replay: format!("replay:{}", path.display()) }
    }

    /// All changes that there are, none left out.
    fn url(&self, options: &str) -> String {
        feed_url(&self.cluster, &format!("until=now&history=true{options}"))
    }
}

/// The rows of a keyspace, by sequence.
fn rows(answer: &Value) -> Vec<Value> {
    answer["results"].as_array().unwrap().clone()
}

/// Serves all databases that are found in the bucket, and compares each with what the recording
/// gives.
async fn databases_are_found_and_each_has_its_own(set: &str, metadata: &str) {
    let bucket = Bucket::of(set).await;
    assert!(bucket.collections.iter().any(|name| name == metadata), "{:?}", bucket.collections);
    let server = RedisServer::start();
    let store = server.url();
    let found = run(&["run", "--feed", &bucket.url(""), "--store", &store, "--databases", "auto", "--log", "off"]);
    let expected = run(&["run", "--feed", &bucket.replay, "--databases", "auto", "--log", "off"]);
    let databases = |summary: &Value| summary["databases"].as_object().unwrap().clone();
    let (found, expected) = (databases(&found), databases(&expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found.len() >= 3, "{found:?}");
    let mut shown = 0;
    for (name, one) in &found {
        let reached = |one: &Value| json!([one["clock"]["stable"], one["clock"]["high"], one["clock"]["gaps"]]);
        assert_eq!(reached(one), reached(&expected[name]), "{name}: {one}");
        assert_eq!((&one["clock"]["gaps"], &one["writer"]["conflicts"]), (&json!(0), &json!(0)), "{name}: {one}");
        let report = run(&["verify", "--store", &store, "--databases", "auto", "--database", name]);
        assert_eq!(report["findings"], json!([]), "{name}");
        let asked = |source: &[&str]| rows(&run(&[&["changes", "--databases", "auto", "--database", name], source].concat()));
        let (own, recorded) = (asked(&["--store", &store]), asked(&["--feed", &bucket.replay, "--log", "off"]));
        assert_eq!(own, recorded, "{name}");
        assert!(!own.is_empty(), "{name}");
        shown += own.len();
    }
    assert!(shown > 300, "{shown} rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_are_found_whose_metadata_are_in_the_default_collection() {
    databases_are_found_and_each_has_its_own("-33", "_default._default").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_are_found_whose_metadata_are_in_a_collection_of_their_own() {
    databases_are_found_and_each_has_its_own("-system", "_system._mobile").await;
}

/// A writer of one of three collections of a database: the sequences of the others are passed if
/// the feed leaves these out, and missed if only the list does.
#[tokio::test(flavor = "multi_thread")]
async fn sequences_of_collections_that_are_left_out_are_passed_or_missed() {
    let bucket = Bucket::of("-33").await;
    let server = RedisServer::start();
    let url = server.url();
    let store = |namespace: &str| format!("{url}?namespace={namespace}");
    let run_with = |namespace: &str, feed: &str, settings: &[&str]| {
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
        let args = ["run", "--log", "off", "--feed", feed, "--store", &store(namespace)];
        run(&[&args[..], &settings[..]].concat())
    };
    let changes = |namespace: &str| {
        let answer = run(&["changes", "--store", &store(namespace), "--keyspace", "s1.c1", "--delivery", "eager"]);
        let sequence = |row: &Value| row["seq"].as_u64().or_else(|| row["seq"].as_str()?.rsplit("::").next()?.parse().ok());
        rows(&answer).iter().map(|row| (sequence(row).unwrap(), row["id"].as_str().unwrap().to_owned())).collect::<Vec<_>>()
    };
    let whole = bucket.url("");
    run_with("all", &whole, &["decoder.metadata_id=db1", "decoder.collections=s1.c1,s1.c2,s1.c3"]);
    let expected = changes("all");
    assert!(expected.len() > 50, "{} rows", expected.len());
    let number = |summary: &Value, object: &str, name: &str| summary[object][name].as_u64().unwrap();

    // The feed leaves out the other collections: their sequences are passed.
    let part = bucket.url("&collections=_default._default,s1.c1");
    let passed = run_with("passed", &part, &["decoder.metadata_id=db1"]);
    assert_eq!(changes("passed"), expected);
    let clock = |name: &str| number(&passed, "clock", name);
    assert_eq!((clock("stable"), clock("gaps")), (clock("high"), 0), "{passed}");
    assert!(clock("stable") >= expected.last().unwrap().0, "{passed}");
    assert!(number(&passed, "writer", "undelivered") > 100 && number(&passed, "writer", "skipped") == 0, "{passed}");

    // The feed delivers them, and the list leaves them out: they are missing, and stable waits.
    let list = ["databases.db1.collections=s1.c1"];
    let missed = run_with("missed", &whole, &list);
    let one = &missed["databases"]["db1"];
    let clock = |name: &str| number(one, "clock", name);
    assert!(clock("stable") < clock("high") && clock("gaps") > 100, "{missed}");
    assert!(number(one, "writer", "undelivered") == 0 && number(one, "writer", "skipped") > 100, "{missed}");
    assert_eq!(changes("missed_db1"), expected);

    // Unless the setting says that the feed is partial.
    let told = run_with("told", &whole, &[&list[..], &["writer.partial_feed=true"]].concat());
    let one = &told["databases"]["db1"];
    let clock = |name: &str| number(one, "clock", name);
    assert_eq!((clock("stable"), clock("gaps")), (clock("high"), 0), "{told}");
    assert!(number(one, "writer", "undelivered") > 100, "{told}");
    assert_eq!(changes("told_db1"), expected);
}
