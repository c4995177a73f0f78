//! Worlds that were found by chance, or made from those. Each runs with both settings of
//! supersession, with and without a held first read, and over several orders of the feed.

use sluicegate::pointer::Supersession;
use sluicegate_testkit::{CrashPoint, Step, When};

use super::assert_right;
use super::model::{Event, Fault, Settings, Term, Then, World};

/// Orders of the feed that are tried.
const ORDERS: u64 = 20;

fn write(document: u16, channels: u8) -> Event {
    Event::Write { document, channels }
}

fn term(seed: u64, fault: Fault) -> Event {
    Event::Term(Term { seed, fault, meanwhile: Vec::new(), rollbacks_first: true })
}

/// All writes of a step are held from the `nth` on, and the writer is killed.
fn killed(step: Step, nth: u64) -> Fault {
    Fault::Hold { step, nth, all: true, then: Then::Killed }
}

fn crash(step: Step, nth: u64) -> Fault {
    Fault::Crash { from_take_over: false, point: CrashPoint { step, when: When::Before, nth } }
}

fn fail_over(partition: u16) -> Event {
    Event::FailOver { partition, lost: 1 }
}

/// Runs the worlds of `events`, which is given the seed of the feed's order in some terms.
#[track_caller]
fn assert_always_right(events: impl Fn(u64) -> Vec<Event>) {
    for supersession in [Supersession::Recents, Supersession::Pointers] {
        for (hold_first_read, has_stays) in [(false, false), (false, true), (true, false), (true, true)] {
            for order in 0..ORDERS {
                let settings = Settings { hold_first_read, has_stays, ..Settings::simple(supersession) };
                let world = World { settings, events: events(order) };
                let what = format!("order {order} with {:?}", world.settings);
                let counts = assert_right(&world, &what);
                assert!(counts.faults > 0, "{what}: no writer was killed");
            }
        }
    }
}

/// `d2` is in channel a. Then a killed writer has stored states of `d0` there, and no document.
/// Then `then` happens.
fn killed_before_documents(then: &[Event]) -> Vec<Event> {
    let killed = term(0, killed(Step::SequenceDocuments, 1));
    [&[write(2, 1), term(0, Fault::Healthy), write(0, 1), killed][..], then].concat()
}

/// The document is lost. It comes again with the same sequence, in another channel.
#[test]
fn a_channel_can_be_read_that_a_killed_writer_stored_a_lost_document_in() {
    assert_always_right(|order| {
        let then = [fail_over(0), Event::LoseCounter, write(0, 2), write(0, 2), term(order, Fault::Healthy)];
        killed_before_documents(&then)
    });
}

/// The document is lost. Another one comes with the same sequence, in another channel.
#[test]
fn a_channel_can_be_read_if_another_document_has_the_lost_sequence() {
    assert_always_right(|order| {
        let then = [fail_over(0), Event::LoseCounter, write(1, 2), write(1, 2), term(order, Fault::Healthy)];
        killed_before_documents(&then)
    });
}

#[test]
fn a_channel_can_be_read_after_two_writers_were_killed() {
    assert_always_right(|order| {
        let again = term(0, killed(Step::SequenceDocuments, 1));
        let then = [again, fail_over(0), Event::LoseCounter, write(0, 2), write(0, 2), term(order, Fault::Healthy)];
        killed_before_documents(&then)
    });
}

/// Nothing else stays in the channel.
#[test]
fn a_channel_can_be_read_that_has_nothing_but_what_a_killed_writer_stored() {
    assert_always_right(|order| {
        let purge = Event::Purge { document: 2 };
        let then = [fail_over(0), Event::LoseCounter, write(0, 2), write(0, 2), purge, term(order, Fault::Healthy)];
        killed_before_documents(&then)
    });
}

/// After the channel was left out, the document comes to it again.
#[test]
fn a_document_is_shown_in_a_channel_that_a_killed_writer_stored_it_in() {
    assert_always_right(|order| {
        let lost = [fail_over(0), Event::LoseCounter, write(0, 2), write(0, 2), term(order, Fault::Healthy)];
        let then = [&lost[..], &[write(0, 1), term(order, Fault::Healthy)]].concat();
        killed_before_documents(&then)
    });
}

/// The removal of `d1` from channel a is announced twice between two answers: by a writer that was
/// killed, and by the next one, for the document has changed since.
#[test]
fn a_client_is_told_of_a_late_change_that_is_announced_twice() {
    assert_always_right(|order| {
        vec![
            write(1, 1),
            write(1, 0),
            write(2, 0),
            write(1, 1),
            term(3, Fault::Healthy),
            fail_over(1),
            term(0, Fault::Hold { step: Step::Intent, nth: 1, all: false, then: Then::Killed }),
            fail_over(0),
            write(0, 1),
            write(0, 0),
            term(2, killed(Step::Blocks, 1)),
            write(1, 0),
            term(order, Fault::Healthy),
        ]
    });
}

/// A killed writer has stored the last revision of `d1`, and nobody was told of it. It is lost, and
/// the one before is shown again.
#[test]
fn a_client_is_told_what_is_shown_again() {
    assert_always_right(|order| {
        let seed = order;
        let fault = crash(Step::SequenceDocuments, 5);
        vec![
            Event::Release { partition: 2 },
            write(0, 1),
            term(0, Fault::Healthy),
            fail_over(0),
            Event::LoseCounter,
            write(1, 1),
            write(2, 1),
            write(0, 1),
            term(0, crash(Step::Blocks, 1)),
            write(2, 1),
            write(1, 1),
            Event::Term(Term { seed, fault, meanwhile: Vec::new(), rollbacks_first: false }),
            fail_over(1),
            write(0, 0),
            write(0, 0),
        ]
    });
}

/// A killed writer has stored two revisions of `d1`, and marked nothing. The third, which marks
/// both, is lost: the second must mark the first.
#[test]
fn a_rollback_leaves_no_duplicate_row() {
    assert_always_right(|order| {
        vec![
            write(0, 1),
            term(0, Fault::Healthy),
            fail_over(0),
            write(1, 1),
            write(1, 1),
            term(2, killed(Step::BatchRecord, 3)),
            Event::Skip,
            write(1, 0),
            term(order, Fault::Healthy),
            fail_over(1),
        ]
    });
}
