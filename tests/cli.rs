//! The `sluicegate` command, run as a user runs it.

#![cfg(all(feature = "cli", feature = "memory", feature = "replay"))]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn command(args: &[&str]) -> Command {
    let mut command = sluicegate_test_servers::command(env!("CARGO_BIN_EXE_sluicegate"));
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// What it printed, and its exit code.
fn ended(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn assert_fails(output: Output, code: i32, parts: &[&str]) {
    let (got, out, error) = ended(output);
    assert_eq!(got, code, "{error}");
    assert_eq!(out, "");
    for part in parts {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
}

fn recording(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/gateway").join(name);
    format!("replay:{}", path.display())
}

fn small() -> String {
    recording("mutations-xattr33.ndjson.gz")
}

fn settings_file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    (folder, path)
}

#[test]
fn help_tells_the_commands_and_the_exit_codes() {
    let (code, out, _) = ended(run(&["--help"]));
    assert_eq!(code, 0);
    for part in ["run", "changes", "follow", "inspect", "verify", "backends", "demo", "130", "SLUICEGATE_STORE"] {
        assert!(out.contains(part), "no {part:?} in {out}");
    }
}

#[test]
fn an_unknown_flag_or_command_is_wrong_usage() {
    assert_fails(run(&["changes", "--colour"]), 2, &["--colour"]);
    assert_fails(run(&["dance"]), 2, &["dance"]);
    assert_fails(run(&["changes", "--since", "a:b"]), 2, &["--since", "invalid sequence"]);
    assert_fails(run(&["changes", "--channel", ""]), 2, &["--channel"]);
}

#[test]
fn an_unknown_setting_is_named_with_its_source() {
    let (_folder, path) = settings_file("store = 'memory:'\n[writer]\nmax_bach = 7\n");
    let path = path.to_str().unwrap();
    assert_fails(run(&["backends", "--config", path]), 2, &[path, "`writer.max_bach`", "did you mean `writer.max_batch`?"]);
    let output = command(&["backends"]).env("SLUICEGATE_WRITER_MAX_BACH", "7").output().unwrap();
    assert_fails(output, 2, &["SLUICEGATE_WRITER_MAX_BACH", "did you mean SLUICEGATE_WRITER_MAX_BATCH?"]);
    assert_fails(run(&["backends", "--set", "reader.nothing=1"]), 2, &["--set reader.nothing"]);
}

#[test]
fn a_wrong_value_is_named_with_its_source() {
    let (_folder, path) = settings_file("[reader]\ntail_max = 7\n");
    let path = path.to_str().unwrap();
    assert_fails(run(&["backends", "--config", path]), 2, &["[reader] tail_min is 50", path, "key `reader.tail_max`"]);
    let output = command(&["backends"]).env("SLUICEGATE_WRITER_RING", "seven").output().unwrap();
    assert_fails(output, 2, &["SLUICEGATE_WRITER_RING", "a whole number", "seven"]);
    assert_fails(run(&["backends", "--log", "a=b=c"]), 2, &["--log", "a=b=c"]);
    for wrong in ["loud", "info,loud", ""] {
        assert_fails(run(&["backends", "--log", wrong]), 2, &["--log", "is no log level", "TARGET=LEVEL"]);
    }
    assert_fails(run(&["backends", "--config", "/nowhere/at/all.toml"]), 2, &["/nowhere/at/all.toml"]);
}

#[test]
fn a_flag_comes_before_the_environment_and_that_before_the_file() {
    let (_folder, path) = settings_file("store = 'file-store:'\n");
    let path = path.to_str().unwrap();
    assert_fails(run(&["changes", "--config", path]), 2, &["`file-store:`"]);
    let with =
        |args: &[&str]| command(args).env("SLUICEGATE_CONFIG", path).env("SLUICEGATE_STORE", "env-store:").output().unwrap();
    assert_fails(with(&["changes"]), 2, &["`env-store:`"]);
    assert_fails(with(&["changes", "--set", "store=set-store:"]), 2, &["`set-store:`"]);
    assert_fails(with(&["changes", "--set", "store=set-store:", "--store", "flag-store:"]), 2, &["`flag-store:`"]);
}

#[test]
fn an_unknown_scheme_lists_what_there_is() {
    assert_fails(run(&["run", "--feed", "dance:"]), 2, &["`dance:`", "available: dcp, dcps, replay"]);
    assert_fails(run(&["changes", "--store", "dance:"]), 2, &["`dance:`", "available: memory"]);
    assert_fails(run(&["run"]), 2, &["--feed"]);
}

#[test]
fn secrets_are_not_printed() {
    for (args, expected) in [
        (["changes", "--store", "couchbase://app:hunter2@host"], 2),
        (["run", "--feed", "dcp://app:hunter2@host?password=hunter2"], 2),
        (["changes", "--store", "redis://app:hunter2@127.0.0.1:1"], 1),
        (["backends", "--set", "store redis://app:hunter2@host"], 2),
        (["backends", "--set", "store redis://app:hunter2@host?pool=3"], 2),
        (["backends", "--set", "redis://app:hunter2@host?pool=3"], 2),
    ] {
        let (code, out, error) = ended(run(&args));
        assert_eq!(code, expected, "{error}");
        assert!(!out.contains("hunter2") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_missing_file_and_an_empty_store_fail_while_running() {
    assert_fails(run(&["run", "--log", "off", "--feed", "replay:/nowhere/at/all"]), 1, &["/nowhere/at/all", "no such recording"]);
    assert_fails(run(&["changes"]), 1, &["holds no cache"]);
    assert_fails(run(&["demo", "--recording", "/nowhere/at/all"]), 1, &["/nowhere/at/all"]);
}

/// Documents that share a sequence come together, one more than the limit.
#[test]
fn a_limit_may_be_exceeded_by_documents_of_one_sequence() {
    let feed = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/reports/03-two-databases-in-one-bucket.ndjson");
    let feed = format!("replay:{}", feed.display());
    let (code, out, error) = ended(run(&["changes", "--log", "off", "--feed", &feed, "--limit", "1", "--format", "json"]));
    assert!(code == 0 && out.contains("order-1") && out.contains("emp-1"), "{out}{error}");
    // Without the second one, if the command is faster than the writer.
    let (code, out, error) = ended(run(&["follow", "--log", "off", "--feed", &feed, "--limit", "1"]));
    assert!(code == 0 && matches!(out.lines().count(), 1 | 2), "{out}{error}");
    for (slot, key) in [("0", "order-1"), ("1", "emp-1")] {
        let (_, out, error) = ended(run(&["inspect", "--log", "off", "--feed", &feed, "sequence", "1", "--slot", slot]));
        assert!(out.contains(key) && out.contains("(slot") == (slot == "1"), "{out}{error}");
        assert!(!out.contains("absent"), "of its own collection: {out}");
    }
    let (code, _, error) = ended(run(&["inspect", "--log", "off", "--feed", &feed, "sequence", "1", "--slot", "17"]));
    assert!(code == 2 && error.contains("no slot 17"), "{error}");
}

/// Of each database by its own counter: without it, a gap that is wide and real hides what lies
/// above it.
#[test]
fn the_counter_of_a_named_database_tells_that_a_wide_gap_is_real() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("feed.ndjson");
    let document = |n: u64, sequence: u64| {
        format!(
            r#"{{"n":{n},"vb":1,"op":"mutation","cas":"{n}","datatype":5,"coll":8,"flags":0,"expiry":0,"key":"d{n}","xattrs":{{"_sync":{{"rev":"1-a","sequence":{sequence},"recent_sequences":[{sequence}],"cas":"0x{:016x}","value_crc32c":"0x00000000"}}}},"body":{{}}}}"#,
            n.swap_bytes()
        )
    };
    let counter = r#"{"n":2,"vb":2,"op":"mutation","cas":"2","datatype":0,"coll":0,"flags":0,"expiry":0,"key":"_sync:m_db1:seq","body":100}"#;
    let lines = [document(1, 1), counter.to_owned(), document(3, 100)];
    std::fs::write(&path, lines.map(|line| line + "\n").concat()).unwrap();
    let feed = format!("replay:{}", path.display());
    let set = ["--set", "databases.db1.collections=0x8", "--set", "writer.max_jump=10", "--set", "writer.max_wait_ms=1"];
    let args = [&["changes", "--log", "off", "--feed", &feed, "--delivery", "eager", "--format", "json"], &set[..]].concat();
    let (code, out, error) = ended(run(&args));
    assert_eq!(code, 0, "{error}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    let keys: Vec<&str> = answer["results"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!(keys, ["d1", "d3"]);
}

/// Lines of writers and readers, of which there are several, say which database they are about.
#[test]
fn a_line_of_the_log_says_which_database_it_is_about() {
    let feed = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/collections/mutations-collections-33.ndjson.gz");
    let feed = format!("replay:{}", feed.display());
    for (level, format) in [(" info ", "human"), ("warn,sluicegate_core::node=info", "json")] {
        let (code, _, log) = ended(run(&["run", "--databases", "auto", "--feed", &feed, "--log", level, "--log-format", format]));
        assert_eq!(code, 0, "{log}");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("sluicegate_core::node")).collect();
        let named = |name: &str| lines.iter().filter(|line| line.contains(name)).count();
        assert!(named("db1") > 0 && named("db2") > 0, "{log}");
        assert!(lines.iter().all(|line| line.contains("database") && line.contains("name")), "{log}");
    }
}

#[test]
fn an_error_is_one_line() {
    let (_, _, error) = ended(run(&["changes", "--feed", "replay:/nowhere/at/all"]));
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
}

#[test]
fn changes_are_what_a_changes_request_gets() {
    let (code, out, error) = ended(run(&["changes", "--feed", &small(), "--limit", "3", "--format", "json"]));
    assert_eq!((code, error.as_str()), (0, ""));
    let answer: Value = serde_json::from_str(&out).unwrap();
    let rows = answer["results"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row["seq"].is_u64() && row["id"].is_string() && row["changes"][0]["rev"].is_string()));
    assert_eq!(answer["last_seq"], rows[2]["seq"].to_string());

    let since = answer["last_seq"].as_str().unwrap();
    let (_, out, _) = ended(run(&["changes", "--feed", &small(), "--since", since, "--limit", "1", "--format", "json"]));
    let next: Value = serde_json::from_str(&out).unwrap();
    assert!(next["results"][0]["seq"].as_u64() > rows[2]["seq"].as_u64());
}

#[test]
fn active_only_leaves_deletions_out_and_the_table_has_a_line_a_row() {
    let (code, out, _) = ended(run(&["changes", "--feed", &small(), "--active-only"]));
    assert_eq!(code, 0);
    assert!(!out.contains("deleted") && out.lines().count() > 10);
    let (_, all, _) = ended(run(&["changes", "--feed", &small()]));
    assert!(all.contains("deleted") && all.lines().count() > out.lines().count());
}

#[test]
fn a_feed_that_does_not_end_cannot_be_ingested_first() {
    assert_fails(run(&["changes", "--feed", "synthetic:"]), 2, &["`synthetic:`", "sluicegate run"]);
}

#[test]
fn a_feed_from_elsewhere_than_the_command_line_is_not_ingested_by_what_only_reads() {
    let output = command(&["changes"]).env("SLUICEGATE_FEED", small()).output().unwrap();
    assert_fails(output, 1, &["holds no cache"]);
}

#[test]
fn follow_prints_a_line_a_row_until_the_feed_has_ended_or_the_limit_is_reached() {
    let (code, out, _) = ended(run(&["follow", "--feed", &small()]));
    assert_eq!(code, 0);
    let rows: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (_, answer, _) = ended(run(&["changes", "--feed", &small(), "--format", "json"]));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let shown = answer["results"].as_array().unwrap();
    assert!(rows.len() >= shown.len());
    // Whatever it saw on the way, it ends with what there is to see.
    assert!(shown.iter().all(|row| rows.contains(row)));
    assert_eq!(rows.last(), shown.last());

    let (code, out, _) = ended(run(&["follow", "--feed", "synthetic:?rate=100000", "--limit", "5"]));
    assert_eq!((code, out.lines().count()), (0, 5));
}

#[test]
fn run_sums_up_at_the_end() {
    let (code, out, error) = ended(run(&["run", "--feed", &small(), "--format", "json", "--log-format", "json"]));
    assert_eq!(code, 0, "{error}");
    let summary: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(summary["ended"], "the feed ended");
    assert!(summary["writer"]["cached"].as_u64() > Some(1_000));
    assert_eq!(summary["clock"]["stable"], summary["clock"]["high"]);
    assert!(error.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{error}");

    let (code, out, _) = ended(run(&["run", "--feed", &small(), "--log", "off"]));
    assert!(code == 0 && out.contains("the feed ended") && out.contains("stable"), "{out}");
}

#[test]
fn a_whole_recording_keeps_the_caches_rules() {
    let (code, out, _) = ended(run(&["verify", "--feed", &small()]));
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("clean"));
    for codec in ["adaptive", "bytes", "two-bit"] {
        let codec = format!("writer.codec={codec}");
        let (code, out, _) = ended(run(&["verify", "--feed", &small(), "--format", "json", "--set", &codec]));
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, report["findings"].as_array().map(Vec::len)), (0, Some(0)), "{codec}");
    }
}

#[test]
fn a_sound_cache_is_not_repaired() {
    let (code, out, error) = ended(run(&["verify", "--repair", "--feed", &small()]));
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out.contains("nothing was repaired") && out.contains("clean"), "{out}");
    let (code, out, _) = ended(run(&["verify", "--repair", "--feed", &small(), "--format", "json"]));
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["epoch"], report["repairs"].as_array().map(Vec::len)), (0, &Value::Null, Some(0)));
    assert_eq!(report["left"]["findings"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_repair_can_forget_the_feeds_position() {
    assert_fails(run(&["verify", "--from-beginning"]), 2, &["--repair"]);
    assert_fails(run(&["verify", "--repair"]), 1, &["holds no cache"]);
    let (code, out, _) = ended(run(&["verify", "--repair", "--from-beginning", "--feed", &small()]));
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("rebuilt") && out.contains("_checkpoint") && out.contains("clean"), "{out}");
}

#[test]
fn everything_that_can_be_inspected_is_json_too() {
    let feed = small();
    let inspect = |what: &[&str]| {
        let args = [&["inspect", "--feed", &feed, "--format", "json"], what].concat();
        let (code, out, error) = ended(run(&args));
        assert_eq!(code, 0, "{what:?}: {error}");
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let clock = inspect(&["clock"]);
    assert_eq!(clock["meta"]["codec"], "log");
    let star = inspect(&["channel", "*"]);
    assert!(star["counter"].as_u64() > Some(0) && star["blocks"][0]["present"].as_u64() > Some(100));
    let block = inspect(&["block", "*", "0"]);
    let first = block["present"][0].as_u64().unwrap();
    let sequence = inspect(&["sequence", &first.to_string()]);
    assert_eq!((sequence["entry"]["seq"].as_u64(), &sequence["states"]["*"]), (Some(first), &Value::from("present")));
    assert_eq!(inspect(&["skipped"])["skipped"], 0);
    for what in [&["channel", "nobody's"][..], &["block", "*", "99"], &["sequence", "99999999"]] {
        let args = [&["inspect", "--feed", &feed], what].concat();
        assert_fails(run(&args), 1, &[what.last().unwrap()]);
    }
    for what in [&["clock"][..], &["channel", "*"], &["block", "*", "0"], &["skipped"]] {
        let (code, out, _) = ended(run(&[&["inspect", "--feed", &feed], what].concat()));
        assert!(code == 0 && out.lines().count() > 0, "{what:?}");
    }
}

#[test]
fn backends_lists_stores_feeds_and_codecs() {
    let (code, out, _) = ended(run(&["backends", "--format", "json"]));
    let backends: Value = serde_json::from_str(&out).unwrap();
    let names = |kind: &str| {
        let list = backends[kind].as_array().unwrap();
        list.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(code, 0);
    assert!(names("stores").contains(&"memory".to_owned()) && names("feeds").contains(&"replay".to_owned()));
    assert_eq!(
        (names("codecs"), &backends["default_codec"]),
        (["adaptive", "bytes", "log", "two-bit"].map(str::to_owned).to_vec(), &"log".into())
    );
    let (_, table, _) = ended(run(&["backends"]));
    assert!(table.contains("memory:") && table.contains("replay:"), "{table}");
}

#[test]
fn the_demonstration_ends_clean_and_fits_a_screen() {
    let (code, out, error) = ended(run(&["demo"]));
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    assert!(out.lines().count() <= 60, "{out}");
    for part in ["20112::20114 lp-wake", "the follower gets   20113 lp-other", "clean"] {
        assert!(out.contains(part), "no {part:?} in {out}");
    }
}

#[test]
fn a_recorded_feed_answers_as_the_feed_did() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recorded.ndjson.gz");
    let file = file.to_str().unwrap();
    let feed = "synthetic:?events=3000&seed=5&late=0.01&channels=20";
    let record = ["record", "--feed", feed, "--to", file, "--format", "json"];
    let (code, out, error) = ended(run(&record));
    let summary: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &summary["ended"], &summary["mutations"]), (0, &"the feed ended".into(), &3000.into()), "{error}");
    let answer = |feed: &str| {
        let (code, out, error) =
            ended(run(&["changes", "--channel", "ch1", "--channel", "ch2", "--format", "json", "--feed", feed]));
        assert_eq!(code, 0, "{error}");
        out
    };
    let recorded = answer(&format!("replay:{file}"));
    assert!(recorded.len() > 1000);
    assert_eq!(recorded, answer(feed));

    assert_fails(run(&record), 1, &["recorded.ndjson.gz", "name another"]);
    let another = folder.path().join("another");
    let another = another.to_str().unwrap();
    assert_fails(run(&["record", "--to", another]), 2, &["--feed"]);
    assert_fails(run(&["record", "--feed", feed, "--to", another, "--now"]), 1, &["nothing new to wait for"]);
    let (code, out, _) = ended(run(&["record", "--feed", feed, "--to", another, "--limit", "7"]));
    assert!(code == 0 && out.contains("7 of them mutations") && out.contains("as many as were wanted"), "{out}");
    assert_eq!(std::fs::read_to_string(another).unwrap().lines().count(), 1 + 7);
}

#[cfg(unix)]
#[test]
fn a_recording_that_is_stopped_is_whole() {
    for (signal, code) in [("-INT", 130), ("-TERM", 0)] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("stopped.gz");
        let file = file.to_str().unwrap();
        let args = ["record", "--feed", "synthetic:?rate=20000", "--format", "json", "--to", file];
        let child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Until something is on the disk.
        while std::fs::metadata(file).map_or(0, |file| file.len()) < 1000 {
            std::thread::yield_now();
        }
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let (got, out, error) = ended(child.wait_with_output().unwrap());
        let summary: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((got, &summary["ended"]), (code, &Value::from("stopped")), "{error}");
        let (code, out, error) = ended(run(&["verify", "--feed", &format!("replay:{file}"), "--format", "json"]));
        assert_eq!(code, 0, "{out} {error}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_puts_away_what_was_taken_and_is_told_by_the_exit_code() {
    use std::io::{BufRead as _, BufReader};
    for (signal, code) in [("-INT", 130), ("-TERM", 0)] {
        let mut child = command(&["run", "--feed", "synthetic:?rate=1000", "--format", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(log.any(|line| line.unwrap().ends_with("ready")));
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        // Read on, so that it never waits for us.
        let rest = std::thread::spawn(move || log.count());
        let (got, out, _) = ended(child.wait_with_output().unwrap());
        rest.join().unwrap();
        let summary: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((got, &summary["ended"]), (code, &Value::from("stopped")));
    }
}

#[cfg(feature = "scenario")]
#[test]
fn scenarios_are_judged_and_what_disagrees_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let path = folder.path().to_str().unwrap();
    file("right.txt", "new\nput a A\nask A => 1=a@1-a ; last 1\n");
    let (code, out, error) = ended(run(&["scenario", path]));
    assert_eq!(code, 0, "{out} {error}");
    assert!(out.contains("1 files, 9 runs: 9 agree, 0 disagree"), "{out}");

    file("wrong.txt", "new\nput a A\nask A => 1=b\n");
    file("waits.txt", "# missing: telepathy\n");
    let args = ["scenario", path, "--variation", "plain", "--variation", "feed", "--store", "memory:", "--store", "memory:"];
    let (code, out, error) = ended(run(&args));
    assert_eq!(code, 3, "{error}");
    assert_eq!(out.matches("wrong.txt:3 [plain, feed]").count(), 2, "{out}");
    assert!(out.contains("expected  1=b") && out.contains("got       1=a@1-a ; last 1") && out.contains("telepathy"), "{out}");
    let (code, out, _) = ended(run(&["scenario", path, "--format", "json"]));
    let results: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &results["stores"][0]["disagreed"]), (3, &Value::from(9)));
    assert_eq!(results["stores"][0]["disagreements"][0]["line"], 3);

    file("broken.txt", "new\nsay a\n");
    let (code, out, _) = ended(run(&["scenario", path]));
    assert_eq!(code, 3, "what disagrees comes before what is no scenario: {out}");
    std::fs::remove_file(folder.path().join("wrong.txt")).unwrap();
    let (code, out, error) = ended(run(&["scenario", path]));
    assert_eq!(code, 2);
    assert!(out.contains("no scenario: ") && error.contains("broken.txt:2: unknown `say`"), "{out} {error}");
    assert_fails(run(&["scenario", "/nowhere"]), 2, &["/nowhere"]);
    assert_fails(run(&["changes", "--store", "memory:", "--store", "memory:", "--channel", "a"]), 2, &["more than once"]);
}

fn collections(set: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/collections/mutations-collections{set}.ndjson.gz"));
    format!("replay:{}", path.display())
}

#[test]
fn all_databases_of_a_bucket_are_served_at_once() {
    let long = "db1-with-a-name-so-long-that-its-metadata-id-is-hashed";
    let (code, out, error) = ended(run(&["run", "--feed", &collections("-33"), "--databases", "auto", "--format", "json"]));
    let summary: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}, {error}"));
    assert_eq!((code, &summary["ended"]), (0, &Value::from("the feed ended")));
    // The counters, as the gateway left them.
    for (name, high) in [("db1", 1207), ("db2", 512), (long, 146)] {
        let database = &summary["databases"][name];
        assert_eq!(database["clock"]["gaps"], 0, "{name}: {database}");
        assert_eq!(
            (&database["clock"]["stable"], &database["clock"]["high"]),
            (&Value::from(high), &Value::from(high)),
            "{name}"
        );
        assert_eq!(database["writer"]["conflicts"], 0);
    }
    assert!(summary["others"]["collections"]["s1.noise"].as_u64() > Some(0), "{summary}");
    assert_eq!(summary["others"]["databases"], serde_json::json!({}));
    for member in ["received", "cached", "late", "duplicates", "conflicts"] {
        assert!(summary["writer"][member].is_u64(), "{member}: {summary}");
    }
    assert!(error.contains("s1.noise"), "{error}");
}

#[test]
fn one_collection_of_one_database_is_asked_or_all_of_it() {
    let feed = collections("-33");
    let changes = |args: &[&str]| {
        let (code, out, error) = ended(run(&[&["changes", "--feed", &feed, "--format", "json"], args].concat()));
        assert_eq!(code, 0, "{error}");
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let rows = |answer: &Value| answer["results"].as_array().unwrap().clone();
    let named = ["--set", "databases.db1.collections=s1.c1,s1.c2,s1.c3"];
    let one = changes(&[&named[..], &["--keyspace", "db1.s1.c1"]].concat());
    assert_eq!(one, changes(&["--databases", "auto", "--keyspace", "db1.s1.c1"]));
    assert_eq!(
        one,
        changes(&["--set", "decoder.metadata_id=db1", "--set", "decoder.collections=s1.c1,2,0x3", "--keyspace", "s1.c1"])
    );
    assert!(rows(&one).iter().all(|row| row.get("collection").is_none()));
    let all = changes(&["--databases", "auto", "--database", "db1"]);
    let of = |collection: &str| rows(&all).into_iter().filter(|row| row["collection"] == collection).count();
    assert_eq!((of("s1.c1"), of("s1.c1") + of("s1.c2") + of("s1.c3")), (rows(&one).len(), rows(&all).len()));
    let ids: Vec<u64> = rows(&all).iter().filter_map(|row| row["seq"].as_u64()).collect();
    assert!(ids.is_sorted() && ids.len() == rows(&all).len());

    let auto = ["changes", "--feed", &feed, "--databases", "auto"];
    assert_fails(run(&auto), 2, &["--database", "db1", "db2"]);
    assert_fails(run(&[&auto[..], &["--database", "db3"]].concat()), 2, &["db3", "db1"]);
    // The last is a collection of db2.
    for keyspace in ["db1.s1.c9", "db1.0x99", "db1.s2.c1"] {
        assert_fails(run(&[&auto[..], &["--keyspace", keyspace]].concat()), 1, &["knows no collection", "s1.c1"]);
    }
    assert_eq!(changes(&["--databases", "auto", "--keyspace", "db1.0x1"]), one);
    // The default collection is known, and has no documents.
    let (code, out, error) = ended(run(&[&auto[..], &["--keyspace", "db1"]].concat()));
    assert!(code == 0 && error.contains("no rows") && error.contains("s1.c1, s1.c2, s1.c3"), "{out} {error}");
    let (code, out, error) = ended(run(&["verify", "--feed", &feed, "--databases", "auto", "--database", "db2"]));
    assert!(code == 0 && out.contains("clean"), "{out} {error}");
    let inspect = ["inspect", "channel", "ch00", "--feed", &feed, "--databases", "auto", "--keyspace", "db2.s2.c1"];
    let (code, out, error) = ended(run(&inspect));
    assert!(code == 0 && out.contains("directory"), "{out} {error}");
}

#[test]
fn several_databases_that_are_not_named_are_noticed() {
    let line = |n: u64, key: &str, collection: u32, sequence: u64| {
        let sync = format!(
            r#"{{"rev":"1-a","sequence":{sequence},"recent_sequences":[{sequence}],"channels":{{"A":null}},"cas":"0x0100000000000000"}}"#
        );
        format!(
            r#"{{"n":{n},"vb":1,"op":"mutation","cas":"1","datatype":5,"coll":{collection},"key":"{key}","xattrs":{{"_sync":{sync}}},"body":{{}}}}"#
        ) + "\n"
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("two.ndjson");
    std::fs::write(&path, [line(1, "order", 8, 1), line(2, "employee", 10, 1), line(3, "order2", 8, 2)].concat()).unwrap();
    let feed = format!("replay:{}", path.display());
    for command in ["run", "verify"] {
        let (_, _, error) = ended(run(&[command, "--feed", &feed]));
        assert_eq!(error.matches("several databases in one bucket").count(), 1, "{error}");
        assert!(error.contains("[databases.NAME]"), "{error}");
    }
    assert_fails(run(&["run", "--feed", &feed, "--databases", "auto"]), 2, &["[databases.NAME]"]);
    let named = ["--set", "databases.a.collections=0x8", "--set", "databases.b.collections=0xa"];
    let (code, out, error) =
        ended(run(&[&["changes", "--feed", &feed, "--database", "b", "--format", "json"], &named[..]].concat()));
    assert!(code == 0 && out.contains("employee") && !out.contains("order"), "{out} {error}");
    // The error for a cut off recording has a next step.
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 20]).unwrap();
    let (code, _, error) = ended(run(&["changes", "--feed", &feed]));
    assert!(code == 1 && error.contains("until=2"), "{error}");
}

#[test]
fn the_name_of_another_checkpoint_is_refused() {
    let args = ["verify", "--repair", "--from-beginning", "--checkpoint", "nosuchfeed", "--feed", &small()];
    assert_fails(run(&args), 2, &["nosuchfeed", "but from `replay:"]);
    let args = ["verify", "--checkpoint", "nosuchfeed", "--feed", &small()];
    assert_fails(run(&args), 2, &["nosuchfeed", "but from `replay:"]);
}

/// The wrong bucket, for example.
#[test]
fn a_feed_without_a_document_of_the_gateway_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("others.ndjson");
    let line =
        |n: u64| format!(r#"{{"n":{n},"vb":1,"op":"mutation","cas":"{n}","datatype":1,"coll":0,"key":"other-{n}","body":{{}}}}"#);
    std::fs::write(&file, (1..=3).map(|n| line(n) + "\n").collect::<String>()).unwrap();
    let warning = "none of the feed's events is a document of the gateway's database";
    let (code, _, log) = ended(run(&["run", "--feed", &format!("replay:{}", file.display())]));
    assert!(code == 0 && log.contains(warning) && log.contains("events=3"), "{log}");
    let (code, _, log) = ended(run(&["run", "--feed", &small()]));
    assert!(code == 0 && !log.contains(warning), "{log}");
}

/// By default those of all databases of the recording.
#[test]
fn recorded_answers_of_keyspaces_are_compared() {
    let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/collections").join(name);
    let mutations = file("mutations-collections-33.ndjson.gz");
    let truth = file("changes-truth-collections-33.ndjson.gz");
    let compare = |truth: &Path, args: &[&str]| {
        let paths = ["compare", "--mutations", mutations.to_str().unwrap(), "--truth", truth.to_str().unwrap()];
        ended(run(&[&paths[..], args].concat()))
    };
    let report = |truth: &Path, args: &[&str]| {
        let (code, out, error) = compare(truth, &[args, &["--format", "json"]].concat());
        (code, serde_json::from_str::<Value>(&out).unwrap_or_else(|e| panic!("{e}: {out}{error}")))
    };
    let (code, all) = report(&truth, &[]);
    assert_eq!((code, &all["answers"]), (0, &Value::from(567)), "{all}");
    let (code, one) = report(&truth, &["--database", "db1"]);
    assert!(code == 0 && one["answers"].as_u64().is_some_and(|answers| (1..567).contains(&answers)), "{one}");
    let (code, _, error) = compare(&truth, &["--database", "db9"]);
    assert!(code == 2 && error.contains("no database db9") && error.contains("db1"), "{error}");

    let mut answers: Vec<Value> = lines(&truth).iter().map(|line| serde_json::from_str(line).unwrap()).collect();

    // An answer of another database was recorded at a marker that the mutations do not have.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("truth.ndjson");
    let write =
        |answers: &[Value]| std::fs::write(&path, answers.iter().map(|one| format!("{one}\n")).collect::<String>()).unwrap();
    let mut other = answers.clone();
    let of_db2 = |answer: &&mut Value| answer["keyspace"] == "db2.s2.c1" && answer["note"] == "everything of this keyspace";
    other.iter_mut().find(of_db2).expect("an answer of db2")["marker"] = 0.into();
    write(&other);
    let (code, one) = report(&path, &["--database", "db1"]);
    assert!(code == 0 && one["not_reached"] == json!({}), "{one}");
    let (code, all) = report(&path, &[]);
    assert!(code == 3 && all["not_reached"] == json!({"0": 1}), "{all}");

    // One answer lacks a row.
    let is_all = |answer: &&mut Value| answer["keyspace"] == "db1.s1.c1" && answer["note"] == "everything of this keyspace";
    let changed = answers.iter_mut().find(is_all).expect("an answer with all of a keyspace");
    changed["response"]["results"].as_array_mut().unwrap().remove(0);
    write(&answers);
    let (code, report) = report(&path, &[]);
    let differences = report["differences"].as_array().unwrap();
    assert!(code == 3 && differences.len() == 1 && differences[0].as_str().unwrap().contains("s1.c1"), "{report}");
}

/// The lines of a file, gzip.
fn lines(path: &Path) -> Vec<String> {
    use std::io::BufRead as _;

    let file = std::fs::File::open(path).unwrap();
    std::io::BufReader::new(flate2::read::GzDecoder::new(file)).lines().map(Result::unwrap).collect()
}

/// All databases, keyspaces and markers, but for those of which the recorded answers are known to
/// be wrong.
#[test]
fn every_recording_of_several_databases_is_answered_as_by_the_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let truth = folder.path().join("truth.ndjson");
    for (set, answers, keyspaces) in [("", 663, 7), ("-system", 663, 7), ("-33", 567, 6), ("-defaultid", 599, 7)] {
        let place = if set == "-defaultid" { "testdata/collections/hazards" } else { "testdata/collections" };
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join(place);
        let file = |name: &str| place.join(format!("{name}-collections{set}.ndjson.gz"));
        // In `-defaultid` the gateway takes the users of all databases for those of db0, and their
        // sequences for sequences of db0. From the second marker on, its answers for db0 lack
        // documents. Those of the first marker and of the other databases are right.
        let is_right = |line: &String| {
            let line: Value = serde_json::from_str(line).unwrap();
            let is_of_db0 = line["keyspace"].as_str().is_some_and(|keyspace| keyspace.starts_with("db0."));
            set != "-defaultid" || !is_of_db0 || line["marker"] == 1
        };
        let right: Vec<String> = lines(&file("changes-truth")).into_iter().filter(is_right).collect();
        std::fs::write(&truth, right.join("\n")).unwrap();
        let mutations = file("mutations");
        let args = ["compare", "--mutations", mutations.to_str().unwrap(), "--truth", truth.to_str().unwrap()];
        let (code, out, error) = ended(run(&[&args[..], &["--format", "json"]].concat()));
        let report: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{error}"));
        assert_eq!((&report["differences"], &report["not_reached"]), (&json!([]), &json!({})), "{set:?}");
        assert_eq!((code, &report["answers"]), (0, &Value::from(answers)), "{set:?}");
        let compared = report["keyspaces"].as_object().unwrap();
        assert_eq!(compared.len(), keyspaces, "{set:?}: {compared:?}");
        assert!(compared.values().all(|counts| counts["answers"].as_u64() > Some(30)), "{set:?}: {compared:?}");
    }
}

#[test]
fn answers_that_cannot_be_compared_are_no_agreement() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let answer =
        r#"{"kind":"changes","marker":2,"request":{"as":"admin"},"status":200,"response":{"results":[],"last_seq":"0"}}"#;
    let (mutations, truth) = (file("mutations", ""), file("truth", answer));
    let compare = |args: &[&str]| run(&[&["compare", "--mutations", &mutations], args].concat());
    let (code, out, _) = ended(compare(&["--truth", &truth]));
    assert!(code == 3 && out.contains("1 not compared: the mutations do not have marker 2"), "{out}");
    assert_fails(compare(&["--truth", &truth, "--database", "db1"]), 2, &["--database db1"]);
    let stats = file("stats", r#"{"kind":"stats","marker":0,"stats":{"high_seq_stable":3}}"#);
    assert_fails(compare(&["--truth", &stats]), 2, &["--truth", "no recorded answer"]);
    let user = file("user", &answer.replace("admin", "user"));
    let (code, out, _) = ended(compare(&["--truth", &user]));
    assert!(code == 3 && out.contains("nothing was compared") && out.contains("asked as a user"), "{out}");
}

/// Each line of a recording: a document with a sequence, or one whose metadata are damaged.
fn recorded(lines: &[(u64, &str, Option<u64>)]) -> (tempfile::TempDir, String) {
    let line = |(n, key, sequence): &(u64, &str, Option<u64>)| {
        let metadata = match sequence {
            Some(sequence) => {
                let cas = n.swap_bytes();
                format!(
                    r#"{{"rev":"1-a","sequence":{sequence},"recent_sequences":[{sequence}],"channels":{{"A":null}},"cas":"0x{cas:016x}"}}"#
                )
            }
            None => r#"{"rev":7,"sequence":"x"}"#.to_owned(),
        };
        format!(
            r#"{{"n":{n},"vb":1,"op":"mutation","cas":"{n}","datatype":5,"coll":0,"key":"{key}","xattrs":{{"_sync":{metadata}}},"body":{{}}}}"#
        ) + "\n"
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("feed.ndjson");
    std::fs::write(&path, lines.iter().map(line).collect::<String>()).unwrap();
    let feed = format!("replay:{}", path.display());
    (folder, feed)
}

/// Though the command ends before the interval of the limit does.
#[test]
fn the_number_of_suppressed_lines_is_logged_at_the_end() {
    let keys: Vec<String> = (1..=25).map(|n| format!("broken-{n}")).collect();
    let lines: Vec<_> = (1..).zip(&keys).map(|(n, key)| (n, key.as_str(), None)).collect();
    let (_folder, feed) = recorded(&lines);
    let (code, out, log) = ended(run(&["run", "--feed", &feed, "--format", "json"]));
    assert_eq!(code, 0, "{log}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["writer"]["invalid"], 25);
    assert_eq!(log.matches("a mutation cannot be understood").count(), 10, "{log}");
    let more: Vec<&str> = log.lines().filter(|line| line.contains("more mutations could not be understood")).collect();
    assert!(more.len() == 1 && more[0].contains("more=15"), "{log}");
}

#[test]
fn a_sequence_that_is_used_twice_or_is_too_high_is_logged_with_what_to_do() {
    let (_folder, feed) = recorded(&[(1, "x", Some(1)), (2, "doc-twice", Some(1)), (3, "far", Some(1 << 50))]);
    let (code, out, log) = ended(run(&["run", "--feed", &feed, "--format", "json"]));
    assert_eq!(code, 0, "{log}");
    let writer = &serde_json::from_str::<Value>(&out).unwrap()["writer"];
    assert_eq!((&writer["conflicts"], &writer["implausible"]), (&Value::from(1), &Value::from(1)), "{writer}");
    let line = |part: &str| log.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("no {part:?} in {log}"));
    let conflict = line("a sequence that was in use already");
    assert!(conflict.contains("doc-twice") && conflict.contains("shown as a late change"), "{conflict}");
    let implausible = line("implausibly high");
    assert!(implausible.contains(&(1u64 << 50).to_string()) && implausible.contains("writer.max_jump"), "{implausible}");
}

#[cfg(feature = "redis")]
#[test]
fn recorded_answers_are_not_compared_over_a_cache_that_is_there() {
    let server = sluicegate_test_servers::RedisServer::start();
    let (code, _, error) = ended(run(&["run", "--feed", "synthetic:?events=100", "--store", &server.url()]));
    assert_eq!(code, 0, "{error}");
    let keys = || server.cli(&["DBSIZE"]);
    let before = keys();
    let file = |name: &str| format!("{}/testdata/gateway/{name}.ndjson.gz", env!("CARGO_MANIFEST_DIR"));
    let (mutations, truth) = (file("mutations-inline"), file("changes-truth-inline"));
    let compare = |store: &str| run(&["compare", "--mutations", &mutations, "--truth", &truth, "--store", store]);
    assert_fails(compare(&server.url()), 2, &["this store has a cache", "another namespace"]);
    assert_eq!(keys(), before);
    let (code, out, error) = ended(compare(&format!("{}?namespace=compared", server.url())));
    assert!(code == 0 && out.contains("0 differences"), "{out}{error}");
}

/// The numbers of events received and the clock's stable sequence, of a run that ends well.
#[cfg(feature = "redis")]
fn ran(output: Output) -> (Value, Value) {
    let (code, out, error) = ended(output);
    assert_eq!(code, 0, "{error}");
    let summary: Value = serde_json::from_str(&out).unwrap();
    (summary["writer"].clone(), summary["clock"].clone())
}

/// Of the rows of the star channel: sequence and document.
#[cfg(feature = "redis")]
fn shown(store: &str) -> Vec<(u64, String)> {
    let (code, out, error) = ended(run(&["changes", "--store", store, "--format", "json"]));
    assert_eq!(code, 0, "{error}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    let row = |row: &Value| (row["seq"].as_u64().unwrap(), row["id"].as_str().unwrap().to_owned());
    let mut rows: Vec<_> = answer["results"].as_array().unwrap().iter().map(row).collect();
    rows.sort_unstable();
    rows
}

/// Their files have one base name, so their checkpoints have one name.
#[cfg(feature = "redis")]
#[test]
fn a_cache_is_bound_to_its_recording_until_another_one_is_adopted() {
    let server = sluicegate_test_servers::RedisServer::start();
    let store = server.url();
    let (one, first) = recorded(&[(1, "a", Some(1)), (2, "b", Some(2))]);
    let (other, second) = recorded(&[(1, "x", Some(1)), (2, "y", Some(2)), (3, "z", Some(3))]);
    let run_with =
        |feed: &str, options: &[&str]| run(&[&["run", "--store", &store, "--feed", feed, "--format", "json"], options].concat());
    let rows = |list: &[(u64, &str)]| list.iter().map(|(n, key)| (*n, (*key).to_owned())).collect::<Vec<_>>();
    let clock = || ended(run(&["inspect", "clock", "--store", &store, "--format", "json"])).1;
    let (writer, _) = ran(run_with(&first, &[]));
    assert_eq!((&writer["received"], shown(&store)), (&json!(2), rows(&[(1, "a"), (2, "b")])));

    let before = clock();
    let (code, out, error) = ended(run_with(&second, &["--log", "off"]));
    assert_eq!((code, out.as_str()), (2, ""), "{error}");
    let names = [&one, &other].map(|folder| folder.path().join("feed.ndjson").display().to_string());
    for part in [&names[0], &names[1], "--adopt", "another namespace"] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    assert_eq!(clock(), before, "the refused writer has changed the cache");
    let (writer, _) = ran(run_with(&first, &[]));
    assert_eq!(writer["received"], 0, "the first feed goes on at its checkpoint");

    // From its beginning, though there is a checkpoint of that name; and the entries stay.
    let (writer, clock) = ran(run_with(&second, &["--adopt"]));
    assert_eq!((&writer["received"], &writer["conflicts"], &clock["stable"]), (&json!(3), &json!(2), &json!(3)), "{writer}");
    let all = rows(&[(1, "a"), (1, "x"), (2, "b"), (2, "y"), (3, "z")]);
    assert_eq!(shown(&store), all);
    // Once is enough, and the cache is not the first recording's any more.
    let (writer, _) = ran(run_with(&second, &[]));
    assert_eq!((&writer["received"], shown(&store)), (&json!(0), all));
    assert_fails(run_with(&first, &["--log", "off"]), 2, &[&names[0], &names[1], "--adopt"]);
    let (code, out, error) = ended(run(&["verify", "--store", &store]));
    assert!(code == 0 && out.contains("clean"), "{out}{error}");

    // A file with another first event is another recording, whatever its name.
    let text = std::fs::read_to_string(&names[0]).unwrap();
    std::fs::write(&names[1], text).unwrap();
    assert_fails(run_with(&second, &["--log", "off"]), 2, &[&names[1], "--adopt"]);
}

#[cfg(feature = "redis")]
#[test]
fn a_cache_made_from_one_feed_is_refused_to_another_scheme_or_seed() {
    let server = sluicegate_test_servers::RedisServer::start();
    let store = server.url();
    let run_with =
        |feed: &str, options: &[&str]| run(&[&["run", "--store", &store, "--feed", feed, "--format", "json"], options].concat());
    let (first, second) = ("synthetic:?events=300&seed=1", "synthetic:?events=300&seed=2");
    let (writer, _) = ran(run_with(first, &[]));
    assert_eq!(writer["received"], 300);
    let before = shown(&store);
    assert_fails(run_with(second, &["--log", "off"]), 2, &["synthetic:1", "synthetic:2", "--adopt"]);
    assert_fails(run_with(&small(), &["--log", "off"]), 2, &["synthetic:1", "mutations-xattr33", "--adopt"]);
    assert_eq!(shown(&store), before);
    let (writer, _) = ran(run_with(second, &["--adopt"]));
    assert_eq!(writer["received"], 300);
    assert_fails(run_with(first, &["--log", "off"]), 2, &["synthetic:1", "synthetic:2", "--adopt"]);
}

/// Members of `run --format json` that scripts rely on. The README promises that they stay.
const SUMMARY: &[&str] = &["store", "feed", "ended", "seconds", "events_per_second", "writer", "pending", "takeovers", "clock"];
const WRITER: &[&str] = &[
    "received",
    "cached",
    "superseded",
    "unused",
    "principals",
    "duplicates",
    "conflicts",
    "implausible",
    "late",
    "skipped",
    "abandoned",
    "undelivered",
    "ignored",
    "foreign",
    "purged",
    "purged_entries",
    "other_database",
    "other_collection",
    "bad_channels",
    "cut_numbers",
    "invalid",
    "withdrawn",
    "batches",
];
const CLOCK: &[&str] =
    &["cache", "format", "epoch", "stable", "settled", "high", "late", "gaps", "batch", "marked", "checkpoint"];

fn names<'a>(list: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    list.into_iter().map(str::to_owned).collect()
}

#[track_caller]
fn members(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().cloned().collect()
}

/// The members that the README's table has: below each name with a point, those of the same cell
/// without one.
fn members_in_the_readme() -> BTreeSet<String> {
    let readme = include_str!("../README.md");
    let (_, section) = readme.split_once("### What `run --format json` prints").expect("the section");
    let section = section.split("\n#").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.split('|').nth(1).unwrap_or_default();
        let mut prefix = "";
        for name in cell.split('`').skip(1).step_by(2) {
            match name.split_once('.') {
                Some((object, _)) => {
                    prefix = object;
                    found.insert(name.to_owned());
                }
                None if prefix.is_empty() => drop(found.insert(name.to_owned())),
                None => drop(found.insert(format!("{prefix}.{name}"))),
            }
        }
    }
    found
}

#[test]
fn the_members_of_the_summary_are_those_of_the_readme() {
    let (code, out, error) = ended(run(&["run", "--feed", &small(), "--format", "json"]));
    assert_eq!(code, 0, "{error}");
    let one: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(members(&one), names(SUMMARY.iter().copied()));
    assert_eq!(members(&one["writer"]), names(WRITER.iter().copied()));
    assert_eq!(members(&one["clock"]), names(CLOCK.iter().copied()));
    assert_eq!(members(&one["clock"]["epoch"]), names(["counter", "writer"]));
    for object in ["writer", "clock"] {
        let numbers = one[object].as_object().unwrap().iter().filter(|(name, _)| !["cache", "epoch"].contains(&name.as_str()));
        assert!(numbers.clone().count() > 5 && numbers.clone().all(|(_, value)| value.is_u64()), "{one}");
    }
    let mut clock: sluicegate::PublishedClock = serde_json::from_value(one["clock"].clone()).unwrap();
    clock.building = Some(sluicegate::clock::Progress { arrived: 1, highest: sluicegate::Sequence(2), expected: Some(3) });
    let building = serde_json::to_value(&clock).unwrap()["building"].clone();
    assert_eq!(building, json!({"arrived": 1, "highest": 2, "expected": 3}));

    let (code, out, error) = ended(run(&["run", "--feed", &collections("-33"), "--databases", "auto", "--format", "json"]));
    assert_eq!(code, 0, "{error}");
    let several: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(members(&several), names(SUMMARY.iter().copied().chain(["databases", "others"])));
    assert_eq!((members(&several["writer"]), &several["clock"]), (names(WRITER.iter().copied()), &Value::Null));
    assert_eq!(members(&several["databases"]["db1"]), names(["store", "writer", "pending", "takeovers", "clock"]));
    assert_eq!(members(&several["databases"]["db1"]["writer"]), names(WRITER.iter().copied()));
    assert_eq!(members(&several["databases"]["db1"]["clock"]), names(CLOCK.iter().copied()));
    assert_eq!(members(&several["others"]), names(["collections", "databases"]));

    let of = |object: &'static str, list: &'static [&'static str]| list.iter().map(move |name| format!("{object}.{name}"));
    let whole = names(SUMMARY.iter().copied().filter(|name| *name != "writer"));
    let mut expected: BTreeSet<String> = whole.into_iter().chain(names(["databases", "others", "clock.building"])).collect();
    expected.extend(of("writer", WRITER).chain(of("clock", CLOCK)));
    assert_eq!(members_in_the_readme(), expected);
}

/// A namespace for each run, which is gone afterwards.
#[cfg(all(feature = "scenario", feature = "redis"))]
#[test]
fn scenarios_are_judged_on_a_server_that_is_empty_afterwards() {
    let server = sluicegate_test_servers::RedisServer::start();
    let store = server.url();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let scenario = || run(&["scenario", folder.path().to_str().unwrap(), "--store", &store]);
    file("right.txt", "new\nput a A\nask A => 1=a@1-a ; last 1\n");
    file("two.txt", "new\nput a A\nput b A\nask A => 1=a@1-a 2=b@1-b ; last 2\n");
    let (code, out, error) = ended(scenario());
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("2 files, 18 runs: 18 agree, 0 disagree") && out.contains("store redis:"), "{out}");
    assert_eq!(server.cli(&["DBSIZE"]).trim(), "0");
    file("wrong.txt", "new\nput a A\nask A => 1=b\n");
    let (code, out, error) = ended(scenario());
    assert_eq!(code, 3, "{out}{error}");
    assert!(out.contains("wrong.txt:3") && out.contains("3 files, 27 runs: 18 agree, 9 disagree"), "{out}");
    assert!(!out.contains("right.txt:") && !out.contains("two.txt:"), "{out}");
    assert_eq!(server.cli(&["DBSIZE"]).trim(), "0");
}
