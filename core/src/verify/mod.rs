//! Checks a whole cache against its own rules, as `fsck` does a file system.
//!
//! The store is asked for nothing but documents by key, and nothing is written. What is found is named by its key, so that it can be looked at.
//! Memory: a set of channels with the numbers of their blocks, and for one channel at a time one small entry a document.
mod checks;
mod findings;

use serde::Serialize;

use crate::channel::{Channel, ChannelMap};
use crate::clock::PublishedClock;
use crate::commit::read_clock;
use crate::error::{Error, ErrorKind, Result};
use crate::key::CacheKey;
use crate::meta::Meta;
use crate::sequence::RangeSet;
use crate::store::CacheStore;
use checks::Verifier;
use findings::unreadable;

pub use findings::{Finding, Problem};

/// What to check, besides everything that can be found from the clock and the star channel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VerifyOptions {
    /// The feed whose checkpoint is checked, as [`FeedInfo::checkpoint_name`](crate::feed::FeedInfo::checkpoint_name) gives it. Nothing else
    /// tells a checkpoint's key.
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
    /// Sequence documents read by way of the star channel.
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
/// be read and is what its key says; that in every channel of every entry the block says what it must and the directory lists it; and that each channel shows each
/// document once, at its newest sequence, with nothing missing of what the clock promises.
///
/// Exact where nobody writes meanwhile. Beside a running writer, what is found is looked for again, and only what is found twice is reported;
/// still, what comes late just then may look wrong: run it once more.
///
/// Cancel safe; may be repeated. It reads every document of the cache about once a channel.
///
/// # Errors
/// `NotFound` if the store holds no cache; `ConfigInvalid` if this build does not know its codec; what the store says if it cannot be read.
/// What is wrong with the cache itself is in the report.
pub async fn verify(store: &dyn CacheStore, options: &VerifyOptions) -> Result<VerifyReport> {
    let first = verify_once(store, options).await?;
    let Some(clock) = first.clock.as_ref().filter(|_| !first.is_clean()) else { return Ok(first) };
    if read_clock(store).await.is_ok_and(|now| now.is_some_and(|now| now.value.batch == clock.batch)) {
        return Ok(first);
    }
    let mut second = verify_once(store, options).await?;
    second.findings.retain(|finding| first.findings.iter().any(|f| f.problem == finding.problem && f.key == finding.key));
    Ok(second)
}

async fn verify_once(store: &dyn CacheStore, options: &VerifyOptions) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let meta = store.get(&CacheKey::Meta).await?;
    let clock = match read_clock(store).await {
        Ok(clock) => clock.map(|found| found.value),
        Err(e) if e.kind() == ErrorKind::Corrupt => {
            report.findings.push(unreadable(CacheKey::Clock, &e));
            return Ok(report);
        }
        Err(e) => return Err(e),
    };
    let (meta, clock) = match (meta, clock) {
        (None, None) => return Err(Error::new(ErrorKind::NotFound, "the store holds no cache")),
        (Some(meta), Some(clock)) => (meta, clock),
        (meta, _) => {
            let key = if meta.is_none() { CacheKey::Meta } else { CacheKey::Clock };
            report.findings.push(Finding { problem: Problem::Missing, key, detail: "the rest of the cache is there".into() });
            return Ok(report);
        }
    };
    report.clock = Some(clock.clone());
    let meta = match Meta::from_bytes(&meta.value) {
        Ok(meta) => meta,
        Err(e) => {
            report.findings.push(unreadable(CacheKey::Meta, &e));
            return Ok(report);
        }
    };
    let mut verifier = Verifier {
        store,
        codec: meta.block_codec()?,
        meta,
        clock,
        unpublished: RangeSet::new(),
        directories: ChannelMap::default(),
        channels: Vec::new(),
        max_findings: options.max_findings,
        report,
    };
    verifier.clock();
    verifier.records().await?;
    verifier.late_pages().await?;
    if let Some(feed) = &options.feed {
        verifier.checkpoint(feed).await?;
    }
    verifier.know(&Channel::star()).await?;
    let mut next = 0;
    while let Some(channel) = verifier.channels.get(next).cloned() {
        verifier.channel(&channel).await?;
        next += 1;
    }
    Ok(verifier.report)
}
