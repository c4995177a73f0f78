//! Compare-and-swap loops: read documents, change them, and write them unless another writer
//! changed them in between.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::key::CacheKey;
use crate::store::{CacheStore, Write};

/// The limit for rounds of a compare-and-swap loop; then it reports the conflict. A few commits of
/// one writer, and a deposed writer, may meet on a document. A loop that long means that the
/// store's versions are broken.
pub(crate) const CAS_ROUNDS: usize = 1000;

/// Reads, changes and writes one document until no one else did so in between. `change` gets what
/// is stored and says what to store, or `None` to leave it.
///
/// An error of status indeterminate is passed on: the callers' changes are idempotent, so that
/// repeating the whole is right.
pub async fn update<S: CacheStore + ?Sized>(
    store: &S,
    key: &CacheKey,
    mut change: impl FnMut(Option<&[u8]>) -> Result<Option<Bytes>> + Send,
) -> Result<()> {
    update_many(store, std::slice::from_ref(key), |_, stored| change(stored)).await
}

/// [`update`] of several documents, of different keys; `change` is told which.
pub async fn update_many<S: CacheStore + ?Sized>(
    store: &S,
    keys: &[CacheKey],
    mut change: impl FnMut(usize, Option<&[u8]>) -> Result<Option<Bytes>> + Send,
) -> Result<()> {
    let mut open: Vec<usize> = (0..keys.len()).collect();
    for _ in 0..CAS_ROUNDS {
        let wanted: Vec<CacheKey> = open.iter().map(|at| keys[*at].clone()).collect();
        let (mut places, mut writes) = (Vec::new(), Vec::new());
        for ((at, found), key) in open.drain(..).zip(store.get_many(&wanted).await?).zip(wanted) {
            let changed = change(at, found.as_ref().map(|f| f.value.as_ref())).map_err(|e| e.with_context("key", &key))?;
            if let Some(value) = changed {
                places.push(at);
                writes.push(Write { key, expected: found.map(|f| f.version), value });
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        for (at, written) in places.into_iter().zip(store.write_many(writes).await) {
            match written {
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::AlreadyExists) => open.push(at),
                Err(e) => return Err(e.with_context("key", &keys[at])),
            }
        }
        if open.is_empty() {
            return Ok(());
        }
    }
    let stuck = open.first().map_or_else(String::new, |at| keys[*at].to_string());
    Err(Error::new(ErrorKind::Conflict, format!("{CAS_ROUNDS} compare-and-swaps in a row were refused"))
        .with_context("key", stuck))
}
