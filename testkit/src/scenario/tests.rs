use super::*;
use crate::PlainStore;

fn stores() -> Stores {
    Stores::new(|| {
        let store: Arc<dyn CacheStore> = Arc::new(PlainStore::new());
        Box::pin(std::future::ready(Ok(store)))
    })
}

fn judged(text: &str) -> Report {
    judge(&[Scenario::parse("some.txt", text).unwrap()], &Variation::ALL, &stores(), 1).unwrap()
}

/// The result for the last line, which must not agree, while all others must.
#[track_caller]
fn got_at_the_end(text: &str) -> String {
    let report = judged(text);
    let last = text.lines().count();
    assert!(!report.agrees(), "{text}");
    assert!(report.disagreements.iter().all(|one| one.line == last), "{report}");
    report.disagreements[0].got.clone()
}

const HISTORY: &str = "\
new max_wait=100
direct 1 A
direct 3 A,B
follow $f A
next $f => 1
poll $p A since=1
waits $p
wait 100
state next=4 stable=1 high=3 pending=0 skipped=2 missing=1 everskipped=1
returns $p => 1::3 ; last 1::3
next $f => 1::3
direct 2 B
next $f => none
ask $c A => 1=doc-1@1-a 3 ; last 3
put doc-1 B
ask $c A => 4=doc-1@2-doc-1-(A)
delete doc-3
ask A,B => 2=doc-2 4=doc-1-(A) 5=doc-3!-(A,B)
state stable=5 unused=0 late=1
";

#[test]
fn what_is_as_expected_agrees_in_every_variation() {
    let report = judged(HISTORY);
    assert!(report.agrees(), "{report}");
    assert_eq!((report.files, report.runs, report.agreed), (1, 9, 9));
}

#[test]
fn what_is_not_as_expected_is_named() {
    let at_the_end = |line: &str| got_at_the_end(&format!("{HISTORY}{line}"));
    assert_eq!(at_the_end("state next=7 stable=5 missing=1"), "next=6 missing=0");
    assert_eq!(at_the_end("state skipped=2"), "skipped=-");
    let rows = "2=doc-2@1-a 4=doc-1@2-doc-1-(A) 5=doc-3@2-doc-3!-(A,B) ; last 5";
    for expected in [
        "none",
        "n=2",
        "docs doc-2 doc-3 doc-1",
        "seqs 4 2 5",
        "set 2 4",
        "2 4-(A)",
        "2=doc-3 4-(A) 5!-(A,B)",
        "2@1-b 4-(A) 5!-(A,B)",
        "2! 4-(A) 5!-(A,B)",
        "2 4 5!-(A,B)",
        "2 4-(A) 5!-(A)",
        "1::2 4-(A) 5!-(A,B)",
        "n=3 ; last 4",
    ] {
        assert_eq!(at_the_end(&format!("ask A,B => {expected}")), rows, "{expected}");
    }
    assert_eq!(at_the_end("next $f => none"), "4=doc-1@2-doc-1-(A) 5=doc-3@2-doc-3!-(A)");
    assert!(at_the_end("merge A B@5 => none").contains("5:4=doc-1"));
    assert!(at_the_end("returns $q => none").contains("`$q` was not begun"));
    assert!(at_the_end("ask as=jo A => none").contains("users"));
    assert!(at_the_end("id order 0/0/2 0/0/1").contains("0/0/2 is not below 0/0/1"));
    assert_eq!(at_the_end("id bad 5"), "it is read as 5");
    assert_eq!(at_the_end("id print 1 0 5 => 5"), "1::5");
}

#[test]
fn time_moves_only_when_the_file_says_so() {
    let report = judged(
        "new max_wait=50 skip_wait=2000\ndirect 2 A\nat 49\nstate skipped=-\nat 50\nstate skipped=1\nwait 1999\nstate skipped=1 stable=0\nwait 1\nstate skipped=- abandoned=1 stable=2\n# skip-variant: restarts",
    );
    assert!(report.agrees(), "{report}");
    assert_eq!((report.runs, report.left_out), (7, 2));
}

#[test]
fn files_that_wait_for_a_feature_are_told_by_its_name() {
    let report = judged("# missing: telepathy: reading minds\n# skip-variant: moonlight\nnew\nask A => n=9");
    assert!(report.agrees());
    assert_eq!(report.skipped.keys().collect::<Vec<_>>(), ["telepathy"]);
    assert!(report.notes[0].contains("some.txt:2") && report.notes[0].contains("moonlight"), "{:?}", report.notes);
}

#[test]
fn a_feed_of_named_collections_waits_for_no_numbers_of_others_and_loses_nothing_that_comes_later() {
    let report = judged(
        "new max_wait=100 max_pending=3\ndoc a 1 ch=A collection=8\ndoc b 4 ch=A collection=8\nwait 99\nstate stable=1\nwait 1\n\
         state stable=4 skipped=-\ndoc c 3 ch=A collection=8\nask A => 1=a 3=c 4=b\nstate stable=4 late=1",
    );
    assert!(report.agrees(), "{report}");
    assert_eq!(
        got_at_the_end("new max_wait=100\ndoc a 1 ch=A\ndoc b 4 ch=A\nwait 100\nstate stable=4 skipped=-"),
        "stable=1 skipped=2-3"
    );
}

#[test]
fn each_purge_is_carried_out_before_the_next_question() {
    let report = judged(
        "new\ndoc x 1 ch=A\ndoc y 2 ch=A\npurge z\npurge x\nask A => 2=y\npurge y\nask A => none\ndoc x 3 ch=A\nask A => 3=x\n\
         purge x\nask A => none",
    );
    assert!(report.agrees(), "{report}");
}

#[test]
fn rows_name_the_current_version_of_their_revision() {
    let history = "new max_wait=50 skip_wait=100\ndoc doc1 1 ch=A cv=test1@123451\ndoc doc4 4 ch=A cv=test4@123456\nwait 200\n";
    let report = judged(&format!("{history}ask A versions => 1=doc1@test1/123451 4=doc4@test4/123456"));
    assert!(report.agrees(), "{report}");
    let got = got_at_the_end(&format!("{history}ask A versions => 1=doc1@test1/123450"));
    assert!(got.contains("1=doc1@test1/123451"), "{got}");
}
