//! Publishing in one round trip.

use redis::{Value, cmd};
use sluicegate_core::batch::{BatchRecord, Checkpoint, LatePage, Publication};
use sluicegate_core::commit::{self, guard, store_pointers};
use sluicegate_core::store::{Version, Versioned};
use sluicegate_core::{CacheKey, CacheStore as _, Epoch, Error, ErrorKind, PublishedClock, Result, Status};

use crate::address::Address;
use crate::error::translate;
use crate::link::Effect;
use crate::{RedisStore, eval, read, script, stored, string, unexpected, version_bytes};

/// A document to write, and the version that must be there.
struct Write {
    key: CacheKey,
    expected: Option<Version>,
    value: Vec<u8>,
    version: Version,
}

impl Write {
    fn new(key: CacheKey, expected: Option<Version>, value: &[u8]) -> Self {
        let version = RedisStore::new_version();
        Write { key, expected, value: stored(version, value), version }
    }
}

impl RedisStore {
    /// Writes everything in one script, which writes nothing unless the clock and all else is as this writer left it. That holds but for the
    /// first round of the ring; then what is there is read and tried with once more. Whatever is still odd, the provided algorithm sorts out.
    pub(crate) async fn publish_at_once(
        &self,
        publication: &Publication,
        last: &Versioned<PublishedClock>,
    ) -> Result<Versioned<PublishedClock>> {
        self.link.settle().await.map_err(|e| translate(e, Effect::Write).with_operation("publish"))?;
        if !publication.pointers.is_empty() {
            // What cannot be published must not move pointers.
            self.proofs.check(self, publication.clock.epoch).await?;
            store_pointers(self, publication, last).await?;
        }
        if publication.clock.lost_since(&last.value).is_none() {
            for read in [false, true] {
                let writes = self.writes(publication, last, read).await?;
                if self.write_at_once(&writes, publication.clock.epoch).await? {
                    return Ok(self.keep(publication, &writes));
                }
            }
        }
        self.proofs.check(self, publication.clock.epoch).await?;
        let published = commit::publish(self, publication, last).await?;
        self.replicate(published.version).await?;
        Ok(published)
    }

    /// Waits until replicas have the clock of `version`, which may have been published by an earlier try.
    async fn replicate(&self, version: Version) -> Result<()> {
        if self.target.options.wait_replicas == 0 {
            return Ok(());
        }
        let failed = |e| translate(e, Effect::Publish).with_operation("publish").with_context("key", CacheKey::Clock);
        let Address { key, tag, shape } = self.addresses.of(&CacheKey::Clock);
        let answer = self.link.one(tag, cmd("GET").arg(key).take(), Effect::Publish).await.map_err(failed)?;
        match string(answer).and_then(|stored| read(stored, &shape))? {
            Some(found) if found.version == version => Ok(()),
            _ => Err(Error::new(ErrorKind::Unavailable, "the clock changed while replicas were waited for")
                .with_status(Status::Indeterminate)),
        }
    }

    /// What a publication writes. The versions of record and checkpoint are those that this store knows, or are read.
    async fn writes(&self, publication: &Publication, last: &Versioned<PublishedClock>, read: bool) -> Result<Vec<Write>> {
        let Publication { record, ring, checkpoint, clock, .. } = publication;
        let epoch = clock.epoch;
        let mut writes = Vec::new();
        for (key, entries) in record.late_pages() {
            let found = self.get(&key).await?;
            let page = found.as_ref().map(|found| LatePage::from_bytes(&found.value)).transpose();
            let mut page = page.map_err(|e| e.with_context("key", &key))?.unwrap_or_default();
            guard(epoch, page.epoch).map_err(|e| e.with_context("key", &key))?;
            page.append(epoch, entries);
            writes.push(Write::new(key, found.map(|found| found.version), &page.to_bytes()));
        }
        let record_key = CacheKey::Batch(record.number % (*ring).max(1));
        let record_epoch = |bytes: &[u8]| BatchRecord::from_bytes(bytes).map(|record| record.epoch);
        let expected = self.expected(&record_key, epoch, read, record_epoch).await?;
        writes.push(Write::new(record_key, expected, &record.to_bytes()));
        if let Some((feed, checkpoint)) = checkpoint {
            let key = CacheKey::Checkpoint(feed.clone());
            let checkpoint_epoch = |bytes: &[u8]| Checkpoint::from_bytes(bytes).map(|checkpoint| checkpoint.epoch);
            let expected = self.expected(&key, epoch, read, checkpoint_epoch).await?;
            writes.push(Write::new(key, expected, &checkpoint.to_bytes()));
        }
        writes.push(Write::new(CacheKey::Clock, Some(last.version), &clock.to_bytes()));
        Ok(writes)
    }

    /// The version of what a publication may write over.
    async fn expected(
        &self,
        key: &CacheKey,
        epoch: Epoch,
        read: bool,
        epoch_of: impl FnOnce(&[u8]) -> Result<Epoch>,
    ) -> Result<Option<Version>> {
        if !read {
            return Ok(self.written.lock().get(key).copied());
        }
        let Some(found) = self.get(key).await? else { return Ok(None) };
        let stored = epoch_of(&found.value).and_then(|stored| guard(epoch, stored));
        stored.map_err(|e| e.with_context("key", key))?;
        Ok(Some(found.version))
    }

    /// Writes all, or none and says no, if one of them is not what was expected.
    async fn write_at_once(&self, writes: &[Write], epoch: Epoch) -> Result<bool> {
        let tag = self.addresses.tag();
        let keys: Vec<String> = writes.iter().map(|write| self.addresses.of(&write.key).key).collect();
        let proofs = self.proofs.taken(epoch);
        let keys: Vec<&str> = keys.iter().map(String::as_str).chain([self.proofs.key()]).collect();
        let mut script = eval(script::PUBLISH, &keys);
        for write in writes {
            match write.expected {
                Some(version) => script.arg(&version_bytes(version)[..]),
                None => script.arg(""),
            };
            script.arg(&write.value);
        }
        script.arg(if self.target.cluster { "SPUBLISH" } else { "PUBLISH" }).arg(self.addresses.wake_channel());
        for proof in &proofs {
            script.arg(&proof[..]);
        }
        let answer = self.link.one(tag, script, Effect::Publish).await;
        match answer.map_err(|e| translate(e, Effect::Publish).with_operation("publish").with_context("key", CacheKey::Clock))? {
            Value::Int(0) => {
                self.proofs.published(&proofs);
                Ok(true)
            }
            Value::Int(-1) => Err(self.proofs.missing()),
            Value::Int(_) => Ok(false),
            other => Err(unexpected(&other).with_operation("publish")),
        }
    }

    /// Remembers what was written, for the next time round.
    fn keep(&self, publication: &Publication, writes: &[Write]) -> Versioned<PublishedClock> {
        let mut written = self.written.lock();
        let mut version = Version(0);
        for write in writes {
            match write.key {
                CacheKey::Batch(_) | CacheKey::Checkpoint(_) => {
                    written.insert(write.key.clone(), write.version);
                }
                CacheKey::Clock => version = write.version,
                _ => {}
            }
        }
        Versioned { value: publication.clock.clone(), version }
    }
}
