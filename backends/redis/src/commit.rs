//! Committing in one round trip a slot.

use std::collections::BTreeMap;

use redis::{Cmd, Value, cmd};
use sluicegate_core::batch::{BlockDelta, CommitReceipt, WriteBatch};
use sluicegate_core::block::{BlockState, InPlace};
use sluicegate_core::commit::{list_blocks, must_list};
use sluicegate_core::{BlockCodec, CacheKey, CacheStore as _, ChangeEntry, Epoch, Error, Result};

use crate::address::{Address, Addresses};
use crate::error::{Failure, translate};
use crate::link::{Answer, Commands, Effect};
use crate::{RedisStore, VERSION, eval, failed, script, stored, unexpected};

/// Blocks that one script call looks through, at most: the server does nothing else meanwhile.
const BLOCKS_AT_ONCE: usize = 64;

/// Blocks remembered as looked at, at most.
const KNOWN_BLOCKS: usize = 65_536;

/// Commands that raise states in one block, where they lie.
struct Raise {
    /// Raises all states at once; answers last with the state of a row that is live unless it was superseded before, if there is one.
    bits: Cmd,
    /// Whether there is one.
    has_witness: bool,
}

/// Bits of version before the block.
const BEFORE: u64 = 8 * VERSION as u64;

impl Raise {
    fn new(key: &str, delta: &BlockDelta, layout: InPlace, capacity: u32) -> Self {
        let mut bits = cmd("BITFIELD");
        bits.arg(key);
        if layout == InPlace::Bytes {
            // Adding nothing to its last bit gives a block its length.
            bits.arg("INCRBY").arg("u1").arg(BEFORE + layout.bit(capacity - 1) + 1).arg(0);
        }
        for (offset, state) in &delta.changes {
            let at = BEFORE + layout.bit(*offset);
            match state {
                BlockState::Absent => continue,
                BlockState::Present => bits.arg("SET").arg("u1").arg(at + 1).arg(1),
                BlockState::Removal => bits.arg("SET").arg("u1").arg(at).arg(1),
                BlockState::Superseded => bits.arg("SET").arg("u2").arg(at).arg(3),
            };
        }
        let witness = delta.changes.iter().rev().find(|(_, state)| state.is_live());
        if let Some((offset, _)) = witness {
            bits.arg("GET").arg("u2").arg(BEFORE + layout.bit(*offset));
        }
        Raise { bits, has_witness: witness.is_some() }
    }
}

/// Whether a block of this many stored bytes is one.
fn check_length(answer: Value, layout: InPlace, capacity: u32) -> Result<()> {
    let Value::Int(length) = answer else { return Err(unexpected(&answer)) };
    let longest = VERSION as i64 + i64::from(layout.length(capacity));
    let valid = match layout {
        InPlace::Bytes => length == longest,
        InPlace::Pairs => (VERSION as i64..=longest).contains(&length),
    };
    if length == 0 || valid {
        return Ok(());
    }
    Err(Error::corrupt(format!("not a block: {length} bytes, where this codec's have {longest} at most")))
}

/// Whether the witness, the last of the answers, is live.
fn is_live(answer: &Value) -> bool {
    matches!(answer, Value::Array(states) if matches!(states.last(), Some(Value::Int(1 | 2))))
}

fn bucket_of(entry: &ChangeEntry) -> u64 {
    Addresses::bucket(entry.sequence()).0
}

fn block_key(delta: &BlockDelta) -> CacheKey {
    CacheKey::Block(delta.channel.clone(), delta.index)
}

/// The places of empty blocks, from what searches answered.
fn found_empty(searched: Vec<Vec<usize>>, answers: Vec<Answer>) -> Result<Vec<usize>> {
    let mut empty = Vec::new();
    for (places, answer) in searched.into_iter().zip(answers) {
        let answer = answer.map_err(|e| translate(e, Effect::Read).with_operation("search blocks"))?;
        let Value::Array(numbers) = answer else { return Err(unexpected(&answer)) };
        for number in numbers {
            match number {
                Value::Int(number) if number > 0 && number as usize <= places.len() => empty.push(places[number as usize - 1]),
                other => return Err(unexpected(&other)),
            }
        }
    }
    Ok(empty)
}

impl RedisStore {
    /// One block, by itself.
    pub(crate) async fn merge_in_place(&self, delta: &BlockDelta, codec: &dyn BlockCodec, layout: InPlace) -> Result<u32> {
        let key = block_key(delta);
        let address = self.addresses.of(&key);
        self.check_blocks(std::slice::from_ref(delta), layout, codec.capacity()).await?;
        let raise = Raise::new(&address.key, delta, layout, codec.capacity());
        let raised = self.link.one(address.tag, raise.bits, Effect::Write).await;
        raised.map_err(|e| failed(e, Effect::Write, "merge", &key))?;
        let found = self.get(&key).await?.map(|found| codec.decode(&found.value)).transpose();
        Ok(found.map_err(|e| e.with_context("key", &key))?.map_or(0, |block| block.live_count()))
    }

    /// Sequence documents, blocks and counters in one go, each slot's in this order; then directories, few of which change.
    pub(crate) async fn commit_in_place(&self, batch: &WriteBatch, layout: InPlace) -> Result<CommitReceipt> {
        let deltas = batch.block_deltas();
        let capacity = batch.codec.capacity();
        self.check_blocks(&deltas, layout, capacity).await?;
        let mut commands = Commands::default();
        let mut entries: Vec<&ChangeEntry> = batch.entries.iter().map(AsRef::as_ref).collect();
        entries.sort_unstable_by_key(|entry| entry.sequence());
        for entries in entries.chunk_by(|a, b| bucket_of(a) == bucket_of(b)) {
            let address = self.addresses.in_bucket(bucket_of(entries[0]), 0);
            for entry in entries {
                let (_, field) = Addresses::bucket(entry.sequence());
                let value = stored(RedisStore::new_version(), &entry.to_bytes());
                commands.add(address.tag, cmd("HSETNX").arg(&address.key).arg(field).arg(value).take());
            }
        }

        let first_block = commands.len();
        let mut witnesses = Vec::with_capacity(deltas.len());
        // Where all that is raised is superseded, only the whole block tells whether something is live.
        let mut doubtful = Vec::new();
        for (at, delta) in deltas.iter().enumerate() {
            let address = self.addresses.of(&block_key(delta));
            let raise = Raise::new(&address.key, delta, layout, capacity);
            commands.add(address.tag, raise.bits);
            witnesses.push(raise.has_witness);
            if !raise.has_witness {
                doubtful.push((at, address));
            }
        }
        let first_search = commands.len();
        let searched = self.search(&mut commands, doubtful, layout);
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
        let searches = answers.split_off(first_search);
        let mut blocks = answers.split_off(first_block).into_iter();
        let mut doubtful = Vec::new();
        for (at, (delta, has_witness)) in deltas.iter().zip(witnesses).enumerate() {
            let key = block_key(delta);
            let bits = blocks.next().unwrap_or_else(|| Err(Failure::unanswered()));
            let bits = bits.map_err(|e| failed(e, Effect::Write, "merge", &key))?;
            if !is_live(&bits) && has_witness {
                doubtful.push((at, self.addresses.of(&key)));
            }
        }
        let mut empty = found_empty(searched, searches)?;
        if !doubtful.is_empty() {
            let mut commands = Commands::default();
            let searched = self.search(&mut commands, doubtful, layout);
            empty.extend(found_empty(searched, self.link.run(commands, Effect::Read).await)?);
        }
        empty.sort_unstable();
        let emptied = empty.into_iter().map(|at| (deltas[at].channel.clone(), deltas[at].index)).collect();
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
            proof.into_iter().for_each(|proof| self.proofs.keep(batch.epoch, proof));
        } else {
            list_blocks(self, batch, &deltas).await?;
            self.prove(batch.epoch).await?;
        }
        Ok(CommitReceipt { emptied })
    }

    /// Looks at blocks that this store has not written before, so that nothing is written over what is none.
    async fn check_blocks(&self, deltas: &[BlockDelta], layout: InPlace, capacity: u32) -> Result<()> {
        let new: Vec<&BlockDelta> = {
            let known = self.known_blocks.lock();
            deltas.iter().filter(|delta| !known.contains(&(delta.channel.clone(), delta.index))).collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        let mut commands = Commands::default();
        for delta in &new {
            let address = self.addresses.of(&block_key(delta));
            commands.add(address.tag, cmd("STRLEN").arg(address.key).take());
        }
        for (delta, answer) in new.iter().zip(self.link.run(commands, Effect::Read).await) {
            let key = block_key(delta);
            let length = answer.map_err(|e| failed(e, Effect::Read, "merge", &key))?;
            check_length(length, layout, capacity).map_err(|e| e.with_context("key", &key))?;
        }
        let mut known = self.known_blocks.lock();
        if known.len() + new.len() > KNOWN_BLOCKS {
            known.clear();
        }
        known.extend(new.into_iter().map(|delta| (delta.channel.clone(), delta.index)));
        Ok(())
    }

    /// Adds what finds out in which of the blocks nothing is live; for each command the places it is about.
    fn search(&self, commands: &mut Commands, blocks: Vec<(usize, Address)>, layout: InPlace) -> Vec<Vec<usize>> {
        let mut by_slot: BTreeMap<u16, Vec<(usize, String)>> = BTreeMap::new();
        for (at, address) in blocks {
            // Without a Cluster all may go together.
            let slot = if self.target.cluster { address.tag } else { 0 };
            by_slot.entry(slot).or_default().push((at, address.key));
        }
        let mut searched = Vec::new();
        for (slot, blocks) in by_slot {
            for some in blocks.chunks(BLOCKS_AT_ONCE) {
                let keys: Vec<&str> = some.iter().map(|(_, key)| key.as_str()).collect();
                let kind = if layout == InPlace::Bytes { "b" } else { "p" };
                commands.add(slot, eval(script::EMPTY, &keys).arg(kind).take());
                searched.push(some.iter().map(|(at, _)| *at).collect());
            }
        }
        searched
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
    use sluicegate_core::{BlockIndex, Channel};

    fn delta(changes: &[(u32, BlockState)]) -> BlockDelta {
        BlockDelta::new(Channel::new("a").unwrap(), BlockIndex(0), changes.to_vec())
    }

    #[test]
    fn states_are_raised_where_the_codec_has_them() {
        let changes = [(3, BlockState::Removal), (9, BlockState::Superseded), (0, BlockState::Present)];
        let words = |layout, capacity| {
            let raise = Raise::new("k", &delta(&changes), layout, capacity);
            let words: Vec<String> = raise
                .bits
                .args_iter()
                .map(|arg| match arg {
                    redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                    _ => String::new(),
                })
                .collect();
            words.join(" ")
        };
        assert_eq!(words(InPlace::Pairs, 64), "BITFIELD k SET u1 70 1 SET u2 82 3 SET u1 65 1 GET u2 64");
        assert_eq!(words(InPlace::Bytes, 64), "BITFIELD k INCRBY u1 575 0 SET u1 94 1 SET u2 142 3 SET u1 71 1 GET u2 70");
    }
}
