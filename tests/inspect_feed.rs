//! `sluicegate inspect feed`, on a simulated cluster.

#![cfg(all(feature = "cli", feature = "dcp", feature = "memory"))]

use std::process::Stdio;

use serde_json::Value;
use sluicegate_simulator::{Cluster, ClusterConfig, Load};

const PASSWORD: &str = "let-me-in";

async fn cluster() -> Cluster {
    let mut config = ClusterConfig::default();
    (config.nodes, config.vbuckets) = (2, 16);
    (config.user, config.password) = ("gateway".to_owned(), sluicegate_simulator::Password::new(PASSWORD));
    let cluster = Cluster::start(config).await.unwrap();
    let mut load = Load::default();
    load.documents = 200;
    cluster.load(&load).unwrap();
    cluster
}

fn url(cluster: &Cluster) -> String {
    let hosts = cluster.connection_string().replace("couchbase:", "dcp:");
    format!("{hosts}/default?user=gateway&password_env=FEED_PASSWORD&connect_timeout_ms=3000")
}

/// What it printed, and its exit code.
async fn inspect(args: &[&str], password: &str) -> (i32, String, String) {
    let mut command = sluicegate_test_servers::command(env!("CARGO_BIN_EXE_sluicegate"));
    command.args(["inspect", "feed"]).args(args).env("FEED_PASSWORD", password).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_vbucket_is_shown_with_its_node_and_seqnos() {
    let cluster = cluster().await;
    let (code, out, error) = inspect(&[&url(&cluster), "--format", "json"], PASSWORD).await;
    assert_eq!(code, 0, "{error}");
    let shown: Value = serde_json::from_str(&out).unwrap();
    let vbuckets = shown["vbuckets"].as_array().unwrap();
    assert_eq!((vbuckets.len(), &shown["feed"]), (16, &Value::from("dcp:default")));
    for (id, vbucket) in (0..).zip(vbuckets) {
        assert_eq!((vbucket["vbucket"].as_u64(), &vbucket["state"]), (Some(u64::from(id)), &Value::from("streaming")));
        let node = cluster.addresses()[cluster.owner(id).unwrap()].to_string();
        assert_eq!((&vbucket["node"], vbucket["high_seqno"].as_u64()), (&Value::from(node), Some(cluster.high_seqno(id))));
        assert_eq!(vbucket["uuid"].as_u64(), cluster.failover_log(id).newest().map(|entry| entry.vbucket_uuid));
        assert_eq!((vbucket["lag"].as_u64(), vbucket.get("behind")), (Some(0), None));
    }
    let totals = &shown["totals"];
    assert_eq!((totals["high_seqnos"].as_u64(), totals["connections"].as_u64()), (Some(200), Some(2)));

    let (code, out, _) = inspect(&[&url(&cluster)], PASSWORD).await;
    assert_eq!((code, out.lines().count()), (0, 7 + 2 + 16), "{out}");
    assert!(out.contains("16: 16 streaming") && out.contains("200, 0 still to come"), "{out}");
    // A store without a checkpoint of this feed has nothing to say.
    let (code, out, _) = inspect(&[&url(&cluster), "--store", "memory:"], PASSWORD).await;
    assert!(code == 0 && out.contains("no checkpoint"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vbucket_without_a_stream_is_found() {
    let cluster = cluster().await;
    let url = url(&cluster);
    cluster.kill_node(1);
    let (code, out, error) = inspect(&[&url, "--wait", "2", "--format", "json"], PASSWORD).await;
    assert_eq!(code, 3, "{error}");
    let shown: Value = serde_json::from_str(&out).unwrap();
    for id in (0..16).filter(|id| cluster.owner(*id) == Some(1)) {
        assert_ne!(shown["vbuckets"][usize::from(id)]["state"], "streaming", "{out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_work_is_said_without_the_password() {
    let cluster = cluster().await;
    let (code, out, error) = inspect(&[&url(&cluster)], "hunter2").await;
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(error.contains("check the options user and password") && !error.contains("hunter2"), "{error}");
    (0..2).for_each(|node| cluster.kill_node(node));
    let (code, _, error) = inspect(&[&url(&cluster)], PASSWORD).await;
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("127.0.0.1"), "{error}");
    let (code, _, error) = inspect(&["replay:file"], PASSWORD).await;
    assert!(code == 2 && error.contains("dcp: or dcps:"), "{error}");
    let (code, _, error) = inspect(&[], PASSWORD).await;
    assert!(code == 2 && error.contains("no bucket is given"), "{error}");
}
