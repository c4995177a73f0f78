//! Publishing, and beginning a term.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::join_all;
use sluicegate_core::batch::{BatchRecord, Checkpoint, LATE_PAGE, LateEntry, LatePage, Publication};
use sluicegate_core::commit::{TakenOver, read_clock, take_over, update};
use sluicegate_core::engine::SequencerState;
use sluicegate_core::meta::Meta;
use sluicegate_core::pointer::Pointer;
use sluicegate_core::store::{Expiry, Versioned};
use sluicegate_core::{CacheId, CacheKey, CacheStore, CollectionId, DocumentId, Epoch, ErrorKind, PublishedClock, Sequence};

use super::{NAMED, Store, small};
use crate::expect::{Expect as _, refused, refused_naming};
use crate::sample::{channel, entry, entry_of};

const FEED: &str = "feed:[1]";
const RING: u64 = 4;

fn epoch(counter: u64) -> Epoch {
    Epoch { counter, writer: 100 + counter }
}

fn checkpoint_key() -> CacheKey {
    CacheKey::Checkpoint(FEED.to_owned())
}

async fn begin(store: &dyn CacheStore, counter: u64) -> TakenOver {
    take_over(store, epoch(counter), FEED, &Meta::new(&*small(), RING, 0)).await.must("begin a term")
}

async fn clock(store: &dyn CacheStore) -> Versioned<PublishedClock> {
    read_clock(store).await.must("read the clock").must("have a clock")
}

/// The publication after `last`, with a checkpoint, and with late entries of the numbers after the last one.
fn next(last: &PublishedClock, late: u64) -> Publication {
    let number = last.batch + 1;
    let late: Vec<LateEntry> =
        (1..=late).map(|n| LateEntry { number: last.late + n, sequence: Sequence((last.late + n) * 3) }).collect();
    let clock = PublishedClock {
        stable: Sequence(last.stable.0 + 10),
        settled: Sequence(last.settled.0 + 10),
        high: Sequence(last.high.0 + 12),
        late: last.late + late.len() as u64,
        batch: number,
        checkpoint: number,
        ..last.clone()
    };
    let checkpoint = Checkpoint {
        batch: number,
        late: clock.late,
        sequencer: SequencerState { next: clock.high.next(), ..SequencerState::default() },
        ..Checkpoint::beginning(clock.epoch)
    };
    let entries = [Arc::new(entry(number, "doc", &["a"]))].into_iter().collect();
    let record = BatchRecord { entries, late, ..BatchRecord::new(number, clock.epoch) };
    Publication {
        pointers: Vec::new(),
        record: Arc::new(record),
        ring: RING,
        checkpoint: Some((FEED.to_owned(), checkpoint)),
        clock,
    }
}

async fn late_page(store: &dyn CacheStore, page: u64) -> Option<LatePage> {
    let stored = store.get(&CacheKey::Late(page)).await.must("read a page")?;
    Some(LatePage::from_bytes(&stored.value).must("be a page"))
}

fn numbers(page: &LatePage) -> Vec<u64> {
    page.entries.iter().map(|late| late.number).collect()
}

/// Writes over whatever is at `key`.
async fn overwrite(store: &dyn CacheStore, key: &CacheKey, value: Bytes) {
    update(store, key, |_| Ok(Some(value.clone()))).await.must("overwrite");
}

/// Late page, record, checkpoint and clock.
pub async fn a_publication_is_readable_at_its_keys(store: Store) {
    let last = begin(&*store, 1).await.clock;
    let publication = next(&last.value, 3);
    let published = store.publish(&publication, &last).await.must("publish");
    assert_eq!(published.value, publication.clock);
    assert_eq!(clock(&*store).await, published, "the version returned is the one stored");

    let record = store.get(&CacheKey::Batch(1)).await.must("read").must("have a record");
    assert_eq!(BatchRecord::from_bytes(&record.value).must("be a record"), *publication.record);
    assert_eq!(store.record(1, RING).await.must("read").as_deref(), Some(&*publication.record));
    let checkpoint = store.get(&checkpoint_key()).await.must("read").must("have a checkpoint");
    let expected = publication.checkpoint.must("have one").1;
    assert_eq!(Checkpoint::from_bytes(&checkpoint.value).must("be a checkpoint"), expected);
    let page = late_page(&*store, 0).await.must("have a late page");
    assert_eq!((page.epoch, page.entries), (epoch(1), publication.record.late.clone()));
}

/// A pointer holds the greater sequence of each channel, whichever came last.
pub async fn pointers_only_grow(store: Store) {
    let mut last = begin(&*store, 1).await.clock;
    for (sequences, expected) in [([5u64, 9], [5, 9]), ([7, 8], [7, 9]), ([7, 8], [7, 9])] {
        let mut pointer = Pointer::new("d");
        for (sequence, name) in sequences.into_iter().zip(["a", "b"]) {
            pointer.follow(&mut entry(sequence, "d", &[name]));
        }
        let publication = Publication { pointers: vec![pointer], ..next(&last.value, 0) };
        last = store.publish(&publication, &last).await.must("publish");
        let stored = store.get(&CacheKey::Document("d".into())).await.must("get").must("find the pointer");
        let stored = Pointer::from_bytes(&stored.value, "d").must("read the pointer");
        assert_eq!(["a", "b"].map(|name| stored.row(&channel(name))), expected.map(|n| Some(Sequence(n))));
    }
}

/// Each holds the rows of its own document.
pub async fn pointers_of_one_key_in_two_collections_stay_apart(store: Store) {
    let last = begin(&*store, 1).await.clock;
    let documents = [CollectionId::DEFAULT].into_iter().chain(NAMED).map(|collection| DocumentId::new(collection, "d"));
    let mut pointers = Vec::new();
    for (sequence, document) in (5..).zip(documents.clone()) {
        let mut pointer = Pointer::new(document.as_ref());
        pointer.follow(&mut entry_of(document.collection, sequence, "d", &["a"]));
        pointers.push(pointer);
    }
    let published = store.publish(&Publication { pointers, ..next(&last.value, 0) }, &last).await.must("publish");
    let mut newer = Pointer::new(DocumentId::new(NAMED[1], "d").as_ref());
    newer.follow(&mut entry_of(NAMED[1], 9, "d", &["a"]));
    let publication = Publication { pointers: vec![newer], ..next(&published.value, 0) };
    store.publish(&publication, &published).await.must("publish again");
    for (sequence, document) in [5, 6, 9].into_iter().zip(documents) {
        let stored = store.get(&CacheKey::Document(document.clone())).await.must("get").must("find the pointer");
        let stored = Pointer::from_bytes(&stored.value, document.as_ref()).must("read the pointer");
        let channel = channel("a").in_collection(document.collection);
        assert_eq!(stored.row(&channel), Some(Sequence(sequence)), "{document}");
    }
}

/// Who cannot publish for a pointer that is broken is told which, and has published nothing.
pub async fn a_corrupt_pointer_is_named(store: Store) {
    let last = begin(&*store, 1).await.clock;
    let key = CacheKey::Document("d".into());
    let checkpoint = store.get(&checkpoint_key()).await.must("read");
    for broken in [&b"{"[..], &Pointer::new("another").to_bytes()] {
        overwrite(&*store, &key, Bytes::copy_from_slice(broken)).await;
        let publication = Publication { pointers: vec![Pointer::new("d")], ..next(&last.value, 0) };
        refused_naming(store.publish(&publication, &last).await, ErrorKind::Corrupt, &key, "publish over a broken pointer");
        assert_eq!(clock(&*store).await, last);
        assert_eq!(store.get(&checkpoint_key()).await.must("read"), checkpoint);
    }
}

/// As after an outcome that was unknown, with the clock as it was known before.
pub async fn a_publication_may_be_repeated(store: Store) {
    let last = begin(&*store, 1).await.clock;
    let publication = next(&last.value, 2);
    let first = store.publish(&publication, &last).await.must("publish");
    let again = store.publish(&publication, &last).await.must("publish again");
    assert_eq!(again.value, first.value);
    assert_eq!(clock(&*store).await, again);
    assert_eq!(numbers(&late_page(&*store, 0).await.must("have a page")), [1, 2]);
    let after = next(&again.value, 1);
    store.publish(&after, &again).await.must("go on");
    assert_eq!(numbers(&late_page(&*store, 0).await.must("have a page")), [1, 2, 3]);
}

/// The ring holds the last records and no more.
pub async fn publications_follow_one_another_round_the_ring(store: Store) {
    let mut last = begin(&*store, 1).await.clock;
    for n in 1..=11 {
        last = store.publish(&next(&last.value, n % 2), &last).await.must("publish");
        assert_eq!(last.value.batch, n);
    }
    for n in 0..=12 {
        let record = store.record(n, RING).await.must("read");
        assert_eq!(record.map(|record| record.number), (8..=11).contains(&n).then_some(n));
    }
}

/// One publication may fill a page, and another span several.
pub async fn late_pages_go_on_over_their_borders(store: Store) {
    let mut last = begin(&*store, 1).await.clock;
    for late in [LATE_PAGE - 3, 2, 1, 1, 2 * LATE_PAGE + 5, 0, 1] {
        last = store.publish(&next(&last.value, late), &last).await.must("publish");
    }
    let total = last.value.late;
    let mut found = Vec::new();
    for page in 0..=LatePage::of(total) {
        let page_found = late_page(&*store, page).await.must("have every page");
        assert!(page_found.entries.iter().all(|late| LatePage::of(late.number) == page), "page {page}: {page_found:?}");
        found.extend(numbers(&page_found));
    }
    assert_eq!(found, (1..=total).collect::<Vec<_>>());
}

/// A publication that was cut short after its late page, and is then made anew with other late entries, leaves only those.
pub async fn late_entries_are_announced_once(store: Store) {
    let last = begin(&*store, 1).await.clock;
    let last = store.publish(&next(&last.value, 2), &last).await.must("publish");
    let cut_short = next(&last.value, 4);
    let page = LatePage { epoch: epoch(1), entries: (1..=6).map(|n| LateEntry { number: n, sequence: Sequence(n) }).collect() };
    overwrite(&*store, &CacheKey::Late(0), page.to_bytes()).await;
    drop(cut_short);
    store.publish(&next(&last.value, 1), &last).await.must("publish");
    assert_eq!(numbers(&late_page(&*store, 0).await.must("have a page")), [1, 2, 3]);
}

/// Publishes once in term 1, lets `by_later` write as a later term, and then publishes in term 1 again: that must be refused as fenced, leave the
/// document at `key` and the clock alone.
async fn fenced(store: &Store, key: CacheKey, by_later: impl FnOnce(&Publication) -> Bytes) {
    let last = begin(&**store, 1).await.clock;
    let last = store.publish(&next(&last.value, 1), &last).await.must("publish");
    let stale = next(&last.value, 1);
    overwrite(&**store, &key, by_later(&stale)).await;
    let keys = [key.clone(), CacheKey::Clock];
    let before = store.get_many(&keys).await.must("read");
    refused(store.publish(&stale, &last).await, ErrorKind::Fenced, "a publication of an earlier term");
    assert_eq!(store.get_many(&keys).await.must("read"), before, "{key} or the clock was written by a writer whose term is over");
}

/// And the clock stays.
pub async fn a_later_epoch_fences_the_clock(store: Store) {
    fenced(&store, CacheKey::Clock, |stale| PublishedClock { epoch: epoch(2), ..stale.clock.clone() }.to_bytes()).await;
}

/// And the record stays.
pub async fn a_later_epoch_fences_the_record(store: Store) {
    fenced(&store, CacheKey::Batch(2), |stale| BatchRecord { epoch: epoch(2), ..(*stale.record).clone() }.to_bytes()).await;
}

/// And the checkpoint stays.
pub async fn a_later_epoch_fences_the_checkpoint(store: Store) {
    let later = |stale: &Publication| {
        let checkpoint = stale.checkpoint.as_ref().must("have one").1.clone();
        Checkpoint { epoch: epoch(2), ..checkpoint }.to_bytes()
    };
    fenced(&store, checkpoint_key(), later).await;
}

/// And the late page stays.
pub async fn a_later_epoch_fences_the_late_page(store: Store) {
    let later = |_: &Publication| {
        let entries = vec![LateEntry { number: 1, sequence: Sequence(3) }];
        LatePage { epoch: epoch(2), entries }.to_bytes()
    };
    fenced(&store, CacheKey::Late(0), later).await;
}

/// Two writers with one counter are not the same writer.
pub async fn one_term_has_one_writer(store: Store) {
    let other = Epoch { counter: 1, writer: 999 };
    fenced(&store, CacheKey::Clock, |stale| PublishedClock { epoch: other, ..stale.clock.clone() }.to_bytes()).await;
    let result = take_over(&*store, epoch(1), FEED, &Meta::new(&*small(), RING, 0)).await;
    refused(result, ErrorKind::Fenced, "a second writer of the term");
}

/// In no field.
pub async fn the_clock_never_goes_back(store: Store) {
    let last = begin(&*store, 1).await.clock;
    let last = store.publish(&next(&last.value, 2), &last).await.must("publish");
    let good = next(&last.value, 0);
    let bad = [
        PublishedClock { stable: last.value.stable.previous(), ..good.clock.clone() },
        PublishedClock { high: last.value.high.previous(), ..good.clock.clone() },
        PublishedClock { late: last.value.late - 1, ..good.clock.clone() },
        PublishedClock { batch: last.value.batch - 1, ..good.clock.clone() },
        PublishedClock { cache: CacheId::from("another"), ..good.clock.clone() },
    ];
    for clock in bad {
        let publication = Publication { clock: clock.clone(), ..good.clone() };
        refused(store.publish(&publication, &last).await, ErrorKind::Unexpected, "a clock that goes back");
        assert_eq!(self::clock(&*store).await, last, "{clock:?}");
    }
    store.publish(&good, &last).await.must("publish");
}

/// Only its version is another: as after a repeated beginning of the term.
pub async fn a_clock_written_meanwhile_in_the_same_term_is_gone_over(store: Store) {
    let known = begin(&*store, 1).await.clock;
    begin(&*store, 1).await;
    assert_ne!(clock(&*store).await.version, known.version);
    let publication = next(&known.value, 1);
    let published = store.publish(&publication, &known).await.must("publish");
    assert_eq!((published.value.clone(), clock(&*store).await), (publication.clock, published));
}

/// It is not made anew.
pub async fn a_lost_clock_is_an_error(store: Store) {
    let last = begin(&*store, 1).await.clock;
    store.remove(&CacheKey::Clock, None).await.must("lose the clock");
    let before = beside_the_clock(&*store).await;
    let publication = Publication { pointers: vec![Pointer::new("d")], ..next(&last.value, 1) };
    refused(store.publish(&publication, &last).await, ErrorKind::Corrupt, "a publication over a lost clock");
    assert_eq!(store.get(&CacheKey::Clock).await.must("read"), None);
    assert_eq!(beside_the_clock(&*store).await, before, "what was written although the clock is lost");
}

/// What a publication writes before the clock. A checkpoint or pointer over an older state would pass what was lost, and no later writer would look for it.
async fn beside_the_clock(store: &dyn CacheStore) -> Vec<Option<Versioned<Bytes>>> {
    let records = (0..RING).map(CacheKey::Batch);
    let others = [CacheKey::Late(0), CacheKey::Checkpoint(FEED.to_owned()), CacheKey::Document("d".into())];
    let keys: Vec<CacheKey> = records.chain(others).collect();
    store.get_many(&keys).await.must("read")
}

/// It is not written over, nor is one that went back behind what was acknowledged.
pub async fn a_clock_of_another_cache_is_an_error(store: Store) {
    let last = begin(&*store, 1).await.clock;
    let last = store.publish(&next(&last.value, 1), &last).await.must("publish");
    let others = [
        PublishedClock { cache: CacheId::from("another"), ..last.value.clone() },
        PublishedClock { stable: Sequence::ZERO, ..last.value.clone() },
    ];
    for other in others {
        overwrite(&*store, &CacheKey::Clock, other.to_bytes()).await;
        let before = beside_the_clock(&*store).await;
        let publication = Publication { pointers: vec![Pointer::new("d")], ..next(&last.value, 1) };
        refused(store.publish(&publication, &last).await, ErrorKind::Corrupt, "a publication over another clock");
        assert_eq!(clock(&*store).await.value, other);
        assert_eq!(beside_the_clock(&*store).await, before, "what was written over another cache");
    }
}

/// By readers and by the writer.
pub async fn a_corrupt_clock_is_named(store: Store) {
    let last = begin(&*store, 1).await.clock;
    overwrite(&*store, &CacheKey::Clock, "{\"stable\":7}".into()).await;
    refused_naming(read_clock(&*store).await, ErrorKind::Corrupt, CacheKey::Clock, "reading a corrupt clock");
    let result = store.publish(&next(&last.value, 0), &last).await;
    refused_naming(result, ErrorKind::Corrupt, CacheKey::Clock, "publishing over a corrupt clock");
}

/// A later term begins while the earlier one publishes: nobody ever sees a clock that goes back, and the earlier writer is fenced.
pub async fn concurrent_writers_publish_no_clock_that_goes_back(store: Store) {
    let first = begin(&*store, 1).await.clock;
    let publish_all = |mut last: Versioned<PublishedClock>, count: u64| {
        let store = store.clone();
        async move {
            for n in 0..count {
                last = store.publish(&next(&last.value, n % 2), &last).await?;
                tokio::task::yield_now().await;
            }
            Ok::<_, sluicegate_core::Error>(last)
        }
    };
    // It goes on until it is fenced.
    let old_writer = tokio::spawn(publish_all(first.clone(), u64::MAX));
    let observer = {
        let store = store.clone();
        tokio::spawn(async move {
            let mut seen = clock(&*store).await.value;
            while seen.epoch != epoch(2) || seen.stable.0 % 2 == 0 {
                let now = clock(&*store).await.value;
                assert_eq!(now.lost_since(&seen), None, "{seen:?} was followed by {now:?}");
                seen = now;
                tokio::task::yield_now().await;
            }
        })
    };
    while clock(&*store).await.value.batch < 3 {
        tokio::task::yield_now().await;
    }
    let second = begin(&*store, 2).await.clock;
    let mut last = publish_all(second, 20).await.must("publish in the later term");
    match old_writer.await {
        Ok(result) => drop(refused(result.map(drop), ErrorKind::Fenced, "the earlier writer")),
        Err(e) => panic!("the earlier writer: {e}"),
    }
    assert_eq!(clock(&*store).await, last);
    // An odd stable sequence is the observer's sign to end.
    let mut end = next(&last.value, 0);
    end.clock.stable.0 |= 1;
    last = store.publish(&end, &last).await.must("publish");
    assert_eq!(last.value.epoch, epoch(2));
    assert!(observer.await.is_ok(), "the observer saw a clock go back");
}

/// With its description, a clock at zero, and a checkpoint at the beginning: where there is none, an earlier writer could store its first.
pub async fn a_term_makes_a_cache_where_there_is_none(store: Store) {
    assert_eq!(read_clock(&*store).await.must("read"), None);
    let taken = begin(&*store, 1).await;
    assert_eq!(taken.clock.value, PublishedClock { epoch: epoch(1), ..PublishedClock::new(taken.clock.value.cache.clone()) });
    let expected = Meta { checkpoint: Some(FEED.to_owned()), ..Meta::new(&*small(), RING, 0) };
    assert_eq!(taken.meta, expected);
    let beginning = Checkpoint::beginning(epoch(1));
    let stored = store.get(&checkpoint_key()).await.must("read").must("have a checkpoint");
    assert_eq!(Checkpoint::from_bytes(&stored.value).must("be a checkpoint"), beginning);
    assert_eq!((taken.record, taken.checkpoint), (None, beginning));
    assert_eq!(clock(&*store).await, taken.clock);
    let meta = store.get(&CacheKey::Meta).await.must("read").must("have a description");
    assert_eq!(Meta::from_bytes(&meta.value).must("be a description"), taken.meta);
}

/// Clock, last record, checkpoint; and the cache keeps its identity and its description.
pub async fn a_term_goes_on_with_what_there_is(store: Store) {
    let first = begin(&*store, 1).await;
    let publication = next(&first.clock.value, 2);
    store.publish(&publication, &first.clock).await.must("publish");
    let other_meta = Meta::new(&*small(), 99, 5);
    let taken = take_over(&*store, epoch(2), FEED, &other_meta).await.must("begin the next term");
    assert_eq!(taken.meta, first.meta, "a cache keeps its description");
    assert_eq!(taken.clock.value, PublishedClock { epoch: epoch(2), ..publication.clock.clone() });
    assert_eq!(taken.record.as_ref(), Some(&*publication.record));
    let expected = publication.checkpoint.clone().must("have one").1;
    assert_eq!(taken.checkpoint, Checkpoint { epoch: epoch(2), ..expected });
    let page = late_page(&*store, 0).await.must("have a page");
    assert_eq!((page.epoch, numbers(&page)), (epoch(2), vec![1, 2]));
    store.publish(&next(&taken.clock.value, 1), &taken.clock).await.must("publish in the new term");
}

/// As after an outcome that was unknown.
pub async fn a_term_may_be_begun_twice(store: Store) {
    let first = begin(&*store, 3).await;
    let again = begin(&*store, 3).await;
    assert_eq!(first.clock.value, again.clock.value);
    store.publish(&next(&again.clock.value, 1), &again.clock).await.must("publish");
}

/// It finds the later one's clock.
pub async fn a_stale_writer_cannot_begin_a_term(store: Store) {
    begin(&*store, 5).await;
    let before = store.get(&CacheKey::Clock).await.must("read");
    for counter in [0, 1, 4] {
        let result = take_over(&*store, epoch(counter), FEED, &Meta::new(&*small(), RING, 0)).await;
        refused(result, ErrorKind::Fenced, "an earlier term");
    }
    assert_eq!(store.get(&CacheKey::Clock).await.must("read"), before);
}

/// Neither clock nor checkpoint nor late page.
pub async fn a_stale_writer_changes_nothing_after_a_later_term_began(store: Store) {
    let last = begin(&*store, 1).await.clock;
    let last = store.publish(&next(&last.value, 2), &last).await.must("publish");
    begin(&*store, 2).await;
    let keys = [CacheKey::Clock, checkpoint_key(), CacheKey::Late(0)];
    let before = store.get_many(&keys).await.must("read");
    for late in [0, 1] {
        refused(store.publish(&next(&last.value, late), &last).await, ErrorKind::Fenced, "a stale publication");
    }
    let mut without_checkpoint = next(&last.value, 0);
    without_checkpoint.checkpoint = None;
    refused(store.publish(&without_checkpoint, &last).await, ErrorKind::Fenced, "a stale publication");
    assert_eq!(store.get_many(&keys).await.must("read"), before);
}

/// Late entries that no clock and no checkpoint counts: their numbers will be given out again.
pub async fn a_term_takes_back_what_was_announced_and_not_published(store: Store) {
    let last = begin(&*store, 1).await.clock;
    store.publish(&next(&last.value, LATE_PAGE - 1), &last).await.must("publish");
    let cut_short = |from: u64, to: u64| {
        let entries = (from..=to).map(|n| LateEntry { number: n, sequence: Sequence(n) }).collect();
        LatePage { epoch: epoch(1), entries }.to_bytes()
    };
    overwrite(&*store, &CacheKey::Late(0), cut_short(1, LATE_PAGE)).await;
    overwrite(&*store, &CacheKey::Late(1), cut_short(LATE_PAGE + 1, LATE_PAGE + 9)).await;
    let taken = begin(&*store, 2).await;
    assert_eq!(taken.clock.value.late, LATE_PAGE - 1);
    assert_eq!(numbers(&late_page(&*store, 0).await.must("have a page")), (1..LATE_PAGE).collect::<Vec<_>>());
    assert_eq!(late_page(&*store, 1).await.map_or(Vec::new(), |page| numbers(&page)), [0u64; 0]);
    let last = store.publish(&next(&taken.clock.value, 3), &taken.clock).await.must("publish");
    assert_eq!(last.value.late, LATE_PAGE + 2);
    assert_eq!(numbers(&late_page(&*store, 1).await.must("have a page")), [LATE_PAGE + 1, LATE_PAGE + 2]);
}

/// However they race.
pub async fn terms_begun_at_once_end_with_the_latest(store: Store) {
    let tasks = (1..=8).map(|counter| {
        let store = store.clone();
        tokio::spawn(async move {
            let result = take_over(&*store, epoch(counter), FEED, &Meta::new(&*small(), RING, 0)).await;
            (counter, result.map(|taken| taken.clock.value.cache))
        })
    });
    let mut caches = Vec::new();
    for task in join_all(tasks).await {
        match task {
            Ok((_, Ok(cache))) => caches.push(cache),
            Ok((8, Err(e))) => panic!("the latest term must begin: {e:?}"),
            Ok((_, Err(e))) => assert_eq!(e.kind(), ErrorKind::Fenced, "{e:?}"),
            Err(e) => panic!("{e}"),
        }
    }
    let end = clock(&*store).await.value;
    assert_eq!(end.epoch, epoch(8));
    assert!(caches.iter().all(|cache| *cache == end.cache), "there is one cache: {caches:?}");
}

/// Rather than guessed at.
pub async fn an_unknown_format_is_refused(store: Store) {
    let meta = Meta { format: 77, ..Meta::new(&*small(), RING, 0) };
    store.insert(&CacheKey::Meta, meta.to_bytes(), Expiry::Never).await.must("insert");
    let result = take_over(&*store, epoch(1), FEED, &Meta::new(&*small(), RING, 0)).await;
    refused_naming(result, ErrorKind::Corrupt, "77", "a cache of an unknown format");
    assert_eq!(read_clock(&*store).await.must("read"), None);
}

/// A store that declares notifications wakes everyone who listens; one that does not says so.
pub async fn wakes_come_after_a_publication_if_declared(store: Store) {
    let mut last = begin(&*store, 1).await.clock;
    if !store.info().capabilities.notify {
        assert!(store.wakes().is_none(), "a store gives wakes that it does not declare");
        return;
    }
    let mut listeners = [store.wakes().must("give wakes"), store.wakes().must("give wakes twice")];
    for round in 0..3 {
        // A listener may take a moment to be connected, and a wake may get lost: so the writer goes on until all are woken.
        let mut woken = [false; 2];
        for _ in 0..200 {
            last = store.publish(&next(&last.value, 0), &last).await.must("publish");
            for (woken, listener) in woken.iter_mut().zip(&mut listeners) {
                let wake = tokio::time::timeout(Duration::from_millis(50), listener.next());
                *woken = *woken || matches!(wake.await, Ok(Some(())));
            }
            if woken == [true; 2] {
                break;
            }
        }
        assert_eq!(woken, [true; 2], "round {round}: a listener was not woken");
    }
}
