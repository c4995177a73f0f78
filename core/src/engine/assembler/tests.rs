use super::*;
use crate::block::Adaptive;
use crate::channel::Channel;
use crate::clock::CacheId;
use crate::engine::SequencerConfig;
use crate::entry::Membership;

fn assembler() -> Assembler {
    let sequencer = Sequencer::new(SequencerConfig::default());
    let clock = PublishedClock::new(CacheId::random());
    Assembler::new(sequencer, Arc::new(Adaptive::default()), 128, "feed".to_owned(), clock, 0)
}

/// Takes the entry of `sequence`, which supersedes `old`.
fn apply(assembler: &mut Assembler, sequence: u64, old: Option<u64>) {
    let entry = ChangeEntry::new(Sequence(sequence), "d", "1-a", EntryFlags::default()).unwrap();
    let entry = entry.with_supersedes(old.map(Sequence));
    assembler.apply(Decoded::Document(entry.into()), Duration::ZERO);
}

/// The sequences of the entries whose marks the next batch has; then it is published.
fn marks(assembler: &mut Assembler) -> Vec<u64> {
    let prepared = assembler.prepare(None, Duration::ZERO);
    assembler.published(&prepared.publication.clock);
    prepared.batch.marks.iter().map(|entry| entry.sequence().0).collect()
}

#[test]
fn a_foreign_write_shows_nothing_and_nothing_waits_for_its_numbers() {
    let mut assembler = assembler();
    apply(&mut assembler, 2, None);
    let entry = ChangeEntry::new(Sequence(6), "e", "3-c", EntryFlags::default()).unwrap().with_supersedes([Sequence(3)]);
    let departure = Departure {
        sequence: Sequence(5),
        revision: "2-b".into(),
        channel: crate::Channel::new("a").unwrap(),
        membership: crate::Membership::Removed,
        since: Sequence(3),
    };
    let document = DecodedDocument {
        unused: [Sequence(4)].into_iter().collect(),
        accounted: [Sequence(1), Sequence(3)].into_iter().collect(),
        departures: [departure].into(),
        ..DecodedDocument::from(entry)
    };
    let foreign = Decoded::Foreign(document);
    assembler.apply(foreign.clone(), Duration::ZERO);
    let prepared = assembler.prepare(None, Duration::ZERO);
    assert_eq!(prepared.publication.clock.stable, Sequence(6));
    let rows: Vec<u64> = prepared.batch.entries.iter().map(|entry| entry.sequence().0).collect();
    assert_eq!(rows, [2, 5], "that it left a channel stays true");
    let stats = assembler.stats();
    assert_eq!((stats.foreign, stats.superseded, stats.unused, stats.cached, stats.duplicates), (1, 3, 1, 2, 0));
    // The row of a revision that came before it stays, and it is no duplicate.
    apply(&mut assembler, 7, None);
    let entry = ChangeEntry::new(Sequence(7), "d", "1-a", EntryFlags::default()).unwrap();
    assembler.apply(Decoded::Foreign(entry.into()), Duration::ZERO);
    let prepared = assembler.prepare(None, Duration::ZERO);
    assert_eq!(prepared.batch.entries.len(), 1);
    assert!(prepared.publication.record.gone.is_empty());
    assert_eq!((assembler.stats().foreign, assembler.stats().duplicates), (2, 0));
}

#[test]
fn what_is_not_the_databases_is_counted_apart() {
    let mut assembler = assembler();
    assembler.apply(Decoded::Ignored(Ignored::OtherDatabase("db2".into())), Duration::ZERO);
    assembler.apply(Decoded::Ignored(Ignored::OtherCollection(9)), Duration::ZERO);
    assembler.apply(Decoded::Ignored(Ignored::ForeignProperty), Duration::ZERO);
    assembler.apply(Decoded::Purged(crate::decode::Purged { document: "d".into(), cas: 0 }), Duration::ZERO);
    let entry = ChangeEntry::new(Sequence(1), "d", "1-a", EntryFlags::default()).unwrap();
    let left_out = crate::decode::LeftOut { channels: 2, named: Vec::new(), sequences: 3 };
    let document = DecodedDocument { left_out: Some(left_out.into()), ..entry.into() };
    assembler.apply(Decoded::Document(document), Duration::ZERO);
    let stats = assembler.stats();
    assert_eq!((stats.received, stats.other_database, stats.other_collection, stats.ignored), (5, 1, 1, 1));
    assert_eq!((stats.purged, stats.bad_channels, stats.cut_numbers, stats.cached), (1, 2, 3, 1));
}

#[test]
fn marks_wait_while_many_entries_come_and_all_go_when_none_do() {
    let mut assembler = assembler();
    (1..=5).for_each(|n| apply(&mut assembler, n, None));
    (6..=10).for_each(|n| apply(&mut assembler, n, Some(n - 5)));
    assert_eq!(marks(&mut assembler), [0; 0], "no reader sees the entries yet");
    assert!(assembler.marks_due());
    (11..=12).for_each(|n| apply(&mut assembler, n, None));
    assert_eq!(marks(&mut assembler), [0; 0], "five for two entries");
    assert_eq!(assembler.clock().marked, Sequence(5));
    apply(&mut assembler, 13, Some(12));
    assert_eq!(marks(&mut assembler), [6, 7, 8, 9, 10], "five for one entry");
    assert_eq!(marks(&mut assembler), [13], "nothing came");
    assert!(!assembler.marks_due());
    assert_eq!(assembler.clock().marked, Sequence(13));
}

#[test]
fn what_an_earlier_term_names_is_not_superseded_if_it_comes_as_another_document() {
    let mut assembler = assembler();
    let entry = ChangeEntry::new(Sequence(3), "e", "1-a", EntryFlags::default()).unwrap();
    assembler.remember_unmarked(Arc::new(entry.with_supersedes([Sequence(1), Sequence(2)])));
    (1..=2).for_each(|n| apply(&mut assembler, n, None));
    let left: Vec<_> = assembler.unmarked().map(|entry| entry.supersedes().to_vec()).collect();
    assert_eq!(left, [[]]);
    let mut assembler = self::assembler();
    let entry = ChangeEntry::new(Sequence(3), "d", "1-a", EntryFlags::default()).unwrap();
    assembler.remember_unmarked(Arc::new(entry.with_supersedes([Sequence(1)])));
    apply(&mut assembler, 1, None);
    assert_eq!(assembler.unmarked().next().unwrap().supersedes(), [Sequence(1)], "its own");
    // The same again, as after several rollbacks, until it is marked.
    let entry = assembler.unmarked().next().unwrap().clone();
    for _ in 0..3 {
        assembler.remember_unmarked(entry.clone());
    }
    assert!(assembler.inherited.values().all(|naming| naming.len() == 1), "{:?}", assembler.inherited);
    for n in 2..=3 {
        assembler.apply(Decoded::Unused(crate::SequenceRange::one(Sequence(n))), Duration::ZERO);
    }
    let clock = assembler.prepare(None, Duration::ZERO).publication.clock;
    assembler.published(&clock);
    assert_eq!(marks(&mut assembler), [3]);
    assert!(assembler.inherited.is_empty());
}

#[test]
fn marks_that_have_waited_for_long_are_written_a_limited_number_at_a_time() {
    let mut assembler = assembler();
    for number in 1..=20_000 {
        apply(&mut assembler, 2 * number, Some(2 * number - 1));
    }
    assert!(marks(&mut assembler).is_empty());
    assert_eq!([marks(&mut assembler).len(), marks(&mut assembler).len()], [MAX_MARKS, 20_000 - MAX_MARKS]);
    assert!(!assembler.marks_due());
}

#[test]
fn marks_of_what_is_late_never_wait() {
    let mut assembler = assembler();
    for n in [1, 2, 4, 6] {
        apply(&mut assembler, n, None);
    }
    assembler.end_of_feed(Duration::ZERO);
    assert_eq!(assembler.tick(Duration::from_hours(100)).len(), 2);
    let given_up = assembler.prepare(None, Duration::ZERO).publication.clock;
    assert_eq!((given_up.stable, given_up.marked), (Sequence(6), Sequence(2)), "3 and 5 may come before readers see this");
    apply(&mut assembler, 3, Some(1));
    let late = assembler.prepare(None, Duration::ZERO);
    assert!(late.batch.marks.is_empty(), "no reader knows of 3");
    assembler.published(&given_up);
    assert!(!assembler.marks_due(), "3 is not published");
    assembler.published(&late.publication.clock);
    assert_eq!(marks(&mut assembler), [3]);
    assert_eq!(assembler.clock().marked, Sequence(6));
    apply(&mut assembler, 5, Some(2));
    (7..=9).for_each(|n| apply(&mut assembler, n, None));
    let late = assembler.prepare(None, Duration::ZERO);
    let of_late: Vec<u64> = late.late_marks.iter().map(|entry| entry.sequence().0).collect();
    assert_eq!(of_late, [5], "the clock says that all up to 6 are marked");
    assert!(late.batch.marks.is_empty(), "5 is stored with this batch");
}

#[test]
fn after_a_later_revision_had_a_lower_sequence_all_that_is_superseded_is_marked_in_all_channels() {
    let mut assembler = assembler();
    let mut take = |sequence: u64, superseded: &[u64]| {
        let entry = ChangeEntry::new(Sequence(sequence), "d", "1-a", EntryFlags::default()).unwrap();
        let mut entry = entry.with_supersedes(superseded.iter().map(|n| Sequence(*n)));
        let (channel, membership) = (crate::Channel::new("a").unwrap(), crate::Membership::Present);
        entry.push_channel(ChannelChange { channel, membership, since: Sequence(100) });
        assembler.apply(Decoded::Document(entry.into()), Duration::ZERO);
        assembler.entries().last().unwrap().channels()[0].since.0
    };
    let since = [take(100, &[]), take(105, &[40, 100]), take(50, &[40, 100, 105]), take(110, &[50, 100, 105])];
    assert_eq!(since, [100, 100, 40, 50]);
}

/// Most documents of a bucket have left a channel. The entries of departures do not stay in memory
/// either.
#[test]
fn a_departure_does_not_make_marks_wait_in_a_first_read_unless_its_row_may_be_marked() {
    let mut assembler = assembler();
    assembler.hold();
    let channel = |name: &str| Channel::new(name).unwrap();
    let revision = |number: u64, earlier: &[u64], left: &[(u64, &str)]| {
        let entry = ChangeEntry::new(Sequence(number), &format!("d{number}"), "2-a", EntryFlags::default()).unwrap();
        let entry = entry.with_supersedes(earlier.iter().copied().map(Sequence));
        let departure = |(sequence, name): &(u64, &str)| Departure {
            sequence: Sequence(*sequence),
            revision: "1-a".into(),
            channel: channel(name),
            membership: Membership::Removed,
            since: Sequence::ZERO,
        };
        let departures = left.iter().map(departure).collect();
        DecodedDocument { departures, ..entry.with_channel(channel("a"), Membership::Present).into() }
    };
    let mut of_batch = |documents: Vec<DecodedDocument>| {
        for document in documents {
            assembler.apply(Decoded::Document(document), Duration::ZERO);
        }
        let prepared = assembler.prepare(None, Duration::ZERO);
        assembler.published(&prepared.publication.clock);
        let prepared = assembler.prepare(None, Duration::ZERO);
        assembler.published(&prepared.publication.clock);
        let mut marked: Vec<u64> = prepared.batch.marks.iter().map(|entry| entry.sequence().0).collect();
        marked.sort_unstable();
        marked
    };
    assert_eq!(of_batch(vec![revision(20, &[12, 15], &[(15, "b")])]), [15, 20]);
    assert_eq!(of_batch(vec![revision(30, &[22, 25, 27], &[(25, "b"), (27, "c")])]), [25, 27, 30]);
    assert_eq!(of_batch(vec![revision(40, &[32, 35], &[(35, "a")])]), [0; 0], "it is in the channel again");
    assert_eq!(of_batch(vec![revision(50, &[42, 45, 47], &[(45, "b"), (47, "b")])]), [0; 0]);
}

#[test]
fn marks_of_what_the_feed_left_out_do_not_wait_for_stable_in_a_first_read() {
    let mut assembler = assembler();
    assembler.hold();
    // Sequence 5 is left out. The row of 10 is stored, and readers may see it.
    apply(&mut assembler, 10, Some(5));
    apply(&mut assembler, 12, Some(10));
    let unmarked = |prepared: &Prepared| {
        let (_, checkpoint) = prepared.publication.checkpoint.as_ref().unwrap();
        checkpoint.unmarked.as_ref().unwrap().iter().collect::<Vec<_>>()
    };
    let position = || Some((FeedPosition::default(), None));
    let prepared = assembler.prepare(position(), Duration::ZERO);
    assert!(prepared.batch.marks.is_empty(), "it is not published");
    assert_eq!(unmarked(&prepared), [10, 12]);
    assert!(!assembler.marks_due());
    assembler.published(&prepared.publication.clock);
    assert!(assembler.marks_due());
    let prepared = assembler.prepare(position(), Duration::ZERO);
    assert_eq!(prepared.batch.marks.iter().map(|entry| entry.sequence().0).collect::<Vec<_>>(), [10]);
    assert_eq!((prepared.publication.clock.stable, unmarked(&prepared)), (Sequence(0), vec![12]));
    assembler.published(&prepared.publication.clock);
    assert!(!assembler.marks_due());
    // One that is taken back leaves no marks.
    apply(&mut assembler, 20, Some(15));
    let gone = assembler.entries().to_vec();
    let prepared = assembler.prepare(None, Duration::ZERO);
    assembler.published(&prepared.publication.clock);
    assembler.withdraw(gone, [], &[Sequence(20)]);
    assert!(!assembler.marks_due());
    // All others are marked at the end.
    assembler.apply(Decoded::Unused(SequenceRange::new(1, 20).unwrap()), Duration::ZERO);
    assembler.end_of_feed(Duration::ZERO);
    let prepared = assembler.prepare(None, Duration::ZERO);
    assembler.published(&prepared.publication.clock);
    assert_eq!(marks(&mut assembler), [12]);
    assert_eq!(assembler.clock().marked, assembler.clock().stable);
}
