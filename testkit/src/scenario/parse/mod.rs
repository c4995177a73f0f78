//! Turns the text of a file into steps.

mod events;
mod questions;
mod rows;
mod words;

use std::fmt;
use std::path::{Path, PathBuf};

use super::step::{Line, Step};
use words::{Parsed, Words, unknown};

const VERBS: &str = "new, direct, doc, put, delete, user, role, unused, alloc, grant, purge, stored, at, wait, restart, fresh, prune, state, ask, \
                     follow, next, close, poll, waits, returns, stats, merge, id, ours";

/// Why a file is not a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 if the whole file cannot be read.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file.display(), self.what),
            line => write!(f, "{}:{line}: {}", self.file.display(), self.what),
        }
    }
}

impl std::error::Error for Mistake {}

/// The content of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Text {
    /// The feature that the file waits for.
    pub(super) missing: Option<String>,
    /// Names of variations to leave out, and the lines that name them.
    pub(super) skipped: Vec<(usize, String)>,
    pub(super) lines: Vec<Line>,
}

/// Reads the text of `file`.
pub(super) fn parse(file: &Path, text: &str) -> Result<Text, Mistake> {
    let mut read = Text::default();
    for (at, line) in text.lines().enumerate() {
        let number = at + 1;
        take(&mut read, number, line.trim()).map_err(|what| Mistake { file: file.to_owned(), line: number, what })?;
    }
    Ok(read)
}

fn take(read: &mut Text, number: usize, line: &str) -> Parsed<()> {
    if let Some(comment) = line.strip_prefix('#') {
        let comment = comment.trim_start();
        if let Some(feature) = comment.strip_prefix("missing:") {
            read.missing = Some(feature.trim().to_owned());
        } else if let Some(names) = comment.strip_prefix("skip-variant:") {
            read.skipped.extend(names.split_whitespace().map(|name| (number, name.to_owned())));
        }
        return Ok(());
    }
    let (verb, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    if verb.is_empty() {
        return Ok(());
    }
    if verb == "ours" {
        let before = read.lines.last_mut().ok_or("`ours` comes after a line with an expectation; there is none")?;
        if let Step::State(values) = &before.step {
            before.peer = Some(values.clone());
        }
        before.expected = expectation(rest);
        return questions::replace(&mut before.step, rest);
    }
    let step = step(verb, rest)?;
    read.lines.push(Line { number, step, text: line.to_owned(), expected: expectation(rest), peer: None });
    Ok(())
}

/// The expectation in a line's text, for messages.
fn expectation(rest: &str) -> String {
    rest.split_once("=>").map_or(rest, |(_, expected)| expected).trim().to_owned()
}

fn step(verb: &str, rest: &str) -> Parsed<Step> {
    let mut words = Words::new(rest);
    let step = match verb {
        "new" => events::settings(&mut words)?,
        "direct" => events::direct(&mut words)?,
        "doc" => events::document(&mut words)?,
        "put" => events::put(&mut words, false)?,
        "delete" => events::put(&mut words, true)?,
        "user" | "role" => events::principal(verb, &mut words)?,
        "grant" => events::grant(&mut words)?,
        "unused" => events::unused(&mut words)?,
        "alloc" => events::allocated(&mut words)?,
        "stored" => events::stored(&mut words)?,
        "purge" => events::purge(&mut words)?,
        "at" => Step::At(words::number(words.need("a time in milliseconds")?)?),
        "wait" => Step::Wait(words::number(words.need("a time in milliseconds")?)?),
        "restart" => Step::Restart,
        "fresh" => Step::Fresh,
        "prune" => Step::Prune(words::size(words.need("how many rows a channel keeps")?)?),
        "state" => Step::State(questions::state(&mut words)?),
        "ask" | "next" | "returns" | "merge" => return questions::answered(verb, rest),
        "follow" => questions::follow(&mut words)?,
        "close" => Step::Close(words::client(words.need("a feed such as `$f`")?)?),
        "poll" => questions::poll(&mut words)?,
        "waits" => Step::Waits(words::client(words.need("a request such as `$p`")?)?),
        "stats" if words.peek() == Some("begin") => {
            words.next();
            Step::StatsBegin
        }
        "stats" => Step::Stats(questions::stats(&mut words)?),
        "id" => return questions::id(rest).map(Step::Id),
        other => return Err(unknown(other, VERBS)),
    };
    words.end()?;
    Ok(step)
}

#[cfg(test)]
mod tests;
