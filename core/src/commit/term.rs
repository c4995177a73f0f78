//! The beginning of a writer's term.

use super::{clock_lost, guard, read_clock, update};
use crate::batch::{BatchRecord, Checkpoint, LATE_PAGE, LatePage};
use crate::clock::{CacheId, Epoch, FORMAT_VERSION, PublishedClock};
use crate::error::{Error, ErrorKind, Result};
use crate::key::CacheKey;
use crate::meta::Meta;
use crate::missing::Missing;
use crate::source::Following;
use crate::store::{CacheStore, Expiry, Versioned};

/// The state that a writer finds when it takes over.
#[derive(Clone, Debug)]
pub struct TakenOver {
    /// The cache's description.
    pub meta: Meta,
    /// The clock, now of the new epoch.
    pub clock: Versioned<PublishedClock>,
    /// The last batch's record; `None` in a new cache, or if the store lost it.
    pub record: Option<BatchRecord>,
    /// What is missing after it. `None` if the record is gone, or the list that it is relative to.
    pub missing: Option<Missing>,
    /// The stored checkpoint, now of the new epoch; without one, the
    /// [beginning](Checkpoint::beginning), which is stored now.
    pub checkpoint: Checkpoint,
}

/// Begins the term `epoch`. First it fences the clock, so that the old writer can publish no more.
/// Then it stamps checkpoint and late pages, so that the old writer cannot change them either, and
/// removes late entries that the old writer announced without publishing. It creates a cache if
/// there is none, and upgrades one of an earlier format version.
///
/// # Errors
/// `ConfigInvalid` if the cache was made from another feed: then nothing is changed, and the
/// current writer continues. `Fenced` if a later epoch is there already. May be repeated.
pub async fn take_over<S: CacheStore + ?Sized>(
    store: &S,
    epoch: Epoch,
    feed: impl Into<Following> + Send,
    new: &Meta,
) -> Result<TakenOver> {
    begin_term(store, epoch, &feed.into(), new).await
}

pub(crate) async fn begin_term<S: CacheStore + ?Sized>(
    store: &S,
    epoch: Epoch,
    following: &Following,
    new: &Meta,
) -> Result<TakenOver> {
    let name = Some(following.checkpoint().to_owned());
    let new = Meta { source: following.source().cloned(), checkpoint: name.clone(), ..new.clone() };
    update(store, &CacheKey::Meta, |stored| Ok(stored.is_none().then(|| new.to_bytes()))).await?;
    let meta = store.get(&CacheKey::Meta).await?.ok_or_else(clock_lost)?;
    let mut meta = Meta::from_bytes(&meta.value).map_err(|e| e.with_context("key", CacheKey::Meta))?;
    let resume = match meta.source.is_none() && is_without_checkpoint(store, following).await? {
        true => following.resume_without_checkpoint()?,
        false => following.resume(meta.source.as_ref())?,
    };

    update(store, &CacheKey::Clock, |stored| {
        let mut clock = match stored {
            Some(bytes) => PublishedClock::from_bytes(bytes)?,
            None => PublishedClock::new(CacheId::random()),
        };
        guard(epoch, clock.epoch)?;
        (clock.epoch, clock.format) = (epoch, FORMAT_VERSION);
        if resume.from_beginning {
            clock.checkpoint = 0;
        }
        Ok(Some(clock.to_bytes()))
    })
    .await?;
    let clock = read_clock(store).await?.ok_or_else(clock_lost)?;
    guard(epoch, clock.value.epoch)?;

    let former = if meta.format == 1 { following.former_checkpoints() } else { &[] };
    let former = newest_checkpoint(store, former).await?;
    let checkpoint = take_checkpoint(store, epoch, following.checkpoint(), |stored| match (stored, &former) {
        _ if resume.from_beginning => Checkpoint::beginning(epoch),
        (Some(stored), Some(former)) if former.batch > stored.batch => former.clone(),
        (Some(stored), _) => stored,
        (None, former) => former.clone().unwrap_or_else(|| Checkpoint::beginning(epoch)),
    })
    .await?;
    // Last: until this is done, a later term repeats all of the above.
    let has_pointers = meta.has_pointers && new.has_pointers;
    meta.lacks_collections |= meta.format == 1;
    let stated = Meta { format: FORMAT_VERSION, source: resume.source, checkpoint: name, has_pointers, ..meta.clone() };
    if meta != stated {
        meta = stated;
        restate(store, epoch, &meta).await?;
    }
    let late = clock.value.late.max(checkpoint.late);
    for page in LatePage::of(late)..=LatePage::of(late + LATE_PAGE) {
        update(store, &CacheKey::Late(page), |stored| {
            let Some(bytes) = stored else { return Ok(None) };
            let mut stored = LatePage::from_bytes(bytes)?;
            guard(epoch, stored.epoch)?;
            stored.epoch = epoch;
            stored.entries.retain(|entry| entry.number <= late);
            Ok(Some(stored.to_bytes()))
        })
        .await?;
    }

    let batch = clock.value.batch;
    let record = if batch == 0 { None } else { store.record(batch, meta.ring).await?.map(|r| (*r).clone()) };
    let missing = match &record {
        Some(record) => record.read_missing(store).await?,
        None => None,
    };
    Ok(TakenOver { meta, clock, record, missing, checkpoint })
}

/// Whether something was published, and no term has ever followed this feed. Each leaves a
/// checkpoint.
async fn is_without_checkpoint<S: CacheStore + ?Sized>(store: &S, following: &Following) -> Result<bool> {
    if read_clock(store).await?.is_none_or(|clock| clock.value.batch == 0) {
        return Ok(false);
    }
    for name in following.former_checkpoints().iter().map(String::as_str).chain([following.checkpoint()]) {
        if store.get(&CacheKey::Checkpoint(name.to_owned())).await?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Rewrites the cache's description, unless a later term has begun, which does it then.
async fn restate<S: CacheStore + ?Sized>(store: &S, epoch: Epoch, meta: &Meta) -> Result<()> {
    let Some(stored) = store.get(&CacheKey::Meta).await? else { return Err(clock_lost()) };
    let clock = read_clock(store).await?.ok_or_else(clock_lost)?;
    guard(epoch, clock.value.epoch)?;
    match store.replace(&CacheKey::Meta, meta.to_bytes(), stored.version, Expiry::Never).await {
        Ok(_) => Ok(()),
        // The writer of the other value began a term that is later or earlier than this one; the
        // clock tells.
        Err(e) if e.kind() == ErrorKind::Conflict => {
            let clock = read_clock(store).await?.ok_or_else(clock_lost)?;
            guard(epoch, clock.value.epoch)?;
            Err(Error::new(ErrorKind::Unavailable, "another writer changed the cache's description meanwhile; trying again")
                .with_source(e))
        }
        Err(e) => Err(e.with_context("key", CacheKey::Meta)),
    }
}

/// The newest of the checkpoints with these names.
async fn newest_checkpoint<S: CacheStore + ?Sized>(store: &S, names: &[String]) -> Result<Option<Checkpoint>> {
    let mut newest: Option<Checkpoint> = None;
    for name in names {
        let key = CacheKey::Checkpoint(name.clone());
        let Some(stored) = store.get(&key).await? else { continue };
        let found = Checkpoint::from_bytes(&stored.value).map_err(|e| e.with_context("key", &key))?;
        if newest.as_ref().is_none_or(|newest| found.batch > newest.batch) {
            newest = Some(found);
        }
    }
    Ok(newest)
}

/// Stamps the checkpoint with the term `epoch`, so that no earlier writer can store one any more,
/// not even a first one.
///
/// # Errors
/// `Fenced` if it is of a later epoch; `Corrupt`, naming the key, if it cannot be read.
#[cfg(feature = "runtime")]
pub(crate) async fn stamp_checkpoint<S: CacheStore + ?Sized>(store: &S, epoch: Epoch, feed: &str) -> Result<Checkpoint> {
    take_checkpoint(store, epoch, feed, |stored| stored.unwrap_or_else(|| Checkpoint::beginning(epoch))).await
}

/// Stores the checkpoint that `choose` makes of the stored one, stamped with the term `epoch`.
/// Refused as `stamp_checkpoint` is.
async fn take_checkpoint<S: CacheStore + ?Sized>(
    store: &S,
    epoch: Epoch,
    feed: &str,
    mut choose: impl FnMut(Option<Checkpoint>) -> Checkpoint + Send,
) -> Result<Checkpoint> {
    let mut checkpoint = Checkpoint::beginning(epoch);
    let stamped = &mut checkpoint;
    update(store, &CacheKey::Checkpoint(feed.to_owned()), |stored| {
        let stored = stored.map(Checkpoint::from_bytes).transpose()?;
        if let Some(stored) = &stored {
            guard(epoch, stored.epoch)?;
        }
        *stamped = choose(stored);
        stamped.epoch = epoch;
        Ok(Some(stamped.to_bytes()))
    })
    .await?;
    Ok(checkpoint)
}
