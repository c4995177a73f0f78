//! Blocks that are raised where they lie.

use std::collections::BTreeMap;

use redis::{Cmd, Value, cmd};
use sluicegate_core::batch::BlockDelta;
use sluicegate_core::block::{BlockState, InPlace};
use sluicegate_core::{BlockCodec, CacheKey, CacheStore as _, Error, Result};

use crate::address::{Address, Addresses};
use crate::error::translate;
use crate::link::{Answer, Commands, Effect};
use crate::{RedisStore, VERSION, eval, failed, script, unexpected};

/// Blocks that one script call looks through, at most: the server does nothing else meanwhile.
const BLOCKS_AT_ONCE: usize = 64;

/// Blocks remembered as looked at, at most.
const KNOWN_BLOCKS: usize = 65_536;

/// What was sent to raise the blocks of a batch: a command each, then searches of those of which it is known already that they may be empty.
pub(crate) struct Sent {
    layout: InPlace,
    /// Whether the block's answer has a witness.
    witnesses: Vec<bool>,
    /// The blocks that each search is about.
    searched: Vec<Vec<usize>>,
}

/// So many states are raised bit by bit; more at once, where they lie close together.
const FEW_STATES: usize = 16;

/// Bytes a state that may be sent to raise several at once.
const BYTES_A_STATE: u64 = 32;

/// What raises states in one block, where they lie.
struct Raise {
    /// Raises all states at once; answers last with the state of a row that is live unless it was superseded before, if there is one.
    command: Cmd,
    /// Whether there is one.
    has_witness: bool,
}

/// Bits of version before the block.
const BEFORE: u64 = 8 * VERSION as u64;

impl Raise {
    fn new(addresses: &Addresses, address: &Address, delta: &BlockDelta, layout: InPlace, capacity: u32) -> Self {
        let at = |offset| BEFORE + layout.bit(offset);
        let mut command = match mask(delta, layout) {
            Some((first, mask)) => {
                let length = match layout {
                    InPlace::Bytes => VERSION as u64 + u64::from(layout.length(capacity)),
                    InPlace::Pairs => first + mask.len() as u64,
                };
                let scratch = addresses.beside(address, "_scratch");
                eval(script::OR, &[&address.key, &scratch]).arg(length).arg(first).arg(mask).take()
            }
            None => {
                let mut bits = cmd("BITFIELD");
                bits.arg(&address.key);
                if layout == InPlace::Bytes {
                    // Adding nothing to its last bit gives a block its length.
                    bits.arg("INCRBY").arg("u1").arg(at(capacity - 1) + 1).arg(0);
                }
                for (offset, state) in &delta.changes {
                    match state {
                        BlockState::Absent => continue,
                        BlockState::Present => bits.arg("SET").arg("u1").arg(at(*offset) + 1).arg(1),
                        BlockState::Removal => bits.arg("SET").arg("u1").arg(at(*offset)).arg(1),
                        BlockState::Superseded => bits.arg("SET").arg("u2").arg(at(*offset)).arg(3),
                    };
                }
                bits
            }
        };
        let witness = delta.changes.iter().rev().find(|(_, state)| state.is_live());
        if let Some((offset, _)) = witness {
            command.arg("GET").arg("u2").arg(at(*offset));
        }
        Raise { command, has_witness: witness.is_some() }
    }
}

/// The bytes that hold the states, and where they go, if they are many and close together.
fn mask(delta: &BlockDelta, layout: InPlace) -> Option<(u64, Vec<u8>)> {
    let byte = |offset: u32| VERSION as u64 + layout.bit(offset) / 8;
    let offsets = || delta.changes.iter().map(|(offset, _)| *offset);
    let (first, last) = (byte(offsets().min()?), byte(offsets().max()?));
    let (states, length) = (delta.changes.len(), last + 1 - first);
    if states <= FEW_STATES || length > BYTES_A_STATE * states as u64 {
        return None;
    }
    let mut mask = vec![0; length as usize];
    for &(offset, state) in &delta.changes {
        mask[(byte(offset) - first) as usize] |= (state as u8) << (6 - layout.bit(offset) % 8);
    }
    Some((first, mask))
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
        let raise = Raise::new(&self.addresses, &address, delta, layout, codec.capacity());
        let raised = self.link.one(address.tag, raise.command, Effect::Write).await;
        raised.map_err(|e| failed(e, Effect::Write, "merge", &key))?;
        let found = self.get(&key).await?.map(|found| codec.decode(&found.value)).transpose();
        Ok(found.map_err(|e| e.with_context("key", &key))?.map_or(0, |block| block.live_count()))
    }

    /// Adds what raises the blocks of a batch.
    pub(crate) async fn send_blocks(
        &self,
        commands: &mut Commands,
        deltas: &[BlockDelta],
        layout: InPlace,
        capacity: u32,
    ) -> Result<Sent> {
        self.check_blocks(deltas, layout, capacity).await?;
        let mut witnesses = Vec::with_capacity(deltas.len());
        // Where all that is raised is superseded, only the whole block tells whether something is live.
        let mut doubtful = Vec::new();
        for (at, delta) in deltas.iter().enumerate() {
            let address = self.addresses.of(&block_key(delta));
            let raise = Raise::new(&self.addresses, &address, delta, layout, capacity);
            commands.add(address.tag, raise.command);
            witnesses.push(raise.has_witness);
            if !raise.has_witness {
                doubtful.push((at, address));
            }
        }
        let searched = self.search(commands, doubtful, layout);
        Ok(Sent { layout, witnesses, searched })
    }

    /// Looks what was answered to [`send_blocks`](Self::send_blocks); the places of the blocks in which nothing is live.
    pub(crate) async fn empty_blocks(&self, sent: Sent, mut answers: Vec<Answer>, deltas: &[BlockDelta]) -> Result<Vec<usize>> {
        let searches = answers.split_off(deltas.len().min(answers.len()));
        let mut doubtful = Vec::new();
        for (at, ((delta, has_witness), bits)) in deltas.iter().zip(sent.witnesses).zip(answers).enumerate() {
            let bits = bits.map_err(|e| failed(e, Effect::Write, "merge", &block_key(delta)))?;
            if has_witness && !is_live(&bits) {
                doubtful.push((at, self.addresses.of(&block_key(delta))));
            }
        }
        let mut empty = found_empty(sent.searched, searches)?;
        if !doubtful.is_empty() {
            let mut commands = Commands::default();
            let searched = self.search(&mut commands, doubtful, sent.layout);
            empty.extend(found_empty(searched, self.link.run(commands, Effect::Read).await)?);
        }
        empty.sort_unstable();
        Ok(empty)
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Shape;
    use sluicegate_core::block::{Block, ByteArray, TwoBit};
    use sluicegate_core::{BlockIndex, Channel};
    use std::sync::Arc;

    fn delta(changes: &[(u32, BlockState)]) -> BlockDelta {
        BlockDelta::new(Channel::new("a").unwrap(), BlockIndex(0), changes.to_vec())
    }

    /// The words of what raises `changes`, but for a script.
    fn words(changes: &[(u32, BlockState)], layout: InPlace, capacity: u32) -> Vec<Vec<u8>> {
        let address = Address { key: "k".to_owned(), tag: 0, shape: Shape::Block };
        let raise = Raise::new(&Addresses::new("_cache"), &address, &delta(changes), layout, capacity);
        let words = raise.command.args_iter().map(|arg| match arg {
            redis::Arg::Simple(bytes) => bytes.to_vec(),
            _ => Vec::new(),
        });
        words.filter(|word| word != script::OR.as_bytes()).collect()
    }

    #[test]
    fn a_few_states_are_raised_bit_by_bit_where_the_codec_has_them() {
        let changes = [(3, BlockState::Removal), (9, BlockState::Superseded), (0, BlockState::Present)];
        let words = |layout| String::from_utf8(words(&changes, layout, 64).join(&b' ')).unwrap();
        assert_eq!(words(InPlace::Pairs), "BITFIELD k SET u1 70 1 SET u2 82 3 SET u1 65 1 GET u2 64");
        assert_eq!(words(InPlace::Bytes), "BITFIELD k INCRBY u1 575 0 SET u1 94 1 SET u2 142 3 SET u1 71 1 GET u2 70");
    }

    #[test]
    fn many_states_close_together_are_raised_at_once() {
        let states = [BlockState::Present, BlockState::Removal, BlockState::Superseded];
        let changes: Vec<(u32, BlockState)> = (100..160).map(|n| (n, states[n as usize % 7 % 3])).collect();
        for codec in [
            Arc::new(ByteArray::with_capacity(200).unwrap()) as Arc<dyn BlockCodec>,
            Arc::new(TwoBit::with_capacity(200).unwrap()),
        ] {
            let words = words(&changes, codec.in_place().unwrap(), 200);
            let number = |at: usize| std::str::from_utf8(&words[at]).unwrap().parse::<usize>().unwrap();
            assert_eq!(
                (&words[0][..], number(1), &words[2][..], &words[3][..]),
                (&b"EVAL"[..], 2, &b"k"[..], &b"{0000}_cache:_scratch"[..])
            );
            let (length, first, mask) = (number(4), number(5), &words[6]);
            let mut stored = vec![0; length.max(first + mask.len())];
            stored[first..first + mask.len()].copy_from_slice(mask);
            let mut expected = Block::new(200);
            delta(&changes).apply(&mut expected);
            assert_eq!(codec.decode(&stored[VERSION..]).unwrap(), expected);
            assert_eq!(words[7..9], [b"GET", &b"u2"[..]]);
        }
    }

    #[test]
    fn many_states_far_apart_are_raised_bit_by_bit() {
        let changes: Vec<(u32, BlockState)> = (0..60).map(|n| (n * 150, BlockState::Present)).collect();
        assert_eq!(words(&changes, InPlace::Bytes, 10_000)[0], b"BITFIELD");
        assert_eq!(words(&changes, InPlace::Pairs, 10_000)[0], b"BITFIELD");
    }
}
