//! Couchbase's own Java client agrees: it streams everything, with collections and a small flow control window. Needs Java and Maven, and
//! Maven's repository once.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::small;
use serde_json::Value;
use sluicegate_simulator::Load;

#[tokio::test(flavor = "multi_thread")]
async fn the_java_client_streams_everything() {
    let cluster = small(|config| (config.nodes, config.vbuckets) = (3, 64)).await;
    let mut load = Load::default();
    load.documents = 5000;
    cluster.load(&load).unwrap();
    cluster.delete("document-0000000").unwrap();
    let addresses = cluster.connection_string().replace("couchbase://", "");
    let summary = tokio::task::spawn_blocking(move || drain(&addresses)).await.unwrap();
    for (name, expected) in [("vbuckets", 64), ("mutations", 4999), ("deletions", 1), ("failures", 0)] {
        assert_eq!(summary[name], expected, "{name} of {summary}");
    }
}

/// Builds the Java program and runs it once.
fn drain(addresses: &str) -> Value {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("java");
    let class_path = directory.join("class-path");
    let mut build = Command::new("mvn");
    build.args(["-q", "-B", "compile", "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:build-classpath"]);
    build.arg(format!("-Ddrain.directory={}", directory.display()));
    build.arg(format!("-Dmdep.outputFile={}", class_path.display()));
    build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/java"));
    assert!(build.status().expect("install Maven; this test needs it").success(), "the Java program does not build");
    let class_path = std::fs::read_to_string(class_path).unwrap();
    let mut command = Command::new("java");
    command.arg("-cp").arg(format!("{}:{class_path}", directory.join("classes").display()));
    command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "Drain", addresses, "default", "Administrator"]);
    let output = command.env("PASSWORD", "password").stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    serde_json::from_slice(&output.stdout).expect("a summary; what went wrong is on standard error")
}
