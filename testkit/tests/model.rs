//! The model, on cases small enough to be worked out by hand.

use sluicegate_core::decode::{DecodedDocument, Departure};
use sluicegate_core::{ChangeEntry, Channel, Decoded, EntryFlags, Membership, Sequence};
use sluicegate_testkit::Model;
use sluicegate_testkit::model::AnswerRow;
use sluicegate_testkit::sample::{channel, entry};

fn document(entry: ChangeEntry) -> Decoded {
    Decoded::Document(entry.into())
}

fn model(entries: impl IntoIterator<Item = ChangeEntry>) -> Model {
    let mut model = Model::new();
    entries.into_iter().for_each(|entry| model.apply(&document(entry)));
    model
}

fn all(model: &Model, channels: &[&str], active_only: bool) -> Vec<AnswerRow> {
    let channels: Vec<Channel> = channels.iter().map(|name| channel(name)).collect();
    model.changes(&channels, Sequence::ZERO, None, active_only)
}

/// Sequence and document, `!` for deleted, and what it was removed from.
fn short(rows: Vec<AnswerRow>) -> Vec<String> {
    let short = |(sequence, document, _, deleted, removed): AnswerRow| {
        let sign = if deleted { "!" } else { "" };
        let removed = removed.iter().map(|name| format!(" -{name}")).collect::<String>();
        format!("{sequence} {document}{sign}{removed}")
    };
    rows.into_iter().map(short).collect()
}

#[test]
fn a_document_appears_once_a_channel_at_its_newest_sequence() {
    let model = model([entry(5, "x", &["a"]), entry(2, "x", &["a", "b"]), entry(3, "y", &["a"])]);
    assert_eq!(short(all(&model, &["a"], false)), ["3 y", "5 x"]);
    assert_eq!(short(all(&model, &["b"], false)), ["2 x"]);
    assert_eq!(short(all(&model, &["*"], false)), ["3 y", "5 x"]);
    assert_eq!(short(all(&model, &["a", "b"], false)), ["2 x", "3 y", "5 x"]);
    assert_eq!(short(all(&model, &["none"], false)), [""; 0]);
}

#[test]
fn documents_that_have_a_sequence_in_common_are_both_shown() {
    let model = model([entry(4, "y", &["a"]), entry(4, "x", &["a", "b"]), entry(6, "x", &["a", "-b"])]);
    assert_eq!(short(all(&model, &["a"], false)), ["4 y", "6 x"]);
    assert_eq!(short(all(&model, &["b"], false)), ["6 x -b"]);
    let both = [entry(4, "y", &["a"]), entry(4, "x", &["b"])];
    assert_eq!(short(all(&self::model(both), &["a", "b"], false)), ["4 x", "4 y"]);
}

#[test]
fn removed_names_every_channel_of_the_request_even_beside_a_live_one() {
    let model = model([entry(1, "x", &["a", "b", "c"]), entry(2, "x", &["c", "-b", "-a"])]);
    assert_eq!(short(all(&model, &["a", "b", "c"], false)), ["2 x -a -b"]);
    assert_eq!(short(all(&model, &["a"], false)), ["2 x -a"]);
    assert_eq!(short(all(&model, &["a", "b", "c"], true)), ["2 x -a -b"]);
    assert_eq!(short(all(&model, &["a", "b"], true)), [""; 0]);
    assert_eq!(short(all(&model, &["*", "a"], true)), ["2 x -a"]);
}

#[test]
fn since_and_limit_count_rows_after_filtering() {
    let model = model((1..=9).map(|n| entry(n, &format!("d{n}"), &[if n % 2 == 0 { "a" } else { "-a" }])));
    let rows = |since, limit, active| short(model.changes(&[channel("a")], Sequence(since), limit, active));
    assert_eq!(rows(2, Some(3), false), ["3 d3 -a", "4 d4", "5 d5 -a"]);
    assert_eq!(rows(2, Some(2), true), ["4 d4", "6 d6"]);
    assert_eq!(rows(9, None, false), [""; 0]);
    assert_eq!(rows(0, Some(0), false), [""; 0]);
}

#[test]
fn deleted_is_that_of_the_revision_or_of_the_removal() {
    let tombstone = ChangeEntry::new(Sequence(4), "x", "2-t", EntryFlags::DELETED).unwrap();
    let kept = tombstone.clone().with_channel(channel("a"), Membership::Present);
    let left = tombstone.with_channel(channel("a"), Membership::RemovedByDeletion);
    assert_eq!(short(all(&model([kept.clone()]), &["a"], false)), ["4 x!"]);
    assert_eq!(short(all(&model([kept]), &["a"], true)), [""; 0]);
    assert_eq!(short(all(&model([left.clone()]), &["a"], false)), ["4 x! -a"]);
    assert_eq!(short(all(&model([left]), &["a", "*"], false)), ["4 x! -a"]);
}

#[test]
fn a_departure_that_the_feed_never_delivered_is_a_row_of_its_channel_alone() {
    let departure = Departure {
        sequence: Sequence(3),
        revision: "2-gone".into(),
        channel: channel("a"),
        membership: Membership::Removed,
        since: Sequence(1),
    };
    let newer = entry(7, "x", &["b"]).with_supersedes([Sequence(1), Sequence(3)]);
    let mut model = model([entry(1, "x", &["a"])]);
    model.apply(&Decoded::Document(DecodedDocument { departures: [departure].into(), ..newer.into() }));
    let expected = (Sequence(3), "x".to_owned(), "2-gone".to_owned(), false, vec!["a".to_owned()]);
    assert_eq!(all(&model, &["a"], false), [expected]);
    assert_eq!(short(all(&model, &["*"], false)), ["7 x"]);
    // The revision itself, should it come after all, adds what else it did.
    model.apply(&document(entry(3, "x", &["-a", "c"])));
    assert_eq!(short(all(&model, &["a", "c"], false)), ["3 x -a"]);
}
