//! Runs a simulated cluster until its standard input closes, or it is interrupted.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Parser;
use serde_json::json;
use sluicegate_simulator::certificates::Authority;
use sluicegate_simulator::{Cluster, ClusterConfig, Load, Password, TlsConfig};
use tokio::io::AsyncReadExt as _;

/// Runs a simulated Couchbase cluster on the loopback interface.
///
/// The first line of its output is the connection string, the second a line of JSON with the same and more. It ends when its standard
/// input closes, or with ctrl-c.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How many nodes.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// How many vbuckets.
    #[arg(long, default_value_t = 1024)]
    vbuckets: u16,
    /// How many copies of a vbucket besides the active one.
    #[arg(long, default_value_t = 1)]
    replicas: usize,
    /// How many documents to begin with.
    #[arg(long, default_value_t = 0)]
    documents: u64,
    /// Bytes of each of their values.
    #[arg(long, default_value_t = 500)]
    value_len: usize,
    /// The port of the first node, the next ones follow; 0 for any free ports.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Listens with TLS, too; the certificate of the nodes' authority is written into this directory, as ca.pem.
    #[arg(long, value_name = "DIRECTORY")]
    tls: Option<PathBuf>,
    /// From which identities and random choices follow.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The bucket's name.
    #[arg(long, default_value = "default")]
    bucket: String,
    /// The user's name.
    #[arg(long, default_value = "Administrator")]
    user: String,
    /// The user's password.
    #[arg(long, default_value = "password", env = "SLUICEGATE_SIMULATOR_PASSWORD", hide_env_values = true)]
    password: String,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    let mut config = ClusterConfig::default();
    (config.nodes, config.vbuckets, config.replicas) = (arguments.nodes, arguments.vbuckets, arguments.replicas);
    (config.port, config.seed) = (arguments.port, arguments.seed);
    (config.bucket, config.user) = (arguments.bucket, arguments.user);
    config.password = Password::new(arguments.password);
    if let Some(directory) = &arguments.tls {
        let authority = Authority::new("sluicegate-simulator")?;
        std::fs::write(directory.join("ca.pem"), authority.pem())?;
        config.tls = Some(TlsConfig::new(authority.server(&["127.0.0.1", "localhost"])?));
    }
    let (bucket, user) = (config.bucket.clone(), config.user.clone());
    let cluster = Cluster::start(config).await?;
    let mut load = Load::default();
    (load.documents, load.value_len) = (arguments.documents, arguments.value_len);
    cluster.load(&load).map_err(|status| std::io::Error::other(format!("the documents cannot be written: {status:?}")))?;
    let ports: Vec<u16> = cluster.addresses().iter().map(std::net::SocketAddr::port).collect();
    let connection_string = cluster.connection_string();
    let mut line = json!({ "connection_string": connection_string, "ports": ports, "bucket": bucket, "user": user });
    if arguments.tls.is_some() {
        line["tls_connection_string"] = cluster.tls_connection_string().into();
    }
    let mut out = std::io::stdout();
    writeln!(out, "{connection_string}\n{line}")?;
    out.flush()?;
    tokio::select! {
        () = until_closed() => (),
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    // Whoever waits for the standard input cannot be stopped otherwise.
    std::process::exit(0)
}

/// Waits until nobody has the other end of the standard input.
async fn until_closed() {
    let mut input = tokio::io::stdin();
    let mut ignored = [0; 256];
    while matches!(input.read(&mut ignored).await, Ok(1..)) {}
}
