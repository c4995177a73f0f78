//! A client in another language: told to stream by one line, it answers with another.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;
use sluicegate_simulator::Cluster;

pub(crate) struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Program {
    /// Starts one that takes the cluster's addresses, the bucket and the user.
    pub(crate) fn start(mut command: Command, cluster: &Cluster) -> Program {
        let addresses = cluster.connection_string().replace("couchbase://", "");
        command.args([addresses.as_str(), "default", "Administrator"]).env("PASSWORD", "password");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        Program { child, input, output: BufReader::new(output) }
    }

    /// Streams what there is; its summary is as `expected`, and in order.
    #[track_caller]
    pub(crate) fn pass(&mut self, expected: &[(&str, u64)]) {
        self.input.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let summary: Value = serde_json::from_str(&line).expect("a summary; what went wrong is on standard error");
        for (name, expected) in expected.iter().chain(&[("disordered", 0)]) {
            assert_eq!(summary[name], *expected, "{name} of {summary}");
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
