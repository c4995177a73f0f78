//! Couchbase's own Go client agrees: it streams, resumes and rolls back. Needs `go`, and its module proxy once.

mod common;

use std::path::Path;
use std::process::Command;

use common::program::Program;
use common::small;
use sluicegate_simulator::{Content, Load};

/// The Go program.
fn built() -> Command {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/go");
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join("drain");
    let mut build = Command::new(go());
    build.args(["build", "-mod=readonly", "-o"]).arg(&binary).arg(".").current_dir(directory);
    assert!(build.status().expect("install Go; this test needs it").success(), "the Go program does not build");
    Command::new(binary)
}

/// The `go` of the path, or where its own installer puts it.
fn go() -> &'static str {
    if Command::new("go").arg("version").output().is_ok() { "go" } else { "/usr/local/go/bin/go" }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_client_streams_resumes_and_rolls_back() {
    let cluster = small(|config| (config.nodes, config.vbuckets) = (3, 64)).await;
    let mut load = Load::default();
    load.documents = 5000;
    cluster.load(&load).unwrap();
    cluster.create_collection("_default", "more", None).unwrap();
    cluster.delete("document-0000000").unwrap();
    let expiring = Content { value: "1".into(), expiry: 5, ..Content::default() };
    cluster.write(0, "document-0000001", expiring).unwrap();
    cluster.advance_clock(5);
    let mut drain = Program::start(built(), &cluster);
    let all =
        [("vbuckets", 64), ("mutations", 4998), ("deletions", 1), ("expirations", 1), ("collections", 64), ("rollbacks", 0)];
    drain.pass(&all);
    drain.pass(&[("mutations", 0), ("deletions", 0), ("rollbacks", 0)]);
    load.prefix = "later-".to_owned();
    load.documents = 100;
    cluster.load(&load).unwrap();
    drain.pass(&[("mutations", 100), ("rollbacks", 0)]);
    // The last change of each of three vbuckets is lost, and there is another one.
    for vbucket in [3, 4, 60] {
        cluster.fail_over_vbucket(vbucket, cluster.high_seqno(vbucket) - 1);
    }
    let key = (0..).map(|i| format!("key{i}")).find(|key| cluster.vbucket_of(key.as_bytes()) == 4).unwrap();
    cluster.set(key, "1").unwrap();
    drain.pass(&[("mutations", 1), ("rollbacks", 3)]);
}
