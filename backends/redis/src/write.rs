//! Writing documents, each over the version that must be there.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use redis::{Cmd, Value, cmd};
use sluicegate_core::store::{Version, Write};
use sluicegate_core::{CacheKey, Error, ErrorKind, Result};

use crate::address::{Address, Shape};
use crate::error::Failure;
use crate::link::{Answer, Commands, Effect};
use crate::patch::patch;
use crate::{
    MAX_VALUE, RedisStore, block_version, conflict, eval, failed, is_done, only_grows, page, page_length, script, stored,
    unexpected, version_bytes, version_text,
};

impl RedisStore {
    /// Writes one.
    pub(crate) async fn write(&self, write: Write) -> Result<Version> {
        let mut written = self.write_all(std::slice::from_ref(&write)).await;
        written.pop().unwrap_or_else(|| Err(Error::new(ErrorKind::Unexpected, "a write has no outcome")))
    }

    /// Writes them in one go; what became of each.
    pub(crate) async fn write_all(&self, writes: &[Write]) -> Vec<Result<Version>> {
        let mut commands = Commands::default();
        let mut sent = Vec::with_capacity(writes.len());
        let sent_as = if self.refuses_hashes.load(Ordering::Relaxed) { script::Sent::Whole } else { script::Sent::Hash };
        for write in writes {
            let address = self.addresses.of(&write.key);
            let known = write.expected.and_then(|expected| self.read_blocks.take(&write.key, expected));
            sent.push(command(write, &address, known, sent_as).map(|(command, written)| {
                commands.add(address.tag, command);
                (written, address.shape)
            }));
        }
        let mut answers = self.link.run(commands, Effect::Write).await;
        self.send_unknown_scripts(writes, &sent, &mut answers).await;
        let mut answers = answers.into_iter();
        let mut known = self.known_rows.lock();
        writes.iter().for_each(|write| known.forget(&write.key));
        let outcome = |(write, sent): (&Write, Result<(Written, Shape)>)| {
            let (written, shape) = sent?;
            let operation = if write.expected.is_some() { "replace" } else { "insert" };
            let answer = answers.next().unwrap_or_else(|| Err(Failure::unanswered()));
            let answer = answer.map_err(|e| failed(e, Effect::Write, operation, &write.key))?;
            match is_written(&answer, &shape) {
                Ok(true) => Ok(written.version),
                Ok(false) if write.expected.is_some() => Err(conflict(operation, &write.key)),
                Ok(false) => Err(already_exists(&write.key)),
                Err(e) => Err(e.with_operation(operation).with_context("key", &write.key)),
            }
        };
        writes.iter().zip(sent).map(outcome).collect()
    }

    /// Sends the scripts whole that a server did not run by their hashes. It did nothing for them.
    async fn send_unknown_scripts(&self, writes: &[Write], sent: &[Result<(Written, Shape)>], answers: &mut [Answer]) {
        let mut places = Vec::new();
        let mut commands = Commands::default();
        let answered = writes.iter().zip(sent).filter_map(|(write, sent)| Some((write, &sent.as_ref().ok()?.0)));
        for (place, ((write, written), answer)) in answered.zip(answers.iter()).enumerate() {
            let Some(run) = &written.run else { continue };
            if answer.as_ref().is_err_and(Failure::is_unknown_script) {
                if answer.as_ref().is_err_and(Failure::is_refused_hash) && !self.refuses_hashes.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        store = self.target.name,
                        "the user may not run EVALSHA, so scripts are sent whole with each block from now on; give the user that \
                         right (see the store's README), then start the writer again"
                    );
                }
                let address = self.addresses.of(&write.key);
                commands.add(address.tag, run.command(script::Sent::Whole, &address));
                places.push(place);
            }
        }
        if places.is_empty() {
            return;
        }
        for (place, answer) in places.into_iter().zip(self.link.run(commands, Effect::Write).await) {
            answers[place] = answer;
        }
    }
}

/// A document that is sent.
struct Written {
    /// The version that it has then.
    version: Version,
    /// The script that writes it, if that is sent by its hash.
    run: Option<Run>,
}

/// A script that writes a block over a version.
struct Run {
    script: &'static script::Hashed,
    expected: Version,
    /// The block, or what turns the stored one into it.
    data: Vec<u8>,
}

impl Run {
    fn command(&self, sent: script::Sent, address: &Address) -> Cmd {
        self.script.command(sent, &[&address.key]).arg(version_text(self.expected)).arg(&self.data).take()
    }
}

/// What writes a document. Of a block that is `known` as it is stored, only the changes are sent,
/// if that is shorter.
fn command(write: &Write, address: &Address, known: Option<Bytes>, sent_as: script::Sent) -> Result<(Cmd, Written)> {
    let Write { key, expected, value } = write;
    if value.len() > MAX_VALUE {
        let message = format!("a value of {} bytes is over the limit of {MAX_VALUE}", value.len());
        return Err(Error::new(ErrorKind::TooLarge, message).with_context("key", key));
    }
    let version = RedisStore::new_version();
    let name = &address.key;
    let new = |bytes: &[u8]| cmd("SET").arg(name).arg(bytes).arg("NX").take();
    let command = match (&address.shape, expected) {
        (Shape::Record(place), _) => {
            let mut record = Vec::new();
            page::append(&mut record, *place, version, value);
            let expected = expected.map_or_else(Vec::new, |expected| version_bytes(expected).to_vec());
            eval(script::PAGE, &[name]).arg(place).arg(expected).arg(record).take()
        }
        (Shape::Document, None) => new(&stored(version, value)),
        (Shape::Document, Some(expected)) => {
            eval(script::REPLACE, &[name]).arg(&version_bytes(*expected)[..]).arg(stored(version, value)).take()
        }
        (Shape::Block, None) => {
            let bytes = stored(version, value);
            return Ok((new(&bytes), Written { version: block_version(&bytes), run: None }));
        }
        (Shape::Block, Some(expected)) => {
            let (bytes, expected) = (stored(version, value), *expected);
            let version = block_version(&bytes);
            let run = match known.and_then(|known| patch(&known, &bytes)) {
                Some(patch) => Run { script: &script::PATCH_BLOCK, expected, data: patch },
                None => Run { script: &script::REPLACE_BLOCK, expected, data: bytes },
            };
            let command = run.command(sent_as, address);
            let run = (sent_as == script::Sent::Hash).then_some(run);
            return Ok((command, Written { version, run }));
        }
        (Shape::Counter, None) => new(value),
        (Shape::Counter, Some(_)) => return Err(only_grows(key)),
    };
    Ok((command, Written { version, run: None }))
}

/// Whether what was there was what was expected, and is written over.
fn is_written(answer: &Value, shape: &Shape) -> Result<bool> {
    match (answer, shape) {
        (_, Shape::Record(_)) => page_length(answer).map(|length| length.is_some()),
        (Value::Okay, _) => Ok(true),
        (Value::Nil, _) => Ok(false),
        (Value::Int(_), _) => is_done(answer),
        (other, _) => Err(unexpected(other)),
    }
}

fn already_exists(key: &CacheKey) -> Error {
    Error::new(ErrorKind::AlreadyExists, "there is a document already").with_operation("insert").with_context("key", key)
}
