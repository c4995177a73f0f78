//! A Cluster whose nodes fail, and whose slots move.

mod support;

use std::sync::Arc;

use futures::StreamExt as _;
use sluicegate_core::verify::{VerifyOptions, verify};
use sluicegate_core::{CacheStore, ReaderConfig, ReaderNode};
use sluicegate_test_servers::{RedisCluster, RedisServer};
use sluicegate_testkit::PausingFeed;
use support::load::{FEED, Load};
use support::{block, disturbed, open, rights, some_moment, until};

/// The place of the node that is asked and answers so.
fn position(cluster: &mut RedisCluster, is_it: impl Fn(&RedisServer) -> bool) -> usize {
    cluster.nodes().iter().position(is_it).expect("there is such a node")
}

/// The master that has a key which ends so.
fn holder(cluster: &mut RedisCluster, end: &str) -> usize {
    position(cluster, |node| is_master(node) && node.cli(&["--scan"]).lines().any(|key| key.ends_with(end)))
}

fn is_master(node: &RedisServer) -> bool {
    node.cli(&["ROLE"]).starts_with("master")
}

fn replica_of(cluster: &mut RedisCluster, master: usize) -> usize {
    let port = cluster.nodes()[master].port().to_string();
    position(cluster, |node| !is_master(node) && node.cli(&["ROLE"]).lines().any(|line| line == port))
}

fn options(more: &str) -> String {
    format!("timeout_ms=1000&connect_timeout_ms=1000{more}")
}

async fn opened(cluster: &RedisCluster, more: &str) -> Arc<dyn CacheStore> {
    open(&format!("{}?{}", cluster.url(), options(more))).await
}

/// Each shard fails over, one after the other. With `wait_replicas`, nothing that was acknowledged is lost.
#[tokio::test(flavor = "multi_thread")]
async fn masters_that_are_killed_during_commits_are_replaced() {
    for seed in 200..202 {
        let load = Arc::new(Load::new(seed, 300).await);
        let mut cluster = block(RedisCluster::start);
        block(|| cluster.wait_until_whole());
        let (store, watched) = (opened(&cluster, "&wait_replicas=1").await, opened(&cluster, "").await);
        let terms = disturbed(load, store, watched, 120_000, 3, async |n, pause| {
            some_moment(pause).await;
            block(|| {
                let port = cluster.nodes()[n as usize - 1].port();
                cluster.nodes()[n as usize - 1].kill();
                cluster.wait_until_replaced(port);
                // As a replica of the one that has taken its place.
                cluster.nodes()[n as usize - 1].restart();
                cluster.wait_until_whole();
            });
        })
        .await;
        assert_eq!(terms, 1);
    }
}

/// It is there and says nothing, until it is back as a replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_falls_silent_is_replaced() {
    let load = Arc::new(Load::new(210, 300).await);
    let mut cluster = block(RedisCluster::start);
    block(|| cluster.wait_until_whole());
    let (store, watched) = (opened(&cluster, "&wait_replicas=1").await, opened(&cluster, "").await);
    let terms = disturbed(load, store, watched, 120_000, 2, async |n, pause| {
        some_moment(pause).await;
        block(|| {
            let port = cluster.nodes()[n as usize].port();
            cluster.nodes()[n as usize].process().signal("STOP");
            cluster.wait_until_replaced(port);
            cluster.nodes()[n as usize].process().signal("CONT");
            cluster.wait_until_whole();
        });
    })
    .await;
    assert_eq!(terms, 1);
}

/// A shard whose replica is cut off acknowledges writes, and is lost with them: another shard than the clock's. What is there then, and the writer's end.
async fn shard_lost(seed: u64, more: &str) -> (Load, RedisCluster, Arc<dyn CacheStore>) {
    let load = Load::new(seed, 300).await;
    let mut cluster = block(RedisCluster::start);
    block(|| cluster.wait_until_whole());
    let store = opened(&cluster, more).await;
    let feed = PausingFeed::new(Arc::new(load.feed.clone()));
    let (mut first, mut second) = (feed.pause_at(10), feed.pause_at(25));
    let mut writer = load.writer(store.clone(), 120_000).await.unwrap();
    let mut progress = writer.progress();
    let writing = tokio::spawn(async move { writer.run(&feed, std::future::pending()).await });
    assert!(first.reached().await);
    progress.wait_for(|p| p.queued_bytes == 0).await.unwrap();
    let (master, replica) = block(|| {
        let clock = holder(&mut cluster, "_stableSeq");
        // Sequence documents are on all shards.
        let master = (0..3).find(|at| *at != clock).unwrap();
        let replica = replica_of(&mut cluster, master);
        cluster.nodes()[replica].process().signal("STOP");
        cluster.nodes()[master].cli(&["CLIENT", "KILL", "TYPE", "replica"]);
        (master, replica)
    });
    first.resume();
    if more.is_empty() {
        // Everything is acknowledged.
        assert!(second.reached().await);
        progress.wait_for(|p| p.queued_bytes == 0).await.unwrap();
    } else {
        let node = &cluster.nodes()[master];
        until("a commit waits for the replica", async || block(|| node.cli(&["CLIENT", "LIST"])).contains("cmd=wait")).await;
    }
    block(|| {
        let port = cluster.nodes()[master].port();
        cluster.nodes()[master].kill();
        cluster.nodes()[replica].process().signal("CONT");
        cluster.wait_until_replaced(port);
        cluster.nodes()[master].restart();
        cluster.wait_until_whole();
    });
    second.resume();
    writing.await.unwrap().unwrap();
    (load, cluster, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wait_replicas_a_shard_loses_nothing_that_counts() {
    for seed in 220..222 {
        let (load, _cluster, store) = shard_lost(seed, "&wait_replicas=1").await;
        load.check(store, "a shard that was lost with its last writes").await;
    }
}

/// What the README says of a Cluster without `wait_replicas`: the writer cannot notice, and `verify` finds it.
#[tokio::test(flavor = "multi_thread")]
async fn without_wait_replicas_a_shard_may_lose_what_only_verify_finds() {
    let (_, _cluster, store) = shard_lost(230, "").await;
    let report = verify(store.as_ref(), &VerifyOptions::default().feed(FEED)).await.unwrap();
    assert!(!report.is_clean(), "{report:?}");
}

fn slot_of(node: &RedisServer, key: &str) -> String {
    node.cli(&["CLUSTER", "KEYSLOT", key]).trim().to_owned()
}

/// Moves one slot: all keys but one, then `between`, then the rest.
fn move_slot(cluster: &mut RedisCluster, key: &str, between: impl FnOnce()) {
    let nodes = cluster.nodes();
    let slot = slot_of(&nodes[0], key);
    let keys = |node: &RedisServer| -> Vec<String> {
        node.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "1000"]).lines().map(str::to_owned).collect()
    };
    let from = nodes.iter().position(|node| is_master(node) && !keys(node).is_empty() && !keys(node)[0].is_empty()).unwrap();
    let to = (0..3).find(|at| *at != from && is_master(&nodes[*at])).unwrap();
    let id = |at: usize| nodes[at].cli(&["CLUSTER", "MYID"]).trim().to_owned();
    let (source, target) = (id(from), id(to));
    assert_eq!(nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]).trim(), "OK");
    assert_eq!(nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]).trim(), "OK");
    let port = nodes[to].port().to_string();
    let pass = |key: &str| drop(nodes[from].cli(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]));
    let all = keys(&nodes[from]);
    all.iter().skip(1).for_each(|key| pass(key));
    between();
    while let Some(key) = keys(&nodes[from]).first().filter(|key| !key.is_empty()) {
        pass(key);
    }
    for at in [to, from].into_iter().chain((0..nodes.len()).filter(|at| *at != to && *at != from && is_master(&nodes[*at]))) {
        nodes[at].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_during_commits_are_followed() {
    for seed in 240..242 {
        let load = Arc::new(Load::new(seed, 300).await);
        let mut cluster = block(RedisCluster::start);
        block(|| cluster.wait_until_whole());
        let (store, watched) = (opened(&cluster, "").await, opened(&cluster, "").await);
        let terms = disturbed(load, store, watched, 120_000, 5, async |n, pause| {
            some_moment(pause).await;
            block(|| match n {
                5 => {
                    let (first, second) = (cluster.nodes()[0].port(), cluster.nodes()[1].cli(&["CLUSTER", "MYID"]));
                    let first_id = cluster.nodes()[0].cli(&["CLUSTER", "MYID"]);
                    let address = format!("127.0.0.1:{first}");
                    let said = cluster.nodes()[0].cli(&[
                        "--cluster",
                        "reshard",
                        &address,
                        "--cluster-from",
                        first_id.trim(),
                        "--cluster-to",
                        second.trim(),
                        "--cluster-slots",
                        "200",
                        "--cluster-yes",
                    ]);
                    assert!(said.contains("Moving slot"), "{said}");
                }
                _ => {
                    let end = ["_stableSeq", ":_dir:[*]", ":_dir:[ch0]", ":_seq:[0]"][n as usize - 1];
                    let at = holder(&mut cluster, end);
                    let keys = cluster.nodes()[at].cli(&["--scan"]);
                    let key = keys.lines().find(|key| key.ends_with(end)).unwrap();
                    move_slot(&mut cluster, key, || std::thread::sleep(std::time::Duration::from_millis(100)));
                }
            });
        })
        .await;
        assert_eq!(terms, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_are_told_after_a_failover() {
    let load = Load::new(250, 300).await;
    let mut cluster = block(RedisCluster::start);
    block(|| cluster.wait_until_whole());
    let store = opened(&cluster, "&wait_replicas=1").await;
    let feed = PausingFeed::new(Arc::new(load.feed.clone()));
    let mut pause = feed.pause_at(10);
    let mut writer = load.writer(store.clone(), 120_000).await.unwrap();
    let mut progress = writer.progress();
    let writing = tokio::spawn(async move { writer.run(&feed, std::future::pending()).await });
    assert!(pause.reached().await);
    // It looks by itself every hour.
    let config: ReaderConfig = serde_json::from_str(r#"{"poll_min_ms": 3600000, "poll_max_ms": 3600000}"#).unwrap();
    let reader = ReaderNode::open(opened(&cluster, "").await, config).await.unwrap();
    progress.wait_for(|p| p.queued_bytes == 0).await.unwrap();
    let batch = progress.borrow().clock.batch;
    until("the reader is told", async || reader.cut().batch >= batch).await;
    block(|| {
        let clock = holder(&mut cluster, "_stableSeq");
        let port = cluster.nodes()[clock].port();
        cluster.nodes()[clock].kill();
        cluster.wait_until_replaced(port);
        cluster.nodes()[clock].restart();
        cluster.wait_until_whole();
    });
    pause.resume();
    writing.await.unwrap().unwrap();
    let last = progress.borrow().clock.batch;
    assert!(last > batch);
    until("the reader is told of the end", async || reader.cut().batch >= last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_the_readme_names_are_enough() {
    let load = Load::new(260, 200).await;
    let mut cluster = block(RedisCluster::start);
    block(|| {
        cluster.wait_until_whole();
        for node in cluster.nodes() {
            for rules in rights() {
                assert_eq!(node.cli(&[&["ACL", "SETUSER", "cache"], &rules[..]].concat()).trim(), "OK", "{rules:?}");
            }
        }
    });
    let url = cluster.url().replace("://", "://cache:sesame@");
    let store: Arc<dyn CacheStore> = open(&format!("{url}?{}", options("&wait_replicas=1"))).await;
    load.run(store.clone(), 5_000).await.unwrap();
    load.check(store.clone(), "with few rights").await;
    assert!(store.wakes().unwrap().next().await.is_some());

    // As an earlier README named them: scripts are then sent whole.
    block(|| {
        for node in cluster.nodes() {
            assert_eq!(node.cli(&["ACL", "SETUSER", "cache", "-evalsha"]).trim(), "OK");
            // Replicas refuse it, and follow.
            node.cli(&["FLUSHALL"]);
        }
    });
    let store: Arc<dyn CacheStore> = open(&format!("{url}?{}", options("&wait_replicas=1"))).await;
    load.run(store.clone(), 5_000).await.unwrap();
    load.check(store, "with scripts that are sent whole").await;
}
