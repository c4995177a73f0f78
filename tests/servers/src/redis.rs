//! Redis, alone and as a Cluster.

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::process::{Process, free_port, wait_until};

/// A program of the engine under test: `redis-server`, or `valkey-server` where `SLUICEGATE_TEST_ENGINE` is `valkey`.
pub fn engine_program(name: &str) -> String {
    let engine = std::env::var("SLUICEGATE_TEST_ENGINE").unwrap_or_else(|_| "redis".to_owned());
    format!("{engine}-{name}")
}

/// One `redis-server`.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    arguments: Vec<String>,
    directory: TempDir,
    process: Option<Process>,
}

impl RedisServer {
    /// Starts one without persistence.
    ///
    /// # Panics
    /// If `redis-server` is not installed or does not start.
    pub fn start() -> Self {
        Self::with(&["--save", "", "--appendonly", "no"])
    }

    /// Starts one with these arguments.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn with(arguments: &[&str]) -> Self {
        // Somebody else may take the port between our look and the server's.
        for _ in 0..5 {
            let directory = TempDir::new().unwrap_or_else(|e| panic!("no temporary directory: {e}"));
            let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
            let mut server = RedisServer { port: free_port(), arguments, directory, process: None };
            if server.try_start() {
                return server;
            }
        }
        panic!("redis-server does not start; is it installed? (Debian: apt-get install redis-server)");
    }

    fn try_start(&mut self) -> bool {
        let mut arguments: Vec<String> = ["--bind", "127.0.0.1", "--port"].map(str::to_owned).to_vec();
        arguments.push(self.port.to_string());
        arguments.extend(["--dir".to_owned(), self.directory.path().display().to_string()]);
        arguments.extend(self.arguments.iter().cloned());
        let process = Process::start(&engine_program("server"), &arguments);
        let mut runs = true;
        wait_until("redis-server answers", || {
            runs = process.is_running();
            !runs || self.answers()
        });
        self.process = runs.then_some(process);
        runs
    }

    fn answers(&self) -> bool {
        // Loading, or asking for a password, is an answer too; but only the first two mean that it can be used.
        let answer = self.cli(&["PING"]);
        answer.contains("PONG") || answer.contains("NOAUTH")
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL, without options.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What `redis-cli` prints for a command.
    ///
    /// # Panics
    /// If there is no `redis-cli`.
    pub fn cli(&self, command: &[&str]) -> String {
        redis_cli(self.port, command)
    }

    /// Where it keeps its files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A number that `INFO` tells.
    ///
    /// # Panics
    /// If it does not tell it.
    fn info(&self, section: &str, name: &str) -> f64 {
        let info = self.cli(&["INFO", section]);
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("the server does not tell {name}"))
    }

    /// Bytes of memory that it uses.
    ///
    /// # Panics
    /// If it does not tell.
    pub fn used_memory(&self) -> f64 {
        self.info("memory", "used_memory")
    }

    /// CPU seconds that it has used.
    ///
    /// # Panics
    /// If it does not tell.
    pub fn cpu_seconds(&self) -> f64 {
        self.info("cpu", "used_cpu_sys") + self.info("cpu", "used_cpu_user")
    }

    /// Its process.
    ///
    /// # Panics
    /// After [`kill`](Self::kill).
    pub fn process(&self) -> &Process {
        self.process.as_ref().unwrap_or_else(|| panic!("the server was killed"))
    }

    /// As `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.signal("KILL");
            wait_until("the server is gone", || !process.is_running());
        }
    }

    /// Starts it again on the same port, over what it kept.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.try_start(), "redis-server does not start again on port {}", self.port);
    }
}

fn redis_cli(port: u16, command: &[&str]) -> String {
    let output = Command::new(engine_program("cli")).args(["-p", &port.to_string()]).args(command).stderr(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("cannot run redis-cli (Debian: apt-get install redis-tools): {e}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Three masters with a replica each.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts one, and waits until every slot is served.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start() -> Self {
        let arguments = [
            "--save",
            "",
            "--appendonly",
            "no",
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--cluster-config-file",
            "nodes.conf",
            // A replica that asks for everything gets it at once.
            "--repl-diskless-sync-delay",
            "0",
        ];
        // The cluster bus takes the port 10,000 above, which must exist.
        let nodes: Vec<RedisServer> = std::iter::repeat_with(|| RedisServer::below(&arguments, 55_000)).take(6).collect();
        let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let mut command = vec!["--cluster", "create"];
        command.extend(addresses.iter().map(String::as_str));
        command.extend(["--cluster-replicas", "1", "--cluster-yes"]);
        let made = nodes[0].cli(&command);
        let cluster = RedisCluster { nodes };
        wait_until(&format!("the cluster comes up: {made}"), || cluster.is_whole());
        cluster
    }

    fn is_whole(&self) -> bool {
        self.nodes
            .iter()
            .filter(|node| node.process.is_some())
            .all(|node| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
            && self.nodes[0].cli(&["INFO", "replication"]).contains("slaves")
    }

    /// Its URL, without options; names two nodes.
    pub fn url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", self.nodes[0].port, self.nodes[1].port)
    }

    /// Its nodes; the first three began as masters.
    pub fn nodes(&mut self) -> &mut [RedisServer] {
        &mut self.nodes
    }

    /// Waits until every node runs, every slot is served, and every master has a replica that is up to date.
    pub fn wait_until_whole(&self) {
        wait_until("the cluster is whole", || {
            self.nodes.iter().all(|node| {
                let replication = node.cli(&["INFO", "replication"]);
                let is_linked = replication.contains("state=online") || replication.contains("master_link_status:up");
                is_linked && node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
            })
        });
    }

    /// Waits until another node serves the slots of the one that was at `port`.
    pub fn wait_until_replaced(&self, port: u16) {
        wait_until(&format!("the node at {port} is replaced"), || {
            let others = || self.nodes.iter().filter(|node| node.port != port && node.process.is_some());
            others().all(|node| {
                let nodes = node.cli(&["CLUSTER", "NODES"]);
                // A master that has slots has a ninth field.
                let has_slots = |line: &str| line.split_whitespace().count() > 8;
                let old = nodes.lines().find(|line| line.contains(&format!(":{port}@")));
                old.is_some_and(|line| !has_slots(line)) && node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
            })
        });
    }

    /// Waits until the nodes that run say that every slot is served.
    pub fn wait_until_served(&self) {
        wait_until("every slot is served", || {
            self.nodes
                .iter()
                .filter(|node| node.process.is_some())
                .all(|node| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
        });
    }
}

impl RedisServer {
    fn below(arguments: &[&str], highest: u16) -> Self {
        loop {
            let server = RedisServer::with(arguments);
            if server.port < highest {
                return server;
            }
        }
    }
}
