//! Couchbase's own Java client agrees: with collections and a small flow control window it streams, resumes from the state it has saved, and rolls
//! back. Needs Java and Maven, and Maven's repository once.

mod common;

use std::path::Path;
use std::process::Command;

use common::program::Program;
use common::small;
use sluicegate_simulator::Load;

/// The Java program.
fn built() -> Command {
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
    command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "Drain"]);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_java_client_streams_resumes_and_rolls_back() {
    let cluster = small(|config| (config.nodes, config.vbuckets) = (3, 64)).await;
    let mut load = Load::default();
    load.documents = 5000;
    cluster.load(&load).unwrap();
    cluster.delete("document-0000000").unwrap();
    let mut drain = Program::start(built(), &cluster);
    drain.pass(&[("vbuckets", 64), ("mutations", 4999), ("deletions", 1), ("rollbacks", 0), ("failures", 0)]);
    drain.pass(&[("mutations", 0), ("deletions", 0), ("rollbacks", 0), ("failures", 0)]);
    load.prefix = "later-".to_owned();
    load.documents = 100;
    cluster.load(&load).unwrap();
    drain.pass(&[("mutations", 100), ("deletions", 0), ("rollbacks", 0), ("failures", 0)]);
    // The last change of each of three vbuckets is lost, and there are two other ones.
    for vbucket in [3, 4, 60] {
        cluster.fail_over_vbucket(vbucket, cluster.high_seqno(vbucket) - 1);
        let keys = (0..).map(|i| format!("key{i}")).filter(|key| cluster.vbucket_of(key.as_bytes()) == vbucket);
        for key in keys.take(2) {
            cluster.set(key, "1").unwrap();
        }
    }
    drain.pass(&[("mutations", 6), ("rollbacks", 3), ("failures", 0)]);
}
