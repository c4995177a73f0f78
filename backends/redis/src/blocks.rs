//! Blocks that are raised where they lie.

use bytes::Bytes;
use redis::{Cmd, Value, cmd};
use sluicegate_core::batch::BlockDelta;
use sluicegate_core::block::{Block, BlockState, InPlace};
use sluicegate_core::{BlockCodec, CacheKey, Error, Result};

use crate::address::{Address, Addresses};
use crate::link::{Answer, Commands, Effect};
use crate::rows::{Live, ROWS};
use crate::{RedisStore, VERSION, eval, failed, script, split_version, string, unexpected};

/// So many states are raised bit by bit; more at once, where they lie close together.
const FEW_STATES: usize = 16;

/// Bytes a state that may be sent to raise several at once.
const BYTES_A_STATE: u64 = 32;

/// What raises states in one block, where they lie.
pub(crate) struct Raise {
    /// Raises all states at once; then answers with the states of the rows that it asks for.
    command: Cmd,
    /// The newest rows that are live unless they were superseded before.
    asked: Vec<u32>,
    /// Whether there are others.
    has_more: bool,
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
        let mut rows = delta.changes.iter().rev().filter(|(_, state)| state.is_live()).map(|(offset, _)| *offset);
        let asked: Vec<u32> = rows.by_ref().take(ROWS).collect();
        for offset in &asked {
            command.arg("GET").arg("u2").arg(at(*offset));
        }
        let has_more = rows.next().is_some();
        Raise { command, asked, has_more }
    }

    /// Those of the rows asked for that are live.
    fn live(&self, answer: &Value) -> Result<Vec<u32>> {
        let Value::Array(answers) = answer else { return Err(unexpected(answer)) };
        let states = answers.get(answers.len().wrapping_sub(self.asked.len())..).ok_or_else(|| unexpected(answer))?;
        let live = self.asked.iter().zip(states).filter(|(_, state)| matches!(state, Value::Int(1 | 2)));
        Ok(live.map(|(offset, _)| *offset).collect())
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

/// Whether a block of this many stored bytes is not there yet.
fn check_length(answer: Value, layout: InPlace, capacity: u32) -> Result<bool> {
    let Value::Int(length) = answer else { return Err(unexpected(&answer)) };
    let longest = VERSION as i64 + i64::from(layout.length(capacity));
    let valid = match layout {
        InPlace::Bytes => length == longest,
        InPlace::Pairs => (VERSION as i64..=longest).contains(&length),
    };
    if length == 0 || valid {
        return Ok(length == 0);
    }
    Err(Error::corrupt(format!("not a block: {length} bytes, where this codec's have {longest} at most")))
}

pub(crate) fn get(address: &Address) -> Cmd {
    cmd("GET").arg(&address.key).take()
}

pub(crate) fn block_key(delta: &BlockDelta) -> CacheKey {
    CacheKey::Block(delta.channel.clone(), delta.index)
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
        Ok(self.read_block(delta, self.link.one(address.tag, get(&address), Effect::Read).await, codec)?.live_count())
    }

    /// Adds the commands that raise states where they lie, one for each delta.
    pub(crate) async fn queue_raises(
        &self,
        commands: &mut Commands,
        deltas: &[BlockDelta],
        layout: InPlace,
        capacity: u32,
    ) -> Result<Vec<Raise>> {
        self.check_blocks(deltas, layout, capacity).await?;
        let raise = |delta: &BlockDelta| {
            let address = self.addresses.of(&block_key(delta));
            let mut raise = Raise::new(&self.addresses, &address, delta, layout, capacity);
            commands.add(address.tag, std::mem::take(&mut raise.command));
            raise
        };
        Ok(deltas.iter().map(raise).collect())
    }

    /// Evaluates the answers to [`queue_raises`](Self::queue_raises). Returns the indexes of blocks
    /// without live rows.
    pub(crate) async fn empty_blocks(
        &self,
        sent: Vec<Raise>,
        answers: Vec<Answer>,
        deltas: &[BlockDelta],
        codec: &dyn BlockCodec,
    ) -> Result<Vec<usize>> {
        let (mut empty, mut unknown) = (Vec::new(), Vec::new());
        {
            let mut known = self.known_rows.lock();
            for (at, ((delta, raise), answer)) in deltas.iter().zip(sent).zip(answers).enumerate() {
                let answer = answer.map_err(|e| failed(e, Effect::Write, "merge", &block_key(delta)))?;
                let live = raise.live(&answer).map_err(|e| e.with_context("key", block_key(delta)))?;
                match known.raised(delta, &live, raise.has_more) {
                    Live::Some => {}
                    Live::None => empty.push(at),
                    Live::Unknown => unknown.push(at),
                }
            }
        }
        self.read_empty(unknown, deltas, codec, &mut empty).await?;
        Ok(empty)
    }

    /// Reads the blocks at the `unknown` places. Adds to `empty`, in order, those in which nothing
    /// is live.
    pub(crate) async fn read_empty(
        &self,
        unknown: Vec<usize>,
        deltas: &[BlockDelta],
        codec: &dyn BlockCodec,
        empty: &mut Vec<usize>,
    ) -> Result<()> {
        for (at, answer) in unknown.iter().zip(self.get_blocks(&unknown, deltas).await) {
            if self.read_block(&deltas[*at], answer, codec)?.live_count() == 0 {
                empty.push(*at);
            }
        }
        empty.sort_unstable();
        Ok(())
    }

    /// What is stored of the blocks at these places.
    pub(crate) async fn get_blocks(&self, places: &[usize], deltas: &[BlockDelta]) -> Vec<Answer> {
        let mut commands = Commands::default();
        for at in places {
            let address = self.addresses.of(&block_key(&deltas[*at]));
            commands.add(address.tag, get(&address));
        }
        self.link.run(commands, Effect::Read).await
    }

    /// The block that was read, after a delta was written to it.
    pub(crate) fn read_block(&self, delta: &BlockDelta, answer: Answer, codec: &dyn BlockCodec) -> Result<Block> {
        match self.decode_block(delta, answer, codec)? {
            Some(block) => {
                self.known_rows.lock().read(delta, &block);
                Ok(block)
            }
            // Someone removed it meanwhile.
            None => {
                self.known_rows.lock().forget(&block_key(delta));
                Ok(Block::new(codec.capacity()))
            }
        }
    }

    /// The block that was read, if there is one.
    pub(crate) fn decode_block(&self, delta: &BlockDelta, answer: Answer, codec: &dyn BlockCodec) -> Result<Option<Block>> {
        let key = block_key(delta);
        let stored = string(answer.map_err(|e| failed(e, Effect::Read, "get", &key))?);
        let decode = |stored: Bytes| codec.decode(&split_version(&stored)?.1);
        stored.and_then(|stored| stored.map(decode).transpose()).map_err(|e| e.with_context("key", &key))
    }

    /// Looks at blocks that this store has not written before, so that nothing is written over what is none.
    async fn check_blocks(&self, deltas: &[BlockDelta], layout: InPlace, capacity: u32) -> Result<()> {
        let new: Vec<&BlockDelta> = {
            let known = self.known_rows.lock();
            deltas.iter().filter(|delta| !known.contains(delta)).collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        let mut commands = Commands::default();
        for delta in &new {
            let address = self.addresses.of(&block_key(delta));
            commands.add(address.tag, cmd("STRLEN").arg(address.key).take());
        }
        for (delta, answer) in new.into_iter().zip(self.link.run(commands, Effect::Read).await) {
            let key = block_key(delta);
            let length = answer.map_err(|e| failed(e, Effect::Read, "merge", &key))?;
            let is_new = check_length(length, layout, capacity).map_err(|e| e.with_context("key", &key))?;
            self.known_rows.lock().found(delta, is_new);
        }
        Ok(())
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
        assert_eq!(words(InPlace::Pairs), "BITFIELD k SET u1 70 1 SET u2 82 3 SET u1 65 1 GET u2 64 GET u2 70");
        assert_eq!(words(InPlace::Bytes), "BITFIELD k INCRBY u1 575 0 SET u1 94 1 SET u2 142 3 SET u1 71 1 GET u2 70 GET u2 94");
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
