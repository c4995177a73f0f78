//! Writing documents, each over the version that must be there.

use redis::{Cmd, Value, cmd};
use sluicegate_core::store::{Version, Write};
use sluicegate_core::{CacheKey, Error, ErrorKind, Result};

use crate::address::{Address, Shape};
use crate::error::Failure;
use crate::link::{Answer, Commands, Effect};
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
        for write in writes {
            let address = self.addresses.of(&write.key);
            sent.push(command(write, &address, script::Sent::Hash).map(|(command, version)| {
                commands.add(address.tag, command);
                (version, address.shape)
            }));
        }
        let mut answers = self.link.run(commands, Effect::Write).await;
        self.send_unknown_scripts(writes, &sent, &mut answers).await;
        let mut answers = answers.into_iter();
        let mut known = self.known_rows.lock();
        writes.iter().for_each(|write| known.forget(&write.key));
        let outcome = |(write, sent): (&Write, Result<(Version, Shape)>)| {
            let (version, shape) = sent?;
            let operation = if write.expected.is_some() { "replace" } else { "insert" };
            let answer = answers.next().unwrap_or_else(|| Err(Failure::unanswered()));
            let answer = answer.map_err(|e| failed(e, Effect::Write, operation, &write.key))?;
            match is_written(&answer, &shape) {
                Ok(true) => Ok(version),
                Ok(false) if write.expected.is_some() => Err(conflict(operation, &write.key)),
                Ok(false) => Err(already_exists(&write.key)),
                Err(e) => Err(e.with_operation(operation).with_context("key", &write.key)),
            }
        };
        writes.iter().zip(sent).map(outcome).collect()
    }

    /// Sends the scripts whole that a server did not run by their hashes. It did nothing for them.
    async fn send_unknown_scripts(&self, writes: &[Write], sent: &[Result<(Version, Shape)>], answers: &mut [Answer]) {
        let mut places = Vec::new();
        let mut commands = Commands::default();
        let answered = writes.iter().zip(sent).filter(|(_, sent)| sent.is_ok());
        for (place, ((write, sent), answer)) in answered.zip(answers.iter()).enumerate() {
            let is_unknown = matches!(sent, Ok((_, Shape::Block))) && answer.as_ref().is_err_and(Failure::is_unknown_script);
            let address = self.addresses.of(&write.key);
            if is_unknown && let Ok((command, _)) = command(write, &address, script::Sent::Whole) {
                commands.add(address.tag, command);
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

/// What writes a document, and the version it has then. The version of a block follows from its
/// bytes.
fn command(write: &Write, address: &Address, sent: script::Sent) -> Result<(Cmd, Version)> {
    let Write { key, expected, value } = write;
    if value.len() > MAX_VALUE {
        let message = format!("a value of {} bytes is over the limit of {MAX_VALUE}", value.len());
        return Err(Error::new(ErrorKind::TooLarge, message).with_context("key", key));
    }
    let version = RedisStore::new_version();
    let name = &address.key;
    let new = |bytes: &[u8]| cmd("SET").arg(name).arg(bytes).arg("NX").take();
    Ok(match (&address.shape, expected) {
        (Shape::Record(place), _) => {
            let mut record = Vec::new();
            page::append(&mut record, *place, version, value);
            let expected = expected.map_or_else(Vec::new, |expected| version_bytes(expected).to_vec());
            (eval(script::PAGE, &[name]).arg(place).arg(expected).arg(record).take(), version)
        }
        (Shape::Document, None) => (new(&stored(version, value)), version),
        (Shape::Document, Some(expected)) => {
            (eval(script::REPLACE, &[name]).arg(&version_bytes(*expected)[..]).arg(stored(version, value)).take(), version)
        }
        (Shape::Block, None) => {
            let bytes = stored(version, value);
            (new(&bytes), block_version(&bytes))
        }
        (Shape::Block, Some(expected)) => {
            let bytes = stored(version, value);
            let version = block_version(&bytes);
            (script::REPLACE_BLOCK.command(sent, &[name]).arg(version_text(*expected)).arg(bytes).take(), version)
        }
        (Shape::Counter, None) => (new(value), version),
        (Shape::Counter, Some(_)) => return Err(only_grows(key)),
    })
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
