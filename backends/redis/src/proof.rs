//! Proofs that what was committed is still there when it is published.
//!
//! A server that comes back from its disk, or a replica that takes its place, may lack the last writes: those of a commit, while the clock is
//! as the writer left it. Such a server has lost the end of what it was told, never something before. So each commit ends with a random
//! number in a list, and nothing is published unless the numbers of all commits before it are there. In a Cluster each shard loses by itself,
//! and one list proves nothing; there `wait_replicas` makes each shard's part wait.

use std::sync::Arc;

use parking_lot::Mutex;
use redis::{Value, cmd};
use sluicegate_core::commit::writes_lost;
use sluicegate_core::{CacheKey, Epoch, Error, Result};

use crate::RedisStore;
use crate::address::Addresses;
use crate::error::translate;
use crate::link::{Commands, Effect};

/// Proofs kept. More than commits can be on their way at once, of all writers that think they are one.
const KEPT: usize = 1_024;

pub(crate) type Proof = [u8; 8];

/// The proofs of one store. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Proofs {
    key: Arc<str>,
    tag: u16,
    used: bool,
    /// Of commits that were acknowledged and not published. A new term begins from what is stored, and asks for no other's.
    open: Arc<Mutex<Vec<(Epoch, Proof)>>>,
}

impl Proofs {
    /// Those kept in the namespace of `addresses`; `used` only where one list proves something.
    pub(crate) fn new(addresses: &Addresses, used: bool) -> Self {
        let clock = addresses.of(&CacheKey::Clock);
        let key = addresses.beside(&clock, "_commits").into();
        Proofs { key, tag: clock.tag, used, open: Arc::default() }
    }

    /// The list.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Ends a commit, where proofs are used. To be followed by [`keep`](Self::keep).
    pub(crate) fn give(&self, commands: &mut Commands) -> Option<Proof> {
        if !self.used {
            return None;
        }
        let proof: Proof = rand::random();
        commands.add(self.tag, cmd("LPUSH").arg(&*self.key).arg(&proof[..]).take());
        commands.add(self.tag, cmd("LTRIM").arg(&*self.key).arg(0).arg(KEPT - 1).take());
        Some(proof)
    }

    /// Its commit was acknowledged.
    pub(crate) fn keep(&self, epoch: Epoch, proof: Proof) {
        let mut open = self.open.lock();
        if open.len() >= KEPT / 2 {
            // Of a writer that has long stopped.
            open.remove(0);
        }
        open.push((epoch, proof));
    }

    /// What a publication must find.
    pub(crate) fn taken(&self, epoch: Epoch) -> Vec<Proof> {
        self.open.lock().iter().filter(|(of, _)| *of == epoch).map(|(_, proof)| *proof).collect()
    }

    /// A publication found them.
    pub(crate) fn published(&self, found: &[Proof]) {
        self.open.lock().retain(|(_, proof)| !found.contains(proof));
    }

    /// Looks for them outside of a publication.
    pub(crate) async fn check(&self, store: &RedisStore, epoch: Epoch) -> Result<()> {
        let taken = self.taken(epoch);
        if taken.is_empty() {
            return Ok(());
        }
        let range = cmd("LRANGE").arg(&*self.key).arg(0).arg(-1).take();
        let answer = store.link.one(self.tag, range, Effect::Read).await;
        let answer = answer.map_err(|e| translate(e, Effect::Read).with_operation("publish").with_context("key", &self.key))?;
        let stored = if let Value::Array(stored) = answer { stored } else { Vec::new() };
        let is_there = |proof: &Proof| stored.iter().any(|value| matches!(value, Value::BulkString(bytes) if bytes == proof));
        if taken.iter().all(is_there) { Ok(()) } else { Err(self.missing()) }
    }

    /// The term is over.
    pub(crate) fn forget(&self) {
        self.open.lock().clear();
    }

    /// One is not there.
    pub(crate) fn missing(&self) -> Error {
        writes_lost("a commit is not there that has not been published yet")
            .with_operation("publish")
            .with_context("key", &self.key)
    }
}
