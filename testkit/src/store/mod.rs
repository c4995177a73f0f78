//! What every cache store must do.
//!
//! Each public function is one case, over a store that is fresh. [`store_conformance!`](crate::store_conformance) makes a test of each.

mod blocks;
mod commit;
mod primitives;
mod publish;
mod reading;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use sluicegate_core::block::{Adaptive, ByteArray, Log, TwoBit};
use sluicegate_core::{BlockCodec, BlockIndex, CacheKey, CacheStore, Channel, CollectionId, Sequence};

use crate::codec::SmallBlocks;
use crate::sample::channel;

pub use blocks::*;
pub use commit::*;
pub use primitives::*;
pub use publish::*;
pub use reading::*;

/// The store a case works on.
pub type Store = Arc<dyn CacheStore>;

/// One test for each thing a [`CacheStore`] must do. The expression makes an `Arc` of a **fresh** store, or of one in a fresh namespace; it may
/// `.await`. It is evaluated once a case.
///
/// ```
/// # mod tests {
/// sluicegate_testkit::store_conformance!(std::sync::Arc::new(sluicegate_testkit::PlainStore::new()));
/// # }
/// ```
#[macro_export]
macro_rules! store_conformance {
    ($make:expr) => {
        $crate::store_cases! { case_tests!(store, store_of_a_case, $crate::store::Store, $make) }
    };
}

/// The cases of the suite, handed to another macro after its arguments. Not for use by itself.
#[doc(hidden)]
#[macro_export]
macro_rules! store_cases {
    ($then:ident! $arguments:tt) => {
        $crate::$then! { $arguments
            a_missing_document_reads_as_none
            an_inserted_document_reads_back
            a_write_returns_the_version_that_a_read_finds
            an_insert_over_a_document_is_refused
            a_replace_needs_the_current_version
            a_replace_of_a_missing_document_is_refused
            every_write_makes_a_new_version
            a_removed_document_is_gone
            a_removal_with_a_version_needs_the_current_one
            versions_never_come_again_over_removals
            concurrent_replaces_lose_nothing
            concurrent_inserts_have_one_winner
            concurrent_removals_have_one_winner
            a_counter_begins_at_nothing_and_grows
            a_counter_reads_as_decimal_text
            counters_of_different_channels_are_different
            counters_of_different_collections_are_different
            concurrent_increments_lose_nothing
            values_are_any_bytes
            values_up_to_the_limit_are_kept
            a_value_over_the_limit_is_refused
            odd_channel_names_do_not_collide
            very_long_channel_names_do_not_collide
            the_largest_numbers_are_ordinary_keys
            names_of_different_collections_do_not_collide
            garbage_reads_back_byte_for_byte
            what_expires_is_kept_for_its_time_and_then_goes_if_declared
            a_write_without_expiry_takes_the_expiry_away
            a_ping_answers
            the_description_is_filled_in

            many_documents_come_in_the_order_asked
            many_writes_are_as_single_ones
            nothing_asked_is_nothing_read
            thousands_of_documents_in_one_read
            entries_come_in_the_order_asked
            an_entry_written_as_bytes_is_an_entry
            a_corrupt_sequence_document_is_named
            a_record_is_read_only_by_its_own_number
            a_corrupt_record_is_named

            a_merge_makes_a_block_and_counts_the_live
            states_merge_by_or_in_any_order
            a_merge_into_a_block_written_as_bytes
            an_empty_merge_makes_an_empty_block
            a_merge_is_into_a_block_of_its_own_collection
            concurrent_merges_lose_nothing
            a_corrupt_block_fails_the_merge_and_stays

            a_commit_stores_all_its_documents
            a_commit_of_nothing_is_fine
            commits_are_those_of_the_provided_algorithm
            commits_in_byte_arrays_are_those_of_the_provided_algorithm
            commits_in_two_bit_blocks_are_those_of_the_provided_algorithm
            commits_in_adaptive_blocks_are_those_of_the_provided_algorithm
            commits_in_logs_are_those_of_the_provided_algorithm
            commits_in_small_logs_are_those_of_the_provided_algorithm
            commits_in_blocks_of_one_sequence_are_those_of_the_provided_algorithm
            commits_to_several_collections_are_those_of_the_provided_algorithm
            a_commit_keeps_collections_apart
            a_mark_is_of_its_own_collection
            a_drop_is_of_its_own_collection
            primitives_and_commits_mix
            a_commit_may_be_repeated
            a_commit_leaves_sequence_documents_as_first_written
            a_removed_sequence_document_makes_room_for_another
            commits_of_two_writers_interleave
            a_mark_may_come_before_its_row
            a_receipt_names_the_blocks_without_live_rows
            a_departure_is_known_to_the_star_channel
            a_commit_of_thousands
            the_bytes_used_grow_with_what_is_stored_if_told
            a_corrupt_block_fails_the_commit_and_is_named
            a_corrupt_directory_fails_the_commit_and_is_named
            a_directory_of_another_channel_is_noticed
            only_blocks_without_live_rows_are_dropped
            a_dropped_block_is_listed_again_when_it_gets_a_row
            a_drop_decided_before_a_row_came_is_refused
            a_drop_never_hides_a_row

            a_publication_is_readable_at_its_keys
            pointers_only_grow
            pointers_of_one_key_in_two_collections_stay_apart
            a_corrupt_pointer_is_named
            a_publication_may_be_repeated
            publications_follow_one_another_round_the_ring
            late_pages_go_on_over_their_borders
            late_entries_are_announced_once
            a_later_epoch_fences_the_clock
            a_later_epoch_fences_the_record
            a_later_epoch_fences_the_checkpoint
            a_later_epoch_fences_the_late_page
            one_term_has_one_writer
            the_clock_never_goes_back
            a_clock_written_meanwhile_in_the_same_term_is_gone_over
            a_lost_clock_is_an_error
            a_clock_of_another_cache_is_an_error
            a_corrupt_clock_is_named
            concurrent_writers_publish_no_clock_that_goes_back
            a_term_makes_a_cache_where_there_is_none
            a_term_goes_on_with_what_there_is
            a_term_may_be_begun_twice
            a_stale_writer_cannot_begin_a_term
            a_stale_writer_changes_nothing_after_a_later_term_began
            a_term_takes_back_what_was_announced_and_not_published
            terms_begun_at_once_end_with_the_latest
            an_unknown_format_is_refused
            wakes_come_after_a_publication_if_declared
        }
    };
}

#[doc(hidden)]
pub mod boxed {
    crate::store_cases! { boxed_cases!(super::Store) }
}

/// A value of each kind of key, over two channels and two numbers.
fn some_keys() -> Vec<CacheKey> {
    let (a, b) = (channel("a"), channel("b"));
    let mut keys = vec![CacheKey::Meta, CacheKey::Clock, CacheKey::Writer];
    for n in [0, 7] {
        keys.extend([CacheKey::Sequence(Sequence(n)), CacheKey::Batch(n), CacheKey::Late(n), CacheKey::Missing(n)]);
        keys.extend([&a, &b].map(|c| CacheKey::Block(c.clone(), BlockIndex(n))));
    }
    keys.extend([&a, &b].map(|c| CacheKey::Directory(c.clone())));
    keys.extend(["f", "g"].map(|feed| CacheKey::Checkpoint(feed.to_owned())));
    keys
}

fn small() -> Arc<dyn BlockCodec> {
    Arc::new(SmallBlocks::default())
}

/// The testkit's own codec, and those of core.
fn codecs() -> [Arc<dyn BlockCodec>; 5] {
    [
        small(),
        Arc::new(ByteArray::default()),
        Arc::new(TwoBit::default()),
        Arc::new(Adaptive::default()),
        Arc::new(Log::default()),
    ]
}

/// Two named collections; besides them, there is the default one.
const NAMED: [CollectionId; 2] = [CollectionId(8), CollectionId(9)];

fn star() -> Channel {
    Channel::star()
}

fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    items.into_iter().collect()
}

/// Bytes that no codec takes for a block: longer than the largest, and without sense.
fn no_block() -> Bytes {
    Bytes::from(vec![0xAA; 30_000])
}
