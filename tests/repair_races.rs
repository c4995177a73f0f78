//! A repair beside writers, cut off, and over a store that fails.

#![cfg(all(feature = "memory", feature = "replay"))]

#[path = "support/case.rs"]
mod case;
#[path = "support/damage.rs"]
mod damage;
#[path = "support/seeds.rs"]
mod seeds;

use std::sync::Arc;

use case::{Case, channel, checked, clock, options, repaired, write, writer};
use damage::{Target, garble, stored};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate::core::verify::{VerifyOptions, repair, verify};
use sluicegate::{BlockIndex, CacheKey, CacheStore, ErrorKind, FeedEvent, Sequence};
use sluicegate_testkit::{CrashPoint, FaultStore, Faults, PlainStore, Step};

#[tokio::test]
async fn a_live_writer_is_fenced() {
    let case = Case::new(1, 64).await;
    let store = case.store(false).await;
    let mut writer = writer(store.clone(), 1, 64).await.unwrap();
    garble(store.as_ref(), &CacheKey::Block(channel("ch0"), BlockIndex(0))).await;
    let report = repaired(&store).await;
    assert!(report.left.is_clean() && report.epoch == Some(clock(&store).await.epoch), "{report:#?}");
    let batch: Vec<FeedEvent> = case.feed.mutations().iter().cloned().map(FeedEvent::Mutation).collect();
    let mut ended = writer.process(batch.into()).await;
    if ended.is_ok() {
        ended = writer.flush().await;
    }
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Fenced);
    case.go_on(&store).await;
    case.content(&store).await.assert_outcome(&case.whole, "after the writer was fenced");
}

#[tokio::test]
async fn a_repair_ends_when_a_writer_takes_over_and_has_done_no_harm() {
    let mut fenced = 0;
    for seed in 0..30 {
        let case = Case::new(seed, 512).await;
        let store = case.store(false).await;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let what = case.damage(store.as_ref(), Target::AllButRecords, 4, &mut random).await;
        let held = Arc::new(FaultStore::new(store.clone(), seed, Faults::none()));
        let step = [Step::Blocks, Step::Directories, Step::SequenceDocuments, Step::Pointers][seed as usize % 4];
        let mut pause = held.pause_at_write(step, random.random_range(1..3));
        let repairing = tokio::spawn(async move { repair(held.as_ref(), &options()).await });
        let is_held = tokio::select! {
            reached = pause.reached() => reached,
            () = async { while !repairing.is_finished() { tokio::task::yield_now().await } } => false,
        };
        // It may stop at what is broken still.
        let ended = write(store.clone(), &case.feed, seed, 512).await;
        assert!(ended.is_ok() || ended.as_ref().is_err_and(|e| e.kind() == ErrorKind::Corrupt), "seed {seed}: {ended:?}");
        pause.resume();
        match repairing.await.unwrap() {
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Fenced, "seed {seed}: {e:?}");
                fenced += 1;
            }
            Ok(report) => assert!(!is_held || !report.repairs.is_empty(), "seed {seed}"),
        }
        repaired(&store).await;
        case.go_on(&store).await;
        let after = checked(&store).await;
        assert!(after.is_clean(), "seed {seed}: {what:#?}\n{after:#?}");
        case.content(&store).await.assert_outcome(&case.whole, &format!("seed {seed}: {what:#?}"));
    }
    assert!(fenced >= 5, "{fenced}");
}

/// A writer is held anywhere; what it has stored is damaged and repaired; then it goes on, and does not know that it is deposed.
#[tokio::test]
async fn a_deposed_writer_does_not_spoil_a_repair() {
    let mut fenced = 0;
    for seed in 0..60 {
        let case = Case::new(seed, 512).await;
        let store = Arc::new(PlainStore::new());
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let held = Arc::new(FaultStore::new(store.clone(), seed, Faults::none()));
        let mut pause = held.pause_at(random.random_range(300..1_500));
        let feed = case.feed.clone();
        let first = tokio::spawn(async move { write(held, &feed, seed, 512).await });
        tokio::select! {
            _ = pause.reached() => {}
            () = async { while !first.is_finished() { tokio::task::yield_now().await } } => {}
        }
        let mut there = case.whole.clone();
        for n in case.whole.entries.keys() {
            if stored(store.as_ref(), &CacheKey::Sequence(Sequence(*n))).await.is_none() {
                there.entries.remove(n);
            }
        }
        let mut keys = store.keys();
        keys.sort_by_key(|key| key.to_string());
        let mut what = Vec::new();
        for _ in 0..4 {
            what.push(damage::damage(store.as_ref(), &keys, Target::AllButRecords, &there, &mut random).await);
        }
        let store: Arc<dyn CacheStore> = store;
        repaired(&store).await;
        pause.resume();
        if let Err(error) = first.await.unwrap() {
            assert!(matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Corrupt), "seed {seed}: {error:?}");
            fenced += 1;
        }
        case.go_on(&store).await;
        // Of what was under way nobody could tell what was wrong with it.
        repaired(&store).await;
        let after = checked(&store).await;
        assert!(after.is_clean(), "seed {seed}: {what:#?}\n{after:#?}");
        case.content(&store).await.assert_outcome(&case.whole, &format!("seed {seed}: {what:#?}"));
    }
    assert!(fenced > 30, "{fenced}");
}

#[tokio::test]
async fn a_repair_cut_off_anywhere_may_be_run_again() {
    let points: Vec<CrashPoint> = CrashPoint::all(1).chain(CrashPoint::occasional(1)).collect();
    let mut crashed = 0;
    for (seed, mut point) in (0..135).zip(points.into_iter().cycle()) {
        let case = Case::new(seed % 10, 512).await;
        let store = case.store(seed % 2 == 0).await;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let target = if point.step == Step::BatchRecord { Target::Records } else { Target::AllButRecords };
        let what = format!("seed {seed}, {point}: {:#?}", case.damage(store.as_ref(), target, 8, &mut random).await);
        point.nth = random.random_range(1..3);
        let faulty = FaultStore::new(store.clone(), seed, Faults::none());
        faulty.crash_at(point);
        let ended = repair(&faulty, &options()).await;
        if faulty.crashed() {
            crashed += 1;
            let error = ended.unwrap_err();
            assert!(error.kind() == ErrorKind::Closed || error.is_retryable(), "{what}: {error:?}");
        }
        let report = repaired(&store).await;
        let last = case.last_record(&clock(&store).await);
        let is_left = |key: &CacheKey| *key == last || matches!(key, CacheKey::Missing(_));
        assert!(report.left.findings.iter().all(|finding| is_left(&finding.key)), "{what}\n{report:#?}");
        case.content(&store).await.assert_same(&case.held, &format!("{what}\n{report:#?}"));
    }
    assert!(crashed > 40, "{crashed}");
}

#[tokio::test]
async fn a_store_that_fails_now_and_then_makes_a_repair_longer_and_nothing_else() {
    for seed in 0..20 {
        let case = Case::new(seed, 512).await;
        let store = case.store(false).await;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let what = format!("seed {seed}: {:#?}", case.damage(store.as_ref(), Target::AllButRecords, 6, &mut random).await);
        let faulty = FaultStore::new(store.clone(), seed, Faults::all(0.0005));
        let mut runs = 0;
        while let Err(error) = repair(&faulty, &options()).await {
            runs += 1;
            assert!(error.is_retryable() && runs < 1_000, "{what}: {error:?}");
        }
        let report = repaired(&store).await;
        assert!(report.left.is_clean(), "{what}\n{report:#?}");
        case.content(&store).await.assert_same(&case.held, &what);
    }
}

#[tokio::test]
async fn beside_a_running_writer_nothing_seems_wrong() {
    let mut checks = 0;
    for seed in 0..100 {
        let case = Case::new(seed, 64).await;
        // Delays, so that there is much between one operation and the next.
        let store: Arc<dyn CacheStore> = case.store(seed % 2 == 0).await;
        let mut delays = Faults::none();
        delays.delay = 0.05;
        let slow = Arc::new(FaultStore::new(store.clone(), seed, delays));
        let feed = case.feed.clone();
        let writing = tokio::spawn(async move { write(slow, &feed, seed, 64).await });
        let looking = FaultStore::new(store.clone(), seed, delays);
        while !writing.is_finished() {
            let report = verify(&looking, &VerifyOptions::default()).await.unwrap();
            assert!(report.is_clean(), "seed {seed}: {report:#?}");
            checks += 1;
        }
        writing.await.unwrap().unwrap();
    }
    assert!(checks > 100, "{checks}");
}
