use super::*;
use crate::scenario::step::{Event, Rows, StateKey, Value};

fn read(text: &str) -> Result<Text, Mistake> {
    parse(Path::new("some.txt"), text)
}

#[track_caller]
fn refused(text: &str, line: usize, part: &str) {
    let mistake = read(text).unwrap_err();
    assert_eq!(mistake.line, line, "{mistake}");
    assert!(mistake.to_string().starts_with(&format!("some.txt:{line}: ")), "{mistake}");
    assert!(mistake.what.contains(part), "{part:?} is not in: {mistake}");
}

#[test]
fn headers_comments_and_lines_are_told_apart() {
    let text = "# peer: x\n# missing: purge: taking out\n# skip-variant: feed restarts\n\nnew max_wait=5\n# a comment\nwait 6\n";
    let read = read(text).unwrap();
    assert_eq!(read.missing.as_deref(), Some("purge: taking out"));
    assert_eq!(read.skipped, [(3, "feed".to_owned()), (3, "restarts".to_owned())]);
    assert_eq!(read.lines.iter().map(|line| line.number).collect::<Vec<_>>(), [5, 7]);
}

#[test]
fn nothing_unknown_is_let_pass() {
    refused("new\nput a A\nsay b", 3, "unknown `say`");
    refused("new max_weight=1", 1, "max_wait=");
    refused("doc a 1 chan=A", 1, "ch=");
    refused("doc a 0", 1, "0 is not a sequence");
    refused("doc a 1 left=A", 1, "A@7/2-b");
    refused("doc a 1 cas=maybe", 1, "same or other");
    refused("put a A loud", 1, "quiet");
    refused("delete a A", 1, "quiet");
    refused("state nxt=1", 1, "next=");
    refused("state", 1, "stable=");
    refused("stats hit=1", 1, "hits=");
    refused("ask A since=1", 1, "=>");
    refused("ask since=1 => none", 1, "channels are missing");
    refused("ask A sinse=1 => none", 1, "since=");
    refused("ask A => 5 ; first 3", 1, "last ID");
    refused("ask A => none 5", 1, "not expected");
    refused("wait x", 1, "not a number");
    refused("restart now", 1, "not expected");
    refused("follow f A", 1, "$c");
    refused("id order 0/0/1", 1, "fewer than two");
    refused("id sort 1", 1, "readjson");
    refused("ours next=1", 1, "there is none");
    refused("wait 5\nours next=1", 2, "expectation");
    refused("unused 9-4", 1, "range");
}

#[test]
fn ours_takes_the_place_of_what_the_peer_does() {
    let lines = read("state next=4 stable=3\nours next=5\nnext $f => 1 2\nours => none").unwrap().lines;
    assert_eq!(lines[0].step, Step::State(vec![(StateKey::Next, Value::Number(5))]));
    assert_eq!(lines[1].step, Step::Next { name: "f".into(), rows: Rows::None });
    assert_eq!(lines[1].number, 3);
}

#[test]
fn a_range_of_names_is_as_many_writes() {
    let lines = read("put d{1-3} A,B\ndelete d{2-3}\nunused 3 5-9").unwrap().lines;
    let counts = lines.iter().map(|line| match &line.step {
        Step::Events(events) => events.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(counts.collect::<Vec<_>>(), [3, 2, 2]);
    assert!(
        matches!(&lines[1].step, Step::Events(events) if matches!(&events[0], Event::Put(put) if put.deleted && put.id == "d2"))
    );
}
