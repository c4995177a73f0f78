//! Stores with one flaw each, and the case of the suite that finds it: a suite that passes everything proves nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use sluicegate_core::batch::{BatchRecord, BlockDelta, CommitReceipt, Publication, WriteBatch};
use sluicegate_core::commit::{merge_block, publish, store_batch};
use sluicegate_core::store::{Expiry, StoreInfo, Version, Versioned, Write};
use sluicegate_core::{
    BlockCodec, CacheKey, CacheStore, ChangeEntry, CollectionId, Error, ErrorKind, PublishedClock, Result, Sequence,
};
use sluicegate_testkit::store::{Store, boxed as cases};
use sluicegate_testkit::{Case, PlainStore, run_case};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    InsertWritesOver,
    ReplaceIgnoresTheVersion,
    ReplaceMakesADocument,
    RemoveIgnoresTheVersion,
    VersionsStartAgainAfterARemoval,
    IncrementIsReadThenWrite,
    CountersShareAKey,
    CollectionsShareBlocks,
    CollectionsShareDirectories,
    CollectionsShareCounters,
    CollectionsSharePointers,
    NamesAreCutShort,
    NamesIgnoreCase,
    ValuesAreText,
    NoLimit,
    ManyLosesRepetitions,
    ManyWritesIgnoreTheVersion,
    ManyWritesStopAtTheFirst,
    EntriesLeaveOutTheMissing,
    RecordIgnoresTheNumber,
    MergeWritesOverTheCorrupt,
    MergeIgnoresTheVersion,
    CommitForgetsTheMarks,
    CommitForgetsTheDirectory,
    CommitForgetsTheCounters,
    CommitSaysNothingIsEmpty,
    CommitTrustsTheDirectory,
    PublishForgetsTheFence,
    PublishForgetsTheLate,
    PublishGoesBack,
    WakesAreNotDeclared,
    WakesNeverCome,
    ExpiryIsDeclaredOnly,
    BytesUsedAreMadeUp,
}

#[derive(Debug)]
struct Flawed {
    inner: PlainStore,
    flaw: Flaw,
    removed: Mutex<HashMap<CacheKey, u64>>,
}

impl Flawed {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn key(&self, key: &CacheKey) -> CacheKey {
        let cut = |channel: &sluicegate_core::Channel| {
            let name: String = if self.has(Flaw::NamesAreCutShort) {
                channel.name().chars().take(160).collect()
            } else if self.has(Flaw::NamesIgnoreCase) {
                channel.name().to_lowercase()
            } else {
                channel.name().to_owned()
            };
            sluicegate_core::Channel::of(channel.collection(), &name).unwrap()
        };
        let of_default = |channel: &sluicegate_core::Channel| channel.clone().in_collection(CollectionId::DEFAULT);
        match key {
            CacheKey::Block(channel, index) if self.has(Flaw::CollectionsShareBlocks) => {
                CacheKey::Block(of_default(channel), *index)
            }
            CacheKey::Directory(channel) if self.has(Flaw::CollectionsShareDirectories) => {
                CacheKey::Directory(of_default(channel))
            }
            CacheKey::Counter(channel) if self.has(Flaw::CollectionsShareCounters) => CacheKey::Counter(of_default(channel)),
            CacheKey::Document(document) if self.has(Flaw::CollectionsSharePointers) => {
                CacheKey::Document((&*document.key).into())
            }
            CacheKey::Block(channel, index) => CacheKey::Block(cut(channel), *index),
            CacheKey::Directory(channel) => CacheKey::Directory(cut(channel)),
            CacheKey::Counter(_) if self.has(Flaw::CountersShareAKey) => CacheKey::Batch(u64::MAX),
            other => other.clone(),
        }
    }

    /// What the caller sees of a version: counted anew for each document, with this flaw.
    fn shown(&self, key: &CacheKey, version: Version) -> Version {
        let base = self.removed.lock().get(key).copied().unwrap_or(0);
        if self.has(Flaw::VersionsStartAgainAfterARemoval) { Version(version.0 - base) } else { version }
    }

    fn hidden(&self, key: &CacheKey, version: Version) -> Version {
        let base = self.removed.lock().get(key).copied().unwrap_or(0);
        if self.has(Flaw::VersionsStartAgainAfterARemoval) { Version(version.0 + base) } else { version }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl CacheStore for Flawed {
    fn info(&self) -> StoreInfo {
        let mut info = self.inner.info();
        info.capabilities.notify = self.has(Flaw::WakesNeverCome);
        info.capabilities.expiry = self.has(Flaw::ExpiryIsDeclaredOnly);
        if self.has(Flaw::NoLimit) {
            info.capabilities.max_value /= 2;
        }
        info
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        let found = self.inner.get(&self.key(key)).await?;
        Ok(found.map(|found| Versioned { version: self.shown(key, found.version), ..found }))
    }

    async fn insert(&self, key: &CacheKey, mut value: Bytes, expiry: Expiry) -> Result<Version> {
        if self.has(Flaw::InsertWritesOver) {
            self.inner.remove(key, None).await?;
        }
        if self.has(Flaw::ValuesAreText) {
            value = String::from_utf8_lossy(&value).into_owned().into();
        }
        let version = self.inner.insert(&self.key(key), value, expiry).await?;
        Ok(self.shown(key, version))
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, mut expected: Version, expiry: Expiry) -> Result<Version> {
        let real = self.key(key);
        match self.inner.get(&real).await? {
            Some(found) if self.has(Flaw::ReplaceIgnoresTheVersion) => expected = found.version,
            None if self.has(Flaw::ReplaceMakesADocument) => return self.inner.insert(&real, value, expiry).await,
            _ => {}
        }
        let version = self.inner.replace(&real, value, self.hidden(key, expected), expiry).await?;
        Ok(self.shown(key, version))
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        let expected = expected.map(|version| self.hidden(key, version));
        let expected = if self.has(Flaw::RemoveIgnoresTheVersion) { None } else { expected };
        if let Some(found) = self.inner.get(&self.key(key)).await? {
            self.inner.remove(&self.key(key), expected).await?;
            self.removed.lock().insert(key.clone(), found.version.0);
            return Ok(());
        }
        self.inner.remove(&self.key(key), expected).await
    }

    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        if self.has(Flaw::IncrementIsReadThenWrite) {
            let now = self.inner.increment(key, 0).await?;
            tokio::task::yield_now().await;
            self.inner.remove(key, None).await?;
            return self.inner.increment(key, now + by).await;
        }
        self.inner.increment(&self.key(key), by).await
    }

    async fn ping(&self) -> Result<Duration> {
        self.inner.ping().await
    }

    async fn get_many(&self, keys: &[CacheKey]) -> Result<Vec<Option<Versioned<Bytes>>>> {
        let mut found = Vec::new();
        for (n, key) in keys.iter().enumerate() {
            let repeated = self.has(Flaw::ManyLosesRepetitions) && keys[..n].contains(key);
            found.push(if repeated { None } else { self.get(key).await? });
        }
        Ok(found)
    }

    async fn write_many(&self, writes: Vec<Write>) -> Vec<Result<Version>> {
        let mut written = Vec::new();
        for write in writes {
            let has_failed = written.iter().any(Result::is_err);
            written.push(if has_failed && self.has(Flaw::ManyWritesStopAtTheFirst) {
                Err(Error::new(ErrorKind::Conflict, "an earlier one failed"))
            } else if write.expected.is_some() && self.has(Flaw::ManyWritesIgnoreTheVersion) {
                self.inner.insert(&self.key(&write.key), write.value, Expiry::Never).await
            } else {
                write.apply(self).await
            });
        }
        written
    }

    async fn entries(&self, sequences: &[Sequence]) -> Result<Vec<Option<Arc<ChangeEntry>>>> {
        let mut found = self.inner.entries(sequences).await?;
        if self.has(Flaw::EntriesLeaveOutTheMissing) {
            found.retain(Option::is_some);
        }
        Ok(found)
    }

    async fn record(&self, number: u64, ring: u64) -> Result<Option<Arc<BatchRecord>>> {
        if self.has(Flaw::RecordIgnoresTheNumber) {
            let found = self.get(&CacheKey::Batch(number % ring.max(1))).await?;
            return found.map(|found| BatchRecord::from_bytes(&found.value).map(Arc::new)).transpose();
        }
        self.inner.record(number, ring).await
    }

    async fn merge_block(&self, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<u32> {
        let key = CacheKey::Block(delta.channel.clone(), delta.index);
        match merge_block(self, delta, codec).await {
            Err(e) if self.has(Flaw::MergeWritesOverTheCorrupt) && e.kind() == ErrorKind::Corrupt => {
                self.remove(&key, None).await?;
                merge_block(self, delta, codec).await
            }
            Ok(_) if self.has(Flaw::MergeIgnoresTheVersion) => {
                let mut block = match self.get(&key).await? {
                    Some(found) => codec.decode(&found.value)?,
                    None => sluicegate_core::block::Block::new(codec.capacity()),
                };
                delta.apply(&mut block);
                tokio::task::yield_now().await;
                self.remove(&key, None).await?;
                // Another task may have been here.
                let _ = self.insert(&key, codec.encode(&block), Expiry::Never).await;
                Ok(block.live_count())
            }
            other => other,
        }
    }

    async fn commit(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        let mut batch = batch.clone();
        match self.flaw {
            Flaw::CommitForgetsTheMarks => batch.marks.clear(),
            Flaw::CommitTrustsTheDirectory => batch.stable = Sequence::ZERO,
            Flaw::CommitForgetsTheDirectory => {
                batch.stable = Sequence::ZERO;
                batch.block_deltas().iter().for_each(|delta| batch.listed.insert(&delta.channel, delta.index));
            }
            _ => {}
        }
        let mut receipt = store_batch(self, &batch).await?;
        if self.has(Flaw::CommitForgetsTheCounters) {
            for delta in batch.block_deltas() {
                self.remove(&CacheKey::Counter(delta.channel), None).await?;
            }
        }
        if self.has(Flaw::CommitSaysNothingIsEmpty) {
            receipt.emptied.clear();
        }
        Ok(receipt)
    }

    async fn publish(&self, publication: &Publication, last: &Versioned<PublishedClock>) -> Result<Versioned<PublishedClock>> {
        let mut publication = publication.clone();
        let mut record = (*publication.record).clone();
        if self.has(Flaw::PublishForgetsTheLate) {
            record.late.clear();
            publication.record = Arc::new(record);
        } else if self.has(Flaw::PublishForgetsTheFence) {
            // A document that is gone fences nobody.
            for key in [CacheKey::Batch(record.number % publication.ring), CacheKey::Late(0)] {
                self.remove(&key, None).await?;
            }
        } else if self.has(Flaw::PublishGoesBack) {
            let version = self.replace(&CacheKey::Clock, publication.clock.to_bytes(), last.version, Expiry::Never).await?;
            return Ok(Versioned { value: publication.clock, version });
        }
        publish(self, &publication, last).await
    }

    fn wakes(&self) -> Option<BoxStream<'static, ()>> {
        let some = matches!(self.flaw, Flaw::WakesAreNotDeclared | Flaw::WakesNeverCome);
        some.then(|| futures::stream::pending().boxed())
    }

    async fn bytes_used(&self) -> Result<Option<u64>> {
        if self.has(Flaw::BytesUsedAreMadeUp) { Ok(Some(1 << 20)) } else { self.inner.bytes_used().await }
    }
}

/// The case must fail on a store with the flaw.
fn finds(flaw: Flaw, name: &str, case: fn(Store) -> Case) {
    let store = Arc::new(Flawed { inner: PlainStore::new(), flaw, removed: Mutex::default() });
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run_case(case(store))));
    assert!(outcome.is_err(), "{flaw:?} was not found by {name}");
}

macro_rules! flaws {
    ($($flaw:ident is found by $($case:ident)*;)*) => {
        #[allow(non_snake_case, reason = "named as the flaw is")]
        mod flaw {
            $(#[test] fn $flaw() { $(super::finds(super::Flaw::$flaw, stringify!($case), super::cases::$case);)* })*
        }
    };
}

flaws! {
    InsertWritesOver is found by an_insert_over_a_document_is_refused concurrent_inserts_have_one_winner;
    ReplaceIgnoresTheVersion is found by a_replace_needs_the_current_version a_drop_decided_before_a_row_came_is_refused;
    ReplaceMakesADocument is found by a_replace_of_a_missing_document_is_refused a_removed_document_is_gone;
    RemoveIgnoresTheVersion is found by a_removal_with_a_version_needs_the_current_one;
    VersionsStartAgainAfterARemoval is found by versions_never_come_again_over_removals;
    IncrementIsReadThenWrite is found by concurrent_increments_lose_nothing;
    CountersShareAKey is found by counters_of_different_channels_are_different;
    CollectionsShareBlocks is found by
        names_of_different_collections_do_not_collide a_merge_is_into_a_block_of_its_own_collection
        a_commit_keeps_collections_apart a_mark_is_of_its_own_collection
        commits_to_several_collections_are_those_of_the_provided_algorithm;
    CollectionsShareDirectories is found by
        names_of_different_collections_do_not_collide a_commit_keeps_collections_apart a_drop_is_of_its_own_collection;
    CollectionsShareCounters is found by
        counters_of_different_collections_are_different a_commit_keeps_collections_apart;
    CollectionsSharePointers is found by
        names_of_different_collections_do_not_collide pointers_of_one_key_in_two_collections_stay_apart;
    NamesAreCutShort is found by very_long_channel_names_do_not_collide;
    NamesIgnoreCase is found by odd_channel_names_do_not_collide;
    ValuesAreText is found by values_are_any_bytes;
    NoLimit is found by a_value_over_the_limit_is_refused;
    ManyLosesRepetitions is found by many_documents_come_in_the_order_asked;
    ManyWritesIgnoreTheVersion is found by many_writes_are_as_single_ones;
    ManyWritesStopAtTheFirst is found by many_writes_are_as_single_ones;
    EntriesLeaveOutTheMissing is found by entries_come_in_the_order_asked;
    RecordIgnoresTheNumber is found by a_record_is_read_only_by_its_own_number;
    MergeWritesOverTheCorrupt is found by
        a_corrupt_block_fails_the_merge_and_stays a_corrupt_block_fails_the_commit_and_is_named;
    MergeIgnoresTheVersion is found by concurrent_merges_lose_nothing;
    CommitForgetsTheMarks is found by commits_are_those_of_the_provided_algorithm a_mark_may_come_before_its_row;
    CommitForgetsTheDirectory is found by commits_are_those_of_the_provided_algorithm a_commit_stores_all_its_documents;
    CommitForgetsTheCounters is found by commits_are_those_of_the_provided_algorithm a_commit_stores_all_its_documents;
    CommitSaysNothingIsEmpty is found by
        commits_are_those_of_the_provided_algorithm a_receipt_names_the_blocks_without_live_rows;
    CommitTrustsTheDirectory is found by
        a_drop_decided_before_a_row_came_is_refused a_dropped_block_is_listed_again_when_it_gets_a_row;
    PublishForgetsTheFence is found by a_later_epoch_fences_the_record a_later_epoch_fences_the_late_page;
    PublishForgetsTheLate is found by a_publication_is_readable_at_its_keys late_pages_go_on_over_their_borders;
    PublishGoesBack is found by the_clock_never_goes_back;
    WakesAreNotDeclared is found by wakes_come_after_a_publication_if_declared;
    WakesNeverCome is found by wakes_come_after_a_publication_if_declared;
    ExpiryIsDeclaredOnly is found by what_expires_is_kept_for_its_time_and_then_goes_if_declared;
    BytesUsedAreMadeUp is found by the_bytes_used_grow_with_what_is_stored_if_told;
}

/// A case that is written and not listed would be run for nobody.
#[test]
fn every_case_is_listed() {
    fn assert_listed(sources: &[&str], listed: &[&str]) {
        let lines = sources.iter().flat_map(|source| source.lines());
        let mut written: Vec<&str> = lines.filter_map(|line| line.strip_prefix("pub async fn ")?.split('(').next()).collect();
        written.sort_unstable();
        let mut listed = listed.to_vec();
        listed.sort_unstable();
        assert_eq!(listed, written);
    }
    let store = [
        include_str!("../src/store/blocks.rs"),
        include_str!("../src/store/commit.rs"),
        include_str!("../src/store/primitives.rs"),
        include_str!("../src/store/publish.rs"),
        include_str!("../src/store/reading.rs"),
    ];
    assert_listed(&store, &sluicegate_testkit::store_cases! { case_names!() });
    assert_listed(&[include_str!("../src/feed.rs")], &sluicegate_testkit::feed_cases! { case_names!() });
    assert_listed(&[include_str!("../src/coordinator.rs")], &sluicegate_testkit::coordinator_cases! { case_names!() });
}
