//! The connections: commands in, answers out, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures::FutureExt as _;
use futures::future::join_all;
use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::{Arg, AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, RedisResult, Value, cmd};
use sluicegate_core::Result;

use crate::error::{Failure, translate};
use crate::line::{Line, is_answer};
use crate::options::Target;

/// What commands do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing: they may be sent again.
    Read,
    /// They write what nobody is promised yet.
    Write,
    /// They make what was written visible.
    Publish,
}

/// Commands to be sent together.
#[derive(Debug, Default)]
pub(crate) struct Commands(Vec<(u16, Cmd)>);

impl Commands {
    /// Adds one for the slot of `tag`; its place among the answers.
    pub(crate) fn add(&mut self, tag: u16, command: Cmd) -> usize {
        self.0.push((tag, command));
        self.0.len() - 1
    }

    /// Adds all of `others`.
    pub(crate) fn append(&mut self, mut others: Commands) {
        self.0.append(&mut others.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// What came back for one command.
pub(crate) type Answer = Result<Value, Failure>;

/// What a store has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Commands.
    pub commands: u64,
    /// Times it waited for the server: one for all commands sent together, whatever the number of nodes.
    pub round_trips: u64,
    /// Bytes of the commands, as they go over the wire; TLS adds its own. A command that is sent
    /// again counts once.
    pub bytes: u64,
}

/// Connections to one server or to the nodes of a Cluster, which are made anew when they are lost. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Link {
    lines: Lines,
    /// How many replicas must have a write, and for how long they are waited for, in milliseconds.
    replicas: (u32, u64),
    /// Slots of a Cluster with writes of which it is not known whether replicas have them.
    owed: Arc<Mutex<BTreeSet<u16>>>,
    commands: Arc<AtomicU64>,
    round_trips: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

#[derive(Clone)]
enum Lines {
    Single { pool: Arc<[Line<MultiplexedConnection>]>, next: Arc<AtomicUsize> },
    Cluster(Arc<Line<ClusterConnection>>),
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.lines {
            Lines::Single { pool, .. } => write!(f, "{} connections", pool.len()),
            Lines::Cluster(_) => f.write_str("a cluster"),
        }
    }
}

impl Link {
    /// Connects.
    pub(crate) async fn open(target: &Target) -> Result<Link> {
        let failed = |e: Failure| translate(e, Effect::Read).with_operation("connect").with_context("store", &target.name);
        let refused = |error: RedisError| failed(Failure::Unreached(error));
        let lines = if target.cluster {
            let client = cluster_client(target).build().map_err(refused)?;
            Lines::Cluster(Arc::new(Line::new(move || {
                let client = client.clone();
                async move { client.get_async_connection().await }.boxed()
            })))
        } else {
            let client = client(target).map_err(refused)?;
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(target.options.connect_timeout()))
                .set_response_timeout(Some(target.options.timeout()));
            let line = |_| {
                let (client, config) = (client.clone(), config.clone());
                Line::new(move || {
                    let (client, config) = (client.clone(), config.clone());
                    async move { client.get_multiplexed_async_connection_with_config(&config).await }.boxed()
                })
            };
            Lines::Single { pool: (0..target.options.pool).map(line).collect(), next: Arc::default() }
        };
        match &lines {
            Lines::Single { pool, .. } => {
                for line in pool.iter() {
                    line.connect().await.map_err(failed)?;
                }
            }
            Lines::Cluster(line) => line.connect().await.map_err(failed)?,
        }
        let replicas = (target.options.wait_replicas, (target.options.timeout_ms / 2).max(1));
        Ok(Link {
            lines,
            replicas,
            owed: Arc::default(),
            commands: Arc::default(),
            round_trips: Arc::default(),
            bytes: Arc::default(),
        })
    }

    /// What was sent so far.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            commands: self.commands.load(Ordering::Relaxed),
            round_trips: self.round_trips.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// Sends all commands and gives the answer to each, in their order. Those of one slot are executed in their order.
    pub(crate) async fn run(&self, commands: Commands, effect: Effect) -> Vec<Answer> {
        if commands.0.is_empty() {
            // The client refuses an empty pipeline, as if the connection were lost.
            return Vec::new();
        }
        self.commands.fetch_add(commands.0.len() as u64, Ordering::Relaxed);
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        let bytes: u64 = commands.0.iter().map(|(_, command)| encoded_length(command)).sum();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        match &self.lines {
            Lines::Single { pool, next } => {
                let line = &pool[next.fetch_add(1, Ordering::Relaxed) % pool.len()];
                // One server replicates in order: whoever has the publication has all before it.
                let wait = effect == Effect::Publish;
                self.pipeline(line, commands.0.into_iter().map(|(_, command)| command), wait, effect).await
            }
            Lines::Cluster(line) => {
                let mut by_slot: BTreeMap<u16, (Vec<usize>, Vec<Cmd>)> = BTreeMap::new();
                let count = commands.0.len();
                for (at, (tag, command)) in commands.0.into_iter().enumerate() {
                    let (places, commands) = by_slot.entry(tag).or_default();
                    places.push(at);
                    commands.push(command);
                }
                let run = |(tag, (places, commands)): (u16, (Vec<usize>, Vec<Cmd>))| async move {
                    // Each shard fails over by itself, so each must have its replicas.
                    let answers = self.pipeline(line, commands.into_iter(), effect != Effect::Read, effect).await;
                    if effect != Effect::Read
                        && self.replicas.0 > 0
                        && answers.iter().any(|a| matches!(a, Err(e) if e.may_have_written()))
                    {
                        self.owed.lock().insert(tag);
                    }
                    (places, answers)
                };
                let mut answers: Vec<Option<Answer>> = (0..count).map(|_| None).collect();
                for (places, some) in join_all(by_slot.into_iter().map(run)).await {
                    for (place, answer) in places.into_iter().zip(some) {
                        answers[place] = Some(answer);
                    }
                }
                answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(Failure::unanswered()))).collect()
            }
        }
    }

    /// Sends one command to the slot of `tag`.
    pub(crate) async fn one(&self, tag: u16, command: Cmd, effect: Effect) -> Answer {
        let mut commands = Commands::default();
        commands.add(tag, command);
        self.run(commands, effect).await.pop().unwrap_or_else(|| Err(Failure::unanswered()))
    }

    /// Asks the server, or all nodes.
    pub(crate) async fn all(&self, command: Cmd) -> Answer {
        let command = &command;
        let query = |mut connection: ClusterConnection| async move { command.query_async(&mut connection).await };
        match &self.lines {
            Lines::Single { .. } => self.one(0, command.clone(), Effect::Read).await,
            Lines::Cluster(line) => line.send(true, query).await,
        }
    }

    /// Waits until replicas have what earlier calls wrote without knowing that. To be called before what was written is read again, to see whether
    /// it must be repeated.
    pub(crate) async fn settle(&self) -> Result<(), Failure> {
        let owed: Vec<u16> = self.owed.lock().iter().copied().collect();
        for tag in owed {
            // `WAIT` waits for all that the server had written before the last command of the connection, a reading one too.
            self.one(tag, cmd("EXISTS").arg(format!("{{{tag:04x}}}")).take(), Effect::Write).await?;
            self.owed.lock().remove(&tag);
        }
        Ok(())
    }

    async fn pipeline<C: ConnectionLike + Clone + Send + Sync + 'static>(
        &self,
        line: &Line<C>,
        commands: impl Iterator<Item = Cmd>,
        wait: bool,
        effect: Effect,
    ) -> Vec<Answer> {
        let mut pipeline = Pipeline::new();
        for command in commands {
            pipeline.add_command(command);
        }
        let count = pipeline.len();
        let (replicas, patience) = self.replicas;
        let wait = wait && replicas > 0;
        if wait {
            pipeline.cmd("WAIT").arg(replicas).arg(patience);
        }
        pipeline.ignore_errors();
        let pipeline = &pipeline;
        let query = |mut connection: C| async move { pipeline.query_async::<Vec<RedisResult<Value>>>(&mut connection).await };
        let mut answers: Vec<Answer> = match line.send(effect == Effect::Read, query).await {
            Ok(answers) => answers.into_iter().map(|answer| answer.map_err(answered)).collect(),
            Err(failure) => return vec![Err(failure); count],
        };
        if answers.iter().any(|answer| matches!(answer, Err(failure) if failure.needs_another_connection())) {
            line.renew();
        }
        let lacking = wait.then(|| answers.pop()).flatten().and_then(|answer| match answer {
            Ok(Value::Int(have)) if have >= i64::from(replicas) => None,
            Ok(Value::Int(have)) => Some(Failure::NotReplicated { have, wanted: replicas }),
            Ok(_) => Some(Failure::unanswered()),
            Err(failure) => Some(failure),
        });
        if let Some(lacking) = lacking {
            for answer in answers.iter_mut().filter(|answer| answer.is_ok()) {
                *answer = Err(lacking.clone());
            }
        }
        answers
    }
}

/// Bytes of a command as it is sent: a list of strings, each with its length before it.
fn encoded_length(command: &Cmd) -> u64 {
    let digits = |number: usize| u64::from(number.checked_ilog10().unwrap_or(0)) + 1;
    let head = |number: usize| 1 + digits(number) + 2;
    let (count, strings) = command.args_iter().fold((0, 0), |(count, bytes), argument| {
        let length = match argument {
            Arg::Simple(bytes) => bytes.len(),
            // A cursor is the only other one; none is sent.
            _ => 1,
        };
        (count + 1, bytes + head(length) + length as u64 + 2)
    });
    head(count) + strings
}

fn answered(error: RedisError) -> Failure {
    if is_answer(&error) { Failure::Answered(error) } else { Failure::Unanswered(error) }
}

/// A client of the first node.
pub(crate) fn client(target: &Target) -> RedisResult<Client> {
    let Some(node) = target.nodes.first() else { return Err((redis::ErrorKind::Client, "no address").into()) };
    match &target.certificates {
        Some(certificates) => Client::build_with_tls(node.clone(), certificates.clone()),
        None => Client::open(node.clone()),
    }
}

/// A client of the whole Cluster, to be built.
pub(crate) fn cluster_client(target: &Target) -> ClusterClientBuilder {
    // It follows slots that move; for what lasts longer there is whoever called us.
    let builder = ClusterClient::builder(target.nodes.iter().cloned())
        .connection_timeout(target.options.connect_timeout())
        .response_timeout(target.options.timeout())
        .retries(5)
        .min_retry_wait(10)
        .max_retry_wait(200);
    match &target.certificates {
        Some(certificates) => builder.certs(certificates.clone()),
        None => builder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoded_length_is_that_of_the_encoding() {
        let long = [b'x'; 1_000];
        for command in [
            cmd("INFO"),
            cmd("SET").arg("").arg(&long[..]).take(),
            cmd("EVAL").arg("return 1").arg(12).arg((0..12).collect::<Vec<u32>>()).arg(&long[..99]).arg(&long[..100]).take(),
        ] {
            assert_eq!(encoded_length(&command), command.get_packed_command().len() as u64);
        }
    }
}
