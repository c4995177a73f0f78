//! Servers that are killed, and connections.

use std::sync::Arc;

use sluicegate_test_servers::RedisServer;

use crate::DURABLE;
use crate::support::load::Load;
use crate::support::{block, disturbed, open, some_moment};

async fn killed(seed: u64, give_up_after_ms: u64) -> usize {
    let load = Arc::new(Load::new(seed, 400).await);
    let mut server = block(|| RedisServer::with(&DURABLE));
    let (store, watched) = (open(&server.url()).await, open(&server.url()).await);
    disturbed(load, store, watched, give_up_after_ms, 8, async |_, pause| {
        some_moment(pause).await;
        block(|| server.kill());
        block(|| server.restart());
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_rides_out_a_server_that_is_killed_during_commits() {
    for seed in 0..5 {
        assert_eq!(killed(seed, 60_000).await, 1, "terms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_gives_up_is_followed_by_one_that_goes_on() {
    let mut terms = 0;
    for seed in 10..15 {
        terms += killed(seed, 1).await;
    }
    assert!(terms > 10, "only {terms} terms");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_connections_and_flushed_scripts_are_not_noticed() {
    for seed in 20..24 {
        let load = Arc::new(Load::new(seed, 400).await);
        let server = block(RedisServer::start);
        let (store, watched) = (open(&server.url()).await, open(&server.url()).await);
        let terms = disturbed(load, store, watched, 60_000, 24, async |n, pause| {
            let commands: [&[&str]; 4] = [
                &["SCRIPT", "FLUSH"],
                &["CLIENT", "KILL", "TYPE", "normal"],
                &["CLIENT", "KILL", "TYPE", "pubsub"],
                &["FUNCTION", "FLUSH"],
            ];
            some_moment(pause).await;
            block(|| server.cli(commands[n as usize % 4]));
        })
        .await;
        assert_eq!(terms, 1);
    }
}
