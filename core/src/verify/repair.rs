//! Rebuilding what is wrong from what is sound.

use futures::future::BoxFuture;
use serde::Serialize;

use super::findings::{Action, Repair};
use super::sweep::Sweep;
use super::{Look, NAMED, Opened, VerifyOptions, VerifyReport, is_there, look, open, with_checkpoint};
use crate::clock::{Epoch, PublishedClock};
use crate::commit::{clock_lost, guard, stamp_checkpoint, update};
use crate::coordinate::next_epoch;
use crate::error::{Error, ErrorKind, Result};
use crate::key::CacheKey;
use crate::sequence::Sequence;
use crate::store::CacheStore;

/// How often it goes round at most: what is rebuilt may bring more to light.
const ROUNDS: usize = 4;

/// What to repair, and how.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RepairOptions {
    /// What to check, and how much to report.
    pub verify: VerifyOptions,
    /// Forget the feed's position, so that the next writer reads the feed from its beginning: what is lost is then taken again, as late. Needs
    /// the name of the feed, if the cache does not record it.
    pub from_beginning: bool,
}

impl RepairOptions {
    /// Looks at the checkpoint of this feed too.
    #[must_use]
    pub fn feed(mut self, checkpoint_name: impl Into<String>) -> Self {
        self.verify = self.verify.feed(checkpoint_name);
        self
    }

    /// Reports at most so many findings, and repairs.
    #[must_use]
    pub fn max_findings(mut self, max: usize) -> Self {
        self.verify = self.verify.max_findings(max);
        self
    }

    /// Forgets the feed's position.
    #[must_use]
    pub fn from_beginning(mut self) -> Self {
        self.from_beginning = true;
        self
    }
}

/// What was repaired, and what is left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RepairReport {
    /// The term that the repair took; none if there was nothing to do, or nothing that could be done.
    pub epoch: Option<Epoch>,
    /// What was done.
    pub repairs: Vec<Repair>,
    /// Repairs beyond those listed.
    pub more_repairs: u64,
    /// What a check found afterwards.
    pub left: VerifyReport,
}

impl RepairReport {
    /// What is lost.
    pub fn lost(&self) -> impl Iterator<Item = &Repair> {
        self.repairs.iter().filter(|repair| repair.action == Action::Lost)
    }
}

/// Checks the cache in `store` as [`verify`](super::verify) does, rebuilds what is wrong from what is sound, and checks again. Nothing is
/// written to a cache that is sound.
///
/// * **Blocks** and **directories** are rebuilt from the sequence documents, which are found through the star channel's blocks, or by reading every
///   number where such a block is broken. **Pointers** too. **Counters** begin anew above what they can have been.
/// * **Sequence documents** that are broken are stored again from the ring of batch records. What is not in there is **lost**: the
///   broken document is removed, and blocks go on naming it, so that requests that need it fail and name it, and no others. Its number is put among
///   those given up: a writer that reads the feed again from before it ([`from_beginning`](RepairOptions::from_beginning)) takes it as late. Without that,
///   the cache must be made anew in another namespace.
/// * **Batch records** are removed: readers that are behind begin again from the clock. **Late pages** are rebuilt from batch records; for late
///   numbers that these do not hold any more, requests with an older late cursor fail. A **checkpoint** is put back to the
///   feed's beginning: the next writer reads all of it.
/// * The **clock** and the cache's **description** cannot be made up for. If one of them is wrong, nothing is repaired.
///
/// A repair takes a term, as a writer does. So a live writer is fenced, and if one takes over meanwhile the repair ends as `Fenced`. Everything is
/// written by compare-and-swap, but for what the store itself cannot read: that is removed first.
///
/// Cancel safe: cut off anywhere, it may be run again. It reads the cache three times at least.
///
/// # Errors
/// As [`verify`](super::verify); `ConfigInvalid` to begin anew without the name of the feed; `Fenced` if a writer takes over.
pub fn repair<'a>(store: &'a dyn CacheStore, options: &'a RepairOptions) -> BoxFuture<'a, Result<RepairReport>> {
    Box::pin(repair_all(store, options))
}

async fn repair_all(store: &dyn CacheStore, options: &RepairOptions) -> Result<RepairReport> {
    let mut options = options.clone();
    options.verify = with_checkpoint(store, &options.verify).await?;
    let options = &options;
    if options.from_beginning {
        let Some(feed) = options.verify.feed.as_deref() else {
            return Err(Error::config("to forget the feed's position, the name of the feed must be given").with_next_step(NAMED));
        };
        if !is_there(store, feed).await? {
            let message = format!("the cache has no checkpoint of a feed `{feed}`, so there is no position to reset");
            return Err(Error::config(message).with_next_step(NAMED));
        }
    }
    let mut found = look(store, &options.verify).await?;
    let mut report = RepairReport::default();
    let mut forget = options.from_beginning;
    for round in 0..ROUNDS {
        let is_hopeless = found.report.findings.iter().any(|finding| matches!(finding.key, CacheKey::Clock | CacheKey::Meta));
        let is_to_do = !found.report.is_clean() || forget;
        if is_hopeless || !is_to_do {
            break;
        }
        let epoch = match report.epoch {
            Some(epoch) => epoch,
            None => *report.epoch.insert(begin(store, options.verify.feed.as_deref()).await?),
        };
        let did = repair_once(store, options, epoch, forget, &found, &mut report).await?;
        forget = false;
        found = look(store, &options.verify).await?;
        if did == 0 || round + 1 == ROUNDS {
            break;
        }
    }
    report.left = found.report;
    Ok(report)
}

/// Begins a term: whoever wrote before can publish no more. Nor can it store the checkpoint any more, if that is known: one ahead of the
/// clock says that what is not published yet is stored, which a repair may find otherwise.
async fn begin(store: &dyn CacheStore, feed: Option<&str>) -> Result<Epoch> {
    let epoch = next_epoch(store).await?;
    update(store, &CacheKey::Clock, |stored| {
        let mut clock = PublishedClock::from_bytes(stored.ok_or_else(clock_lost)?)?;
        guard(epoch, clock.epoch)?;
        clock.epoch = epoch;
        Ok(Some(clock.to_bytes()))
    })
    .await?;
    if let Some(feed) = feed {
        match stamp_checkpoint(store, epoch, feed).await {
            // One that cannot be read cannot be written over either. One of a later term is wrong, or a writer has taken over: either is found out.
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Fenced) => {}
            stamped => drop(stamped?),
        }
    }
    tracing::info!(%epoch, "repairing");
    Ok(epoch)
}

/// Goes over everything once; how much was done, but for what is lost.
async fn repair_once(
    store: &dyn CacheStore,
    options: &RepairOptions,
    epoch: Epoch,
    forget: bool,
    found: &Look,
    report: &mut RepairReport,
) -> Result<u64> {
    let Opened::Pass(mut pass) = open(store, &options.verify, Some(epoch)).await? else { return Ok(0) };
    let feed = options.verify.feed.as_deref();
    pass.records().await?;
    pass.late_pages().await?;
    pass.intent().await?;
    pass.lists().await?;
    let swept = Sweep::run(&mut pass, &found.known).await?;
    let done = pass.repairs.len() as u64 + pass.more_repairs;
    pass.lose(&swept.lost, feed).await?;
    for sequence in swept.lost_above.iter().flat_map(|(first, last)| first..=last).map(Sequence) {
        let detail = format!("requests that need it fail; repair again when stable, {}, has passed it", pass.clock.stable);
        pass.did(Action::Lost, CacheKey::Sequence(sequence), detail);
    }
    // Last: until then, a writer would go on from where it was, which is as well.
    if let Some(feed) = feed {
        pass.checkpoint(feed, forget).await?;
    }
    let more =
        (pass.repairs.len() as u64 + pass.more_repairs).saturating_sub(done + swept.lost.count() + swept.lost_above.count());
    for repair in pass.repairs {
        if report.repairs.contains(&repair) {
            continue;
        }
        if report.repairs.len() < options.verify.max_findings.max(1) {
            report.repairs.push(repair);
        } else {
            report.more_repairs += 1;
        }
    }
    report.more_repairs += pass.more_repairs;
    Ok(done + more)
}
