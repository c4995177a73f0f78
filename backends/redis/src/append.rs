//! Blocks to which states are appended: see [`BlockCodec::encode_append`].

use redis::{Cmd, Value};
use sluicegate_core::batch::BlockDelta;
use sluicegate_core::commit::update_many;
use sluicegate_core::{BlockCodec, CacheKey, Result};

use crate::blocks::{block_key, get};
use crate::link::{Answer, Commands, Effect};
use crate::rows::Live;
use crate::{RedisStore, VERSION, failed, unexpected};

/// Upper bound for the first limit, in bytes.
const FIRST_LIMIT: usize = 1_024;

/// Whether a block must be encoded anew after an append. That is when its length reaches a limit.
/// The first limit is twice the longest bitmap, and at most [`FIRST_LIMIT`]; each of the others is
/// four times the one before. The answer to an append that reaches a limit may be lost. So a block
/// that is longer than eight times the longest bitmap, and than [`FIRST_LIMIT`], is always encoded
/// anew.
fn must_encode(before: usize, after: usize, capacity: u32) -> bool {
    let capacity = (capacity as usize).max(2);
    let limits = std::iter::successors(Some((capacity / 2).min(FIRST_LIMIT)), |limit| limit.checked_mul(4));
    after > (2 * capacity).max(FIRST_LIMIT) || limits.take_while(|limit| *limit <= after).any(|limit| before < limit)
}

/// An `APPEND` command. A commit has thousands of them, so its buffers have their final size from
/// the beginning.
pub(crate) fn command(key: &str, bytes: &[u8]) -> Cmd {
    let mut command = Cmd::with_capacity(3, "APPEND".len() + key.len() + bytes.len());
    command.arg("APPEND").arg(key).arg(bytes);
    command
}

/// What is appended to one block.
#[derive(Debug)]
pub(crate) struct Append {
    /// Begins with zero bytes, as many as a version has. So an append that makes a block makes it
    /// whole, whether or not the block was expected to be there: a server may have lost it, and a
    /// client may send a command again after a lost connection.
    bytes: Vec<u8>,
    /// Whether the block was looked for, and was not there.
    is_new: bool,
}

impl RedisStore {
    /// Adds the commands that append to blocks, one for each delta; `None` if the codec does not
    /// support appending. Blocks that this store does not know are read first, so that states are
    /// not appended to a value that is not a block.
    ///
    /// # Errors
    /// `Corrupt`, naming the key, for a value that is not a block; what the store says.
    pub(crate) async fn queue_appends(
        &self,
        commands: &mut Commands,
        deltas: &[BlockDelta],
        codec: &dyn BlockCodec,
    ) -> Result<Option<Vec<Append>>> {
        let append = |delta: &BlockDelta| {
            let states = codec.encode_append(&delta.changes)?;
            Some(Append { bytes: [&[0; VERSION][..], &states].concat(), is_new: false })
        };
        let Some(mut appends) = deltas.iter().map(append).collect::<Option<Vec<Append>>>() else { return Ok(None) };
        let mut unknown: Vec<usize> = (0..deltas.len()).collect();
        {
            let known = self.known_rows.lock();
            unknown.retain(|at| !known.contains(&deltas[*at]));
        }
        for (at, answer) in unknown.iter().zip(self.get_blocks(&unknown, deltas).await) {
            let block = self.decode_block(&deltas[*at], answer, codec)?;
            match block {
                Some(block) => self.known_rows.lock().read(&deltas[*at], &block),
                None => appends[*at].is_new = true,
            }
        }
        for (delta, append) in deltas.iter().zip(&appends) {
            let address = self.addresses.of(&block_key(delta));
            commands.add(address.tag, command(&address.key, &append.bytes));
        }
        Ok(Some(appends))
    }

    /// Evaluates the answers to [`queue_appends`](Self::queue_appends). Returns the indexes of
    /// blocks without live rows. Blocks that have reached a limit are encoded anew.
    ///
    /// # Errors
    /// `Corrupt`, naming the key, for a block that cannot be read; what the store says.
    pub(crate) async fn finish_appends(
        &self,
        appends: &[Append],
        answers: Vec<Answer>,
        deltas: &[BlockDelta],
        codec: &dyn BlockCodec,
    ) -> Result<Vec<usize>> {
        let (mut empty, mut unknown, mut long, mut gone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut failure = None;
        {
            let mut known = self.known_rows.lock();
            for (at, ((delta, append), answer)) in deltas.iter().zip(appends).zip(answers).enumerate() {
                let length = match answer {
                    Ok(Value::Int(length)) => Ok(length as usize),
                    Ok(other) => Err(unexpected(&other).with_context("key", block_key(delta))),
                    Err(e) => Err(failed(e, Effect::Write, "append", &block_key(delta))),
                };
                let length = match length {
                    Ok(length) => length,
                    Err(e) => {
                        // It may have been appended or not.
                        known.forget(&block_key(delta));
                        failure.get_or_insert(e);
                        continue;
                    }
                };
                let before = length.saturating_sub(append.bytes.len());
                if must_encode(before, length, codec.capacity()) {
                    long.push(at);
                }
                let is_gone = before == 0 && !append.is_new;
                if is_gone {
                    gone.push(block_key(delta));
                }
                if is_gone || before == 0 && !known.contains(delta) {
                    known.found(delta, true);
                }
                match known.record_append(delta) {
                    Live::Some => {}
                    Live::None => empty.push(at),
                    Live::Unknown => unknown.push(at),
                }
            }
        }
        if let Some(key) = gone.first() {
            tracing::warn!(
                store = self.target.name,
                key = %key,
                blocks = gone.len(),
                "blocks that this process has read or written were gone from the server, and have been made anew; unless somebody \
                 removed them on purpose, rows stored in them before are missing: write a new cache, in another namespace \
                 (`sluicegate verify --repair` finds the loss only if another block names one of the rows)"
            );
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        self.read_empty(unknown, deltas, codec, &mut empty).await?;
        match self.encode_anew(&long, deltas, codec).await {
            // All is stored; the blocks stay longer than they must be.
            Err(e) if e.is_retryable() => tracing::debug!(store = self.target.name, error = %e, "blocks are not encoded anew"),
            encoded => encoded?,
        }
        Ok(empty)
    }

    /// Replaces the blocks at these places whose encoding is much shorter than what is stored.
    /// Others come to the next limit first, so that a block is not read at each append.
    async fn encode_anew(&self, places: &[usize], deltas: &[BlockDelta], codec: &dyn BlockCodec) -> Result<()> {
        let keys: Vec<CacheKey> = places.iter().map(|at| block_key(&deltas[*at])).collect();
        let mut blocks = vec![None; keys.len()];
        update_many(self, &keys, |at, stored| {
            let Some(stored) = stored else { return Ok(None) };
            let block = codec.decode(stored)?;
            let encoded = codec.encode(&block);
            blocks[at] = Some(block);
            Ok((encoded.len() <= stored.len() / 4 * 3).then_some(encoded))
        })
        .await?;
        // `update_many` has removed the blocks that it wrote from `known_rows`.
        let mut known = self.known_rows.lock();
        for (at, block) in places.iter().zip(blocks) {
            if let Some(block) = block
                && !known.contains(&deltas[*at])
            {
                known.read(&deltas[*at], &block);
            }
        }
        Ok(())
    }

    /// Appends to one block. Returns how many of its sequences are live afterwards; `None` if the
    /// codec does not support appending.
    pub(crate) async fn merge_append(&self, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<Option<u32>> {
        let deltas = std::slice::from_ref(delta);
        let mut commands = Commands::default();
        let Some(appends) = self.queue_appends(&mut commands, deltas, codec).await? else { return Ok(None) };
        let answers = self.link.run(commands, Effect::Write).await;
        self.finish_appends(&appends, answers, deltas, codec).await?;
        let address = self.addresses.of(&block_key(delta));
        let answer = self.link.one(address.tag, get(&address), Effect::Read).await;
        Ok(Some(self.read_block(delta, answer, codec)?.live_count()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_encoded_anew_at_each_limit_and_while_it_is_far_too_long() {
        let is_encoded = |before, after| must_encode(before, after, 40_000);
        assert!(!is_encoded(0, 1_023) && is_encoded(0, 1_024) && is_encoded(1_000, 1_030));
        assert!(!is_encoded(1_024, 4_095) && is_encoded(4_095, 4_096) && is_encoded(500, 70_000));
        assert!(!is_encoded(16_384, 65_535) && !is_encoded(70_000, 80_000) && is_encoded(79_990, 80_001));
        assert!(must_encode(499, 500, 1_000) && !must_encode(500, 1_999, 1_000) && must_encode(2_010, 2_020, 1_000));
        assert!(!must_encode(50, 60, 1) && must_encode(1_030, 1_040, 1));
    }
}
