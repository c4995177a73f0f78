//! Checks a whole cache against its own rules, as `fsck` does a file system, and rebuilds what can be rebuilt.
//!
//! The store is asked for nothing but documents by key; looking writes nothing. What is found is
//! named by its key, so that it can be looked at. Memory: a set of channels with the numbers of
//! their blocks, the blocks of one number in all channels, 16 bytes for each mark that falls on
//! lower ones, and 16 bytes for each document in each of its channels.

mod findings;
mod pass;
mod pointers;
mod published;
mod repair;
mod rules;
mod sweep;
mod window;

use futures::future::BoxFuture;
use serde::Serialize;

use crate::clock::{Epoch, PublishedClock};
use crate::commit::read_clock;
use crate::error::{Error, ErrorKind, Result};
use crate::key::CacheKey;
use crate::meta::Meta;
use crate::store::CacheStore;
use pass::Pass;
use sweep::{Known, Sweep};

pub use findings::{Action, Finding, Problem, Repair};
pub use repair::{RepairOptions, RepairReport, repair};

/// What to check, besides everything that can be found from the clock and the star channel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VerifyOptions {
    /// The feed whose checkpoint is checked, as
    /// [`FeedInfo::checkpoint_name`](crate::feed::FeedInfo::checkpoint_name) gives it. By default
    /// the name that the cache records. Older builds did not record one; then the checkpoint is not
    /// checked.
    pub feed: Option<String>,
    /// Findings reported at most; the rest is counted.
    pub max_findings: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        VerifyOptions { feed: None, max_findings: 1_000 }
    }
}

impl VerifyOptions {
    /// Checks the checkpoint of this feed too.
    #[must_use]
    pub fn feed(mut self, checkpoint_name: impl Into<String>) -> Self {
        self.feed = Some(checkpoint_name.into());
        self
    }

    /// Reports at most so many findings.
    #[must_use]
    pub fn max_findings(mut self, max: usize) -> Self {
        self.max_findings = max;
        self
    }
}
/// What was checked and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The clock against which everything was checked, if there is one that can be read.
    pub clock: Option<PublishedClock>,
    /// Channels checked, the star channel among them.
    pub channels: u64,
    /// Blocks checked.
    pub blocks: u64,
    /// Sequence documents read.
    pub documents: u64,
    /// Rows that are shown, over all channels.
    pub rows: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Findings beyond those listed.
    pub more_findings: u64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Checks the cache in `store`: that the clock, the record of the last batches, late pages and checkpoint agree; that every sequence document can
/// be read and is what its key says; that in every channel of every entry the block says what it must and the directory lists it; that each channel shows each
/// document once, at its newest sequence, with nothing missing of what the clock promises; and that pointers can be read, if there are any.
///
/// Exact where nobody writes meanwhile. Beside a running writer, what is found is looked for again, and only what is found twice is reported;
/// still, what comes late just then may look wrong: run it once more.
///
/// Cancel safe; may be repeated. It reads every document of the cache about once.
///
/// # Errors
/// `NotFound` if the store holds no cache; `ConfigInvalid` if this build does not know its codec,
/// or if the cache is made from a feed with another checkpoint; what the store says if it cannot be
/// read. What is wrong with the cache itself is in the report.
pub fn verify<'a>(store: &'a dyn CacheStore, options: &'a VerifyOptions) -> BoxFuture<'a, Result<VerifyReport>> {
    Box::pin(async {
        let options = with_checkpoint(store, options).await?;
        Ok(look(store, &options).await?.report)
    })
}

/// The options with the name of the checkpoint that the cache has, as far as that is known: it is
/// recorded; of a cache of format version 1, only the checkpoint itself tells.
///
/// # Errors
/// `ConfigInvalid` if another one is named.
async fn with_checkpoint(store: &dyn CacheStore, options: &VerifyOptions) -> Result<VerifyOptions> {
    let mut options = options.clone();
    let meta = match store.get(&CacheKey::Meta).await {
        // A finding of its own.
        Err(e) if e.kind() == ErrorKind::Corrupt => None,
        stored => stored?.and_then(|stored| Meta::from_bytes(&stored.value).ok()),
    };
    let Some(meta) = meta else { return Ok(options) };
    let other = match (&options.feed, meta.checkpoint) {
        (Some(name), Some(own)) => (*name != own).then(|| format!("`{own}`")),
        (Some(name), None) => {
            let is_other = meta.format == 1 && !is_there(store, name).await?;
            is_other.then(|| "another one".to_owned())
        }
        (None, own) => {
            options.feed = own;
            None
        }
    };
    let (Some(name), Some(other)) = (&options.feed, other) else { return Ok(options) };
    let message = format!("the cache is not made from a feed with the checkpoint `{name}`, but from {other}");
    Err(Error::config(message).with_next_step(NAMED))
}

/// What to do about a wrong name.
const NAMED: &str = "give the name as `sluicegate run` tells it when it starts, such as dcp:BUCKET";

/// Whether there is a checkpoint with this name.
async fn is_there(store: &dyn CacheStore, name: &str) -> Result<bool> {
    match store.get(&CacheKey::Checkpoint(name.to_owned())).await {
        // A document that the store itself cannot read exists.
        Err(e) if e.kind() == ErrorKind::Corrupt => Ok(true),
        stored => Ok(stored?.is_some()),
    }
}

/// A look at a cache, and what it was looked at with.
#[derive(Debug, Default)]
struct Look {
    report: VerifyReport,
    /// What a walk must know from the start; empty if there was none before.
    known: Known,
}

async fn look(store: &dyn CacheStore, options: &VerifyOptions) -> Result<Look> {
    let first = look_once(store, options).await?;
    let Some(clock) = first.report.clock.as_ref().filter(|_| !first.report.is_clean()) else { return Ok(first) };
    if read_clock(store).await.is_ok_and(|now| now.is_some_and(|now| now.value.batch == clock.batch)) {
        return Ok(first);
    }
    let mut second = look_once(store, options).await?;
    // A block changes with the writer, and may look wrong here and there for a moment; other details tell how far the writer is.
    let is_same = |a: &Finding, b: &Finding| {
        a.problem == b.problem && a.key == b.key && (a.detail == b.detail || !matches!(a.key, CacheKey::Block(..)))
    };
    second.report.findings.retain(|finding| first.report.findings.iter().any(|before| is_same(before, finding)));
    Ok(second)
}

async fn look_once(store: &dyn CacheStore, options: &VerifyOptions) -> Result<Look> {
    let mut pass = match open(store, options, None).await? {
        Opened::Pass(pass) => pass,
        Opened::Unusable(report) => return Ok(Look { report, known: Known::default() }),
    };
    pass.check_clock();
    pass.records().await?;
    pass.late_pages().await?;
    pass.intent().await?;
    pass.lists().await?;
    if let Some(feed) = &options.feed {
        pass.checkpoint(feed, false).await?;
    }
    let (before, mut known) = (pass.report.clone(), Known::default());
    loop {
        let swept = Sweep::run(&mut pass, &known).await?;
        if !known.learn(swept) {
            return Ok(Look { report: pass.report, known });
        }
        pass.report = before.clone();
    }
}

/// A cache that can be looked at, or why not.
enum Opened<'a> {
    Pass(Box<Pass<'a>>),
    Unusable(VerifyReport),
}

async fn open<'a>(store: &'a dyn CacheStore, options: &VerifyOptions, term: Option<Epoch>) -> Result<Opened<'a>> {
    let unusable = |finding| Ok(Opened::Unusable(VerifyReport { findings: vec![finding], ..VerifyReport::default() }));
    let meta = match store.get(&CacheKey::Meta).await {
        Err(e) if e.kind() == ErrorKind::Corrupt => return unusable(Finding::unreadable(CacheKey::Meta, &e)),
        meta => meta?,
    };
    let clock = match read_clock(store).await {
        Ok(clock) => clock.map(|found| found.value),
        Err(e) if e.kind() == ErrorKind::Corrupt => return unusable(Finding::unreadable(CacheKey::Clock, &e)),
        Err(e) => return Err(e),
    };
    let (meta, clock) = match (meta, clock) {
        (None, None) => return Err(Error::new(ErrorKind::NotFound, "the store holds no cache")),
        (Some(meta), Some(clock)) => (meta, clock),
        (meta, _) => {
            let key = if meta.is_none() { CacheKey::Meta } else { CacheKey::Clock };
            return unusable(Finding { problem: Problem::Missing, key, detail: "the rest of the cache is there".into() });
        }
    };
    match Meta::from_bytes(&meta.value) {
        Ok(meta) => Ok(Opened::Pass(Box::new(Pass::new(store, meta, clock, term, options)?))),
        Err(e) => {
            let findings = vec![Finding::unreadable(CacheKey::Meta, &e)];
            Ok(Opened::Unusable(VerifyReport { clock: Some(clock), findings, ..VerifyReport::default() }))
        }
    }
}
