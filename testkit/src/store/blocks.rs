//! Merging blocks.

use futures::future::join_all;
use sluicegate_core::batch::BlockDelta;
use sluicegate_core::block::{Block, BlockState};
use sluicegate_core::store::Expiry;
use sluicegate_core::{BlockCodec, BlockIndex, CacheKey, CacheStore, CollectionId, ErrorKind};

use super::{NAMED, Store, codecs, no_block, small};
use crate::expect::{Expect as _, refused_naming};
use crate::sample::channel;

use BlockState::{Absent, Present, Removal, Superseded};

fn key() -> CacheKey {
    CacheKey::Block(channel("a"), BlockIndex(3))
}

fn delta(changes: &[(u32, BlockState)]) -> BlockDelta {
    BlockDelta { channel: channel("a"), index: BlockIndex(3), changes: changes.to_vec(), adds_rows: true }
}

async fn block(store: &dyn CacheStore, codec: &dyn BlockCodec) -> Block {
    let stored = store.get(&key()).await.must("read").must("be there");
    codec.decode(&stored.value).must("decode")
}

/// In every codec.
pub async fn a_merge_makes_a_block_and_counts_the_live(store: Store) {
    for codec in codecs() {
        let live = store.merge_block(&delta(&[(0, Present), (7, Removal), (9, Superseded)]), &*codec).await;
        assert_eq!(live.must("merge"), 2, "{codec:?}");
        let live = store.merge_block(&delta(&[(7, Present), (60, Present), (60, Present)]), &*codec).await;
        assert_eq!(live.must("merge"), 2, "{codec:?}");
        let block = block(&*store, &*codec).await;
        let states: Vec<_> = block.iter().collect();
        assert_eq!(states, [(0, Present), (7, Superseded), (9, Superseded), (60, Present)], "{codec:?}");
        let last = codec.capacity() - 1;
        assert_eq!(store.merge_block(&delta(&[(last, Removal)]), &*codec).await.must("merge"), 3, "{codec:?}");
        store.remove(&key(), None).await.must("remove");
    }
}

/// Each pair of states, one after the other.
pub async fn states_merge_by_or_in_any_order(store: Store) {
    let states = [Absent, Present, Removal, Superseded];
    let pairs = states.into_iter().flat_map(|a| states.map(|b| (a, b)));
    let changes: Vec<_> = (0..).zip(pairs).collect();
    let firsts: Vec<_> = changes.iter().map(|(n, (a, _))| (*n, *a)).collect();
    let seconds: Vec<_> = changes.iter().rev().map(|(n, (_, b))| (*n, *b)).collect();
    for part in [&firsts, &seconds, &firsts] {
        store.merge_block(&delta(part), &*small()).await.must("merge");
    }
    let block = block(&*store, &*small()).await;
    for (n, (a, b)) in changes {
        assert_eq!(block.get(n), BlockState::from_bits(a as u8 | b as u8), "{a:?} and {b:?}");
    }
}

/// A block that somebody wrote whole is one like any other.
pub async fn a_merge_into_a_block_written_as_bytes(store: Store) {
    for codec in codecs() {
        let mut written = Block::new(codec.capacity());
        written.raise(1, Present);
        written.raise(2, Removal);
        store.insert(&key(), codec.encode(&written), Expiry::Never).await.must("insert");
        let live = store.merge_block(&delta(&[(2, Superseded), (3, Present)]), &*codec).await;
        assert_eq!(live.must("merge"), 2, "{codec:?}");
        written.raise(2, Superseded);
        written.raise(3, Present);
        assert_eq!(block(&*store, &*codec).await, written, "{codec:?}");
        store.remove(&key(), None).await.must("remove");
    }
}

/// Rather than none.
pub async fn an_empty_merge_makes_an_empty_block(store: Store) {
    assert_eq!(store.merge_block(&delta(&[]), &*small()).await.must("merge"), 0);
    assert_eq!(block(&*store, &*small()).await, Block::new(64));
}

/// Though the channels have the same name.
pub async fn a_merge_is_into_a_block_of_its_own_collection(store: Store) {
    for codec in codecs() {
        let collections = [CollectionId::DEFAULT].into_iter().chain(NAMED);
        let changes = [[(1, Present)], [(2, Removal)], [(1, Superseded)]];
        let at = |collection| channel("a").in_collection(collection);
        for (collection, changes) in collections.clone().zip(&changes) {
            let delta = BlockDelta { channel: at(collection), ..delta(changes) };
            let live = changes.iter().filter(|(_, state)| state.is_live()).count() as u32;
            assert_eq!(store.merge_block(&delta, &*codec).await.must("merge"), live, "{codec:?}");
        }
        for (collection, changes) in collections.zip(&changes) {
            let key = CacheKey::Block(at(collection), BlockIndex(3));
            let stored = store.get(&key).await.must("read").must("be there");
            let states: Vec<_> = codec.decode(&stored.value).must("decode").iter().collect();
            assert_eq!(states, changes, "{key}, {codec:?}");
            store.remove(&key, None).await.must("remove");
        }
    }
}

/// From many tasks into one block.
pub async fn concurrent_merges_lose_nothing(store: Store) {
    for codec in codecs() {
        let tasks = (0..8).map(|task| {
            let (store, codec) = (store.clone(), codec.clone());
            tokio::spawn(async move {
                for n in 0..16 {
                    let state = if n % 2 == 0 { Present } else { Removal };
                    store.merge_block(&delta(&[((task * 7 + n) % 60, state)]), &*codec).await.must("merge");
                }
            })
        });
        for task in join_all(tasks).await {
            assert!(task.is_ok(), "a task failed: {task:?}");
        }
        let mut expected = Block::new(codec.capacity());
        for (task, n) in (0..8).flat_map(|task| (0..16).map(move |n| (task, n))) {
            expected.raise((task * 7 + n) % 60, if n % 2 == 0 { Present } else { Removal });
        }
        assert_eq!(block(&*store, &*codec).await, expected, "{codec:?}");
        store.remove(&key(), None).await.must("remove");
    }
}

/// It is not taken for empty and written over.
pub async fn a_corrupt_block_fails_the_merge_and_stays(store: Store) {
    for codec in codecs() {
        store.insert(&key(), no_block(), Expiry::Never).await.must("insert");
        let result = store.merge_block(&delta(&[(1, Present)]), &*codec).await;
        refused_naming(result, ErrorKind::Corrupt, key(), "a merge into a corrupt block");
        assert_eq!(store.get(&key()).await.must("read").must("be there").value, no_block());
        store.remove(&key(), None).await.must("remove");
    }
}
