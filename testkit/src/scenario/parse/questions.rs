//! Lines with questions and expectations.

use sluicegate_core::changes::{Delivery, SequenceId};

use super::rows::{answered as read_answered, rows};
use super::words::{Parsed, Words, client, id as read_id, names, number, ranges, size, unknown};
use crate::scenario::step::{IdCheck, MergeSource, Question, StateKey, StatsKey, Step, Value};

/// Splits at `=>`.
fn split(rest: &str) -> Parsed<(&str, &str)> {
    rest.split_once("=>").ok_or_else(|| "`=>` and what is expected are missing".to_owned())
}

/// `… => ROWS`
pub(super) fn answered(verb: &str, rest: &str) -> Parsed<Step> {
    let (question_text, expected) = split(rest)?;
    let mut words = Words::new(question_text);
    let step = match verb {
        "ask" => {
            let client = words.peek().filter(|word| word.starts_with('$')).map(client).transpose()?;
            if client.is_some() {
                words.next();
            }
            Step::Ask { client, question: question(&mut words)?, expected: read_answered(expected)? }
        }
        "next" => Step::Next { name: client(words.need("a feed such as `$f`")?)?, rows: rows(expected)? },
        "returns" => Step::Returns { name: client(words.need("a request such as `$p`")?)?, expected: read_answered(expected)? },
        _ => merge(&mut words, expected)?,
    };
    words.end()?;
    Ok(step)
}

/// `[as=USER] A,B [since=] [limit=] [active] [versions] [keyspace=] [strict|auto|eager] [late=N]`
fn question(words: &mut Words<'_>) -> Parsed<Question> {
    const KNOWN: &str = "channels, as=, since=, limit=, active, versions, keyspace=, strict, auto, eager, late=";
    let mut question = Question {
        channels: Vec::new(),
        keyspace: None,
        user: None,
        since: None,
        limit: None,
        active: false,
        versions: false,
        delivery: Delivery::Eager,
        late: None,
    };
    let mut has_channels = false;
    for word in words {
        match word.split_once('=') {
            Some(("as", user)) => question.user = Some(user.to_owned()),
            Some(("since", since)) => question.since = Some(read_id(since)?),
            Some(("limit", limit)) => question.limit = Some(size(limit)?),
            Some(("late", late)) => question.late = Some(number(late)?),
            Some(("keyspace", collection)) => {
                let collection = u32::try_from(number(collection)?);
                question.keyspace = Some(collection.map_err(|_| format!("`{word}` is too large"))?);
            }
            // Channels come first, so that a channel may have the name of an option.
            None if !has_channels => {
                question.channels = names(word)?;
                has_channels = true;
            }
            None if word == "active" => question.active = true,
            None if word == "versions" => question.versions = true,
            None if word == "strict" => question.delivery = Delivery::Strict,
            None if word == "auto" => question.delivery = Delivery::Auto,
            None if word == "eager" => question.delivery = Delivery::Eager,
            _ => return Err(unknown(word, KNOWN)),
        }
    }
    if has_channels { Ok(question) } else { Err("the channels are missing".to_owned()) }
}

pub(super) fn follow(words: &mut Words<'_>) -> Parsed<Step> {
    let name = client(words.need("a feed such as `$f`")?)?;
    Ok(Step::Follow { name, question: question(words)? })
}

pub(super) fn poll(words: &mut Words<'_>) -> Parsed<Step> {
    let name = client(words.need("a request such as `$p`")?)?;
    Ok(Step::Poll { name, question: question(words)? })
}

/// `key=value …` of the writer's state.
pub(super) fn state(words: &mut Words<'_>) -> Parsed<Vec<(StateKey, Value)>> {
    let known = || StateKey::ALL.map(|(name, _)| format!("{name}=")).join(", ");
    let mut values = Vec::new();
    for word in words {
        let (name, value) = word.split_once('=').ok_or_else(|| unknown(word, &known()))?;
        let found = StateKey::ALL.iter().find(|(known, _)| *known == name);
        let key = found.ok_or_else(|| unknown(word, &known()))?.1;
        let value = if key == StateKey::Skipped { Value::Ranges(ranges(value)?) } else { Value::Number(number(value)?) };
        values.push((key, value));
    }
    if values.is_empty() { Err(format!("expected one or more of {}", known())) } else { Ok(values) }
}

/// `key=value …` of a reader.
pub(super) fn stats(words: &mut Words<'_>) -> Parsed<Vec<(StatsKey, u64)>> {
    let known = || format!("begin, {}", StatsKey::ALL.map(|(name, _)| format!("{name}=")).join(", "));
    let mut values = Vec::new();
    for word in words {
        let (name, value) = word.split_once('=').ok_or_else(|| unknown(word, &known()))?;
        let found = StatsKey::ALL.iter().find(|(known, _)| *known == name);
        values.push((found.ok_or_else(|| unknown(word, &known()))?.1, number(value)?));
    }
    if values.is_empty() { Err(format!("expected one or more of {}", known())) } else { Ok(values) }
}

/// `[low=L] C[@grant][>start] …`
fn merge(words: &mut Words<'_>, expected: &str) -> Parsed<Step> {
    let (mut low, mut sources) = (0, Vec::new());
    for word in words {
        if let Some(value) = word.strip_prefix("low=") {
            low = number(value)?;
            continue;
        }
        let (rest, start) = word.rsplit_once('>').map_or((word, "0"), |(rest, start)| (rest, start));
        let (channel, granted) = rest.rsplit_once('@').map_or((rest, "0"), |(channel, granted)| (channel, granted));
        if channel.is_empty() {
            return Err(format!("`{word}`: expected a channel such as `A`, `A@8` or `A>6`"));
        }
        sources.push(MergeSource { channel: channel.to_owned(), granted: number(granted)?, start: number(start)? });
    }
    if sources.is_empty() {
        return Err("the channels are missing".to_owned());
    }
    Ok(Step::Merge { low, sources, rows: rows(expected)? })
}

/// `id parse|bad|print|json|readjson|order …`
pub(super) fn id(rest: &str) -> Parsed<IdCheck> {
    let rest = rest.trim();
    let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let parts = || split(rest).map(|(left, right)| (left.trim(), right.trim()));
    match kind {
        "parse" => {
            let (text, id) = parts()?;
            Ok(IdCheck::Parse { text: unquoted(text), id: fields(id)? })
        }
        "bad" => Ok(IdCheck::Bad { text: unquoted(rest.trim()) }),
        "print" => {
            let (id, text) = parts()?;
            Ok(IdCheck::Print { id: fields(id)?, text: text.to_owned() })
        }
        "json" => {
            let (id, json) = parts()?;
            Ok(IdCheck::Json { id: fields(id)?, json: json.to_owned() })
        }
        "readjson" => {
            let (json, id) = parts()?;
            Ok(IdCheck::ReadJson { json: json.to_owned(), id: fields(id)? })
        }
        "order" => {
            let read = |word: &str| fields(&word.replace('/', " "));
            let ids = rest.split_whitespace().map(read).collect::<Parsed<Vec<_>>>()?;
            if ids.len() < 2 { Err("an order of fewer than two ids".to_owned()) } else { Ok(IdCheck::Order(ids)) }
        }
        other => Err(unknown(&format!("id {other}"), "parse, bad, print, json, readjson, order")),
    }
}

/// `''` is the empty text.
fn unquoted(text: &str) -> String {
    if text == "''" { String::new() } else { text.to_owned() }
}

/// Low, triggered by, sequence.
fn fields(text: &str) -> Parsed<SequenceId> {
    let numbers = text.split_whitespace().map(number).collect::<Parsed<Vec<_>>>()?;
    match numbers[..] {
        [low, triggered, sequence] => Ok(SequenceId::new(sequence).with_triggered(triggered).with_low(low)),
        _ => Err(format!("`{text}`: expected low, triggered and sequence")),
    }
}

/// Replaces the expectation of `step` with that of `ours`.
pub(super) fn replace(step: &mut Step, rest: &str) -> Parsed<()> {
    let mut words = Words::new(rest);
    match step {
        Step::State(values) => *values = state(&mut words)?,
        Step::Stats(values) => *values = stats(&mut words)?,
        Step::Ask { expected, .. } | Step::Returns { expected, .. } => *expected = read_answered(after_arrow(rest)?)?,
        Step::Next { rows: expected, .. } | Step::Merge { rows: expected, .. } => *expected = rows(after_arrow(rest)?)?,
        _ => return Err("`ours` comes after a line with an expectation (state, stats, ask, next, returns, merge)".to_owned()),
    }
    Ok(())
}

fn after_arrow(rest: &str) -> Parsed<&str> {
    rest.trim().strip_prefix("=>").ok_or_else(|| "expected `=>` and rows after `ours`".to_owned())
}
