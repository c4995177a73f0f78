//! Committing batches, and dropping blocks from directories.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::{join, join_all};
use sluicegate_core::batch::{BlockDelta, ListedBlocks, WriteBatch};
use sluicegate_core::block::{Adaptive, BlockState, ByteArray, Log, TwoBit};
use sluicegate_core::commit::{drop_blocks, store_batch, update};
use sluicegate_core::directory::Directory;
use sluicegate_core::store::Expiry;
use sluicegate_core::{
    BlockCodec, BlockIndex, CacheKey, CacheStore, ChangeEntry, Channel, CollectionId, EntryFlags, ErrorKind, Membership, Sequence,
};

use super::{NAMED, Store, codecs, no_block, set, small, star};
use crate::codec::SmallBlocks;
use crate::expect::{Expect as _, refused_naming};
use crate::plain::PlainStore;
use crate::sample::{Sampler, batch, channel, entry, entry_of};

/// The sequences that are not absent in a block, with their states.
async fn states(store: &dyn CacheStore, codec: &dyn BlockCodec, channel: &Channel, index: u64) -> Vec<(u32, BlockState)> {
    let stored = store.get(&CacheKey::Block(channel.clone(), BlockIndex(index))).await.must("read a block");
    stored.map_or(Vec::new(), |document| codec.decode(&document.value).must("decode a block").iter().collect())
}

async fn directory(store: &dyn CacheStore, channel: &Channel) -> Option<Directory> {
    let stored = store.get(&CacheKey::Directory(channel.clone())).await.must("read a directory")?;
    Some(Directory::from_bytes(&stored.value, channel).must("be a directory"))
}

async fn listed(store: &dyn CacheStore, channel: &Channel) -> Vec<(u64, u64)> {
    directory(store, channel).await.map_or(Vec::new(), |directory| directory.blocks.into())
}

async fn counted(store: &dyn CacheStore, channel: &Channel) -> u64 {
    store.increment(&CacheKey::Counter(channel.clone()), 0).await.must("read a counter")
}

/// The same batch for another store: what is listed in one is not in the other.
fn for_another(batch: &WriteBatch, listed: &Arc<ListedBlocks>) -> WriteBatch {
    WriteBatch { listed: listed.clone(), ..batch.clone() }
}

/// Compares every document of `reference` with the store's.
async fn same_documents(store: &dyn CacheStore, reference: &PlainStore, codec: &dyn BlockCodec, when: &str) {
    for key in reference.keys() {
        let expected = reference.get(&key).await.must("read the reference").must("be there").value;
        let found = store.get(&key).await.must("read").map(|document| document.value);
        let found = found.unwrap_or_else(|| panic!("{when}: {key} is missing"));
        match &key {
            CacheKey::Sequence(_) => {
                let entries = [&found, &expected].map(|bytes| ChangeEntry::from_bytes(bytes).must("decode an entry"));
                assert_eq!(entries[0], entries[1], "{when}: {key}");
            }
            CacheKey::Block(..) => {
                let blocks = [&found, &expected].map(|bytes| codec.decode(bytes).must("decode a block"));
                let [found, expected] = blocks.map(|block| block.iter().collect::<Vec<_>>());
                assert_eq!(found, expected, "{when}: {key}");
            }
            CacheKey::Directory(channel) => {
                let both = [&found, &expected].map(|bytes| Directory::from_bytes(bytes, channel).must("be a directory"));
                assert_eq!(both[0].blocks, both[1].blocks, "{when}: {key}");
                assert_eq!(both[0].valid_from, both[1].valid_from, "{when}: {key}");
            }
            CacheKey::Counter(channel) => assert_ne!(counted(store, channel).await, 0, "{when}: {key}"),
            _ => assert_eq!(found, expected, "{when}: {key}"),
        }
    }
}

async fn counters(store: &dyn CacheStore, batch: &WriteBatch) -> Vec<(Channel, u64)> {
    let channels: BTreeSet<Channel> = batch.block_deltas().into_iter().map(|delta| delta.channel).collect();
    let mut counters = Vec::new();
    for channel in channels {
        let counted = counted(store, &channel).await;
        counters.push((channel, counted));
    }
    counters
}

/// Sequence documents; a block and a directory for each channel and for the star channel; counters.
pub async fn a_commit_stores_all_its_documents(store: Store) {
    let codec = small();
    let entries = [entry(1, "d1", &["a"]), entry(2, "d2", &["a", "-b"]), entry(130, "d3", &[])];
    let receipt = store.commit(&batch(&codec, entries.clone())).await.must("commit");
    assert!(receipt.emptied.is_empty(), "{receipt:?}");
    let read = store.entries(&[1, 2, 130].map(Sequence)).await.must("read");
    for (expected, found) in entries.iter().zip(read) {
        assert_eq!(found.as_deref(), Some(expected));
    }
    use BlockState::{Present, Removal};
    assert_eq!(states(&*store, &*codec, &channel("a"), 0).await, [(1, Present), (2, Present)]);
    assert_eq!(states(&*store, &*codec, &channel("b"), 0).await, [(2, Removal)]);
    assert_eq!(states(&*store, &*codec, &star(), 0).await, [(1, Present), (2, Present)]);
    assert_eq!(states(&*store, &*codec, &star(), 2).await, [(2, Present)]);
    assert_eq!(listed(&*store, &channel("a")).await, [(0, 0)]);
    assert_eq!(listed(&*store, &channel("b")).await, [(0, 0)]);
    assert_eq!(listed(&*store, &star()).await, [(0, 0), (2, 2)]);
    for name in ["a", "b", "*"] {
        assert_eq!(counted(&*store, &channel(name)).await, 1, "{name}");
    }
    assert_eq!(counted(&*store, &channel("c")).await, 0);
}

/// And changes nothing.
pub async fn a_commit_of_nothing_is_fine(store: Store) {
    let receipt = store.commit(&batch(&small(), [])).await.must("commit");
    assert!(receipt.emptied.is_empty());
    assert_eq!(counted(&*store, &star()).await, 0);
}

async fn as_provided(store: &Store, codec: &Arc<dyn BlockCodec>, seed: u64, batches: usize) {
    drop(sampled_as_provided(store, codec, Sampler::new(seed), batches).await);
}

/// Returns the store of the provided algorithm.
async fn sampled_as_provided(store: &Store, codec: &Arc<dyn BlockCodec>, mut sampler: Sampler, batches: usize) -> PlainStore {
    let reference = PlainStore::new();
    let (mine, theirs) = (Arc::default(), Arc::default());
    for n in 0..batches {
        let when = format!("batch {n}, {codec:?}");
        let batch = sampler.batch(n % 40, codec);
        let before = counters(&**store, &batch).await;
        let found = store.commit(&for_another(&batch, &mine)).await.must("commit");
        let expected = store_batch(&reference, &for_another(&batch, &theirs)).await.must("commit to the reference");
        assert_eq!(set(found.emptied), set(expected.emptied), "{when}: blocks without live rows");
        for (channel, before) in before {
            assert!(counted(&**store, &channel).await > before, "{when}: the counter of {channel:?} did not grow");
        }
        same_documents(&**store, &reference, &**codec, &when).await;
    }
    reference
}

/// On random batches: every document is the one that the provided algorithm makes in a plain store.
pub async fn commits_are_those_of_the_provided_algorithm(store: Store) {
    as_provided(&store, &small(), 1, 60).await;
}

/// In core's codec of a byte a sequence.
pub async fn commits_in_byte_arrays_are_those_of_the_provided_algorithm(store: Store) {
    as_provided(&store, &(Arc::new(ByteArray::default()) as _), 2, 20).await;
}

/// In core's codec that native commits like best.
pub async fn commits_in_two_bit_blocks_are_those_of_the_provided_algorithm(store: Store) {
    as_provided(&store, &(Arc::new(TwoBit::default()) as _), 3, 20).await;
}

/// In core's codec whose blocks change their shape.
pub async fn commits_in_adaptive_blocks_are_those_of_the_provided_algorithm(store: Store) {
    as_provided(&store, &(Arc::new(Adaptive::default()) as _), 4, 20).await;
}

/// In core's codec whose blocks can be appended to.
pub async fn commits_in_logs_are_those_of_the_provided_algorithm(store: Store) {
    as_provided(&store, &(Arc::new(Log::default()) as _), 6, 20).await;
}

/// In small blocks of that codec, which get long again and again.
pub async fn commits_in_small_logs_are_those_of_the_provided_algorithm(store: Store) {
    as_provided(&store, &(Arc::new(Log::with_capacity(64).must("make a codec")) as _), 7, 60).await;
}

/// So that every entry is a block of its own.
pub async fn commits_in_blocks_of_one_sequence_are_those_of_the_provided_algorithm(store: Store) {
    as_provided(&store, &(Arc::new(SmallBlocks::new(1)) as _), 5, 20).await;
}

/// In every codec. The collections have channels of the same names, and documents of the same keys.
pub async fn commits_to_several_collections_are_those_of_the_provided_algorithm(store: Store) {
    for (seed, codec) in (8..).zip(codecs()) {
        let sampler = Sampler::new(seed).over([CollectionId::DEFAULT].into_iter().chain(NAMED));
        let reference = sampled_as_provided(&store, &codec, sampler, 12).await;
        for key in reference.keys() {
            store.remove(&key, None).await.must("make room for the next codec");
        }
    }
}

/// Channels of one name, and documents of one key, in one batch.
pub async fn a_commit_keeps_collections_apart(store: Store) {
    use BlockState::{Present, Removal};
    let codec = small();
    let [first, second] = NAMED;
    let entries = [
        entry_of(first, 1, "d", &["a", "b"]),
        entry_of(second, 2, "d", &["a", "-b"]),
        entry(3, "d", &["-a"]),
        entry_of(second, 130, "e", &["a"]),
    ];
    store.commit(&batch(&codec, entries.clone())).await.must("commit");
    let read = store.entries(&[1, 2, 3, 130].map(Sequence)).await.must("read");
    for (expected, found) in entries.iter().zip(read) {
        let found = found.must("be there");
        assert_eq!((&*found, found.collection()), (expected, expected.collection()));
    }
    let expected = [
        (CollectionId::DEFAULT, "a", vec![(3, Removal)]),
        (CollectionId::DEFAULT, "b", vec![]),
        (CollectionId::DEFAULT, "*", vec![(3, Present)]),
        (first, "a", vec![(1, Present)]),
        (first, "b", vec![(1, Present)]),
        (first, "*", vec![(1, Present)]),
        (second, "a", vec![(2, Present)]),
        (second, "b", vec![(2, Removal)]),
        (second, "*", vec![(2, Present)]),
    ];
    for (collection, name, rows) in expected {
        let channel = channel(name).in_collection(collection);
        let blocks = match (rows.is_empty(), collection == second && name != "b") {
            (true, _) => vec![],
            (_, false) => vec![(0, 0)],
            (_, true) => vec![(0, 0), (2, 2)],
        };
        assert_eq!(states(&*store, &*codec, &channel, 0).await, rows, "{channel}");
        assert_eq!(listed(&*store, &channel).await, blocks, "{channel}");
        assert_eq!(counted(&*store, &channel).await, u64::from(!rows.is_empty()), "{channel}");
    }
}

/// A mark leaves the rows of other collections alone, whatever their names are.
pub async fn a_mark_is_of_its_own_collection(store: Store) {
    use BlockState::{Present, Superseded};
    let codec = small();
    let [first, second] = NAMED;
    let rows = [entry_of(first, 1, "d", &["a"]), entry_of(second, 2, "d", &["a"])];
    store.commit(&batch(&codec, rows)).await.must("commit the rows");
    let newer = entry_of(first, 9, "d", &["a"]).with_supersedes([Sequence(1)]);
    let marking = WriteBatch { marks: vec![Arc::new(newer.clone())], ..batch(&codec, [newer]) };
    store.commit(&marking).await.must("commit the mark");
    for name in ["a", "*"] {
        let found = states(&*store, &*codec, &channel(name).in_collection(first), 0).await;
        assert_eq!(found, [(1, Superseded), (9, Present)], "{name}");
        let found = states(&*store, &*codec, &channel(name).in_collection(second), 0).await;
        assert_eq!(found, [(2, Present)], "{name}");
        assert_eq!(states(&*store, &*codec, &channel(name), 0).await, [], "{name}");
    }
}

/// What is dropped in one collection stays listed in another.
pub async fn a_drop_is_of_its_own_collection(store: Store) {
    let codec = small();
    let [first, second] = NAMED.map(|collection| channel("a").in_collection(collection));
    let rows = [(1, &first), (2, &second)].map(|(n, channel)| entry_of(channel.collection(), n, "d", &["a"]));
    let mark = superseding(1).with_collection(first.collection());
    store.commit(&settled(&codec, &rows, &[mark])).await.must("commit");
    assert!(!drop_block(&*store, &second, BlockIndex(0), &*codec).await.must("not drop what is live"));
    assert!(drop_block(&*store, &first, BlockIndex(0), &*codec).await.must("drop"));
    assert_eq!(listed(&*store, &first).await, []);
    assert_eq!(listed(&*store, &second).await, [(0, 0)]);
}

/// What primitives write between commits is what the next commit works on.
pub async fn primitives_and_commits_mix(store: Store) {
    let codec = small();
    let reference: Store = Arc::new(PlainStore::new());
    let both = [store.clone(), reference.clone()];
    let mut sampler = Sampler::new(3);
    for round in 0..30u64 {
        let batch = sampler.batch(10, &codec);
        let name = channel(["a", "b", "*"][round as usize % 3]);
        for store in &both {
            // A fresh memory of what is listed: another writer's.
            store.commit(&for_another(&batch, &Arc::default())).await.must("commit");
            match round % 5 {
                0 => store.remove(&CacheKey::Directory(name.clone()), None).await.must("remove a directory"),
                1 => {
                    let key = CacheKey::Directory(name.clone());
                    let emptied = update(&**store, &key, |_| Ok(Some(Directory::new(name.clone()).to_bytes())));
                    emptied.await.must("empty a directory");
                }
                2 => store.remove(&CacheKey::Block(name.clone(), BlockIndex(round / 3)), None).await.must("remove a block"),
                3 => {
                    let index = BlockIndex(round / 3);
                    let changes = vec![(round as u32, BlockState::Removal)];
                    let delta = BlockDelta { channel: name.clone(), index, changes, adds_rows: true };
                    store.merge_block(&delta, &*codec).await.must("merge a block");
                }
                _ => {
                    let written = entry(round * 17, "someone else's", &["b"]).to_bytes();
                    // It may be there already.
                    let _ = store.insert(&CacheKey::Sequence(Sequence(round * 17)), written, Expiry::Never).await;
                }
            }
        }
        for index in 0..40 {
            let [found, expected] =
                [states(&*store, &*codec, &name, index).await, states(&*reference, &*codec, &name, index).await];
            assert_eq!(found, expected, "round {round}, block {index} of {name:?}");
        }
        assert_eq!(listed(&*store, &name).await, listed(&*reference, &name).await, "round {round}, directory of {name:?}");
        let all: Vec<Sequence> = (0..600).map(Sequence).collect();
        let [found, expected] = [store.entries(&all).await.must("read"), reference.entries(&all).await.must("read")];
        assert_eq!(found, expected, "round {round}, entries");
    }
}

/// Twice, in any order with others, and after a part of it was written: the documents are the same. (Counters may grow more.)
pub async fn a_commit_may_be_repeated(store: Store) {
    let codec = small();
    let reference = PlainStore::new();
    let mut sampler = Sampler::new(4);
    let batches: Vec<WriteBatch> = (0..6).map(|_| sampler.batch(15, &codec)).collect();
    for batch in &batches {
        store_batch(&reference, &for_another(batch, &Arc::default())).await.must("commit to the reference");
    }
    for batch in batches.iter().rev().chain(&batches).chain(&batches[2..4]) {
        store.commit(&for_another(batch, &Arc::default())).await.must("commit");
    }
    same_documents(&*store, &reference, &*codec, "after repetitions").await;
}

/// A repetition with other content changes nothing: whoever was first has it.
pub async fn a_commit_leaves_sequence_documents_as_first_written(store: Store) {
    let codec = small();
    store.insert(&CacheKey::Sequence(Sequence(2)), "as it was".into(), Expiry::Never).await.must("insert");
    store.commit(&batch(&codec, [entry(1, "first", &["a"])])).await.must("commit");
    let before = store.get_many(&[1, 2].map(|n| CacheKey::Sequence(Sequence(n)))).await.must("read");
    store.commit(&batch(&codec, [entry(1, "second", &["a"]), entry(2, "second", &["a"])])).await.must("commit");
    let after = store.get_many(&[1, 2].map(|n| CacheKey::Sequence(Sequence(n)))).await.must("read");
    assert_eq!(before, after);
}

/// Also where it was committed more than once: a rollback removes it, and its number is given out again.
pub async fn a_removed_sequence_document_makes_room_for_another(store: Store) {
    let codec = small();
    let key = CacheKey::Sequence(Sequence(1));
    for _ in 0..2 {
        store.commit(&batch(&codec, [entry(1, "first", &["a"]), entry(2, "neighbour", &["a"])])).await.must("commit");
    }
    let version = store.get(&key).await.must("read").must("be there").version;
    store.remove(&key, Some(version)).await.must("remove");
    let both = [Sequence(1), Sequence(2)];
    let left = store.entries(&both).await.must("read");
    assert!(left[0].is_none() && left[1].is_some(), "{left:?}");
    store.commit(&batch(&codec, [entry(1, "second", &["a"])])).await.must("commit another");
    let found = store.entries(&both).await.must("read");
    let documents: Vec<&str> = found.iter().flatten().map(|entry| entry.key()).collect();
    assert_eq!(documents, ["second", "neighbour"]);
}

/// Two writers that both believe that it is their turn: what is stored is what each alone would have stored, merged.
pub async fn commits_of_two_writers_interleave(store: Store) {
    let codec = small();
    let reference = PlainStore::new();
    let mut sampler = Sampler::new(5);
    let batches: Vec<WriteBatch> = (0..12).map(|_| sampler.batch(20, &codec)).collect();
    for batch in &batches {
        store_batch(&reference, &for_another(batch, &Arc::default())).await.must("commit to the reference");
    }
    let writer = |batches: Vec<WriteBatch>| {
        let (store, listed) = (store.clone(), Arc::default());
        tokio::spawn(async move {
            for batch in batches {
                store.commit(&for_another(&batch, &listed)).await.must("commit");
            }
        })
    };
    // Both write all, the second one in another order.
    let other_order: Vec<WriteBatch> = batches.iter().rev().cloned().collect();
    let (first, second) = join(writer(batches), writer(other_order)).await;
    assert!(first.is_ok() && second.is_ok(), "a writer failed");
    same_documents(&*store, &reference, &*codec, "after two writers").await;
}

/// The row is superseded then, whichever came first.
pub async fn a_mark_may_come_before_its_row(store: Store) {
    let codec = small();
    let newer = entry(9, "d", &["a"]).with_supersedes([Sequence(4)]);
    let marking = WriteBatch { marks: vec![Arc::new(newer.clone())], ..batch(&codec, [newer]) };
    store.commit(&marking).await.must("commit the mark");
    store.commit(&batch(&codec, [entry(4, "d", &["a"])])).await.must("commit the row");
    for name in ["a", "*"] {
        let found = states(&*store, &*codec, &channel(name), 0).await;
        assert_eq!(found, [(4, BlockState::Superseded), (9, BlockState::Present)], "{name}");
    }
}

/// Those that the batch touched, and no others.
pub async fn a_receipt_names_the_blocks_without_live_rows(store: Store) {
    let codec = small();
    store.commit(&batch(&codec, [entry(1, "d", &["a"]), entry(70, "e", &["a"])])).await.must("commit");
    let newer = entry(140, "d", &["a"]).with_supersedes([Sequence(1)]);
    let receipt = store.commit(&batch(&codec, [newer.clone()])).await.must("commit");
    assert_eq!(receipt.emptied, [], "without a mark nothing is superseded");
    let marking = WriteBatch { marks: vec![Arc::new(newer)], ..batch(&codec, []) };
    for _ in 0..2 {
        let receipt = store.commit(&marking).await.must("commit a mark");
        assert_eq!(set(receipt.emptied), set([(star(), BlockIndex(0)), (channel("a"), BlockIndex(0))]));
    }
    let receipt = store.commit(&batch(&codec, [entry(2, "f", &["a"])])).await.must("commit");
    assert_eq!(receipt.emptied, []);
}

/// As superseded: it is in the star channel's block and directory, and not live there.
pub async fn a_departure_is_known_to_the_star_channel(store: Store) {
    let codec = small();
    let departed = ChangeEntry::new(Sequence(5), "d", "2-x", EntryFlags::DEPARTURE).must("make an entry");
    let departed = departed.with_channel(channel("a"), Membership::Removed);
    let receipt = store.commit(&batch(&codec, [departed])).await.must("commit");
    assert_eq!(states(&*store, &*codec, &star(), 0).await, [(5, BlockState::Superseded)]);
    assert_eq!(states(&*store, &*codec, &channel("a"), 0).await, [(5, BlockState::Removal)]);
    assert_eq!(receipt.emptied, [(star(), BlockIndex(0))]);
    assert_eq!(listed(&*store, &star()).await, [(0, 0)]);
}

/// More than any engine takes in one command, over many channels and blocks.
pub async fn a_commit_of_thousands(store: Store) {
    let codec = small();
    let names: Vec<String> = (0..300).map(|n| format!("channel {n}")).collect();
    let entries = (1..=6000u64).map(|n| entry(n, &format!("d{n}"), &[&names[n as usize % 300], &names[(n * 7) as usize % 299]]));
    let batch = batch(&codec, entries);
    let reference = PlainStore::new();
    store_batch(&reference, &for_another(&batch, &Arc::default())).await.must("commit to the reference");
    store.commit(&batch).await.must("commit");
    same_documents(&*store, &reference, &*codec, "after a large batch").await;
}

/// In an engine that others use at the same time they may also shrink: so it is enough that one commit of several shows.
pub async fn the_bytes_used_grow_with_what_is_stored_if_told(store: Store) {
    let codec = small();
    let mut seen = Vec::new();
    for round in 0..8 {
        let Some(before) = store.bytes_used().await.must("tell the bytes used") else { return };
        let entries = (round * 2000 + 1..=round * 2000 + 2000u64).map(|n| entry(n, &format!("document {n:090}"), &["a", "b"]));
        store.commit(&batch(&codec, entries)).await.must("commit");
        let after = store.bytes_used().await.must("tell the bytes used").must("tell the bytes used as before");
        if after > before {
            return;
        }
        seen.push((before, after));
    }
    panic!("2000 entries committed at a time, and the bytes used never grew: {seen:?}");
}

/// And is neither overwritten nor passed over.
pub async fn a_corrupt_block_fails_the_commit_and_is_named(store: Store) {
    for codec in codecs() {
        let key = CacheKey::Block(channel("a"), BlockIndex(0));
        store.insert(&key, no_block(), Expiry::Never).await.must("insert");
        let result = store.commit(&batch(&codec, [entry(0, "d", &["a"])])).await;
        refused_naming(result, ErrorKind::Corrupt, &key, "a commit into a corrupt block");
        assert_eq!(store.get(&key).await.must("read").must("be there").value, no_block());
        store.remove(&key, None).await.must("remove");
        store.remove(&CacheKey::Block(star(), BlockIndex(0)), None).await.must("remove");
    }
}

/// And is neither overwritten nor passed over.
pub async fn a_corrupt_directory_fails_the_commit_and_is_named(store: Store) {
    let key = CacheKey::Directory(channel("a"));
    store.insert(&key, "{}".into(), Expiry::Never).await.must("insert");
    let result = store.commit(&batch(&small(), [entry(1, "d", &["a"])])).await;
    refused_naming(result, ErrorKind::Corrupt, &key, "a commit into a corrupt directory");
    assert_eq!(store.get(&key).await.must("read").must("be there").value, "{}");
}

/// Two long names with one hash would share their keys.
pub async fn a_directory_of_another_channel_is_noticed(store: Store) {
    let key = CacheKey::Directory(channel("a"));
    store.insert(&key, Directory::new(channel("b")).to_bytes(), Expiry::Never).await.must("insert");
    let result = store.commit(&batch(&small(), [entry(1, "d", &["a"])])).await;
    refused_naming(result, ErrorKind::Corrupt, &key, "a commit into another channel's directory");
}

/// A batch over entry `n` of document `d` in channel `a`, all of which is below stable.
fn settled(codec: &Arc<dyn BlockCodec>, entries: &[ChangeEntry], marks: &[ChangeEntry]) -> WriteBatch {
    let marks = marks.iter().cloned().map(Arc::new).collect();
    WriteBatch { stable: Sequence(1 << 40), marks, ..batch(codec, entries.iter().cloned()) }
}

/// The entry that supersedes `old`, in a block far away.
fn superseding(old: u64) -> ChangeEntry {
    entry(1_000_000 + old, "d", &["a"]).with_supersedes([Sequence(old)])
}

async fn drop_block(
    store: &dyn CacheStore,
    channel: &Channel,
    index: BlockIndex,
    codec: &dyn BlockCodec,
) -> sluicegate_core::Result<bool> {
    drop_blocks(store, vec![(channel.clone(), index)], codec).await.map(|dropped| dropped == 1)
}

/// And only from directories that list them.
pub async fn only_blocks_without_live_rows_are_dropped(store: Store) {
    let codec = small();
    let a = channel("a");
    assert!(!drop_block(&*store, &a, BlockIndex(0), &*codec).await.must("drop from no directory"));
    store.commit(&settled(&codec, &[entry(1, "d", &["a"])], &[])).await.must("commit");
    assert!(!drop_block(&*store, &a, BlockIndex(0), &*codec).await.must("not drop what is live"));
    assert_eq!(listed(&*store, &a).await, [(0, 0)]);
    store.commit(&settled(&codec, &[], &[superseding(1)])).await.must("commit a mark");
    assert!(drop_block(&*store, &a, BlockIndex(0), &*codec).await.must("drop"));
    assert_eq!(listed(&*store, &a).await, []);
    assert!(!drop_block(&*store, &a, BlockIndex(0), &*codec).await.must("drop it only once"));
}

/// Whatever the writer remembers of the directory.
pub async fn a_dropped_block_is_listed_again_when_it_gets_a_row(store: Store) {
    let codec = small();
    let a = channel("a");
    let listed_blocks = Arc::default();
    let commit = async |batch: WriteBatch| store.commit(&for_another(&batch, &listed_blocks)).await.must("commit");
    for n in 1..5 {
        commit(settled(&codec, &[entry(n, "d", &["a"])], &[])).await;
        assert_eq!(listed(&*store, &a).await, [(0, 0)], "after row {n}");
        commit(settled(&codec, &[], &[superseding(n)])).await;
        assert!(drop_block(&*store, &a, BlockIndex(0), &*codec).await.must("drop"));
        assert_eq!(listed(&*store, &a).await, []);
    }
}

/// Adding to a block that may be dropped rewrites the directory, listed or not: so a drop over the older version fails.
pub async fn a_drop_decided_before_a_row_came_is_refused(store: Store) {
    let codec = small();
    let key = CacheKey::Directory(channel("a"));
    store.commit(&settled(&codec, &[entry(1, "d", &["a"])], &[superseding(1)])).await.must("commit");
    let before = store.get(&key).await.must("read").must("be there");
    store.commit(&settled(&codec, &[entry(2, "e", &["a"])], &[])).await.must("commit");
    let emptied = Directory::new(channel("a")).to_bytes();
    let result = store.replace(&key, emptied, before.version, Expiry::Never).await;
    refused_naming(result, ErrorKind::Conflict, "", "a drop decided before");
}

/// Drops and commits at once, many times: a block with a live row is listed afterwards.
pub async fn a_drop_never_hides_a_row(store: Store) {
    let codec = small();
    let a = channel("a");
    for round in 0..60u64 {
        let first = round * 64;
        let index = BlockIndex(round);
        store.commit(&settled(&codec, &[entry(first, "d", &["a"])], &[superseding(first)])).await.must("commit");
        let tasks = (1..4).map(|n| {
            let (store, codec, a) = (store.clone(), codec.clone(), a.clone());
            tokio::spawn(async move {
                if n == 1 {
                    store.commit(&settled(&codec, &[entry(first + n, "e", &["a"])], &[])).await.must("commit");
                } else {
                    drop_block(&*store, &a, index, &*codec).await.must("drop or not");
                }
            })
        });
        for task in join_all(tasks).await {
            assert!(task.is_ok(), "a task failed: {task:?}");
        }
        assert_eq!(states(&*store, &*codec, &a, round).await.last(), Some(&(1, BlockState::Present)));
        let directory = directory(&*store, &a).await.must("be there");
        assert!(directory.blocks.contains(round), "round {round}: a live row is hidden");
    }
}
