//! Committing in one round trip a slot.

use bytes::Bytes;
use futures::TryFutureExt as _;
use futures::future::try_join;
use redis::{Value, cmd};
use sluicegate_core::batch::{BlockDelta, CommitReceipt, WriteBatch};
use sluicegate_core::commit::{list_blocks, merge_blocks, must_list};
use sluicegate_core::{CacheKey, Epoch, Error, Result, Sequence};

use crate::append::{self, Append};
use crate::blocks::Raise;
use crate::error::{Failure, translate};
use crate::link::{Answer, Commands, Effect};
use crate::{RedisStore, eval, failed, page, page_length, script, unexpected};

fn receipt(deltas: &[BlockDelta], empty: Vec<usize>) -> CommitReceipt {
    CommitReceipt { emptied: empty.into_iter().map(|at| (deltas[at].channel.clone(), deltas[at].index)).collect() }
}

/// How the blocks of a batch are written, by what their codec supports.
enum BlockWrites {
    /// States are raised where they lie.
    InPlace(Vec<Raise>),
    /// States are appended.
    Append(Vec<Append>),
    /// Blocks are read and written by compare-and-swap.
    Merge,
}

impl RedisStore {
    /// Sequence documents, blocks and counters in one go, each slot's in this order; then
    /// directories, few of which change. Blocks that can neither be raised where they lie nor
    /// appended to are read, and written beside the rest.
    pub(crate) async fn commit_natively(&self, batch: &WriteBatch) -> Result<CommitReceipt> {
        let deltas = batch.block_deltas();
        let codec = batch.codec.as_ref();
        let mut blocks = Commands::default();
        let writes = match codec.in_place() {
            Some(layout) => BlockWrites::InPlace(self.queue_raises(&mut blocks, &deltas, layout, codec.capacity()).await?),
            None => {
                let appends = self.queue_appends(&mut blocks, &deltas, codec).await?;
                appends.map_or(BlockWrites::Merge, BlockWrites::Append)
            }
        };
        let merges = matches!(writes, BlockWrites::Merge);
        let listed = !merges && !deltas.iter().any(|delta| must_list(batch, delta));
        let rest = self.commit_rest(batch, &deltas, blocks, listed);
        let empty = match writes {
            BlockWrites::InPlace(raises) => self.empty_blocks(raises, rest.await?, &deltas, codec).await?,
            BlockWrites::Append(appends) => self.finish_appends(&appends, rest.await?, &deltas, codec).await?,
            BlockWrites::Merge => {
                // Batches that follow one another mostly change the same blocks: of two commits
                // that merge at a time, one would have to read and write them again. Their order
                // does not matter.
                let merged = async {
                    let _turn = self.merging.lock().await;
                    merge_blocks(self, &deltas, codec).await
                };
                let (live, ()) = try_join(merged, rest.map_ok(drop)).await?;
                live.into_iter().enumerate().filter(|(_, live)| *live == 0).map(|(at, _)| at).collect()
            }
        };
        if !listed {
            self.list(batch, &deltas).await?;
            self.prove(batch.epoch).await?;
        }
        Ok(receipt(&deltas, empty))
    }

    /// Puts blocks into directories. Batches that follow one another list blocks in the same ones:
    /// of two that do so at a time, one would have to read and write them again.
    async fn list(&self, batch: &WriteBatch, deltas: &[BlockDelta]) -> Result<()> {
        if !deltas.iter().any(|delta| must_list(batch, delta)) {
            return Ok(());
        }
        let _turn = self.listing.lock().await;
        list_blocks(self, batch, deltas).await
    }

    /// Commits sequence documents, what is to be done to blocks, and counters, and ends there if this is the `end`; the answers about blocks.
    async fn commit_rest(&self, batch: &WriteBatch, deltas: &[BlockDelta], blocks: Commands, end: bool) -> Result<Vec<Answer>> {
        let mut commands = Commands::default();
        let pages = self.append_entries(&mut commands, batch);
        let first_block = commands.len();
        commands.append(blocks);
        let first_count = commands.len();
        let mut channels: Vec<_> = deltas.iter().map(|delta| &delta.channel).collect();
        channels.dedup();
        for channel in &channels {
            let address = self.addresses.of(&CacheKey::Counter((*channel).clone()));
            commands.add(address.tag, cmd("INCR").arg(address.key).take());
        }
        let first_proof = commands.len();
        let proof = if end { self.proofs.give(&mut commands) } else { None };

        let mut answers = self.link.run(commands, Effect::Write).await;
        let proofs = answers.split_off(first_proof);
        let counts = answers.split_off(first_count);
        let blocks = answers.split_off(first_block);
        self.tidy_pages(&pages, answers).await?;
        for (channel, answer) in channels.into_iter().zip(counts) {
            if let Err(e) = answer {
                return Err(failed(e, Effect::Write, "increment", &CacheKey::Counter(channel.clone())));
            }
        }
        proofs.into_iter().try_for_each(|answer| answer.map(drop)).map_err(|e| self.unproven(e))?;
        proof.into_iter().for_each(|proof| self.proofs.keep(batch.epoch, proof));
        Ok(blocks)
    }

    /// Adds what appends the batch's entries to their pages; for each page one of the sequences.
    fn append_entries(&self, commands: &mut Commands, batch: &WriteBatch) -> Vec<Sequence> {
        let mut entries: Vec<(Sequence, Bytes)> =
            batch.entries.iter().map(|entry| entry.position()).zip(batch.entries.documents()).collect();
        entries.sort_unstable_by_key(|(sequence, _)| *sequence);
        let mut known = self.known_pages.lock();
        let mut pages = Vec::new();
        let mut records = Vec::new();
        for entries in entries.chunk_by(|(a, _), (b, _)| page::place(*a).0 == page::place(*b).0) {
            records.clear();
            for (sequence, document) in entries {
                page::append(&mut records, page::place(*sequence).1, RedisStore::new_version(), document);
            }
            let first = entries[0].0;
            let page = page::place(first).0;
            let address = self.addresses.page(page);
            commands.add(address.tag, append::command(&address.key, &records));
            known.grow(page, records.len() as u64);
            pages.push(first);
        }
        pages
    }

    /// Looks what became of pages that were appended to. One that has more than was appended may have records that nobody can see, or be no page.
    async fn tidy_pages(&self, pages: &[Sequence], answers: Vec<Answer>) -> Result<()> {
        let error = |e: Error, sequence: Sequence| e.with_operation("insert").with_context("key", CacheKey::Sequence(sequence));
        let mut untidy = Vec::new();
        let mut failure = None;
        {
            let mut known = self.known_pages.lock();
            for (sequence, answer) in pages.iter().zip(answers) {
                let page = page::place(*sequence).0;
                match answer {
                    Ok(Value::Int(length)) if known.accounts_for(page, length as u64) => {}
                    Ok(Value::Int(_)) => untidy.push(*sequence),
                    answer => {
                        // It may have been appended, or not; and will be again.
                        known.tidied(page, 0);
                        let e = answer.map_or_else(|e| translate(e, Effect::Write), |other| unexpected(&other));
                        failure.get_or_insert_with(|| error(e, *sequence));
                    }
                }
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        if untidy.is_empty() {
            return Ok(());
        }
        let mut commands = Commands::default();
        for sequence in &untidy {
            let address = self.addresses.of(&CacheKey::Sequence(*sequence));
            commands.add(address.tag, eval(script::PAGE, &[&address.key]).arg("").arg("").take());
        }
        for (sequence, answer) in untidy.into_iter().zip(self.link.run(commands, Effect::Write).await) {
            let length = answer.map_err(|e| translate(e, Effect::Write)).and_then(|answer| page_length(&answer));
            let length = length.map_err(|e| error(e, sequence))?;
            self.known_pages.lock().tidied(page::place(sequence).0, length.unwrap_or(0));
        }
        Ok(())
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
