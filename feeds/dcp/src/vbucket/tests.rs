use super::*;

const LOG: [(u64, u64); 2] = [(0xb, 20), (0xa, 0)];

fn partition() -> PartitionId {
    PartitionId(3)
}

fn snapshot(start: u64, end: u64) -> FeedEvent {
    FeedEvent::SnapshotStart { partition: partition(), start: PartitionSeqno(start), end: PartitionSeqno(end) }
}

fn rollback(to: u64) -> FeedEvent {
    FeedEvent::Rollback { partition: partition(), to: PartitionSeqno(to) }
}

fn state(log: &[(u64, u64)]) -> FeedEvent {
    FeedEvent::PartitionState { partition: partition(), uuid: log[0].0, failover_log: log.to_vec() }
}

fn stored(uuid: u64, seqno: u64, start: u64, end: u64) -> Begin {
    let failover_log = LOG.to_vec();
    let mut snapshot_ends = SnapshotEnds::default();
    [12, 15, 25].into_iter().for_each(|end| snapshot_ends.push(end));
    let (manifest_uid, purge_seqno) = (0, 0);
    let (snapshot_start, snapshot_end) = (start, end);
    Begin::At(PartitionPosition {
        uuid,
        seqno,
        snapshot_start,
        snapshot_end,
        failover_log,
        manifest_uid,
        purge_seqno,
        snapshot_ends,
    })
}

/// A vbucket whose stream is open, of a server that has `high`.
fn open(begin: Begin, is_finite: bool, high: u64) -> (Vbucket, Vec<FeedEvent>) {
    let mut vbucket = Vbucket::new(3, begin, is_finite);
    let mut out = Vec::new();
    assert_eq!(vbucket.ask(), Ask::High);
    vbucket.on_high(high, &mut out);
    if vbucket.ask() == Ask::Log {
        vbucket.on_log(LOG.to_vec(), &mut out);
    }
    assert!(matches!(vbucket.ask(), Ask::Stream(..)));
    vbucket.on_accepted(LOG.to_vec(), &mut out);
    (vbucket, out)
}

fn resumed(vbucket: &Vbucket) -> Position {
    match vbucket.ask() {
        Ask::Stream(position, _) => position,
        other => panic!("{other:?}"),
    }
}

#[test]
fn everything_begins_at_zero_without_a_history() {
    let (vbucket, out) = open(Begin::Zero, false, 7);
    assert_eq!(vbucket.ask(), Ask::Stream(Position::default(), NO_END));
    assert_eq!(out, [state(&LOG)]);
}

#[test]
fn a_marker_counts_only_from_its_first_item_on() {
    let (mut vbucket, mut out) = open(Begin::Zero, false, 100);
    out.clear();
    vbucket.on_marker(0, 10);
    assert_eq!(out, []);
    assert_eq!(vbucket.on_item(4, &mut out), Ok(false));
    assert_eq!(out, [snapshot(0, 10)]);
    vbucket.on_item(10, &mut out).unwrap();
    vbucket.on_marker(11, 20);
    vbucket.on_lost();
    assert_eq!(resumed(&vbucket), Position::at(0xb, 10), "nothing of the second snapshot has come");
    vbucket.on_accepted(LOG.to_vec(), &mut out);
    vbucket.on_marker(11, 20);
    vbucket.on_item(15, &mut out).unwrap();
    let inside = Position { uuid: 0xb, seqno: 15, snapshot_start: 11, snapshot_end: 20 };
    assert_eq!(resumed(&vbucket), inside, "in the middle nothing is narrowed");
}

#[test]
fn a_marker_that_starts_at_or_after_the_item_still_encloses_it() {
    let (mut vbucket, mut out) = open(stored(0xb, 30, 30, 30), false, 100);
    out.clear();
    vbucket.on_marker(40, 50);
    vbucket.on_item(35, &mut out).unwrap();
    assert_eq!(out, [snapshot(35, 50)]);
}

#[test]
fn seqnos_must_grow() {
    let (mut vbucket, mut out) = open(Begin::Zero, false, 100);
    vbucket.on_marker(0, 10);
    vbucket.on_item(4, &mut out).unwrap();
    assert_eq!(vbucket.on_item(4, &mut out), Err(Disorder { seqno: 4, after: 4 }));
    assert_eq!(vbucket.on_advanced(3, &mut out), Err(Disorder { seqno: 3, after: 4 }));
    assert_eq!(vbucket.on_advanced(4, &mut out), Ok(false));
}

#[test]
fn seqno_advanced_completes_a_snapshot() {
    let (mut vbucket, mut out) = open(Begin::Zero, false, 9);
    out.clear();
    vbucket.on_marker(0, 9);
    assert_eq!(vbucket.on_advanced(9, &mut out), Ok(true), "caught up");
    assert!(vbucket.on_goal(&mut out));
    assert_eq!(out, [snapshot(0, 9), FeedEvent::SeqnoAdvanced { partition: partition(), seqno: PartitionSeqno(9) }]);
    assert_eq!(resumed(&vbucket), Position::at(0xb, 9));
}

#[test]
fn it_is_caught_up_once() {
    let (mut vbucket, mut out) = open(Begin::Zero, false, 5);
    vbucket.on_marker(0, 9);
    assert_eq!(vbucket.on_item(4, &mut out), Ok(false));
    assert_eq!(vbucket.on_item(6, &mut out), Ok(true));
    assert!(vbucket.on_goal(&mut out));
    assert_eq!(vbucket.on_item(9, &mut out), Ok(false));
    let (vbucket, _) = open(stored(0xb, 30, 30, 30), false, 30);
    assert!(vbucket.is_caught_up(), "the position is where the server is");
    let mut empty = Vbucket::new(3, Begin::Zero, false);
    empty.on_high(0, &mut out);
    assert!(empty.is_caught_up(), "there is nothing to come");
}

#[test]
fn from_now_on_begins_at_the_newest_history() {
    let (mut vbucket, mut out) = open(Begin::Now, false, 77);
    assert_eq!(resumed(&vbucket), Position::at(0xb, 77));
    assert!(vbucket.is_caught_up());
    assert_eq!(out, [state(&LOG), FeedEvent::SeqnoAdvanced { partition: partition(), seqno: PartitionSeqno(77) }]);
    out.clear();
    assert_eq!(vbucket.on_rollback(50, &mut out), Next::Ask);
    assert_eq!((vbucket.ask(), &out[..]), (Ask::High, &[][..]), "nothing was delivered, so nothing is taken back");
}

#[test]
fn until_now_asks_up_to_what_there_is_and_may_go_past_it() {
    let (mut vbucket, mut out) = open(Begin::Zero, true, 7);
    assert_eq!(vbucket.ask(), Ask::Stream(Position::default(), 7));
    vbucket.on_marker(0, 9);
    assert_eq!(vbucket.on_item(9, &mut out), Ok(true));
    assert_eq!(vbucket.on_end(EndReason::Ok, &mut out), Next::Done);
    let mut empty = Vbucket::new(3, Begin::Zero, true);
    empty.on_high(0, &mut out);
    assert_eq!(empty.ask(), Ask::Nothing);
    let (ahead, _) = open(stored(0xb, 30, 30, 30), true, 12);
    assert_eq!(ahead.ask(), Ask::Stream(Position::at(0xb, 30), 30), "only a stream shows that the server has lost something");
}

#[test]
fn a_rollback_ends_with_a_new_end() {
    let (mut vbucket, mut out) = open(stored(0xb, 30, 30, 30), true, 40);
    out.clear();
    assert_eq!(vbucket.on_rollback(25, &mut out), Next::Ask);
    assert_eq!(out, [rollback(25)]);
    assert_eq!(vbucket.ask(), Ask::High, "the end is another one now");
    vbucket.on_high(27, &mut out);
    assert_eq!(vbucket.ask(), Ask::Stream(Position::at(0xb, 25), 27));
}

fn ended() -> FeedEvent {
    FeedEvent::RollbackEnded { partition: partition() }
}

#[test]
fn a_rollback_ends_when_all_that_there_is_has_come() {
    let (mut vbucket, mut out) = open(stored(0xb, 30, 30, 30), false, 30);
    assert!(vbucket.is_caught_up());
    out.clear();
    assert_eq!(vbucket.on_rollback(25, &mut out), Next::Ask);
    assert_eq!(vbucket.ask(), Ask::High, "another history may have less or more");
    vbucket.on_high(28, &mut out);
    let log = [(0xd, 25), (0xb, 20), (0xa, 0)];
    vbucket.on_accepted(log.to_vec(), &mut out);
    vbucket.on_marker(26, 40);
    assert_eq!(vbucket.on_item(27, &mut out), Ok(false));
    assert_eq!(out, [rollback(25), state(&log), snapshot(26, 40)]);
    assert_eq!(vbucket.on_item(29, &mut out), Ok(true));
    assert!(!vbucket.on_goal(&mut out), "it was caught up before");
    assert_eq!(out[3..], [ended()]);
    assert_eq!(vbucket.on_item(40, &mut out), Ok(false), "once");
}

#[test]
fn a_rollback_to_where_there_is_nothing_more_ends_at_once() {
    let (mut vbucket, mut out) = open(stored(0xb, 30, 30, 30), false, 30);
    out.clear();
    vbucket.on_rollback(25, &mut out);
    vbucket.on_high(25, &mut out);
    let log = [(0xd, 25), (0xb, 20), (0xa, 0)];
    vbucket.on_accepted(log.to_vec(), &mut out);
    assert_eq!(out, [rollback(25), state(&log), ended()]);

    let (mut vbucket, mut out) = open(stored(0xb, 30, 30, 30), true, 30);
    out.clear();
    vbucket.on_rollback(0, &mut out);
    vbucket.on_log(vec![(0xe, 0)], &mut out);
    vbucket.on_high(0, &mut out);
    assert_eq!((vbucket.ask(), &out[..]), (Ask::Nothing, &[rollback(0), ended()][..]), "the bucket was emptied");
}

#[test]
fn what_another_failover_takes_while_a_rollback_lasts_is_not_waited_for() {
    let (mut vbucket, mut out) = open(stored(0xb, 30, 30, 30), false, 30);
    vbucket.on_rollback(25, &mut out);
    vbucket.on_high(28, &mut out);
    vbucket.on_accepted(vec![(0xd, 25), (0xb, 20), (0xa, 0)], &mut out);
    vbucket.on_lost();
    assert_eq!(vbucket.ask(), Ask::High);
    vbucket.on_high(25, &mut out);
    out.clear();
    let log = [(0xf, 25), (0xb, 20), (0xa, 0)];
    vbucket.on_accepted(log.to_vec(), &mut out);
    assert_eq!(out, [state(&log), ended()]);
}

#[test]
fn a_position_in_a_history_that_was_left_since_is_told_as_a_rollback_to_it() {
    let log = [(0xe, 32), (0xb, 20), (0xa, 0)];
    let mut vbucket = Vbucket::new(3, stored(0xb, 30, 30, 30), false);
    let mut out = Vec::new();
    vbucket.on_high(34, &mut out);
    vbucket.on_accepted(log.to_vec(), &mut out);
    assert_eq!(out, [rollback(30), state(&log)], "the consumer may hold 33 of the history before");
    vbucket.on_marker(31, 34);
    assert_eq!(vbucket.on_item(34, &mut out), Ok(true));
    assert!(vbucket.on_goal(&mut out));
    assert_eq!(out[2..], [snapshot(31, 34), ended()]);
    vbucket.on_lost();
    out.clear();
    vbucket.on_accepted(vec![(0xf, 34), (0xe, 32)], &mut out);
    assert_eq!(out, [state(&[(0xf, 34), (0xe, 32)])], "nothing of another history was delivered");
}

#[test]
fn a_rollback_goes_to_where_a_snapshot_ended_over_restarts_too() {
    for (asked, to) in [(40, 30), (30, 30), (29, 25), (25, 25), (24, 15), (11, 0)] {
        let (mut vbucket, mut out) = open(stored(0xb, 30, 26, 30), false, 30);
        out.clear();
        vbucket.on_rollback(asked, &mut out);
        let told: Vec<FeedEvent> = (to < 30).then(|| rollback(to)).into_iter().collect();
        assert_eq!(out, told, "{asked}");
    }
    let (mut vbucket, mut out) = open(stored(0xb, 28, 26, 30), false, 30);
    out.clear();
    vbucket.on_rollback(28, &mut out);
    assert_eq!(out, [rollback(25)], "28 is in the middle of a snapshot");
}

#[test]
fn what_began_at_its_end_does_not_go_back_before_that() {
    let mut vbucket = Vbucket::new(3, Begin::Now, false);
    let mut out = Vec::new();
    vbucket.on_high(30, &mut out);
    vbucket.on_log(LOG.to_vec(), &mut out);
    vbucket.on_accepted(LOG.to_vec(), &mut out);
    vbucket.on_marker(31, 40);
    vbucket.on_item(33, &mut out).unwrap();
    out.clear();
    let mut other = vbucket.clone();
    vbucket.on_rollback(32, &mut out);
    other.on_rollback(27, &mut out);
    assert_eq!(out, [rollback(30), rollback(27)]);
}

#[test]
fn a_rollback_drops_the_histories_that_begin_after_it() {
    let (mut vbucket, mut out) = open(stored(0xb, 30, 30, 30), false, 30);
    out.clear();
    vbucket.on_rollback(15, &mut out);
    assert_eq!(out, [rollback(15)]);
    vbucket.on_high(30, &mut out);
    assert_eq!(resumed(&vbucket), Position::at(0xa, 15));
    let next = [(0xd, 15), (0xa, 0)];
    vbucket.on_accepted(next.to_vec(), &mut out);
    assert_eq!(out[1], state(&next));
}

#[test]
fn a_rollback_goes_to_the_end_of_a_snapshot_if_one_is_remembered() {
    let (mut vbucket, mut out) = open(Begin::Zero, false, 100);
    for (start, end) in [(0, 10), (11, 20), (21, 30)] {
        vbucket.on_marker(start, end);
        vbucket.on_item(start + 3, &mut out).unwrap();
        vbucket.on_item(end, &mut out).unwrap();
    }
    out.clear();
    vbucket.on_rollback(17, &mut out);
    assert_eq!(out, [rollback(10)]);
}

#[test]
fn a_server_without_the_newest_history_is_joined_where_both_part() {
    let (mut vbucket, mut out) = open(stored(0xb, 30, 30, 30), false, 30);
    out.clear();
    assert_eq!(vbucket.on_rollback(0, &mut out), Next::Ask);
    assert_eq!((vbucket.ask(), out.len()), (Ask::Log, 0), "the log is worth a question before everything is thrown away");
    vbucket.on_log(vec![(0xe, 12), (0xa, 0)], &mut out);
    assert_eq!(out, [rollback(12)]);
    vbucket.on_high(30, &mut out);
    assert_eq!(resumed(&vbucket), Position::at(0xa, 12));
    assert_eq!(vbucket.on_rollback(0, &mut out), Next::Ask);
    assert_eq!(out[1], rollback(0), "the second time it is obeyed");
    vbucket.on_high(30, &mut out);
    assert_eq!(resumed(&vbucket), Position::default());
    assert_eq!(vbucket.on_rollback(0, &mut out), Next::STUCK);
}

#[test]
fn a_server_that_shares_the_history_and_still_asks_for_zero_is_obeyed() {
    let (mut vbucket, mut out) = open(stored(0xb, 30, 30, 30), false, 30);
    out.clear();
    vbucket.on_rollback(0, &mut out);
    vbucket.on_log(LOG.to_vec(), &mut out);
    assert_eq!(out, [rollback(0)], "deletions were purged");
}

#[test]
fn rollbacks_come_to_an_end() {
    let (mut vbucket, mut out) = open(stored(0xb, 1000, 1000, 1000), false, 1000);
    for _ in 0..MAX_ROLLBACKS {
        assert_eq!(vbucket.on_rollback(1000, &mut out), Next::Ask);
    }
    vbucket.on_rollback(1000, &mut out);
    vbucket.on_high(1000, &mut out);
    if vbucket.ask() == Ask::Log {
        vbucket.on_log(LOG.to_vec(), &mut out);
        vbucket.on_high(1000, &mut out);
    }
    assert_eq!(resumed(&vbucket), Position::default());
}

#[test]
fn a_range_error_narrows_first_and_goes_back_then() {
    let (mut vbucket, mut out) = open(stored(0xb, 30, 25, 40), false, 30);
    assert_eq!(vbucket.on_refused(Status::Range, &mut out), Next::Ask);
    assert_eq!(resumed(&vbucket), Position::at(0xb, 30));
    assert_eq!(vbucket.on_refused(Status::Range, &mut out), Next::Ask);
    assert_eq!(vbucket.ask(), Ask::Log);
}

#[test]
fn every_end_that_nobody_wanted_is_a_reason_to_open_again() {
    for code in 0..20 {
        let (mut vbucket, mut out) = open(Begin::Zero, false, 5);
        let next = vbucket.on_end(EndReason::from(code), &mut out);
        assert!(matches!((code, next), (7, Next::Done) | (_, Next::Again { .. })), "{code} {next:?}");
    }
}

#[test]
fn a_snapshot_in_the_order_of_keys_is_taken_up_from_before_it() {
    let (mut vbucket, mut out) = open(Begin::Zero, false, 9);
    out.clear();
    vbucket.on_unordered_begin(&mut out);
    for seqno in [7, 2, 9, 4] {
        assert_eq!(vbucket.on_item(seqno, &mut out), Ok(false));
    }
    let mut lost = vbucket.clone();
    lost.on_lost();
    assert_eq!(resumed(&lost), Position::default());
    assert!(vbucket.on_unordered_end(&mut out), "caught up");
    let (partition, seqno) = (partition(), PartitionSeqno(9));
    assert_eq!(out, [FeedEvent::Unordered { partition }, FeedEvent::SeqnoAdvanced { partition, seqno }]);
    assert_eq!(resumed(&vbucket), Position::at(0xb, 9));
}

#[test]
fn seqnos_are_unsigned() {
    let (mut vbucket, mut out) = open(Begin::Zero, false, u64::MAX - 1);
    vbucket.on_marker(1 << 63, u64::MAX - 1);
    vbucket.on_item((1 << 63) + 1, &mut out).unwrap();
    assert_eq!(vbucket.on_item(u64::MAX - 1, &mut out), Ok(true));
}

fn context(manifest_uid: u64, purge_seqno: u64) -> FeedEvent {
    FeedEvent::PartitionContext { partition: partition(), manifest_uid, purge_seqno }
}

#[test]
fn what_the_server_is_told_comes_with_the_snapshot_and_goes_with_a_rollback() {
    let (mut vbucket, mut out) = open(Begin::Zero, false, 100);
    out.clear();
    vbucket.on_marker(0, 10);
    vbucket.on_purge_seqno(7);
    assert_eq!((out.len(), vbucket.context()), (0, Context::default()), "nothing of the snapshot has come");
    vbucket.on_advanced(3, &mut out).unwrap();
    vbucket.on_manifest(5, &mut out);
    vbucket.on_manifest(5, &mut out);
    let advanced = FeedEvent::SeqnoAdvanced { partition: partition(), seqno: PartitionSeqno(3) };
    assert_eq!(out, [snapshot(0, 10), context(0, 7), advanced, context(5, 7)]);
    vbucket.on_marker(11, 20);
    vbucket.on_item(12, &mut out).unwrap();
    assert_eq!(vbucket.context(), Context { manifest_uid: 5, purge_seqno: 0 }, "the snapshot does not say");
    vbucket.on_lost();
    vbucket.on_rollback(4, &mut out);
    assert_eq!(vbucket.context(), Context::default());
}

#[test]
fn a_manifest_that_the_server_does_not_know_is_not_named_again() {
    let position = PartitionPosition { uuid: 0xb, seqno: 30, snapshot_start: 30, snapshot_end: 30, ..Default::default() };
    let begin = Begin::At(PartitionPosition { manifest_uid: 9, purge_seqno: 2, failover_log: LOG.to_vec(), ..position });
    let mut vbucket = Vbucket::new(3, begin, false);
    let mut out = Vec::new();
    assert_eq!(vbucket.context(), Context { manifest_uid: 9, purge_seqno: 2 });
    assert_eq!(vbucket.on_refused(Status::ManifestAhead, &mut out), Next::Ask);
    assert_eq!(vbucket.context(), Context { manifest_uid: 0, purge_seqno: 2 });
    assert_eq!(vbucket.on_refused(Status::ManifestAhead, &mut out), Next::LATER, "it is not for that");
    assert_eq!(out, []);
}
