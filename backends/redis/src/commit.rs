//! Committing in one round trip a slot.

use std::collections::BTreeMap;

use redis::{Value, cmd};
use sluicegate_core::batch::{BlockDelta, CommitReceipt, WriteBatch};
use sluicegate_core::block::InPlace;
use sluicegate_core::commit::{list_blocks, must_list};
use sluicegate_core::{BlockCodec, CacheKey, CacheStore as _, ChangeEntry, Error, Result};

use crate::address::Addresses;
use crate::error::{Failure, translate};
use crate::link::{Commands, Effect};
use crate::{RedisStore, eval, failed, script, stored, unexpected, version_bytes};

/// Blocks that one script call merges, at most: the server does nothing else meanwhile.
const BLOCKS_AT_ONCE: usize = 64;

/// Bytes that need not be changed and are OR-ed all the same, rather than beginning another run.
const LONGEST_GAP: u32 = 12;

/// Bytes that need not be changed and are read and written all the same, rather than beginning another span.
const LONGEST_BRIDGE: u32 = 1_024;

/// The changes of a block as [`script::MERGE`] takes them: spans of runs of bits.
fn spans(delta: &BlockDelta, layout: InPlace) -> Vec<u8> {
    let mut bits: Vec<(u32, u8)> = delta.changes.iter().map(|(offset, state)| layout.bits(*offset, *state)).collect();
    bits.sort_unstable();
    let mut out = Vec::with_capacity(24 + 10 * bits.len());
    let put = |out: &mut Vec<u8>, number: u32| out.extend_from_slice(&number.to_le_bytes());
    let length = |some: &[(u32, u8)]| some[some.len() - 1].0 - some[0].0 + 1;
    for span in bits.chunk_by(|a, b| b.0 - a.0 <= LONGEST_BRIDGE) {
        let runs = || span.chunk_by(|a, b| b.0 - a.0 <= LONGEST_GAP);
        let start = span[0].0;
        put(&mut out, start);
        put(&mut out, length(span));
        put(&mut out, runs().count() as u32);
        for run in runs() {
            put(&mut out, run[0].0 - start);
            put(&mut out, length(run));
            let first = out.len();
            out.resize(first + length(run) as usize, 0);
            for (offset, bits) in run {
                out[first + (offset - run[0].0) as usize] |= bits;
            }
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
        command.arg(spans(delta, layout));
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

fn bucket_of(entry: &ChangeEntry) -> u64 {
    Addresses::bucket(entry.sequence()).0
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
        let mut entries: Vec<&ChangeEntry> = batch.entries.iter().map(AsRef::as_ref).collect();
        entries.sort_unstable_by_key(|entry| entry.sequence());
        let buckets: Vec<&[&ChangeEntry]> = entries.chunk_by(|a, b| bucket_of(a) == bucket_of(b)).collect();
        for entries in &buckets {
            let (number, _) = Addresses::bucket(entries[0].sequence());
            let address = self.addresses.in_bucket(number, 0);
            for entry in *entries {
                let (_, field) = Addresses::bucket(entry.sequence());
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
        for (entry, answer) in entries.iter().zip(answers) {
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
            proof.into_iter().for_each(|proof| self.proofs.keep(proof));
        } else {
            list_blocks(self, batch, &deltas).await?;
            self.prove().await?;
        }
        Ok(receipt)
    }

    /// Ends a commit whose writes have all been acknowledged.
    pub(crate) async fn prove(&self) -> Result<()> {
        let mut commands = Commands::default();
        let Some(proof) = self.proofs.give(&mut commands) else { return Ok(()) };
        let answers = self.link.run(commands, Effect::Write).await;
        answers.into_iter().try_for_each(|answer| answer.map(drop)).map_err(|e| self.unproven(e))?;
        self.proofs.keep(proof);
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

    fn numbers(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn near_changes_share_a_run_farther_ones_a_span() {
        let changes = [
            (40, BlockState::Removal),
            (1, BlockState::Present),
            (0, BlockState::Superseded),
            (1, BlockState::Removal),
            (5_000, BlockState::Present),
        ];
        let pairs = spans(&delta(&changes), InPlace::Pairs);
        let expected =
            [numbers(&[0, 11, 1, 0, 11]), vec![0xF0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80], numbers(&[1250, 1, 1, 0, 1]), vec![0x40]];
        assert_eq!(pairs, expected.concat());
        let bytes = spans(&delta(&changes), InPlace::Bytes);
        let expected =
            [numbers(&[0, 41, 2, 0, 2]), vec![3, 3], numbers(&[40, 1]), vec![2], numbers(&[5_000, 1, 1, 0, 1]), vec![1]];
        assert_eq!(bytes, expected.concat());
    }
}
