//! Publishing in one round trip.

use redis::{Value, cmd};
use sluicegate_core::batch::{BatchRecord, Checkpoint, LatePage, Publication};
use sluicegate_core::commit::{self, guard, store_pointers};
use sluicegate_core::store::{Version, Versioned};
use sluicegate_core::{CacheKey, CacheStore as _, Epoch, Error, ErrorKind, PublishedClock, Result, Status};

use crate::error::{Effect, translate};
use crate::link::Commands;
use crate::{RedisStore, eval, script, stored, unexpected, version_bytes};

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
        store_pointers(self, publication).await?;
        if publication.clock.lost_since(&last.value).is_none() {
            for read in [false, true] {
                let writes = self.writes(publication, last, read).await?;
                if self.write_all(&writes).await? {
                    return Ok(self.keep(publication, &writes));
                }
            }
        }
        let published = commit::publish(self, publication, last).await?;
        Ok(published)
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
    async fn write_all(&self, writes: &[Write]) -> Result<bool> {
        let tag = self.addresses.tag();
        let keys: Vec<String> = writes.iter().map(|write| self.addresses.of(&write.key).key).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut script = eval(script::REPLACE, &keys);
        for write in writes {
            match write.expected {
                Some(version) => script.arg(&version_bytes(version)[..]),
                None => script.arg(""),
            };
            script.arg(&write.value);
        }
        script.arg(if self.target.cluster { "SPUBLISH" } else { "PUBLISH" }).arg(self.addresses.wake_channel());
        let mut commands = Commands::default();
        commands.add(tag, script);
        let replicas = self.target.options.wait_replicas;
        if replicas > 0 {
            commands.add(tag, cmd("WAIT").arg(replicas).arg(self.target.options.timeout_ms / 2).take());
        }
        let mut answers = self.link.run(commands).await.into_iter();
        let mut next = || {
            let answer = answers.next().unwrap_or(Ok(Value::Nil));
            answer.map_err(|e| translate(e, Effect::Write).with_operation("publish").with_context("key", CacheKey::Clock))
        };
        match next()? {
            Value::Int(0) => {}
            Value::Int(_) => return Ok(false),
            other => return Err(unexpected(&other).with_operation("publish")),
        }
        if replicas > 0 {
            match next()? {
                Value::Int(have) if have >= i64::from(replicas) => {}
                Value::Int(have) => {
                    let message = format!("only {have} of {replicas} replicas have the publication (the option wait_replicas)");
                    return Err(Error::new(ErrorKind::Unavailable, message).with_status(Status::Indeterminate));
                }
                other => return Err(unexpected(&other).with_operation("publish")),
            }
        }
        Ok(true)
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
