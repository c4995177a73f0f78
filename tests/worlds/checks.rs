//! What must hold at the end of a world: answers, what clients were told, and the cache itself.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::sync::Arc;

use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::core::reader::WhileBuilding;
use sluicegate::verify::{Problem, VerifyOptions, verify};
use sluicegate::{CacheStore, Channel, ReaderConfig, ReaderNode, Result};
use sluicegate_testkit::observe::{Rows, rows};

use super::FEED;
use super::bucket::channels;
use super::client::Client;

/// What went wrong in a world.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// A writer failed, or did not come to an end.
    Writer(String),
    /// A request failed, or had another answer.
    Answers(String),
    /// A client that continues was not told what a document is now.
    Client(String),
    /// A check of the cache found something.
    Check(String),
}

impl Failure {
    /// Whether both are of one kind.
    pub(crate) fn is_like(&self, other: &Failure) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Writer(text) => write!(f, "a writer: {text}"),
            Failure::Answers(text) => write!(f, "answers: {text}"),
            Failure::Client(text) => write!(f, "a client that continues: {text}"),
            Failure::Check(text) => write!(f, "a check: {text}"),
        }
    }
}

fn failed(what: impl Display) -> impl FnOnce(sluicegate::Error) -> Failure {
    move |error| Failure::Answers(format!("{what}: {error:?}"))
}

/// A reader that answers while the cache is built, too.
async fn reader(store: &Arc<dyn CacheStore>) -> Result<ReaderNode> {
    let mut config = ReaderConfig::default();
    config.while_building = WhileBuilding::Show;
    ReaderNode::open(store.clone(), config).await
}

/// All rows of a channel, from answers of at most `limit` rows.
async fn ask(reader: &ReaderNode, channel: &Channel, delivery: Delivery, limit: Option<usize>) -> Result<Rows> {
    let mut options = ChangesOptions::new().delivery(delivery);
    options = if let Some(limit) = limit { options.limit(limit) } else { options };
    let mut all = Rows::new();
    loop {
        let answer = reader.changes(std::slice::from_ref(channel), &options).await?.answer();
        all.extend(rows(&answer));
        if limit.is_none() || answer.rows.is_empty() {
            return Ok(all);
        }
        options = options.since(answer.last.sequence);
    }
}

/// Compares all answers, in one piece and in pages, with those that are right.
pub(crate) async fn answers(store: &Arc<dyn CacheStore>, expected: &BTreeMap<String, Rows>) -> Result<(), Failure> {
    let pages = [None, Some(1), Some(3), Some(100)];
    for delivery in [Delivery::Strict, Delivery::Eager] {
        for limit in pages {
            let reader = reader(store).await.map_err(failed("open a reader"))?;
            for channel in channels() {
                let what = format!("channel {channel}, {delivery:?}, pages of {limit:?}");
                let found = ask(&reader, &channel, delivery, limit).await.map_err(failed(&what))?;
                let expected = &expected[&channel.to_string()];
                if found != *expected {
                    return Err(Failure::Answers(format!("{what}: {found:?} instead of {expected:?}")));
                }
            }
        }
    }
    Ok(())
}

/// Rows of each answer to a client that continues.
const CLIENT_LIMIT: usize = 3;

/// Clients that follow one channel each, from the first term to the end.
#[derive(Debug)]
pub(crate) struct Clients {
    reader: ReaderNode,
    /// Each with all rows that it was told.
    all: Vec<(Client, Rows)>,
}

impl Clients {
    /// Clients of a cache; none if there is no cache yet.
    pub(crate) async fn open(store: &Arc<dyn CacheStore>) -> Option<Clients> {
        let reader = reader(store).await.ok()?;
        let client = |channel| (Client::new(&reader, channel, CLIENT_LIMIT), Rows::new());
        let all = channels().map(client).collect();
        Some(Clients { reader, all })
    }

    /// Takes in what is new.
    pub(crate) async fn look(&mut self) -> Result<(), Failure> {
        self.reader.refresh().await.map_err(failed("refresh a reader"))?;
        for (client, known) in &mut self.all {
            let told = client.told().await;
            known.extend(told.map_err(failed(format!("a client of channel {}", client.channel())))?);
        }
        Ok(())
    }

    /// What a client was told last of a document must be what is right.
    pub(crate) fn compare(&self, expected: &BTreeMap<String, Rows>) -> Result<(), Failure> {
        for (client, known) in &self.all {
            let channel = client.channel().to_string();
            for row in &expected[&channel] {
                let last = known.iter().rev().find(|other| other.1 == row.1);
                if last != Some(row) {
                    let what = format!("channel {channel}: {last:?} came last, {row:?} is right, of {known:?}");
                    return Err(Failure::Client(what));
                }
            }
        }
        Ok(())
    }
}

/// Checks the cache by its own rules. Stray rows are left out: no answer shows them.
pub(crate) async fn check(store: &Arc<dyn CacheStore>) -> Result<(), Failure> {
    let report = verify(store.as_ref(), &VerifyOptions::default().feed(FEED)).await;
    let report = report.map_err(|error| Failure::Check(format!("{error:?}")))?;
    let findings: Vec<_> = report.findings.iter().filter(|finding| finding.problem != Problem::StrayRow).collect();
    if findings.is_empty() { Ok(()) } else { Err(Failure::Check(format!("{findings:?}"))) }
}
