//! The examples, run as a newcomer runs them. `cargo test` builds them beside the tests; `cargo test --test examples` alone does not, so
//! `cargo build --examples` comes before that.

#![cfg(all(feature = "cli", feature = "memory", feature = "replay"))]

use std::path::Path;
use std::process::Stdio;

/// Its decisions, without what is measured.
#[path = "../examples/compare_backends/verdict.rs"]
mod verdict;

/// Runs an example, which must succeed; what it printed.
fn run(name: &str, args: &[&str]) -> String {
    let (code, out, err) = exit(name, args);
    assert_eq!(code, Some(0), "{name}: {out}{err}");
    out
}

/// Runs an example; its exit code, and what it printed to standard output and standard error.
fn exit(name: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let command = Path::new(env!("CARGO_BIN_EXE_sluicegate"));
    let example = command.with_file_name("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    let output = sluicegate_test_servers::command(&example).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e}; `cargo build --examples` builds it", example.display()));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn assert_shows(out: &str, parts: &[&str]) {
    for part in parts {
        assert!(out.contains(part), "no {part:?} in {out}");
    }
}

#[test]
fn quickstart_shows_two_pages() {
    let out = run("quickstart", &["--store", "memory:"]);
    assert_shows(&out, &["The feed has ended.", "since=0&limit=3"]);
    assert_eq!(out.lines().filter(|line| line.starts_with("  ")).count(), 6, "{out}");
}

#[test]
fn follow_channel_shows_late_entries_and_ends_with_all_there_is() {
    let out = run("follow_channel", &["--channel", "ch1"]);
    assert_shows(&out, &["late: ", "The follower of ch1 got ", "The follower has them all."]);
}

#[test]
fn custom_store_answers_as_the_memory_store_does() {
    assert_shows(&run("custom_store", &[]), &["list:", "memory:", "The answers are the same."]);
}

#[test]
fn custom_feed_goes_on_at_its_position() {
    let out = run("custom_feed", &[]);
    assert_shows(
        &out,
        &["60 events received", "40 events received; stable 100; channel fizz has 33 rows", "Nothing was read twice."],
    );
}

#[test]
fn custom_decoder_reads_lines() {
    assert_shows(
        &run("custom_decoder", &[]),
        &["blue   1 sky, 3 plum, 5 cherry (left)", "5 cached, 1 ignored, 1 not understood"],
    );
}

#[test]
fn compare_backends_does_not_conclude_from_a_short_run() {
    // However fast this machine is: there is one round, and a minute is asked for.
    let (code, out, err) = exit("compare_backends", &["--entries", "2000", "--rounds", "1", "--seconds", "60"]);
    assert_eq!(code, Some(3), "{out}{err}");
    assert_shows(
        &out,
        &["2000 documents", "| memory:", "cold read", "No conclusion: rounds: 1", "less than 60 s", "Pass --entries "],
    );
}

#[test]
fn compare_backends_draws_every_store_and_takes_a_recording() {
    let directory = tempfile::tempdir().unwrap();
    let svg = directory.path().join("plot.svg");
    let recording = concat!("replay:", env!("CARGO_MANIFEST_DIR"), "/testdata/gateway/mutations-inline.ndjson.gz");
    let stores = ["--store", "memory:", "--store", "memory:other", "--feed", recording, "--rounds", "2"];
    let (code, out, err) = exit("compare_backends", &[&stores[..], &["--svg", svg.to_str().unwrap()]].concat());
    assert_eq!(code, Some(3), "{out}{err}");
    assert_shows(&out, &["the feed has no more.", "The plot is in ", "No conclusion: rounds: 2"]);
    let drawn = std::fs::read_to_string(svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"), "{drawn}");
    for (opened, closed) in [("<svg", "</svg>"), ("<text", "</text>")] {
        assert_eq!(drawn.matches(opened).count(), drawn.matches(closed).count(), "{opened}");
    }
    let texts: Vec<&str> = drawn.lines().map(str::trim).collect();
    for series in ["memory:", "memory:other"] {
        assert!(texts.contains(&series), "no {series} in {drawn}");
    }
}

#[test]
fn compare_backends_refuses_what_it_cannot_open() {
    for (args, says) in [(["--store", "nowhere:"], "no store is called `nowhere:`"), (["--feed", "replay:absent"], "absent")] {
        let (code, out, err) = exit("compare_backends", &args);
        assert!(code == Some(1) || code == Some(2), "{out}{err}");
        assert!(out.is_empty() && err.starts_with("error: ") && err.contains(says), "{out}{err}");
    }
}

/// The one in the documentation is compiled with it.
#[test]
fn the_readmes_program_is_that_of_the_documentation() {
    let between = |text: &'static str, fence: &str| text.split_once(fence).unwrap().1.split_once("```").unwrap().0;
    let documentation = between(include_str!("../src/lib.rs"), "//! ```no_run\n");
    let documentation = documentation.lines().map(|line| line.trim_start_matches("//!").strip_prefix(' ').unwrap_or_default());
    let readme = between(include_str!("../README.md"), "```rust\n");
    assert_eq!(readme.trim(), documentation.collect::<Vec<_>>().join("\n").trim());
}

#[test]
fn every_example_is_run_here() {
    let listed = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples.rs")).unwrap();
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let run = ["run", "exit"].map(|run| format!("{run}({name:?}, "));
        assert!(run.iter().any(|run| listed.contains(run)), "{name} is not run");
    }
}
