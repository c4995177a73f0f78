use super::*;
use crate::decode::{Departure, Principal, PrincipalKind};
use crate::entry::EntryFlags;

const P: PartitionId = PartitionId(3);
const OTHER: PartitionId = PartitionId(4);

fn entry(sequence: u64, document: &str, over: &[u64], at: (PartitionId, u64)) -> ChangeEntry {
    ChangeEntry::new(Sequence(sequence), document, &format!("{sequence}-a"), EntryFlags::default())
        .unwrap()
        .with_origin(at.0, PartitionSeqno(at.1))
        .with_supersedes(over.iter().copied().map(Sequence))
}

fn at(seqno: u64) -> Option<PartitionPosition> {
    Some(PartitionPosition { seqno, ..PartitionPosition::default() })
}

/// A mutation that brings the entry; its partition was one seqno before it.
fn held(entry: &ChangeEntry) -> Held {
    let Origin { partition, seqno, .. } = entry.origin();
    Held { partition, seqno, decoded: Decoded::Document(entry.clone().into()), before: at(seqno.0 - 1) }
}

/// What the writer does with a mutation: whether it waits.
fn comes(rollbacks: &mut Rollbacks, entry: &ChangeEntry) -> bool {
    let held = held(entry);
    let waits = rollbacks.judge(held.partition, held.seqno, &held.decoded);
    if waits {
        rollbacks.hold(held);
    }
    waits
}

/// The partition was at 9 and is taken back to `to`; these were found.
fn rollback(to: u64, found: &[&ChangeEntry]) -> Rollbacks {
    let mut rollbacks = Rollbacks::default();
    rollbacks.begin(P, PartitionSeqno(to), at(9), std::iter::empty());
    assert_eq!(rollbacks.wanted(), [(P, to)].into());
    rollbacks.found(found.iter().map(|entry| Arc::new((*entry).clone())).collect());
    assert!(rollbacks.wanted().is_empty());
    rollbacks
}

fn sequences(gone: &Gone) -> Vec<u64> {
    gone.entries.values().map(|entry| entry.sequence().0).collect()
}

fn released(rollbacks: &mut Rollbacks) -> Vec<u64> {
    let released = rollbacks.release();
    released.iter().for_each(|_| assert!(rollbacks.take_released().is_some()));
    released.iter().filter_map(Held::sequence).map(|sequence| sequence.0).collect()
}

#[test]
fn what_comes_again_as_it_was_stays_with_what_its_document_had_before() {
    let (first, second) = (entry(10, "d", &[], (P, 6)), entry(12, "d", &[10], (P, 8)));
    let lost = entry(13, "e", &[], (P, 9));
    let mut rollbacks = rollback(5, &[&first, &second, &lost]);
    assert!(!comes(&mut rollbacks, &second));
    assert_eq!(sequences(&rollbacks.end(&[P].into())), [13]);
    assert!(rollbacks.is_settled());
}

#[test]
fn what_tells_of_a_departure_waits_if_a_later_revision_has_told_of_it_last() {
    let whole = |sequence, seqno| entry(sequence, "d", &[10], (P, seqno)).with_cas(seqno);
    let departure = |told_by| {
        let entry = ChangeEntry::new(Sequence(10), "d", "10-a", EntryFlags::DEPARTURE).unwrap();
        entry.with_origin(P, PartitionSeqno(told_by)).with_cas(told_by)
    };
    let (earlier, later) = (whole(12, 8), whole(13, 9));
    let channel = crate::channel::Channel::new("a").unwrap();
    let membership = crate::Membership::Removed;
    let told = Departure { sequence: Sequence(10), revision: "10-a".into(), channel, membership, since: Sequence(10) };
    let comes = |rollbacks: &mut Rollbacks, entry: &ChangeEntry| {
        let document = DecodedDocument { departures: [told.clone()].into(), ..entry.clone().into() };
        let held = Held { decoded: Decoded::Document(document), ..held(entry) };
        let waits = rollbacks.judge(held.partition, held.seqno, &held.decoded);
        if waits {
            rollbacks.hold(held);
        }
        waits
    };
    let mut rollbacks = rollback(5, &[&earlier, &later, &departure(9)]);
    assert!(comes(&mut rollbacks, &earlier));
    assert_eq!(sequences(&rollbacks.end(&[P].into())), [10, 13]);
    assert_eq!(released(&mut rollbacks), [12]);
    let mut rollbacks = rollback(5, &[&earlier, &departure(8)]);
    assert!(!comes(&mut rollbacks, &earlier));
    assert_eq!(sequences(&rollbacks.end(&[P].into())), [0; 0], "its own departure comes again with it");
}

#[test]
fn a_departure_makes_room_for_its_whole_revision_only_while_a_later_one_stays() {
    let departure = |sequence, told_by: u64| {
        let entry = ChangeEntry::new(Sequence(sequence), "d", &format!("{sequence}-a"), EntryFlags::DEPARTURE).unwrap();
        entry
            .with_origin(P, PartitionSeqno(told_by))
            .with_cas(told_by)
            .with_supersedes([Sequence(10)].into_iter().filter(|s| s.0 < sequence))
    };
    let later = |sequence, over: &[u64], seqno: u64| entry(sequence, "d", over, (P, seqno)).with_cas(seqno);
    let whole = later(10, &[], 6);
    // The one that told of it has become a departure itself.
    let found = [departure(10, 8), departure(12, 9), later(13, &[10, 12], 9)];
    let all: Vec<&ChangeEntry> = found.iter().collect();
    let mut rollbacks = rollback(5, &all);
    assert!(comes(&mut rollbacks, &whole));
    let gone = rollbacks.end(&[P].into());
    assert_eq!((sequences(&gone), gone.room.len()), (vec![10, 12, 13], 0));
    let mut rollbacks = rollback(5, &all);
    assert!(comes(&mut rollbacks, &whole));
    comes(&mut rollbacks, &found[2]);
    let gone = rollbacks.end(&[P].into());
    assert_eq!((sequences(&gone), gone.room), (vec![10], [Sequence(10)].into()));
    // Of two that came again, the later is taken back once more.
    let earlier = later(12, &[10], 8);
    let mut rollbacks = rollback(5, &[&found[0], &earlier, &found[2]]);
    assert!(comes(&mut rollbacks, &whole));
    comes(&mut rollbacks, &earlier);
    comes(&mut rollbacks, &found[2]);
    rollbacks.begin(P, PartitionSeqno(8), at(9), std::iter::empty());
    rollbacks.found(vec![Arc::new(found[2].clone())]);
    assert_eq!(rollbacks.end(&[P].into()).room, [Sequence(10)].into());
    // The one that told of it does not name it: it is too old.
    let mut rollbacks = rollback(5, &[&departure(10, 9), &later(13, &[12], 9)]);
    assert!(comes(&mut rollbacks, &whole));
    let gone = rollbacks.end(&[P].into());
    assert_eq!((sequences(&gone), gone.room.len()), (vec![10, 13], 0));
    // What came again is taken back once more.
    let mut rollbacks = rollback(5, &all);
    assert!(comes(&mut rollbacks, &whole));
    comes(&mut rollbacks, &found[2]);
    rollbacks.begin(P, PartitionSeqno(7), at(9), std::iter::empty());
    rollbacks.found(vec![Arc::new(found[2].clone())]);
    let gone = rollbacks.end(&[P].into());
    assert_eq!((sequences(&gone), gone.room.len()), (vec![10, 13], 0));
}

#[test]
fn an_earlier_revision_stays_with_the_later_one_though_another_document_has_its_number() {
    let (earlier, later) = (entry(10, "d", &[], (P, 6)), entry(12, "d", &[10], (P, 8)));
    for is_first in [true, false] {
        let mut rollbacks = rollback(5, &[&earlier, &later]);
        let another = entry(10, "another", &[], (OTHER, 3));
        if is_first {
            assert!(comes(&mut rollbacks, &another));
        }
        assert!(!comes(&mut rollbacks, &later));
        if !is_first {
            comes(&mut rollbacks, &another);
        }
        assert_eq!(sequences(&rollbacks.end(&[P].into())), [0; 0]);
    }
}

#[test]
fn what_comes_again_elsewhere_or_as_something_else_waits_and_what_it_was_goes() {
    for other in [
        entry(10, "d", &[], (P, 7)),
        entry(10, "another", &[], (P, 6)),
        entry(11, "d", &[], (P, 7)),
        entry(14, "another", &[10], (OTHER, 2)),
        entry(4, "another", &[], (OTHER, 2)),
    ] {
        let mut rollbacks = rollback(5, &[&entry(10, "d", &[4], (P, 6))]);
        assert!(comes(&mut rollbacks, &other), "{other:?}");
        assert!(comes(&mut rollbacks, &entry(20, other.key(), &[], (other.origin().partition, 30))), "in their order");
        assert!(!comes(&mut rollbacks, &entry(21, "other than both", &[], (OTHER, 31))));
        assert_eq!(sequences(&rollbacks.end(&[P].into())), [10]);
        assert_eq!(released(&mut rollbacks), [other.sequence().0, 20]);
        assert!(rollbacks.is_settled());
    }
}

#[test]
fn numbers_that_others_account_for_wait_too() {
    let mut rollbacks = rollback(5, &[&entry(10, "d", &[4], (P, 6))]);
    for (number, waits) in [(3, false), (4, true), (10, true), (11, false)] {
        let (sequence, kind) = (Sequence(number), PrincipalKind::User);
        let principal = Principal { sequence, kind, name: "u".into(), document: Default::default() };
        assert_eq!(rollbacks.judge(OTHER, PartitionSeqno(1), &Decoded::Principal(principal)), waits, "{number}");
        let unused = Decoded::Unused(crate::sequence::SequenceRange::one(Sequence(number)));
        assert_eq!(rollbacks.judge(OTHER, PartitionSeqno(1), &unused), waits, "{number}");
    }
}

#[test]
fn a_position_stays_before_the_rollback_and_before_what_waits() {
    let mut rollbacks = rollback(5, &[&entry(10, "d", &[], (P, 6))]);
    assert!(comes(&mut rollbacks, &entry(14, "d", &[], (OTHER, 21))));
    assert!(comes(&mut rollbacks, &entry(15, "d", &[], (OTHER, 23))));
    let position = || FeedPosition { partitions: [(P, at(7).unwrap()), (OTHER, at(30).unwrap())].into() };
    let mut limited = position();
    rollbacks.limit(&mut limited, std::iter::empty());
    assert_eq!(limited.partitions, [(P, at(9).unwrap()), (OTHER, at(20).unwrap())].into());
    rollbacks.end(&[P].into());
    let mut limited = position();
    rollbacks.limit(&mut limited, std::iter::empty());
    assert_eq!(limited.partitions, [(P, at(7).unwrap()), (OTHER, at(20).unwrap())].into(), "these wait still");
    assert_eq!(rollbacks.release().len(), 2);
    for seqno in [20, 22] {
        let mut limited = position();
        rollbacks.limit(&mut limited, std::iter::empty());
        assert_eq!(limited.partitions, [(P, at(7).unwrap()), (OTHER, at(seqno).unwrap())].into(), "not applied yet");
        assert!(!rollbacks.is_settled());
        assert_eq!(rollbacks.take_released(), Some(at(seqno)));
    }
    let mut limited = position();
    rollbacks.limit(&mut limited, std::iter::empty());
    assert_eq!((limited, rollbacks.is_settled()), (position(), true));
}

#[test]
fn a_position_stays_before_the_first_that_waits_though_a_later_one_is_released() {
    let mut rollbacks = Rollbacks::default();
    let (of_p, of_other) = (entry(10, "d", &[], (P, 6)), entry(11, "e", &[], (OTHER, 6)));
    rollbacks.begin(P, PartitionSeqno(5), at(9), std::iter::empty());
    rollbacks.begin(OTHER, PartitionSeqno(5), at(9), std::iter::empty());
    rollbacks.found(vec![Arc::new(of_p), Arc::new(of_other)]);
    let third = PartitionId(7);
    assert!(comes(&mut rollbacks, &entry(11, "waits for the other", &[], (third, 3))));
    assert!(comes(&mut rollbacks, &entry(10, "waits", &[], (third, 5))));
    rollbacks.end(&[P].into());
    assert_eq!(rollbacks.release().len(), 1);
    let mut position = FeedPosition { partitions: [(third, at(8).unwrap())].into() };
    rollbacks.limit(&mut position, std::iter::empty());
    assert_eq!(position.partitions[&third].seqno, 2);
}

#[test]
fn a_position_stays_before_what_waits_though_its_partition_is_taken_back_to_a_later_place() {
    let mut rollbacks = rollback(5, &[&entry(10, "d", &[], (P, 6))]);
    assert!(comes(&mut rollbacks, &entry(10, "waits", &[], (OTHER, 3))));
    rollbacks.begin(OTHER, PartitionSeqno(5), at(9), std::iter::empty());
    let mut position = FeedPosition { partitions: [(OTHER, at(9).unwrap())].into() };
    rollbacks.limit(&mut position, std::iter::empty());
    assert_eq!(position.partitions[&OTHER].seqno, 2);
}

#[test]
fn a_partition_that_is_taken_back_goes_on_in_the_history_that_was_lost() {
    let of = |uuid, seqno| Some(PartitionPosition { uuid, seqno, ..PartitionPosition::default() });
    let mut rollbacks = Rollbacks::default();
    rollbacks.begin(P, PartitionSeqno(5), of(1, 9), std::iter::empty());
    rollbacks.found(vec![Arc::new(entry(10, "d", &[], (P, 6)))]);
    // The new history is behind the place where the partition was in the old one.
    rollbacks.hold(Held { before: of(2, 5), ..held(&entry(10, "waits", &[], (P, 6))) });
    rollbacks.hold(Held { before: of(2, 6), ..held(&entry(11, "waits", &[], (P, 7))) });
    let limited = |rollbacks: &Rollbacks, purge: Option<PartitionPosition>| {
        let mut position = FeedPosition { partitions: [(P, of(2, 7).unwrap())].into() };
        rollbacks.limit(&mut position, [(P, purge.as_ref())].into_iter());
        position.partitions.get(&P).map(|at| (at.uuid, at.seqno))
    };
    assert_eq!(limited(&rollbacks, of(2, 7)), Some((1, 9)));
    assert_eq!(limited(&rollbacks, of(1, 3)), Some((1, 3)), "a purge from before the rollback");
    assert_eq!(limited(&rollbacks, None), Some((2, 0)), "the feed reports a rollback if that history is left");
    rollbacks.begin(P, PartitionSeqno(8), of(2, 8), std::iter::empty());
    assert_eq!(limited(&rollbacks, of(2, 7)), Some((1, 9)), "the lowest place counts");
}

#[test]
fn a_restart_goes_on_before_what_waited_when_the_partition_was_taken_back() {
    let limited = |rollbacks: &Rollbacks| {
        let mut position = FeedPosition { partitions: [(OTHER, at(8).unwrap())].into() };
        rollbacks.limit(&mut position, std::iter::empty());
        position.partitions[&OTHER].seqno
    };
    let mut rollbacks = rollback(5, &[&entry(10, "d", &[], (P, 6))]);
    assert!(comes(&mut rollbacks, &entry(10, "waits", &[], (OTHER, 7))));
    rollbacks.begin(OTHER, PartitionSeqno(5), at(9), std::iter::empty());
    assert_eq!((limited(&rollbacks), rollbacks.held.len()), (6, 0));
    // A purge that is not carried out.
    let mut rollbacks = Rollbacks::default();
    rollbacks.begin(OTHER, PartitionSeqno(5), at(9), [(P, at(2).as_ref()), (OTHER, at(6).as_ref())].into_iter());
    assert_eq!(limited(&rollbacks), 6);
    rollbacks.begin(OTHER, PartitionSeqno(2), at(8), [(OTHER, at(3).as_ref())].into_iter());
    assert_eq!(limited(&rollbacks), 3);
}

#[test]
fn a_partition_of_which_nothing_was_known_goes_on_at_its_beginning() {
    let mut rollbacks = Rollbacks::default();
    rollbacks.begin(P, PartitionSeqno(0), None, std::iter::empty());
    let mut position = FeedPosition { partitions: [(P, at(7).unwrap())].into() };
    rollbacks.limit(&mut position, std::iter::empty());
    assert_eq!(position, FeedPosition::default());
}

#[test]
fn a_second_rollback_before_the_first_has_ended_forgets_what_waits_from_after_it() {
    let (kept, lost) = (entry(10, "d", &[], (P, 6)), entry(12, "e", &[], (P, 8)));
    let mut rollbacks = rollback(5, &[&kept, &lost]);
    assert!(!comes(&mut rollbacks, &kept));
    assert!(comes(&mut rollbacks, &entry(16, "e", &[], (P, 7))));
    rollbacks.begin(P, PartitionSeqno(6), at(7), std::iter::empty());
    assert_eq!(rollbacks.wanted(), [(P, 6)].into(), "what was found by then is a candidate still");
    rollbacks.found(Vec::new());
    let mut position = FeedPosition { partitions: [(P, at(6).unwrap())].into() };
    rollbacks.limit(&mut position, std::iter::empty());
    assert_eq!(position.partitions[&P].seqno, 9, "the first is not over");
    assert_eq!(sequences(&rollbacks.end(&[P].into())), [12]);
    assert_eq!(released(&mut rollbacks), [0; 0]);

    let mut rollbacks = Rollbacks::default();
    rollbacks.begin(P, PartitionSeqno(6), at(9), std::iter::empty());
    rollbacks.begin(P, PartitionSeqno(4), at(6), std::iter::empty());
    rollbacks.begin(P, PartitionSeqno(5), at(6), std::iter::empty());
    assert_eq!(rollbacks.wanted(), [(P, 4)].into(), "nothing was looked for yet");
}

#[test]
fn each_partition_ends_for_itself() {
    let (one, two) = (entry(10, "d", &[], (P, 6)), entry(11, "e", &[], (OTHER, 6)));
    let mut rollbacks = rollback(5, &[&one]);
    rollbacks.begin(OTHER, PartitionSeqno(2), None, std::iter::empty());
    assert_eq!(rollbacks.wanted(), [(OTHER, 2)].into());
    rollbacks.found(vec![Arc::new(two)]);
    assert!(comes(&mut rollbacks, &entry(20, "e", &[], (OTHER, 7))));
    assert_eq!(sequences(&rollbacks.end(&[P].into())), [10]);
    assert_eq!(released(&mut rollbacks), [0; 0], "11 may come again yet");
    assert!(!rollbacks.is_idle());
    assert_eq!(sequences(&rollbacks.end(&[OTHER].into())), [11]);
    assert_eq!(released(&mut rollbacks), [20]);
    assert!(rollbacks.is_settled());
}

#[test]
fn a_duplicate_is_taken_once_its_number_is_free_again() {
    let (reused, duplicate) = (entry(10, "new", &[], (OTHER, 3)), entry(2, "old", &[], (OTHER, 1)));
    let mut rollbacks = Rollbacks::default();
    rollbacks.remember(held(&reused));
    rollbacks.remember(held(&duplicate));
    rollbacks.begin(P, PartitionSeqno(5), at(9), std::iter::empty());
    rollbacks.found(vec![Arc::new(entry(10, "d", &[], (P, 6)))]);
    assert_eq!(sequences(&rollbacks.end(&[P].into())), [10]);
    assert_eq!(released(&mut rollbacks), [10], "the number was given out again before anybody said that it was lost");

    rollbacks.remember(held(&reused));
    rollbacks.recall(&[Sequence(10)]);
    assert_eq!(released(&mut rollbacks), [10]);
    rollbacks.recall(&[Sequence(10)]);
    assert_eq!(released(&mut rollbacks), [0; 0], "once");
}
