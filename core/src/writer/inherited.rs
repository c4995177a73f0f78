//! Entries that an earlier term has stored and not marked.

use std::sync::Arc;

use backon::{ExponentialBuilder, Retryable as _};

use super::log_retry;
use crate::entry::ChangeEntry;
use crate::error::{Error, ErrorKind, Result};
use crate::scan;
use crate::sequence::Sequence;
use crate::store::CacheStore;

/// Removes from each entry's list the sequences that belong to another document now, or to a later
/// revision of its own: the entry never superseded those. An entry with a shorter list is a copy;
/// the stored one stays.
///
/// # Errors
/// What the store says. Unreadable entries stay in the lists: a mark on them hides nothing that is
/// shown.
pub(super) async fn without_others(
    store: &dyn CacheStore,
    policy: ExponentialBuilder,
    mut entries: Vec<Arc<ChangeEntry>>,
) -> Result<Vec<Arc<ChangeEntry>>> {
    for some in entries.chunks_mut(scan::PAGE) {
        let named = some.iter().enumerate().flat_map(|(at, entry)| entry.supersedes().iter().map(move |older| (*older, at)));
        let mut named: Vec<(Sequence, usize)> = named.collect();
        named.sort_unstable();
        let by_position: Vec<&[(Sequence, usize)]> = named.chunk_by(|a, b| a.0 == b.0).collect();
        let mut wrong: Vec<(usize, Sequence)> = Vec::new();
        for page in by_position.chunks(scan::PAGE) {
            let positions: Vec<Sequence> = page.iter().map(|naming| naming[0].0).collect();
            for (naming, found) in page.iter().zip(read(store, policy, &positions).await?) {
                let Some(found) = found else { continue };
                let wrongly_named = naming.iter().filter(|(_, at)| !some[*at].counts_on(&found));
                wrong.extend(wrongly_named.map(|(older, at)| (*at, *older)));
            }
        }
        wrong.sort_unstable();
        for wrong in wrong.chunk_by(|a, b| a.0 == b.0) {
            let entry = &mut some[wrong[0].0];
            let is_right = |older: &Sequence| wrong.iter().all(|(_, other)| other != older);
            let right: Vec<Sequence> = entry.supersedes().iter().copied().filter(is_right).collect();
            *entry = Arc::new(ChangeEntry::clone(entry).with_supersedes(right));
        }
    }
    Ok(entries)
}

/// The entries at these positions, without unreadable ones.
async fn read(
    store: &dyn CacheStore,
    policy: ExponentialBuilder,
    positions: &[Sequence],
) -> Result<Vec<Option<Arc<ChangeEntry>>>> {
    if let Ok(found) = store.entries(positions).await {
        return Ok(found);
    }
    let mut found = Vec::with_capacity(positions.len());
    for position in positions {
        let attempt = || async { store.entries(std::slice::from_ref(position)).await };
        match attempt.retry(policy).when(Error::is_retryable).notify(log_retry).await {
            Err(e) if e.kind() == ErrorKind::Corrupt => found.push(None),
            one => found.extend(one?),
        }
    }
    Ok(found)
}
