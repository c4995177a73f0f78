//! The faulty store: that it does what it says, and that commit and publish come through it.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_core::batch::{BatchRecord, Checkpoint, CommitReceipt, LateEntry, Publication, WriteBatch};
use sluicegate_core::block::TwoBit;
use sluicegate_core::commit::{read_clock, take_over};
use sluicegate_core::directory::Directory;
use sluicegate_core::meta::Meta;
use sluicegate_core::store::{Expiry, Versioned};
use sluicegate_core::{BlockCodec, CacheKey, CacheStore, Epoch, Error, ErrorKind, PublishedClock, Result, Sequence, Status};
use sluicegate_testkit::sample::Sampler;
use sluicegate_testkit::{CrashPoint, FaultStore, Faults, PlainStore, SmallBlocks, Step, When};

type Faulty = FaultStore<PlainStore>;

fn faulty(seed: u64, faults: Faults) -> Faulty {
    FaultStore::new(Arc::new(PlainStore::new()), seed, faults)
}

fn only(set: impl FnOnce(&mut Faults)) -> Faults {
    let mut faults = Faults::none();
    set(&mut faults);
    faults
}

fn small() -> Arc<dyn BlockCodec> {
    Arc::new(SmallBlocks::default())
}

async fn insert(store: &dyn CacheStore, n: u64) -> Result<(), Error> {
    store.insert(&CacheKey::Sequence(Sequence(n)), "x".into(), Expiry::Never).await.map(drop)
}

async fn is_there(store: &Faulty, n: u64) -> bool {
    store.inner().get(&CacheKey::Sequence(Sequence(n))).await.unwrap().is_some()
}

#[tokio::test]
async fn each_fault_has_its_status_and_its_effect() {
    let cases = [
        (only(|f| f.fail_before = 1.0), ErrorKind::Unavailable, Status::Temporary, false),
        (only(|f| f.fail_after = 1.0), ErrorKind::Timeout, Status::Indeterminate, true),
        (only(|f| f.lost = 1.0), ErrorKind::Timeout, Status::Indeterminate, false),
        (only(|f| f.duplicate = 1.0), ErrorKind::AlreadyExists, Status::Permanent, true),
    ];
    for (faults, kind, status, applied) in cases {
        let store = faulty(1, faults);
        let error = insert(&store, 1).await.unwrap_err();
        assert_eq!((error.kind(), error.status()), (kind, status), "{faults:?}");
        assert_eq!(is_there(&store, 1).await, applied, "{faults:?}");
    }
}

#[tokio::test]
async fn a_needless_conflict_writes_nothing() {
    let store = faulty(1, only(|f| f.conflict = 1.0));
    let key = CacheKey::Writer;
    let version = store.insert(&key, "1".into(), Expiry::Never).await.unwrap();
    let error = store.replace(&key, "2".into(), version, Expiry::Never).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Conflict, Status::Permanent));
    assert_eq!(store.get(&key).await.unwrap().unwrap().version, version);
}

#[tokio::test]
async fn a_read_fails_only_before() {
    let store = faulty(1, only(|f| (f.fail_after, f.lost, f.duplicate) = (0.4, 0.3, 0.3)));
    assert!(store.get(&CacheKey::Writer).await.is_ok());
    store.set_faults(only(|f| f.fail_before = 1.0));
    assert_eq!(store.get(&CacheKey::Writer).await.unwrap_err().status(), Status::Temporary);
}

#[tokio::test]
async fn one_seed_is_one_course_of_events() {
    let course = async |seed| {
        let store = faulty(seed, Faults::all(0.2));
        let mut course = Vec::new();
        for n in 0..200 {
            course.push(insert(&store, n).await.err().map(|e| (e.kind(), e.status())));
        }
        course
    };
    assert_eq!(course(1).await, course(1).await);
    assert_ne!(course(1).await, course(2).await);
}

#[tokio::test(start_paused = true)]
async fn delays_pass_in_paused_time() {
    let faults = only(|f| (f.delay, f.max_delay) = (1.0, Duration::from_secs(3600)));
    let store = faulty(1, faults);
    let start = tokio::time::Instant::now();
    insert(&store, 1).await.unwrap();
    assert!(start.elapsed() > Duration::ZERO && start.elapsed() <= Duration::from_secs(3600));
}

#[tokio::test]
async fn a_paused_operation_waits_and_others_go_on() {
    let store = Arc::new(faulty(1, Faults::none()));
    let mut pause = store.pause_at_write(Step::SequenceDocuments, 2);
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 1..=3 {
                insert(&*store, n).await.unwrap();
            }
        })
    };
    assert!(pause.reached().await);
    assert!(is_there(&store, 1).await && !is_there(&store, 2).await);
    insert(&*store, 9).await.unwrap();
    assert!(store.get(&CacheKey::Sequence(Sequence(2))).await.unwrap().is_none());
    pause.resume();
    writer.await.unwrap();
    assert!(is_there(&store, 2).await && is_there(&store, 3).await);
    // A pause that nobody holds holds nobody.
    drop(store.pause_at(1));
    insert(&*store, 10).await.unwrap();
    assert!(store.operations() >= 6);
}

#[tokio::test]
async fn a_crash_is_for_good_until_revived() {
    for (when, ok, applied) in [(When::Before, false, Some(false)), (When::After, true, Some(true)), (When::Unknown, false, None)]
    {
        let store = faulty(1, Faults::none());
        store.crash_at(CrashPoint { step: Step::SequenceDocuments, when, nth: 2 });
        insert(&store, 1).await.unwrap();
        store.insert(&CacheKey::Meta, "of no step".into(), Expiry::Never).await.unwrap();
        assert!(!store.crashed());
        assert_eq!(insert(&store, 2).await.is_ok(), ok, "{when:?}");
        assert!(store.crashed());
        if let Some(applied) = applied {
            assert_eq!(is_there(&store, 2).await, applied, "{when:?}");
        }
        for result in [insert(&store, 3).await, store.get(&CacheKey::Meta).await.map(drop), store.ping().await.map(drop)] {
            let error = result.unwrap_err();
            assert_eq!((error.kind(), error.status()), (ErrorKind::Closed, Status::Permanent));
        }
        store.revive();
        insert(&store, 3).await.unwrap();
    }
    assert_eq!(CrashPoint::all(1).count(), 27);
}

#[tokio::test]
async fn an_unknown_crash_is_sometimes_applied_and_sometimes_not() {
    let mut applied = 0;
    for seed in 0..40 {
        let store = faulty(seed, Faults::none());
        store.crash_at(CrashPoint { step: Step::SequenceDocuments, when: When::Unknown, nth: 1 });
        insert(&store, 1).await.unwrap_err();
        applied += u32::from(is_there(&store, 1).await);
    }
    assert!((5..35).contains(&applied), "{applied} of 40");
}

/// Everything a store holds that must be the same however it came about: counters and directory generations are not.
async fn contents(store: &PlainStore, codec: &dyn BlockCodec) -> Vec<String> {
    let mut contents = Vec::new();
    for key in store.keys() {
        let value = store.get(&key).await.unwrap().unwrap().value;
        contents.push(match &key {
            CacheKey::Counter(_) => format!("{key}"),
            CacheKey::Block(..) => format!("{key} {:?}", codec.decode(&value).unwrap().iter().collect::<Vec<_>>()),
            CacheKey::Directory(channel) => format!("{key} {:?}", Directory::from_bytes(&value, channel).unwrap().blocks),
            CacheKey::Clock => format!("{key} {:?}", {
                let clock = PublishedClock::from_bytes(&value).unwrap();
                (clock.stable, clock.high, clock.late, clock.batch, clock.checkpoint)
            }),
            _ => format!("{key} {}", String::from_utf8_lossy(&value)),
        });
    }
    contents.sort();
    contents
}

/// Repeats what failed in a way that may be repeated. A compare-and-swap loop that lost its own write's answer goes round by itself.
async fn again<T>(mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    loop {
        match attempt().await {
            Err(e) if e.is_retryable() => {}
            result => return result,
        }
    }
}

const RING: u64 = 4;

/// The publication of `batch` after `last`, with late entries and a checkpoint.
fn publication(batch: &WriteBatch, last: &PublishedClock) -> Publication {
    let (number, epoch) = (last.batch + 1, last.epoch);
    let late = LateEntry { number: last.late + 1, sequence: Sequence(number) };
    let clock = PublishedClock {
        stable: Sequence(number),
        high: Sequence(number * 100),
        late: late.number,
        batch: number,
        checkpoint: number,
        ..last.clone()
    };
    let checkpoint = Checkpoint { batch: number, late: clock.late, ..Checkpoint::beginning(epoch) };
    let record = BatchRecord { entries: batch.entries.clone(), late: vec![late], ..BatchRecord::new(number, epoch) };
    Publication {
        pointers: Vec::new(),
        record: Arc::new(record),
        ring: RING,
        checkpoint: Some(("feed".to_owned(), checkpoint)),
        clock,
    }
}

async fn begin(store: &dyn CacheStore) -> Result<Versioned<PublishedClock>> {
    let epoch = Epoch { counter: 1, writer: 1 };
    let meta = Meta::new(&TwoBit::default(), RING, 0);
    again(async || take_over(store, epoch, "feed", &meta).await).await.map(|taken| taken.clock)
}

/// Commits and publishes what `sampler` makes, going on after `last`.
async fn write(store: &dyn CacheStore, batches: &[WriteBatch], mut last: Versioned<PublishedClock>) -> Result<CommitReceipt> {
    let mut receipt = CommitReceipt::default();
    for batch in batches {
        receipt = again(async || store.commit(batch).await).await?;
        let publication = publication(batch, &last.value);
        last = again(async || store.publish(&publication, &last).await).await?;
    }
    Ok(receipt)
}

fn batches(seed: u64, count: usize) -> Vec<WriteBatch> {
    let mut sampler = Sampler::new(seed);
    let fresh = |batch: WriteBatch| WriteBatch { listed: Arc::default(), ..batch };
    (0..count).map(|_| fresh(sampler.batch(12, &small()))).collect()
}

async fn undisturbed(batches: &[WriteBatch]) -> Vec<String> {
    let store = PlainStore::new();
    let clock = begin(&store).await.unwrap();
    let fresh: Vec<WriteBatch> = batches.iter().map(|batch| WriteBatch { listed: Arc::default(), ..batch.clone() }).collect();
    write(&store, &fresh, clock).await.unwrap();
    contents(&store, &*small()).await
}

#[tokio::test]
async fn commits_and_publications_come_through_every_fault() {
    for seed in 0..30 {
        let batches = batches(seed, 5);
        let expected = undisturbed(&batches).await;
        let store = faulty(seed, Faults::all(0.03));
        let clock = begin(&store).await.unwrap();
        write(&store, &batches, clock).await.unwrap_or_else(|e| panic!("seed {seed}: {e:?}"));
        assert_eq!(contents(store.inner(), &*small()).await, expected, "seed {seed}");
    }
}

#[tokio::test]
async fn whatever_step_a_crash_cuts_the_next_attempt_makes_good() {
    // A store's commit does not write the list of commits in progress; a writer does.
    let of_commits = |point: &CrashPoint| point.step != Step::Intent;
    for point in [1, 2, 7].into_iter().flat_map(CrashPoint::all).filter(of_commits) {
        let batches = batches(point.nth, 8);
        let expected = undisturbed(&batches).await;
        let store = faulty(point.nth, Faults::none());
        let clock = begin(&store).await.unwrap();
        store.crash_at(point);
        let outcome = write(&store, &batches, clock.clone()).await;
        assert!(store.crashed(), "{point} is never reached");
        assert!(outcome.is_err() || point.when == When::After, "{point}");

        // Nothing of it shows before its batch is stored: the clock counts only batches whose documents are there.
        let seen = read_clock(&**store.inner()).await.unwrap().unwrap().value;
        for batch in &batches[..seen.batch as usize] {
            let sequences: Vec<Sequence> = batch.entries.iter().map(|entry| entry.sequence()).collect();
            assert!(store.inner().entries(&sequences).await.unwrap().iter().all(Option::is_some), "{point}");
        }

        store.revive();
        let clock = begin(&store).await.unwrap();
        let left = &batches[clock.value.batch as usize..];
        write(&store, left, clock).await.unwrap_or_else(|e| panic!("{point}: {e:?}"));
        assert_eq!(contents(store.inner(), &*small()).await, expected, "{point}");
    }
}

#[tokio::test]
async fn a_writer_paused_anywhere_does_no_harm_after_a_later_term_began() {
    let first = batches(1, 1);
    let operations = {
        let store = faulty(1, Faults::none());
        let clock = begin(&store).await.unwrap();
        let before = store.operations();
        write(&store, &first, clock).await.unwrap();
        store.operations() - before
    };
    assert!(operations > 30, "{operations}");
    for paused_at in 1..=operations {
        let store = faulty(1, Faults::none());
        let clock = begin(&store).await.unwrap();
        let mut pause = store.pause_at(paused_at);
        let old_batches = batches(1, 1);
        let old_writer = write(&store, &old_batches, clock);
        let new_writer = async {
            assert!(pause.reached().await);
            let epoch = Epoch { counter: 2, writer: 2 };
            let taken = take_over(&store, epoch, "feed", &Meta::new(&TwoBit::default(), RING, 0)).await.unwrap();
            let fresh = |batch: &WriteBatch| WriteBatch { epoch, listed: Arc::default(), ..batch.clone() };
            let again: Vec<WriteBatch> = first.iter().map(fresh).collect();
            write(&store, &again, taken.clock).await.unwrap();
            let written = contents(store.inner(), &*small()).await;
            pause.resume();
            written
        };
        let (outcome, expected) = futures::join!(old_writer, new_writer);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Fenced, "paused at {paused_at}");
        assert_eq!(contents(store.inner(), &*small()).await, expected, "paused at {paused_at}");
        let clock = read_clock(&**store.inner()).await.unwrap().unwrap().value;
        assert_eq!(clock.epoch.counter, 2, "paused at {paused_at}");
    }
}
