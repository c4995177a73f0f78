//! Blocks to which states are appended: see [`BlockCodec::appended`].

use bytes::Bytes;
use redis::{Cmd, Value, cmd};
use sluicegate_core::batch::BlockDelta;
use sluicegate_core::commit::update_many;
use sluicegate_core::{BlockCodec, CacheKey, Error, ErrorKind, Result};

use crate::blocks::{block_key, get};
use crate::link::{Answer, Commands, Effect};
use crate::rows::{Live, Rows};
use crate::{RedisStore, VERSION, eval, failed, script, unexpected};

/// What is appended to one block.
#[derive(Debug)]
pub(crate) struct Append {
    bytes: Bytes,
    /// The rows of the block as it was read before, if this store did not know it.
    found: Option<Rows>,
}

impl Append {
    fn command(&self, key: &str) -> Cmd {
        cmd("APPEND").arg(key).arg(&self.bytes[..]).take()
    }

    /// The block's length afterwards; `None` if it was not there although it was known. Then it has
    /// no version now.
    fn length(&self, answer: &Value) -> Result<Option<usize>> {
        let &Value::Int(length) = answer else { return Err(unexpected(answer)) };
        let length = usize::try_from(length).map_err(|_| unexpected(answer))?;
        Ok((self.found.is_some() || length > self.bytes.len()).then_some(length))
    }
}

impl RedisStore {
    /// What appends to the blocks of `deltas`; `None` if the codec cannot append. Blocks that this
    /// store has not written before are read, so that nothing is appended to what is none.
    pub(crate) async fn appends(&self, deltas: &[BlockDelta], codec: &dyn BlockCodec) -> Result<Option<Vec<Append>>> {
        let bytes: Option<Vec<Bytes>> = deltas.iter().map(|delta| codec.appended(&delta.changes)).collect();
        let Some(bytes) = bytes else { return Ok(None) };
        let mut appends: Vec<Append> = bytes.into_iter().map(|bytes| Append { bytes, found: None }).collect();
        let mut unknown: Vec<usize> = (0..deltas.len()).collect();
        {
            let known = self.known_rows.lock();
            unknown.retain(|at| !known.contains(&deltas[*at]));
        }
        for (at, answer) in unknown.iter().zip(self.get_blocks(&unknown, deltas).await) {
            let block = self.decode_block(&deltas[*at], answer, codec)?;
            if block.is_none() {
                // Zero bytes for the version. Where another writer has made the block meanwhile,
                // they stand for lists of nothing.
                appends[*at].bytes = [&[0; VERSION][..], &appends[*at].bytes].concat().into();
            }
            appends[*at].found = Some(block.as_ref().map_or_else(Rows::default, Rows::of));
        }
        Ok(Some(appends))
    }

    /// Adds the commands of [`appends`](Self::appends), one for each delta.
    pub(crate) fn send_appends(&self, commands: &mut Commands, deltas: &[BlockDelta], appends: &[Append]) {
        for (delta, append) in deltas.iter().zip(appends) {
            let address = self.addresses.of(&block_key(delta));
            commands.add(address.tag, append.command(&address.key));
        }
    }

    /// Looks what was answered to [`send_appends`](Self::send_appends). The places of the blocks in
    /// which nothing is live. Blocks that have got long are encoded anew.
    pub(crate) async fn appended(
        &self,
        appends: Vec<Append>,
        answers: Vec<Answer>,
        deltas: &[BlockDelta],
        codec: &dyn BlockCodec,
    ) -> Result<Vec<usize>> {
        let (mut empty, mut unknown, mut long, mut failure) = (Vec::new(), Vec::new(), Vec::new(), None);
        let mut removed = Vec::new();
        {
            let mut known = self.known_rows.lock();
            for (at, ((delta, append), answer)) in deltas.iter().zip(appends).zip(answers).enumerate() {
                let answer = answer.map_err(|e| failed(e, Effect::Write, "merge", &block_key(delta)));
                let length =
                    answer.and_then(|answer| append.length(&answer).map_err(|e| e.with_context("key", block_key(delta))));
                match length {
                    Ok(Some(length)) => {
                        long.extend((length > VERSION + codec.longest_log()).then(|| block_key(delta)));
                        match known.appended(delta, append.found) {
                            Live::Some => {}
                            Live::None => empty.push(at),
                            Live::Unknown => unknown.push(at),
                        }
                    }
                    Ok(None) => {
                        known.forget(&block_key(delta));
                        removed.push((at, append.bytes));
                    }
                    // It may have been made, or not.
                    Err(e) => {
                        known.forget(&block_key(delta));
                        failure.get_or_insert(e);
                    }
                }
            }
        }
        if let Some((at, _)) = removed.first() {
            let message = "the block was removed while it was written; the commit is tried again";
            let e = Error::new(ErrorKind::Unavailable, message).with_operation("merge");
            failure.get_or_insert(e.with_context("key", block_key(&deltas[*at])));
        }
        self.remove_unversioned(deltas, removed).await?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        self.read_empty(unknown, deltas, codec, &mut empty).await?;
        // Only what is longer than it need be is written.
        update_many(self, &long, |_, stored| {
            let Some(stored) = stored else { return Ok(None) };
            let encoded = codec.encode(&codec.decode(stored)?);
            Ok((encoded.len() < stored.len()).then_some(encoded))
        })
        .await?;
        Ok(empty)
    }

    /// Removes blocks that an append has made although there should have been one: they have no
    /// version.
    async fn remove_unversioned(&self, deltas: &[BlockDelta], made: Vec<(usize, Bytes)>) -> Result<()> {
        let mut commands = Commands::default();
        for (at, bytes) in &made {
            let address = self.addresses.of(&block_key(&deltas[*at]));
            commands.add(address.tag, eval(script::REMOVE_VALUE, &[&address.key]).arg(&bytes[..]).take());
        }
        for ((at, _), answer) in made.iter().zip(self.link.run(commands, Effect::Write).await) {
            answer.map_err(|e| failed(e, Effect::Write, "remove", &block_key(&deltas[*at])))?;
        }
        Ok(())
    }

    /// One block, by itself; how many of its sequences are live afterwards. `None` if the codec
    /// cannot append.
    pub(crate) async fn merge_appended(&self, delta: &BlockDelta, codec: &dyn BlockCodec) -> Result<Option<u32>> {
        let deltas = std::slice::from_ref(delta);
        let Some(appends) = self.appends(deltas, codec).await? else { return Ok(None) };
        let mut commands = Commands::default();
        self.send_appends(&mut commands, deltas, &appends);
        let answers = self.link.run(commands, Effect::Write).await;
        self.appended(appends, answers, deltas, codec).await?;
        let key: CacheKey = block_key(delta);
        let address = self.addresses.of(&key);
        let answer = self.link.one(address.tag, get(&address), Effect::Read).await;
        Ok(Some(self.read_block(delta, answer, codec)?.live_count()))
    }
}
