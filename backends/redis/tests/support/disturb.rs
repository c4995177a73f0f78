//! Trouble while a writer writes.

use std::sync::Arc;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate_core::CacheStore;
use sluicegate_testkit::{Pause, PausingFeed};

use super::load::Load;
use super::until;
use super::watch::Watcher;

/// Lets a writer write, term after term, and does something to its server `times` times, just before or after the feed goes on. How many terms it took. In
/// the end everything must be there, and a client that followed has been told everything once.
pub(crate) async fn disturbed(
    load: Arc<Load>,
    store: Arc<dyn CacheStore>,
    watched: Arc<dyn CacheStore>,
    give_up_after_ms: u64,
    times: u64,
    mut disturb: impl AsyncFnMut(u64, Pause),
) -> usize {
    let mut random = ChaCha8Rng::seed_from_u64(load.seed);
    let watcher = Watcher::new(watched.clone());
    let feed = Arc::new(PausingFeed::new(Arc::new(load.feed.clone())));
    // The feed has at least so many batches between two.
    let every = load.batches() / times;
    assert!(every >= 1, "the load is too small");
    let mut next = Some(feed.pause_at(random.random_range(1..=every)));
    let writing = tokio::spawn({
        let (load, store, feed) = (load.clone(), store.clone(), feed.clone());
        async move { load.finish(feed.as_ref(), &store, give_up_after_ms).await }
    });
    for n in 1..=times {
        let Some(mut pause) = next.take() else { break };
        tokio::select! {
            reached = pause.reached() => assert!(reached),
            // It has failed.
            () = until("the feed goes on", async || writing.is_finished()) => break,
        }
        next = (n < times).then(|| feed.pause_at(random.random_range(1..=every)));
        disturb(n, pause).await;
    }
    let terms = writing.await.unwrap();
    let content = load.check(store, "a disturbed run").await;
    watcher.end().await.check(&watched, &content.answers["*"], &format!("seed {}", load.seed)).await;
    terms
}

/// Some moment after the feed has gone on, while commits are under way. Which one decides nothing.
pub(crate) async fn some_moment(pause: Pause) {
    pause.resume();
    tokio::time::sleep(Duration::from_micros(rand::random_range(0..4_000))).await;
}
