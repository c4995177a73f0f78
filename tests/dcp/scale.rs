//! Many documents: a recording copied until there are as many as wanted, in a cluster of three nodes with 1,024 vbuckets, followed in trouble.
//!
//! How many: the environment variable `SLUICEGATE_TEST_DOCUMENTS`. See the README.

use std::time::Instant;

use sluicegate::core::verify::{VerifyOptions, verify};
use sluicegate_testkit::PausingFeed;

use super::support::copies::Copies;
use super::support::recorded::SETS;
use super::support::{Kind, on_every_store};
use super::{assert_answers, clock, cluster, feed, wanted, write, writer};

on_every_store! {
    every_answer_is_the_models_however_many_documents_and_whatever_happens_on_the_way
}

/// Documents where nobody says how many.
const DOCUMENTS: usize = 10_000;

/// One writer follows while frames come in pieces, it is held up until the server has sent all it may, a node is killed and started again,
/// vbuckets move, and a third of them lose their last changes: these are withdrawn, and written again. What it then has not taken, another one takes.
async fn every_answer_is_the_models_however_many_documents_and_whatever_happens_on_the_way(kind: Kind) {
    let copies = Copies::of(&SETS[0]);
    let count = wanted(DOCUMENTS).div_ceil(copies.documents).max(4) as u64;
    let began = Instant::now();
    let (cluster, store) = (cluster(1024).await, kind.fresh().await);
    cluster.set_faults(|faults| faults.split_percent = 10);

    // A little is sent ahead, so that the server soon waits for a reader that does not read.
    let following = PausingFeed::new(feed(&cluster, "config_poll_ms=50&buffer=1000000").await);
    let mut follower = writer(&store, &following).await;
    let mut held = following.pause_at(20);
    let mut progress = follower.progress();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move {
        let ended = follower.run(&following, async move { drop(stopped.await) }).await;
        ended.map(|_| follower.stats())
    });
    let written = |numbers: std::ops::Range<u64>| {
        let mut events = 0;
        for number in numbers {
            let copy = copies.copy(number);
            write(&cluster, &copy);
            events += copy.len();
        }
        events
    };
    let third = count / 3;
    let mut events = written(0..third);
    assert!(held.reached().await, "the writer ended before it was held");
    events += written(third..third + 1);
    held.resume();

    cluster.kill_node(1);
    events += written(third + 1..2 * third);
    cluster.revive_node(1).await.unwrap();
    let (first, rest) = (2 * third, 2 * third + 1);
    events += written(first..rest);
    let moves: Vec<(u16, usize)> = (0..1024).step_by(5).map(|vbucket| (vbucket, usize::from(vbucket) % 3)).collect();
    cluster.rebalance(&moves);
    events += written(rest..count - 1);
    let before: Vec<u64> = (0..1024).map(|vbucket| cluster.high_seqno(vbucket)).collect();
    events += written(count - 1..count);
    progress.wait_for(|progress| progress.clock.high.0 >= count * copies.step).await.unwrap();
    for vbucket in (0..1024).step_by(3) {
        let last = cluster.high_seqno(vbucket).saturating_sub(3);
        cluster.fail_over_vbucket(vbucket, last.max(before[usize::from(vbucket)]));
    }
    progress.wait_for(|progress| progress.stats.withdrawn > 0).await.unwrap();
    events += written(count - 1..count);
    let wrote = began.elapsed();

    stop.send(()).unwrap();
    let stats = running.await.unwrap().unwrap();
    let last = feed(&cluster, "until=now").await;
    let mut writer = writer(&store, last.as_ref()).await;
    writer.run(last.as_ref(), std::future::pending()).await.unwrap();
    let (received, took) = (stats.received + writer.stats().received, began.elapsed());
    let withdrawn = stats.withdrawn + writer.stats().withdrawn;
    assert!(withdrawn > 300, "{withdrawn}");
    let documents = count as usize * copies.documents;
    println!(
        "{kind:?}: {documents} documents in {events} events, written within {wrote:.1?}; {received} events received, {withdrawn} entries withdrawn, all stored within {took:.1?}: {:.0}/s",
        received as f64 / took.as_secs_f64()
    );
    let clock = clock(&store).await;
    assert!(clock.high.0 > (count - 1) * copies.step, "{clock:?}");
    assert_answers(&store, &copies, count).await;
    let report = verify(store.as_ref(), &VerifyOptions::default().feed(last.info().checkpoint_name())).await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
    println!("{kind:?}: checked after {:.1?}", began.elapsed());
}
