//! The program, as tests in other languages use it.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::Value;

#[test]
fn it_says_where_it_is_and_ends_with_its_input() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate-simulator"));
    let directory = tempfile::tempdir().unwrap();
    command.args(["--nodes", "2", "--vbuckets", "8", "--documents", "10", "--bucket", "travel", "--tls"]).arg(directory.path());
    let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines().map(Result::unwrap);
    let connection_string = lines.next().unwrap();
    let summary: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
    assert_eq!(summary["connection_string"], connection_string.as_str());
    assert_eq!(summary["bucket"], "travel");
    let ports: Vec<u16> = summary["ports"].as_array().unwrap().iter().map(|port| port.as_u64().unwrap() as u16).collect();
    assert_eq!(connection_string, format!("couchbase://127.0.0.1:{},127.0.0.1:{}", ports[0], ports[1]));
    assert!(ports.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()));
    let tls: Vec<&str> =
        summary["tls_connection_string"].as_str().unwrap().trim_start_matches("couchbases://").split(',').collect();
    assert!(tls.len() == 2 && tls.iter().all(|address| TcpStream::connect(address).is_ok()), "{tls:?}");
    assert!(std::fs::read_to_string(directory.path().join("ca.pem")).unwrap().contains("BEGIN CERTIFICATE"));
    drop(program.stdin.take());
    assert!(program.wait().unwrap().success());
}

#[test]
fn a_cluster_without_nodes_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate-simulator"));
    let output = command.args(["--nodes", "0"]).stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("at least one node"));
}
