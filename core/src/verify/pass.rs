//! One pass over a cache: what it is looked at with, what was found, and how a repair writes.

use std::sync::Arc;

use bytes::Bytes;

use super::findings::{Action, Finding, Problem, Repair};
use super::published::Published;
use super::{VerifyOptions, VerifyReport};
use crate::block::BlockCodec;
use crate::clock::{Epoch, PublishedClock};
use crate::commit::clock_lost;
use crate::entry::ChangeEntry;
use crate::error::{Error, ErrorKind, Result};
pub(super) use crate::fenced::Change;
use crate::fenced::Fenced;
use crate::key::CacheKey;
use crate::meta::Meta;
use crate::sequence::{RangeSet, Sequence};
use crate::store::CacheStore;

/// One pass over a cache.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    pub(super) store: &'a dyn CacheStore,
    pub(super) codec: Arc<dyn BlockCodec>,
    pub(super) meta: Meta,
    pub(super) clock: PublishedClock,
    /// The term in which it repairs; none if it only looks.
    pub(super) term: Option<Epoch>,
    pub(super) published: Published,
    pub(super) report: VerifyReport,
    /// What was done, and how much of it is not listed.
    pub(super) repairs: Vec<Repair>,
    pub(super) more_repairs: u64,
    max_findings: usize,
}

/// A sequence document as it was read.
#[derive(Debug)]
pub(super) enum Document {
    Missing,
    /// With what is wrong with it.
    Broken(Finding),
    Entry(Arc<ChangeEntry>),
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        store: &'a dyn CacheStore,
        meta: Meta,
        clock: PublishedClock,
        term: Option<Epoch>,
        options: &VerifyOptions,
    ) -> Result<Self> {
        Ok(Pass {
            store,
            codec: meta.block_codec()?,
            meta,
            report: VerifyReport { clock: Some(clock.clone()), ..VerifyReport::default() },
            clock,
            term,
            published: Published::default(),
            repairs: Vec::new(),
            more_repairs: 0,
            max_findings: options.max_findings.max(1),
        })
    }

    /// Reports what is wrong.
    pub(super) fn found(&mut self, problem: Problem, key: CacheKey, detail: impl Into<String>) {
        self.push(Finding { problem, key, detail: detail.into() });
    }

    /// Reports what is wrong.
    pub(super) fn push(&mut self, finding: Finding) {
        // The same thing may be seen from several sides.
        if self.report.findings.contains(&finding) {
            return;
        }
        if self.report.findings.len() < self.max_findings {
            self.report.findings.push(finding);
        } else {
            self.report.more_findings += 1;
        }
    }

    /// Reports what was done about it.
    pub(super) fn did(&mut self, action: Action, key: CacheKey, detail: impl Into<String>) {
        let repair = Repair { action, key, detail: detail.into() };
        tracing::info!(%repair, "repaired");
        if self.repairs.len() < self.max_findings {
            self.repairs.push(repair);
        } else {
            self.more_repairs += 1;
        }
    }

    /// Whether readers were promised that everything about the entry is stored.
    pub(super) fn is_promised(&self, sequence: Sequence) -> bool {
        sequence.number() <= self.clock.high && !self.published.missing.contains(sequence.0)
    }

    /// Whether everything about the entry must be stored: it is promised, or in a published record.
    pub(super) fn is_required(&self, sequence: Sequence) -> bool {
        self.is_promised(sequence) || self.published.batches.contains_key(&sequence)
    }

    /// Whether readers leave out what blocks say of a sequence whose document is not there: it is
    /// given up, and neither `lost` nor in a published record. A deposed writer has stored it.
    /// Nothing is, if it is not known what is lost.
    pub(super) fn is_left_out(&self, sequence: Sequence, lost: Option<&RangeSet>) -> bool {
        let Published { given_up, batches, .. } = &self.published;
        let is_lost = lost.is_none_or(|lost| lost.contains(sequence.0));
        !is_lost && given_up.contains(sequence.0) && !batches.contains_key(&sequence)
    }

    /// What is at a key; or what is wrong with it, where the store itself cannot read it.
    pub(super) async fn get(&self, key: &CacheKey) -> Result<Option<Result<Bytes>>> {
        match self.store.get(key).await {
            Ok(found) => Ok(found.map(|found| Ok(found.value))),
            Err(e) if e.kind() == ErrorKind::Corrupt => Ok(Some(Err(e))),
            Err(e) => Err(e),
        }
    }

    /// The same of several keys.
    pub(super) async fn get_many(&self, keys: &[CacheKey]) -> Result<Vec<Option<Result<Bytes>>>> {
        match self.store.get_many(keys).await {
            Ok(found) => Ok(found.into_iter().map(|found| found.map(|found| Ok(found.value))).collect()),
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                let mut found = Vec::with_capacity(keys.len());
                for key in keys {
                    found.push(self.get(key).await?);
                }
                Ok(found)
            }
            Err(e) => Err(e),
        }
    }

    /// Several sequence documents, each with what is wrong with it.
    pub(super) async fn documents(&self, sequences: &[Sequence]) -> Result<Vec<(Sequence, Document)>> {
        let judged = |sequence: Sequence, entry: Option<Arc<ChangeEntry>>| match entry {
            None => Document::Missing,
            Some(entry) if entry.position() == sequence => Document::Entry(entry),
            Some(entry) => {
                let detail = format!("it is the entry of {}", entry.position().shown());
                Document::Broken(Finding { problem: Problem::Misplaced, key: CacheKey::Sequence(sequence), detail })
            }
        };
        match self.store.entries(sequences).await {
            Ok(entries) => Ok(sequences.iter().zip(entries).map(|(s, entry)| (*s, judged(*s, entry))).collect()),
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                let mut read = Vec::with_capacity(sequences.len());
                for &sequence in sequences {
                    let key = CacheKey::Sequence(sequence);
                    let document = match self.get(&key).await? {
                        None => Document::Missing,
                        Some(stored) => match stored.and_then(|bytes| ChangeEntry::from_bytes(&bytes)) {
                            Ok(entry) => judged(sequence, Some(Arc::new(entry))),
                            Err(e) => Document::Broken(Finding::unreadable(key, &e)),
                        },
                    };
                    read.push((sequence, document));
                }
                Ok(read)
            }
            Err(e) => Err(e),
        }
    }

    /// What writes in the pass's term.
    fn fenced(&self) -> Result<Fenced<'_>> {
        let looks = || Error::new(ErrorKind::Unexpected, "a pass that only looks was to write");
        Ok(Fenced { store: self.store, term: self.term.ok_or_else(looks)?, removes_unreadable: true })
    }

    /// As [`Fenced::rewrite`].
    pub(super) async fn rewrite(
        &self,
        key: &CacheKey,
        change: impl FnMut(Option<&[u8]>) -> Result<Change> + Send,
    ) -> Result<bool> {
        self.fenced()?.rewrite(key, change).await.map_err(by_repair)
    }

    /// Removes a document, if it is still as `broken` says.
    pub(super) async fn remove_if(&self, key: &CacheKey, broken: impl Fn(&[u8]) -> bool + Send + Sync) -> Result<bool> {
        self.rewrite(key, |stored| Ok(if stored.is_some_and(&broken) { Change::Remove } else { Change::Keep })).await
    }

    /// Removes the document of a sequence, if it is none.
    pub(super) async fn remove_broken(&self, sequence: Sequence) -> Result<bool> {
        let is_sound = |bytes: &[u8]| ChangeEntry::from_bytes(bytes).is_ok_and(|entry| entry.position() == sequence);
        self.remove_if(&CacheKey::Sequence(sequence), |bytes| !is_sound(bytes)).await
    }

    /// Begins a counter anew, above the number of batches: it grows at most once a batch, but for what is repeated.
    pub(super) async fn restart_counter(&self, key: &CacheKey) -> Result<()> {
        self.fenced()?.check().await.map_err(by_repair)?;
        self.store.remove(key, None).await?;
        self.store.increment(key, 2 * self.clock.batch.max(1)).await.map(drop)
    }

    /// The clock's field `checkpoint`, set to what there is.
    pub(super) async fn set_checkpoint_batch(&mut self, batch: u64) -> Result<()> {
        self.rewrite(&CacheKey::Clock, |stored| {
            let mut clock = PublishedClock::from_bytes(stored.ok_or_else(clock_lost)?)?;
            if clock.checkpoint == batch {
                return Ok(Change::Keep);
            }
            clock.checkpoint = batch;
            Ok(Change::Put(clock.to_bytes()))
        })
        .await?;
        self.clock.checkpoint = batch;
        Ok(())
    }
}

/// Says of an error what to do about it here.
fn by_repair(error: Error) -> Error {
    let error = error.with_operation("repair");
    match error.kind() {
        ErrorKind::Fenced => error.with_next_step("a writer has taken over: stop it, then repair again"),
        _ => error,
    }
}
