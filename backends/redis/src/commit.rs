//! Committing in one round trip a slot.

use std::collections::BTreeMap;

use redis::{Value, cmd};
use sluicegate_core::batch::{BlockDelta, CommitReceipt, WriteBatch};
use sluicegate_core::block::InPlace;
use sluicegate_core::commit::{list_blocks, must_list};
use sluicegate_core::{BlockCodec, CacheKey, CacheStore as _, Epoch, Error, Result};

use crate::address::{Address, Addresses};
use crate::error::{Failure, translate};
use crate::link::{Commands, Effect};
use crate::{RedisStore, eval, failed, script, stored, unexpected, version_bytes};

/// Blocks that one script call merges, at most: the server does nothing else meanwhile.
const BLOCKS_AT_ONCE: usize = 64;

/// Bytes that need not be changed and are sent all the same, rather than beginning another run.
const LONGEST_GAP: u32 = 16;

/// The changes of a block as runs: offset, length, and the bits to OR in.
fn runs(delta: &BlockDelta, layout: InPlace) -> Vec<u8> {
    let mut bytes: Vec<(u32, u8)> = delta.changes.iter().map(|(offset, state)| layout.bits(*offset, *state)).collect();
    bytes.sort_unstable();
    let mut out = Vec::new();
    let mut rest = &bytes[..];
    while let [(first, _), ..] = rest {
        let mut end = 1;
        while end < rest.len() && rest[end].0 - rest[end - 1].0 <= LONGEST_GAP {
            end += 1;
        }
        let (run, later) = rest.split_at(end);
        rest = later;
        let length = run[end - 1].0 - first + 1;
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        let start = out.len();
        out.resize(start + length as usize, 0);
        for (offset, bits) in run {
            out[start + (offset - first) as usize] |= bits;
        }
    }
    out
}

/// The script call that merges `deltas`, whose keys share a slot.
fn merge(keys: &[&str], deltas: &[&BlockDelta], codec: &dyn BlockCodec, layout: InPlace) -> redis::Cmd {
    let mut command = eval(script::MERGE, keys);
    let kind = match layout {
        InPlace::Bytes => "b",
        InPlace::Pairs => "p",
    };
    command.arg(kind).arg(layout.length(codec.capacity())).arg(&version_bytes(RedisStore::new_version())[..]);
    for delta in deltas {
        command.arg(runs(delta, layout));
    }
    command
}

/// Which of the blocks of a merge came out without anything live, by place.
fn emptied(answer: Value, keys: impl Fn(usize) -> CacheKey) -> Result<Vec<usize>> {
    let Value::Array(places) = answer else { return Err(unexpected(&answer)) };
    let mut empty = Vec::new();
    for place in places {
        match place {
            Value::Int(place) if place > 0 => empty.push(place as usize - 1),
            Value::Int(place) => {
                let error = Error::corrupt("not a block: another kind of value, or of another length than this codec's");
                return Err(error.with_context("key", keys(place.unsigned_abs() as usize - 1)));
            }
            other => return Err(unexpected(&other)),
        }
    }
    Ok(empty)
}

fn block_key(delta: &BlockDelta) -> CacheKey {
    CacheKey::Block(delta.channel.clone(), delta.index)
}

impl RedisStore {
    /// One block, by itself.
    pub(crate) async fn merge_in_place(&self, delta: &BlockDelta, codec: &dyn BlockCodec, layout: InPlace) -> Result<u32> {
        let key = block_key(delta);
        let address = self.addresses.of(&key);
        let answer = self.link.one(address.tag, merge(&[&address.key], &[delta], codec, layout), Effect::Write).await;
        emptied(answer.map_err(|e| failed(e, Effect::Write, "merge", &key))?, |_| key.clone())?;
        let found = self.get(&key).await?.map(|found| codec.decode(&found.value)).transpose();
        Ok(found.map_err(|e| e.with_context("key", &key))?.map_or(0, |block| block.live_count()))
    }

    /// Sequence documents, blocks and counters in one go, each slot's in this order; then directories, few of which change.
    pub(crate) async fn commit_in_place(&self, batch: &WriteBatch, layout: InPlace) -> Result<CommitReceipt> {
        let deltas = batch.block_deltas();
        let mut commands = Commands::default();
        let mut bucket: Option<(u64, Address)> = None;
        for entry in &batch.entries {
            let (number, field) = Addresses::bucket(entry.sequence());
            if bucket.as_ref().is_none_or(|(known, _)| *known != number) {
                bucket = Some((number, self.addresses.in_bucket(number, field)));
            }
            if let Some((_, address)) = &bucket {
                let value = stored(RedisStore::new_version(), &entry.to_bytes());
                commands.add(address.tag, cmd("HSETNX").arg(&address.key).arg(field).arg(value).take());
            }
        }

        // Blocks of one slot go together.
        let mut by_slot: BTreeMap<u16, Vec<(usize, String)>> = BTreeMap::new();
        for (at, delta) in deltas.iter().enumerate() {
            let address = self.addresses.of(&block_key(delta));
            // Without a Cluster all may go together.
            let slot = if self.target.cluster { address.tag } else { 0 };
            by_slot.entry(slot).or_default().push((at, address.key));
        }
        let mut merges: Vec<(usize, Vec<usize>)> = Vec::new();
        for (tag, blocks) in by_slot {
            for some in blocks.chunks(BLOCKS_AT_ONCE) {
                let keys: Vec<&str> = some.iter().map(|(_, key)| key.as_str()).collect();
                let places: Vec<usize> = some.iter().map(|(at, _)| *at).collect();
                let merged: Vec<&BlockDelta> = places.iter().map(|at| &deltas[*at]).collect();
                merges.push((commands.add(tag, merge(&keys, &merged, batch.codec.as_ref(), layout)), places));
            }
        }
        let first_count = commands.len();
        let mut channels: Vec<_> = deltas.iter().map(|delta| &delta.channel).collect();
        channels.dedup();
        for channel in &channels {
            let address = self.addresses.of(&CacheKey::Counter((*channel).clone()));
            commands.add(address.tag, cmd("INCR").arg(address.key).take());
        }

        let listed = !deltas.iter().any(|delta| must_list(batch, delta));
        let first_proof = commands.len();
        let proof = if listed { self.proofs.give(&mut commands) } else { None };

        let mut answers = self.link.run(commands, Effect::Write).await;
        let proofs = answers.split_off(first_proof);
        let counts = answers.split_off(first_count);
        let mut receipt = CommitReceipt::default();
        for (at, places) in merges.into_iter().rev() {
            let answer = answers.remove(at);
            let key = |place: usize| block_key(&deltas[places[place]]);
            let answer = answer.map_err(|e| failed(e, Effect::Write, "merge", &key(0)))?;
            for place in emptied(answer, key)? {
                let delta = &deltas[places[place]];
                receipt.emptied.push((delta.channel.clone(), delta.index));
            }
        }
        receipt.emptied.sort_unstable();
        for (entry, answer) in batch.entries.iter().zip(answers) {
            if let Err(e) = answer {
                return Err(failed(e, Effect::Write, "insert", &CacheKey::Sequence(entry.sequence())));
            }
        }
        for (channel, answer) in channels.into_iter().zip(counts) {
            if let Err(e) = answer {
                return Err(failed(e, Effect::Write, "increment", &CacheKey::Counter(channel.clone())));
            }
        }
        if listed {
            proofs.into_iter().try_for_each(|answer| answer.map(drop)).map_err(|e| self.unproven(e))?;
            proof.into_iter().for_each(|proof| self.proofs.keep(batch.epoch, proof));
        } else {
            list_blocks(self, batch, &deltas).await?;
            self.prove(batch.epoch).await?;
        }
        Ok(receipt)
    }

    /// Ends a commit whose writes have all been acknowledged.
    pub(crate) async fn prove(&self, epoch: Epoch) -> Result<()> {
        let mut commands = Commands::default();
        let Some(proof) = self.proofs.give(&mut commands) else { return Ok(()) };
        let answers = self.link.run(commands, Effect::Write).await;
        answers.into_iter().try_for_each(|answer| answer.map(drop)).map_err(|e| self.unproven(e))?;
        self.proofs.keep(epoch, proof);
        Ok(())
    }

    fn unproven(&self, failure: Failure) -> Error {
        translate(failure, Effect::Write).with_operation("commit").with_context("key", self.proofs.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluicegate_core::block::BlockState;
    use sluicegate_core::{BlockIndex, Channel};

    fn delta(changes: &[(u32, BlockState)]) -> BlockDelta {
        BlockDelta::new(Channel::new("a").unwrap(), BlockIndex(0), changes.to_vec())
    }

    #[test]
    fn near_changes_share_a_run_and_far_ones_do_not() {
        let changes =
            [(40, BlockState::Removal), (1, BlockState::Present), (0, BlockState::Superseded), (1, BlockState::Removal)];
        let pairs = runs(&delta(&changes), InPlace::Pairs);
        let expected = [&[0, 0, 0, 0, 11, 0, 0, 0, 0xF0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80][..]].concat();
        assert_eq!(pairs, expected);
        let bytes = runs(&delta(&changes), InPlace::Bytes);
        assert_eq!(bytes, [&[0, 0, 0, 0, 2, 0, 0, 0, 3, 3][..], &[40, 0, 0, 0, 1, 0, 0, 0, 2]].concat());
    }
}
