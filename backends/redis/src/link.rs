//! The connections: commands in, answers out, in order.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures::future::join_all;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{Client, Cmd, Pipeline, RedisError, RedisResult, Value};
use sluicegate_core::Result;

use crate::error::{Effect, translate};
use crate::options::Target;

/// Commands to be sent together.
#[derive(Debug, Default)]
pub(crate) struct Commands(Vec<(u16, Cmd)>);

impl Commands {
    /// Adds one for the slot of `tag`; its place among the answers.
    pub(crate) fn add(&mut self, tag: u16, command: Cmd) -> usize {
        self.0.push((tag, command));
        self.0.len() - 1
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// What came back for each command.
pub(crate) type Answers = Vec<RedisResult<Value>>;

/// What a store has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Commands.
    pub commands: u64,
    /// Times it waited for the server: one for all commands sent together, whatever the number of nodes.
    pub round_trips: u64,
}

/// Connections to one server or to the nodes of a Cluster, which come back by themselves when they are lost. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    connections: Connections,
    commands: Arc<AtomicU64>,
    round_trips: Arc<AtomicU64>,
}

#[derive(Clone)]
enum Connections {
    Single { pool: Arc<[ConnectionManager]>, next: Arc<AtomicUsize> },
    Cluster(ClusterConnection),
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Connections::Single { pool, .. } => write!(f, "{} connections", pool.len()),
            Connections::Cluster(_) => f.write_str("a cluster"),
        }
    }
}

impl Link {
    /// Connects.
    pub(crate) async fn open(target: &Target) -> Result<Link> {
        let connections = Link::connect(target)
            .await
            .map_err(|e| translate(e, Effect::Read).with_operation("connect").with_context("store", &target.name))?;
        Ok(Link { connections, commands: Arc::default(), round_trips: Arc::default() })
    }

    /// What was sent so far.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic { commands: self.commands.load(Ordering::Relaxed), round_trips: self.round_trips.load(Ordering::Relaxed) }
    }

    fn count(&self, commands: usize) {
        self.commands.fetch_add(commands as u64, Ordering::Relaxed);
        self.round_trips.fetch_add(1, Ordering::Relaxed);
    }

    async fn connect(target: &Target) -> RedisResult<Connections> {
        let options = &target.options;
        if target.cluster {
            let builder = ClusterClient::builder(target.nodes.iter().cloned())
                .connection_timeout(options.connect_timeout())
                .response_timeout(options.timeout());
            let builder = match &target.certificates {
                Some(certificates) => builder.certs(certificates.clone()),
                None => builder,
            };
            return Ok(Connections::Cluster(builder.build()?.get_async_connection().await?));
        }
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(options.connect_timeout()))
            .set_response_timeout(Some(options.timeout()))
            .set_number_of_retries(3);
        let mut pool = Vec::with_capacity(options.pool);
        for _ in 0..options.pool {
            pool.push(client(target)?.get_connection_manager_with_config(config.clone()).await?);
        }
        Ok(Connections::Single { pool: pool.into(), next: Arc::default() })
    }

    /// Sends all commands and gives the answer to each, in their order. Those of one slot are executed in their order.
    pub(crate) async fn run(&self, commands: Commands) -> Answers {
        self.count(commands.len());
        match &self.connections {
            Connections::Single { pool, next } => {
                let mut connection = pool[next.fetch_add(1, Ordering::Relaxed) % pool.len()].clone();
                pipeline(&mut connection, commands.0.into_iter().map(|(_, command)| command)).await
            }
            Connections::Cluster(connection) => {
                let mut by_slot: std::collections::BTreeMap<u16, (Vec<usize>, Vec<Cmd>)> = Default::default();
                let count = commands.0.len();
                for (at, (tag, command)) in commands.0.into_iter().enumerate() {
                    let (places, commands) = by_slot.entry(tag).or_default();
                    places.push(at);
                    commands.push(command);
                }
                let run = |(places, commands): (Vec<usize>, Vec<Cmd>)| {
                    let mut connection = connection.clone();
                    async move { (places, pipeline(&mut connection, commands.into_iter()).await) }
                };
                let mut answers: Vec<Option<RedisResult<Value>>> = (0..count).map(|_| None).collect();
                for (places, some) in join_all(by_slot.into_values().map(run)).await {
                    for (place, answer) in places.into_iter().zip(some) {
                        answers[place] = Some(answer);
                    }
                }
                answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(unanswered()))).collect()
            }
        }
    }

    /// Sends one command.
    pub(crate) async fn one(&self, command: Cmd) -> RedisResult<Value> {
        self.count(1);
        match &self.connections {
            Connections::Single { pool, next } => {
                let mut connection = pool[next.fetch_add(1, Ordering::Relaxed) % pool.len()].clone();
                command.query_async(&mut connection).await
            }
            Connections::Cluster(connection) => command.query_async(&mut connection.clone()).await,
        }
    }
}

/// A client of the first node.
pub(crate) fn client(target: &Target) -> RedisResult<Client> {
    let Some(node) = target.nodes.first() else { return Err(unanswered()) };
    match &target.certificates {
        Some(certificates) => Client::build_with_tls(node.clone(), certificates.clone()),
        None => Client::open(node.clone()),
    }
}

fn unanswered() -> RedisError {
    (redis::ErrorKind::Client, "a command was not answered").into()
}

async fn pipeline(connection: &mut (impl ConnectionLike + Send), commands: impl Iterator<Item = Cmd>) -> Answers {
    let mut pipeline = Pipeline::new();
    for command in commands {
        pipeline.add_command(command);
    }
    pipeline.ignore_errors();
    match pipeline.query_async::<Vec<RedisResult<Value>>>(connection).await {
        Ok(answers) => answers,
        Err(error) => (0..pipeline.len()).map(|_| Err(error.clone())).collect(),
    }
}
