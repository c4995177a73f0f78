//! What is broken in a cache is rebuilt from what is sound, and a writer goes on over it as if nothing had happened.

#![cfg(all(feature = "memory", feature = "replay"))]

#[path = "support/case.rs"]
mod case;
#[path = "support/damage.rs"]
mod damage;
#[path = "support/seeds.rs"]
mod seeds;

use case::{Case, FEED, channel, checked, clock, options, repaired, since, write};
use damage::{CAPACITY, Target, codec, garble, put, stored};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use seeds::{NAMED, with_named};
use sluicegate::changes::LateCursor;
use sluicegate::core::batch::BatchRecord;
use sluicegate::core::verify::{RepairOptions, repair};
use sluicegate::{BlockIndex, CacheKey, Channel, ErrorKind, ReaderConfig, ReaderNode, Sequence};
use sluicegate_testkit::fault::{FaultStore, Faults};

#[tokio::test]
async fn a_sound_cache_is_left_alone() {
    for seed in 0..6 {
        let case = Case::new(seed, 512).await;
        let store = case.store(seed % 2 == 0).await;
        let before = clock(&store).await;
        let report = repaired(&store).await;
        assert!(report.left.is_clean() && report.repairs.is_empty() && report.epoch.is_none(), "seed {seed}: {report:#?}");
        assert_eq!(clock(&store).await, before);
    }
}

#[tokio::test]
async fn whatever_is_broken_is_rebuilt_and_a_writer_goes_on() {
    for seed in with_named(0..30) {
        let case = Case::new(seed, 512).await;
        for trial in 0..16 {
            let mut random = ChaCha8Rng::seed_from_u64(1_000 * seed + trial);
            let store = case.store(trial % 2 == 0).await;
            let (times, target) =
                (random.random_range(1..5), if trial % 4 == 3 { Target::Records } else { Target::AllButRecords });
            let what =
                format!("seed {seed}, trial {trial}: {:#?}", case.damage(store.as_ref(), target, times, &mut random).await);
            let report = repaired(&store).await;
            let last = case.last_record(&clock(&store).await);
            let is_left = |key: &CacheKey| *key == last || matches!(key, CacheKey::Missing(_));
            let left: Vec<_> = report.left.findings.iter().filter(|finding| !is_left(&finding.key)).collect();
            assert!(left.is_empty() && report.lost().count() == 0, "{what}\n{report:#?}");
            case.content(&store).await.assert_same(&case.held, &format!("{what}\n{report:#?}"));

            let again = repaired(&store).await;
            assert!(again.repairs.is_empty(), "{what}\n{again:#?}");

            case.go_on(&store).await;
            let after = checked(&store).await;
            assert!(after.is_clean(), "{what}\n{after:#?}");
            case.content(&store).await.assert_outcome(&case.whole, &format!("{what}\n{report:#?}"));
        }
    }
}

#[tokio::test]
async fn every_document_alone_is_rebuilt() {
    for seed in [1, 2, NAMED, NAMED + 1] {
        let case = Case::new(seed, 512).await;
        let hopeless = [CacheKey::Clock, CacheKey::Meta, CacheKey::Collections];
        for (n, key) in case.keys.iter().filter(|key| !hopeless.contains(key)).enumerate() {
            let store = case.store(n % 2 == 0).await;
            garble(store.as_ref(), key).await;
            let found = checked(&store).await;
            assert!(found.findings.iter().any(|finding| finding.key == *key), "{key}: {found:#?}");
            let report = repaired(&store).await;
            // The writer's next batch makes others.
            let is_left = *key == case.last_record(&clock(&store).await) || matches!(key, CacheKey::Missing(_));
            assert!(report.left.is_clean() || is_left && report.left.findings.len() == 1, "{key}: {report:#?}");
            assert_eq!(report.repairs[0].key, *key, "{report:#?}");
            case.content(&store).await.assert_same(&case.held, &key.to_string());
        }
    }
}

#[tokio::test]
async fn without_clock_or_description_nothing_is_touched() {
    let case = Case::new(1, 512).await;
    for key in [CacheKey::Clock, CacheKey::Meta] {
        for gone in [false, true] {
            let store = case.store(false).await;
            let block = CacheKey::Block(Channel::star(), BlockIndex(0));
            put(store.as_ref(), &block, "").await;
            if gone {
                store.remove(&key, None).await.unwrap()
            } else {
                garble(store.as_ref(), &key).await
            }
            let report = repaired(&store).await;
            assert!(report.epoch.is_none() && report.repairs.is_empty(), "{report:#?}");
            assert!(report.left.findings.len() == 1 && report.left.findings[0].key == key, "{report:#?}");
            assert_eq!(stored(store.as_ref(), &block).await.unwrap(), "");
        }
    }
}

/// The cache records its name.
#[tokio::test]
async fn the_checkpoint_is_repaired_and_forgotten_without_its_name() {
    let (case, key) = (Case::new(1, 512).await, CacheKey::Checkpoint(FEED.into()));
    for damage in [false, true] {
        let store = case.store(false).await;
        let mut options = RepairOptions::default();
        if damage {
            garble(store.as_ref(), &key).await;
        } else {
            options = options.from_beginning();
        }
        let report = repair(store.as_ref(), &options).await.unwrap();
        assert!(report.left.is_clean() && report.repairs.len() == 1 && report.repairs[0].key == key, "{report:#?}");
        assert_eq!(clock(&store).await.checkpoint, 0);
    }
}

/// Even if the feed's own is gone. Nor is that of a feed from which the cache was made before.
#[tokio::test]
async fn a_checkpoint_with_another_name_is_neither_made_nor_changed() {
    let case = Case::new(1, 512).await;
    let own = CacheKey::Checkpoint(FEED.into());
    for is_gone in [false, true] {
        let store = case.store(false).await;
        if is_gone {
            store.remove(&own, None).await.unwrap();
        }
        let (before, former) = (clock(&store).await, CacheKey::Checkpoint("former".into()));
        put(store.as_ref(), &former, "of a former feed").await;
        for (name, options) in [
            ("typo", RepairOptions::default()),
            ("former", RepairOptions::default()),
            ("former", RepairOptions::default().from_beginning()),
        ] {
            let error = repair(store.as_ref(), &options.feed(name)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
            assert!(error.to_string().contains(&format!("`{name}`, but from `{FEED}`")), "{error}");
        }
        assert_eq!((clock(&store).await, stored(store.as_ref(), &former).await.unwrap()), (before, "of a former feed".into()));
        assert!(stored(store.as_ref(), &CacheKey::Checkpoint("typo".into())).await.is_none());
        let report = repaired(&store).await;
        assert!(report.left.is_clean() && report.repairs.is_empty() != is_gone, "{report:#?}");
        assert!(stored(store.as_ref(), &own).await.is_some());
    }
}

/// A client of the store that repeats a write by itself, after an answer that was lost, is told
/// that something else is there already.
#[tokio::test(start_paused = true)]
async fn what_a_repair_did_is_told_though_a_write_is_said_to_be_refused() {
    let (case, options) = (Case::new(1, 512).await, RepairOptions::default().feed(FEED).from_beginning());
    let expected = repair(case.store(false).await.as_ref(), &options).await.unwrap();
    let key = CacheKey::Checkpoint(FEED.into());
    assert!(expected.repairs.iter().any(|repair| repair.key == key) && expected.left.is_clean(), "{expected:#?}");
    for seed in 0..40 {
        let mut faults = Faults::none();
        faults.duplicate = 0.5;
        let faulty = FaultStore::new(case.store(false).await, seed, faults);
        let report = repair(&faulty, &options).await.unwrap();
        assert_eq!(report.repairs, expected.repairs, "seed {seed}");
        assert!(report.left.is_clean() && report.left.clock.unwrap().checkpoint == 0, "seed {seed}");
    }
}

/// A sequence whose entry is in no record any more, and a channel that shows it; in the end too, if that can be.
async fn out_of_the_ring(case: &Case) -> (u64, Channel) {
    let mut recorded = Vec::new();
    for key in case.keys.iter().filter(|key| matches!(key, CacheKey::Batch(_))) {
        let record = BatchRecord::from_bytes(&stored(&case.plain, key).await.unwrap()).unwrap();
        recorded.extend(record.entries.iter().map(|entry| entry.sequence().0));
    }
    let in_the_end = |n: u64| case.whole.answers["*"].iter().any(|(shown, ..)| *shown == n);
    let mut all = Vec::new();
    for channel in case.channels.iter().filter(|channel| !channel.is_star()) {
        let rows = case.held.answers[&channel.to_string()].iter().filter(|(n, ..)| !recorded.contains(n));
        all.extend(rows.map(|(n, ..)| (!in_the_end(*n), *n, channel)));
    }
    let (_, n, channel) = all.into_iter().min().unwrap();
    (n, channel.clone())
}

#[tokio::test]
async fn what_is_lost_is_named_keeps_to_itself_and_comes_again_with_the_feed() {
    let mut stayed = 0;
    for (seed, gone) in (0..30).map(|seed| (seed, seed % 4 == 1)) {
        let case = Case::new(seed, 8).await;
        let store = case.store(seed % 2 == 0).await;
        let (n, name) = out_of_the_ring(&case).await;
        let key = CacheKey::Sequence(Sequence(n));
        if gone {
            store.remove(&key, None).await.unwrap()
        } else {
            garble(store.as_ref(), &key).await
        }

        let report = repaired(&store).await;
        assert!(report.lost().count() == 1 && report.lost().all(|repair| repair.key == key), "{report:#?}");
        assert!(report.left.findings.iter().all(|finding| finding.key == key), "{report:#?}");
        if gone && n > clock(&store).await.stable.0 {
            // A reader takes it for one that comes just now.
            continue;
        }
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
        let error = reader.changes(std::slice::from_ref(&name), &since(0)).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(&key.to_string()), "{error}");
        if n > clock(&store).await.stable.0 {
            // So what is broken stays.
            assert!(stored(store.as_ref(), &key).await.is_some());
            continue;
        }
        reader.changes(&[name], &since(n)).await.unwrap();

        case.go_on(&store).await;
        // It comes by itself only if a later revision names it; and it is not needed if one takes its place.
        if !checked(&store).await.is_clean() {
            let (is_gone, late) = (stored(store.as_ref(), &key).await.is_none(), clock(&store).await.late);
            let report = repair(store.as_ref(), &options().from_beginning()).await.unwrap();
            assert!(report.repairs.iter().any(|repair| repair.key == CacheKey::Checkpoint(FEED.into())), "{report:#?}");
            assert_eq!(report.left.is_clean(), !is_gone, "seed {seed}: {report:#?}");
            case.go_on(&store).await;
            assert_eq!(clock(&store).await.late, late + u64::from(is_gone), "seed {seed}");
            stayed += usize::from(is_gone);
        }
        let after = checked(&store).await;
        assert!(after.is_clean(), "seed {seed}: {after:#?}");
        // A departure may be made of another revision now, which remembers less of what is superseded.
        assert_eq!(case.content(&store).await.answers, case.whole.answers, "seed {seed}");
    }
    assert!(stayed > 5, "{stayed}");
}

#[tokio::test]
async fn late_numbers_that_nobody_knows_fail_those_who_need_them_and_no_others() {
    let mut tried = 0;
    for seed in 0..20 {
        let case = Case::new(seed, 8).await;
        let store = case.store(seed % 2 == 0).await;
        let late = case.held.late.len() as u64;
        if late == 0 {
            continue;
        }
        garble(store.as_ref(), &CacheKey::Late(0)).await;
        let report = repaired(&store).await;
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
        let asked = async |after: u64| {
            let options = since(clock(&store).await.high.0).late(LateCursor(after));
            reader.changes(&[Channel::star()], &options).await
        };
        asked(late).await.unwrap();
        if report.left.is_clean() {
            assert_eq!(case.content(&store).await.late, case.held.late);
            continue;
        }
        tried += 1;
        assert!(report.left.findings.iter().all(|finding| finding.key == CacheKey::Late(0)), "{report:#?}");
        assert_eq!(asked(0).await.unwrap_err().kind(), ErrorKind::Corrupt);
        case.go_on(&store).await;
        case.content(&store).await.assert_outcome(&case.whole, &format!("seed {seed}"));
    }
    assert!(tried > 0);
}

/// Whoever goes on without the last record must not wait for what will not come again, and must not hide it.
#[tokio::test]
async fn a_writer_without_the_last_record_hides_nothing() {
    let mut tried = 0;
    for seed in (0..30).step_by(3) {
        let case = Case::new(seed, 8).await;
        let store = case.store(false).await;
        let now = clock(&store).await;
        tried += usize::from(now.gaps > 0);
        garble(store.as_ref(), &case.last_record(&now)).await;
        repaired(&store).await;
        case.go_on(&store).await;
        case.content(&store).await.assert_outcome(&case.whole, &format!("seed {seed}"));
    }
    assert!(tried > 3, "{tried}");
}

#[tokio::test]
async fn one_broken_block_fails_who_needs_it_and_no_others_and_stops_the_writer() {
    for native in [false, true] {
        let case = Case::new(1, 64).await;
        let store = case.store(native).await;
        let (a, b) = (channel("ch0"), channel("ch1"));
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
        let all = reader.changes(std::slice::from_ref(&a), &since(0)).await.unwrap().answer();
        let index = *case.held.listed["ch0"].first().unwrap();
        let (key, end) = (CacheKey::Block(a.clone(), BlockIndex(index)), (index + 1) * u64::from(CAPACITY) - 1);
        garble(store.as_ref(), &key).await;

        // What is in memory is as good as before.
        let again = reader.changes(std::slice::from_ref(&a), &since(0)).await.unwrap().answer();
        assert_eq!(again.rows.len(), all.rows.len());
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
        let error = reader.changes(std::slice::from_ref(&a), &since(0)).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(&key.to_string()), "{error}");
        let answer = reader.changes(&[b, Channel::star()], &since(0)).await.unwrap().answer();
        assert!(!answer.rows.is_empty());
        let above = reader.changes(std::slice::from_ref(&a), &since(end)).await.unwrap().answer();
        let expected = all.rows.iter().filter(|row| row.id.sequence.0 > end).count();
        assert_eq!(above.rows.len(), expected);

        // Something in it is superseded sooner or later.
        let ended = write(store.clone(), &case.feed, 1, 64).await.unwrap_err();
        let text = ended.to_string();
        assert!(ended.kind() == ErrorKind::Corrupt && text.contains(&key.to_string()), "{text}");
        assert!(text.contains("sluicegate verify --repair"), "{text}");

        assert!(repaired(&store).await.left.is_clean());
        reader.changes(std::slice::from_ref(&a), &since(0)).await.unwrap();
        case.go_on(&store).await;
        case.content(&store).await.assert_outcome(&case.whole, "after the block was rebuilt");
        assert!(codec().decode(&stored(store.as_ref(), &key).await.unwrap()).is_ok());
    }
}
