//! A program that ends with the test, however that ends.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Longest wait for a server to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running program. It is killed when this is dropped, and also when the test's process dies: a shell holds a pipe to us, and kills
/// the program when the pipe closes. The shell ends with the program.
#[derive(Debug)]
pub struct Process {
    shell: Mutex<Child>,
    pid: String,
}

impl Process {
    /// Starts `program`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(program: &str, arguments: &[String]) -> Process {
        let script = r#"exec 3<&0
            "$@" >/dev/null 2>&1 3<&- & program=$!
            echo $program
            (read -r _ <&3; kill -9 $program) >/dev/null 2>&1 & watcher=$!
            wait $program
            kill $watcher 2>/dev/null"#;
        let mut command = command("sh");
        command.args(["-c", script, "sh", program]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.stderr(Stdio::null()).spawn().unwrap_or_else(|e| panic!("cannot run sh: {e}"));
        let mut pid = String::new();
        if let Some(stdout) = shell.stdout.take() {
            let _ = BufReader::new(stdout).read_line(&mut pid);
        }
        let pid = pid.trim().to_owned();
        assert!(!pid.is_empty(), "{program} did not start");
        Process { shell: Mutex::new(shell), pid }
    }

    /// Sends it a signal, such as `KILL`, `STOP` or `CONT`.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.pid]).status();
        assert!(sent.is_ok_and(|status| status.success()), "process {} is gone", self.pid);
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.shell.lock().is_ok_and(|mut shell| matches!(shell.try_wait(), Ok(None)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(mut shell) = self.shell.lock() {
            drop(shell.stdin.take());
            let _ = shell.wait();
        }
    }
}

/// A command that runs `program` without the variables that begin with `SLUICEGATE_`: the product
/// takes each of them for a setting, those of the tests, too.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"SLUICEGATE_")) {
        command.env_remove(name);
    }
    command
}

/// A port that nobody listens on now.
///
/// # Panics
/// If there is none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap_or_else(|e| panic!("no free port: {e}"));
    listener.local_addr().map_or(0, |address| address.port())
}

/// Waits until `ready` says so.
///
/// # Panics
/// If it takes too long.
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < PATIENCE, "{what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
