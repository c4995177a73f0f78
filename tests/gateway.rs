//! The cache against a real gateway: its recorded mutations in, its recorded answers compared, in every way a feed may deliver them.

mod support;

use std::sync::Arc;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate::compare::{Ids, Report, Truth, compare, compare_marker};
use sluicegate_core::decode::{Decoded, GatewayDecoder, MutationDecoder as _};
use sluicegate_core::feed::{Datatype, FeedEvent};
use sluicegate_core::pointer::Supersession;
use sluicegate_core::{CacheStore, Mutation, Sequence};
use sluicegate_core::{ReaderConfig, ReaderNode, Writer, WriterConfig};
use sluicegate_replay::{MemoryFeed, MutationsExt as _};
use support::recorded::{SETS, Set, assert_agrees, load, truly_lost};
use support::{Kind, on_every_store};

on_every_store! {
    every_recorded_answer_is_reproduced_at_every_marker
    the_order_of_the_feed_does_not_matter
    events_that_come_again_change_nothing
    garbage_in_the_feed_costs_nothing_but_itself
    events_that_the_server_left_out_are_made_up_for
    with_pointers_nothing_stays_behind_however_much_the_server_left_out
    what_the_gateway_itself_lost_is_all_that_differs_on_the_hazards
    a_writer_that_is_killed_anywhere_loses_nothing
}

const HAZARDS: Set =
    Set { name: "hazards", mutations: "hazards/mutations-skips.ndjson.gz", truth: "hazards/changes-truth-skips.ndjson.gz" };

async fn writer(store: &Arc<dyn CacheStore>, feed: &str, config: WriterConfig) -> Writer {
    Writer::alone(store.clone(), Arc::new(GatewayDecoder::default()), feed, config).await.unwrap()
}

async fn answers(kind: Kind, parts: Vec<(u32, Vec<Mutation>)>, truth: &Truth, ids: Ids) -> Report {
    compare(kind.fresh().await, parts, truth, ids, WriterConfig::default()).await.unwrap()
}

async fn every_recorded_answer_is_reproduced_at_every_marker(kind: Kind) {
    for set in &SETS {
        let (recording, truth) = load(set);
        assert_agrees(set.name, &answers(kind, recording.parts(), &truth, Ids::Exact).await);
    }
}

async fn the_order_of_the_feed_does_not_matter(kind: Kind) {
    for set in &SETS {
        let (recording, truth) = load(set);
        for (window, seed) in [(10, 1), (100, 2), (1_000, 3), (8_000, 4)] {
            let shuffle = |(marker, part): (u32, Vec<Mutation>)| (marker, part.shuffled_within(window, seed));
            let parts: Vec<_> = recording.parts().into_iter().map(shuffle).collect();
            let what = format!("{}, shuffled within {window}, seed {seed}", set.name);
            assert_agrees(&what, &answers(kind, parts, &truth, Ids::Exact).await);
        }
    }
}

async fn events_that_come_again_change_nothing(kind: Kind) {
    for set in &SETS {
        let (recording, truth) = load(set);
        for seed in 0..3 {
            let again = |(marker, part): (u32, Vec<Mutation>)| (marker, part.duplicated(0.1, seed).shuffled_within(50, seed));
            let parts: Vec<_> = recording.parts().into_iter().map(again).collect();
            assert_agrees(&format!("{}, duplicated, seed {seed}", set.name), &answers(kind, parts, &truth, Ids::Exact).await);
        }
    }
}

/// What cannot be understood is counted, and everything else comes out as without it.
async fn garbage_in_the_feed_costs_nothing_but_itself(kind: Kind) {
    let (recording, truth) = load(&SETS[2]);
    let truncated = {
        let mut mutation = Mutation::new("cut-short", vec![0, 0, 1, 0, 0, 0]);
        mutation.datatype = Datatype(Datatype::XATTR | Datatype::JSON);
        mutation
    };
    let mut nonsense = Mutation::new("nonsense", r#"{"_sync":{"sequence":"many","rev":7}}"#);
    nonsense.datatype = Datatype(Datatype::JSON);
    let garbage =
        [truncated, nonsense, Mutation::new("_sync:unusedSeqs:9:x", ""), Mutation::new(vec![0xff, 0xfe], vec![0xff; 40])];
    let spoil = |(marker, part): (u32, Vec<Mutation>)| {
        let spoiled = part.chunks(50).flat_map(|chunk| chunk.iter().chain(&garbage)).cloned().collect();
        (marker, spoiled)
    };
    let parts: Vec<_> = recording.parts().into_iter().map(spoil).collect();
    assert_agrees("with garbage", &answers(kind, parts, &truth, Ids::Exact).await);

    let store = kind.fresh().await;
    let mut writer = writer(&store, "garbage", WriterConfig::default()).await;
    writer.process(garbage.map(FeedEvent::Mutation).to_vec().into()).await.unwrap();
    assert_eq!((writer.stats().received, writer.stats().invalid, writer.stats().cached), (4, 3, 0));
}

/// A server keeps only the newest event of a key, so a reader that is behind misses the others: their numbers come back through the
/// documents' recent sequences. Those of users and roles do not; they are truly lost.
async fn events_that_the_server_left_out_are_made_up_for(kind: Kind) {
    for set in &SETS {
        let (recording, truth) = load(set);
        for window in [50, 200, 1_000] {
            let mut report = Report::default();
            let mut lost = 0;
            for marker in 1..=4 {
                let all = recording.upto_marker(marker).unwrap().to_vec();
                let kept = all.clone().deduplicated(window);
                let now_lost = truly_lost(&all, &kept);
                lost += now_lost;
                let ids = if now_lost == 0 { Ids::Exact } else { Ids::Sequences };
                report.add(answers(kind, vec![(marker, kept)], &truth, ids).await);
            }
            println!("{}, windows of {window}: {lost} numbers truly lost over 4 markers", set.name);
            assert_agrees(&format!("{}, de-duplicated in windows of {window}", set.name), &report);
        }
    }
}

/// Where the writer was away for long, a document's recent sequences do not reach back to the row that the cache has. Pointers do.
async fn with_pointers_nothing_stays_behind_however_much_the_server_left_out(kind: Kind) {
    for set in &SETS {
        let (recording, truth) = load(set);
        for window in [200, 5_000, 12_000] {
            let mut report = Report::default();
            for marker in 1..=4 {
                let all = recording.upto_marker(marker).unwrap().to_vec();
                let kept = all.clone().deduplicated(window);
                let ids = if truly_lost(&all, &kept) == 0 { Ids::Exact } else { Ids::Sequences };
                let config = WriterConfig::default().with_supersession(Supersession::Pointers);
                let store = kind.fresh().await;
                report.add(compare(store, vec![(marker, kept)], &truth, ids, config).await.unwrap());
            }
            assert_agrees(&format!("{}, pointers, windows of {window}", set.name), &report);
        }
    }
}

/// The gateway that made this recording lost sequences of its own: documents cancelled half-way (never on the feed) and users' numbers that
/// it read too late (on the feed, but it did not see them).
async fn what_the_gateway_itself_lost_is_all_that_differs_on_the_hazards(kind: Kind) {
    let (recording, truth) = load(&HAZARDS);
    let report = answers(kind, recording.parts(), &truth, Ids::Sequences).await;
    assert_agrees("hazards, as the feed has them", &report);

    // The number just above the gateway's stable sequence is one that it lost: leave it out of the feed too.
    let decoder = GatewayDecoder::default();
    let lost: Vec<Sequence> = truth.stable.values().map(|stable| Sequence(stable + 1)).collect();
    let seen = |m: &Mutation| !matches!(decoder.decode(m), Decoded::Principal(p) if lost.contains(&p.sequence));
    let without = |(marker, part): (u32, Vec<Mutation>)| (marker, part.into_iter().filter(|m| seen(m)).collect());
    let parts: Vec<_> = recording.parts().into_iter().map(without).collect();
    assert_agrees("hazards, without what the gateway did not see", &answers(kind, parts, &truth, Ids::Exact).await);
}

/// The writer is killed at some await, a few times a recording, and another goes on each time.
async fn a_writer_that_is_killed_anywhere_loses_nothing(kind: Kind) {
    let config: WriterConfig = serde_json::from_str(r#"{"checkpoint_interval_ms": 1, "max_batch": 100}"#).unwrap();
    let mut killed = 0;
    for set in &SETS {
        let (recording, truth) = load(set);
        let mut report = Report::default();
        for marker in 1..=4 {
            let mut random = ChaCha8Rng::seed_from_u64(u64::from(marker));
            let mutations = recording.upto_marker(marker).unwrap().to_vec().shuffled_within(200, marker.into());
            let feed = Arc::new(MemoryFeed::new(set.name, mutations).with_batch(20).unwrap());
            let store = kind.fresh().await;
            for _ in 0..8 {
                let mut writer = writer(&store, set.name, config.clone()).await;
                let feed = feed.clone();
                let running = tokio::spawn(async move { writer.run(feed.as_ref(), std::future::pending()).await.map(drop) });
                for _ in 0..random.random_range(0..5) {
                    tokio::task::yield_now().await;
                }
                killed += usize::from(!running.is_finished());
                running.abort();
                if let Ok(ended) = running.await {
                    ended.unwrap();
                }
            }
            let mut writer = writer(&store, set.name, config.clone()).await;
            writer.run(feed.as_ref(), std::future::pending()).await.unwrap();
            let reader = ReaderNode::open(store, ReaderConfig::default()).await.unwrap();
            report.add(compare_marker(&reader, &truth, marker, Ids::Exact).await.unwrap());
        }
        assert_agrees(&format!("{}, killed and restarted", set.name), &report);
    }
    println!("{killed} writers killed while they ran");
    assert!(killed > 20, "only {killed} of the writers were killed while they ran");
}
