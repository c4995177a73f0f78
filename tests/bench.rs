//! `sluicegate bench cold` at a small size: what does not depend on the machine.

#![cfg(all(feature = "cli", feature = "bench", feature = "redis"))]

use std::process::{Output, Stdio};

use serde_json::Value;
use sluicegate_test_servers::{RedisServer, command};

fn bench(args: &[&str]) -> Output {
    let mut command = command(env!("CARGO_BIN_EXE_sluicegate"));
    command.arg("bench").args(args).stdin(Stdio::null());
    command.output().unwrap()
}

/// Each store's orders, and that nothing is left on the server.
#[test]
fn a_first_read_by_vbucket_sends_about_as_much_and_logs_as_little_as_one_in_order() {
    let server = RedisServer::start();
    let url = server.url();
    let args = ["cold", "--documents", "20000", "--rounds", "1", "--chunk", "1,1000", "--format", "json"];
    let output = bench(&[&args[..], &["--store", "memory:", "--store", &url]].concat());
    assert!(output.status.success(), "{output:?}");
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = results["cold"].as_array().unwrap();
    let names: Vec<(&str, &str)> =
        runs.iter().map(|run| (run["store"].as_str().unwrap(), run["what"].as_str().unwrap())).collect();
    let orders = ["in order", "by vbucket, 1 at a time", "by vbucket, 1,000 at a time"];
    let expected: Vec<(&str, &str)> =
        ["memory:", &url].into_iter().flat_map(|store| orders.map(|order| (store, order))).collect();
    assert_eq!(names, expected);
    for run in runs {
        let number = |name: &str| run[name].as_f64().unwrap_or_else(|| panic!("no {name} in {run}"));
        assert_eq!((number("sequences"), number("late"), number("skipped")), (20_000.0, 0.0, 0.0), "{run}");
        assert!((1.0..=20.0).contains(&number("log_lines")), "{run}");
        assert!(number("sent_bytes") > 20_000.0 * 200.0 && number("sent_ratio") <= 1.3, "{run}");
    }
    assert_eq!(server.cli(&["DBSIZE"]).trim(), "0", "something is left of what was removed");
}

/// A writer that was away reads by vbucket what has been written since, while readers are in use:
/// what waits too long is skipped, and late when it comes. The log has a summary of it.
#[test]
fn a_later_burst_sends_about_as_much_as_one_in_order_and_is_summarized_in_the_log() {
    let args = ["cold", "--cached", "1000", "--documents", "40000", "--rounds", "1", "--chunk", "1000", "--format", "json"];
    let output = bench(&args);
    assert!(output.status.success(), "{output:?}");
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [in_order, by_vbucket] = results["cold"].as_array().unwrap().as_slice() else { panic!("{results}") };
    let number = |run: &Value, name: &str| run[name].as_f64().unwrap_or_else(|| panic!("no {name} in {run}"));
    let names = [in_order, by_vbucket].map(|run| run["what"].as_str().unwrap());
    assert_eq!(names, ["in order, after 1,000 in the cache", "by vbucket, 1,000 at a time, after 1,000 in the cache"]);
    for run in [in_order, by_vbucket] {
        assert_eq!(number(run, "sequences"), 40_000.0, "{run}");
        assert!(number(run, "log_lines") <= 20.0 && number(run, "sent_ratio") <= 1.3, "{run}");
    }
    assert_eq!((number(in_order, "late"), number(in_order, "skipped")), (0.0, 0.0), "{in_order}");
    let (late, skipped) = (number(by_vbucket, "late"), number(by_vbucket, "skipped"));
    assert!(late > 10_000.0 && late == skipped, "all that was skipped has come: {by_vbucket}");
}

#[test]
fn only_a_cold_start_is_measured_on_other_stores() {
    for args in [&["--store", "memory:"][..], &["raw", "--store", "memory:"], &["cold", "tail", "--store", "memory:"]] {
        let output = bench(args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--store is for `bench cold` only"), "{output:?}");
    }
}

#[test]
fn a_store_that_cannot_be_used_is_named_before_anything_is_measured() {
    let output = bench(&["cold", "--store", "memory:", "--store", "dance:"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(2), &b""[..]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`dance:`"), "{output:?}");
}
