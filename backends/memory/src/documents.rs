//! Everything that is neither a sequence nor a channel's: few documents, and the clock among them.

use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use sluicegate_core::batch::{BatchRecord, Checkpoint, LatePage, Publication};
use sluicegate_core::commit::{clock_lost, guard};
use sluicegate_core::store::{Version, Versioned};
use sluicegate_core::{CacheKey, Epoch, Error, ErrorKind, PublishedClock, Result};
use tokio::time::Instant;

use crate::value::{Area, Raw, Stored, key_bytes, map_bytes};

/// Documents by key.
#[derive(Debug, Default)]
pub(crate) struct Documents(FxHashMap<CacheKey, (Document, Version)>);

#[derive(Debug)]
enum Document {
    Raw(Raw),
    Native(Stored),
}

impl Documents {
    /// Bytes of all of them.
    pub(crate) fn memory_bytes(&self) -> usize {
        let document = |(key, (document, _)): (&CacheKey, &(Document, Version))| {
            key_bytes(key)
                + match document {
                    Document::Raw(raw) => raw.bytes.len(),
                    Document::Native(stored) => stored.memory_bytes(),
                }
        };
        map_bytes(&self.0) + self.0.iter().map(document).sum::<usize>()
    }

    /// The batch record at `key`.
    pub(crate) fn record(&self, key: &CacheKey) -> Result<Option<Arc<BatchRecord>>> {
        match self.read(key) {
            Some((Stored::Record(record), _)) => Ok(Some(record)),
            other => parsed(key, other, BatchRecord::from_bytes),
        }
    }

    fn late_page(&self, key: &CacheKey) -> Result<Option<Arc<LatePage>>> {
        match self.read(key) {
            Some((Stored::Late(page), _)) => Ok(Some(page)),
            other => parsed(key, other, LatePage::from_bytes),
        }
    }

    fn checkpoint_epoch(&self, key: &CacheKey) -> Result<Option<Epoch>> {
        match self.read(key) {
            Some((Stored::Checkpoint(checkpoint), _)) => Ok(Some(checkpoint.epoch)),
            other => Ok(parsed(key, other, Checkpoint::from_bytes)?.map(|checkpoint| checkpoint.epoch)),
        }
    }

    fn clock(&self) -> Result<Option<Versioned<PublishedClock>>> {
        let Some((stored, version)) = self.read(&CacheKey::Clock) else { return Ok(None) };
        let value = match stored {
            Stored::Clock(clock) => (*clock).clone(),
            other => PublishedClock::from_bytes(&other.encode()).map_err(|e| e.with_context("key", CacheKey::Clock))?,
        };
        Ok(Some(Versioned { value, version }))
    }

    fn keep(&mut self, key: CacheKey, stored: Stored, version: Version) {
        self.0.insert(key, (Document::Native(stored), version));
    }

    /// As the provided [`publish`](sluicegate_core::commit::publish) after the pointers, except that nothing is written unless everything is.
    pub(crate) fn publish(
        &mut self,
        publication: &Publication,
        last: &Versioned<PublishedClock>,
        version: Version,
    ) -> Result<Versioned<PublishedClock>> {
        let Publication { record, ring, checkpoint, clock, .. } = publication;
        let epoch = clock.epoch;

        let mut pages = Vec::new();
        for (key, late) in record.late_pages() {
            let mut shared = self.late_page(&key)?.unwrap_or_default();
            guard(epoch, shared.epoch).map_err(|e| e.with_context("key", &key))?;
            Arc::make_mut(&mut shared).append(epoch, late);
            pages.push((key, shared));
        }
        let record_key = CacheKey::Batch(record.number % (*ring).max(1));
        if let Some(stored) = self.record(&record_key)? {
            guard(epoch, stored.epoch).map_err(|e| e.with_context("key", &record_key))?;
        }
        let mut new_checkpoint = None;
        if let Some((feed, checkpoint)) = checkpoint {
            let key = CacheKey::Checkpoint(feed.clone());
            if let Some(stored) = self.checkpoint_epoch(&key)? {
                guard(epoch, stored).map_err(|e| e.with_context("key", &key))?;
            }
            new_checkpoint = Some((key, Arc::new(checkpoint.clone())));
        }
        if let Some(published) = self.check_clock(clock, last)? {
            return Ok(published);
        }

        for (key, page) in pages {
            self.keep(key, Stored::Late(page), version);
        }
        self.keep(record_key, Stored::Record(record.clone()), version);
        if let Some((key, checkpoint)) = new_checkpoint {
            self.keep(key, Stored::Checkpoint(checkpoint), version);
        }
        self.keep(CacheKey::Clock, Stored::Clock(Arc::new(clock.clone())), version);
        Ok(Versioned { value: clock.clone(), version })
    }

    /// Whether the clock may be written over; the stored one if an earlier try did that already.
    fn check_clock(&self, clock: &PublishedClock, last: &Versioned<PublishedClock>) -> Result<Option<Versioned<PublishedClock>>> {
        let back = |earlier: &PublishedClock| match clock.lost_since(earlier) {
            Some(why) => Err(Error::new(ErrorKind::Unexpected, format!("refused to publish a clock that goes back: {why}"))
                .with_context("key", CacheKey::Clock)),
            None => Ok(()),
        };
        back(&last.value)?;
        if self.version(&CacheKey::Clock) == Some(last.version) {
            return Ok(None);
        }
        let known = self.clock()?.ok_or_else(clock_lost)?;
        guard(clock.epoch, known.value.epoch)?;
        if let Some(why) = known.value.lost_since(&last.value) {
            return Err(Error::corrupt(format!("the store lost acknowledged writes: {why}")).with_context("key", CacheKey::Clock));
        }
        if known.value.batch >= clock.batch {
            return Ok(Some(known));
        }
        back(&known.value)?;
        Ok(None)
    }
}

fn parsed<T>(
    key: &CacheKey,
    stored: Option<(Stored, Version)>,
    parse: impl FnOnce(&[u8]) -> Result<T>,
) -> Result<Option<Arc<T>>> {
    let value = stored.map(|(stored, _)| parse(&stored.encode())).transpose();
    value.map(|value| value.map(Arc::new)).map_err(|e| e.with_context("key", key))
}

impl Area for Documents {
    fn read(&self, key: &CacheKey) -> Option<(Stored, Version)> {
        match self.0.get(key)? {
            (Document::Raw(raw), version) => (!raw.is_over()).then(|| (Stored::Bytes(raw.bytes.clone()), *version)),
            (Document::Native(stored), version) => Some((stored.clone(), *version)),
        }
    }

    fn version(&self, key: &CacheKey) -> Option<Version> {
        match self.0.get(key)? {
            (Document::Raw(raw), version) => (!raw.is_over()).then_some(*version),
            (Document::Native(_), version) => Some(*version),
        }
    }

    fn put(&mut self, key: &CacheKey, value: Bytes, deadline: Option<Instant>, version: Version) {
        self.0.insert(key.clone(), (Document::Raw(Raw { bytes: value, deadline }), version));
    }

    fn take(&mut self, key: &CacheKey) {
        self.0.remove(key);
    }
}
