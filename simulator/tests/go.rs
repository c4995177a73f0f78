//! Couchbase's own Go client agrees: it streams, resumes and rolls back. Needs `go`, and its module proxy once.

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use common::small;
use serde_json::Value;
use sluicegate_simulator::{Cluster, Content, Load};

/// The Go program, told to stream by one line, and answering with another.
struct Drain {
    program: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Drain {
    fn start(cluster: &Cluster) -> Drain {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/go");
        let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join("drain");
        let mut build = Command::new(go());
        build.args(["build", "-mod=readonly", "-o"]).arg(&binary).arg(".").current_dir(directory);
        assert!(build.status().expect("install Go; this test needs it").success(), "the Go program does not build");
        let addresses = cluster.connection_string().replace("couchbase://", "");
        let mut command = Command::new(binary);
        command.args([addresses.as_str(), "default", "Administrator"]).env("PASSWORD", "password");
        let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (program.stdin.take(), program.stdout.take().unwrap());
        Drain { program, input, output: BufReader::new(output) }
    }

    /// Streams what there is.
    fn pass(&mut self) -> Value {
        self.input.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect("a summary; what went wrong is on standard error")
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.program.wait();
    }
}

/// The `go` of the path, or where its own installer puts it.
fn go() -> &'static str {
    if Command::new("go").arg("version").output().is_ok() { "go" } else { "/usr/local/go/bin/go" }
}

#[track_caller]
fn check(summary: &Value, expected: &[(&str, u64)]) {
    for (name, expected) in expected {
        assert_eq!(summary[name], *expected, "{name} of {summary}");
    }
    assert_eq!(summary["disordered"], 0, "{summary}");
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
    let mut drain = Drain::start(&cluster);
    let all =
        [("vbuckets", 64), ("mutations", 4998), ("deletions", 1), ("expirations", 1), ("collections", 64), ("rollbacks", 0)];
    check(&drain.pass(), &all);
    check(&drain.pass(), &[("mutations", 0), ("deletions", 0), ("rollbacks", 0)]);
    load.prefix = "later-".to_owned();
    load.documents = 100;
    cluster.load(&load).unwrap();
    check(&drain.pass(), &[("mutations", 100), ("rollbacks", 0)]);
    // The last change of each of three vbuckets is lost, and there is another one.
    for vbucket in [3, 4, 60] {
        cluster.fail_over_vbucket(vbucket, cluster.high_seqno(vbucket) - 1);
    }
    let key = (0..).map(|i| format!("key{i}")).find(|key| cluster.vbucket_of(key.as_bytes()) == 4).unwrap();
    cluster.set(key, "1").unwrap();
    check(&drain.pass(), &[("mutations", 1), ("rollbacks", 3)]);
}
