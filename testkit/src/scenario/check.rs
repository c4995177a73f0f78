//! Compares answers with expectations, and writes them as a scenario does.

use sluicegate_core::ChangeEntry;
use sluicegate_core::changes::{AnswerRow, SequenceId};

use super::step::{IdCheck, Row, Rows};

/// The limit for rows in a message.
const SHOWN: usize = 40;

/// Whether `rows` are as expected.
pub(super) fn agree(expected: &Rows, rows: &[AnswerRow], versions: bool) -> bool {
    let sequence = |row: &AnswerRow| row.id.sequence.0;
    match expected {
        Rows::None => rows.is_empty(),
        Rows::Count(count) => rows.len() == *count,
        Rows::Documents(documents) => rows.iter().map(|row| row.entry.key()).eq(documents.iter().map(String::as_str)),
        Rows::Sequences(sequences) => rows.iter().map(sequence).eq(sequences.iter().copied()),
        Rows::Set(set) => {
            let mut got: Vec<u64> = rows.iter().map(sequence).collect();
            got.sort_unstable();
            got == *set
        }
        Rows::Listed(listed) => listed.len() == rows.len() && listed.iter().zip(rows).all(|(want, got)| is(want, got, versions)),
    }
}

/// Whether a row is the one expected.
fn is(want: &Row, got: &AnswerRow, versions: bool) -> bool {
    let name = || if versions { version(&got.entry) } else { got.entry.revision().to_owned() };
    want.id == got.id.to_string()
        && want.document.as_ref().is_none_or(|document| document == got.entry.key())
        && want.revision.as_ref().is_none_or(|revision| *revision == name())
        && want.deleted == got.deleted
        && want.removed == removed(got)
}

/// The current version of a revision, as a scenario writes it: source and value.
fn version(entry: &ChangeEntry) -> String {
    let version = entry.version().split_once('@').and_then(|(number, source)| {
        let number = u64::from_str_radix(number, 16).ok()?;
        Some(format!("{source}/{number}"))
    });
    version.unwrap_or_default()
}

fn removed(row: &AnswerRow) -> Vec<String> {
    let mut removed: Vec<String> = row.removed.iter().map(|channel| channel.name().to_owned()).collect();
    removed.sort_unstable();
    removed
}

/// Rows as a scenario lists them.
pub(super) fn text(rows: &[AnswerRow], versions: bool) -> String {
    if rows.is_empty() {
        return "none".to_owned();
    }
    let mut words: Vec<String> = rows.iter().take(SHOWN).map(|row| row_text(row, versions)).collect();
    if rows.len() > SHOWN {
        words.push(format!("and {} more", rows.len() - SHOWN));
    }
    words.join(" ")
}

fn row_text(row: &AnswerRow, versions: bool) -> String {
    let name = if versions { version(&row.entry) } else { row.entry.revision().to_owned() };
    let mut text = format!("{}={}@{name}", row.id, row.entry.document());
    if row.deleted {
        text.push('!');
    }
    let removed = removed(row);
    if !removed.is_empty() {
        text.push_str(&format!("-({})", removed.join(",")));
    }
    text
}

/// The result of `check` if it is not the expected one.
pub(super) fn id(check: &IdCheck) -> Option<String> {
    let differs = |got: String, want: &str| (got != want).then_some(got);
    let read = |got: Result<SequenceId, String>, want: &SequenceId| match got {
        Ok(got) if got == *want => None,
        Ok(got) => Some(format!("{} {} {}", got.low, got.triggered, got.sequence)),
        Err(error) => Some(error),
    };
    match check {
        IdCheck::Parse { text, id } => read(text.parse().map_err(|e: sluicegate_core::Error| e.to_string()), id),
        IdCheck::Bad { text } => text.parse::<SequenceId>().ok().map(|id| format!("it is read as {id}")),
        IdCheck::Print { id, text } => differs(id.to_string(), text),
        IdCheck::Json { id, json } => match serde_json::to_string(id) {
            Ok(got) => differs(got, json),
            Err(error) => Some(error.to_string()),
        },
        IdCheck::ReadJson { json, id } => read(serde_json::from_str(json).map_err(|e| e.to_string()), id),
        IdCheck::Order(ids) => {
            let pairs = ids.iter().enumerate().flat_map(|(at, a)| ids[at + 1..].iter().map(move |b| (a, b)));
            let fields = |id: &SequenceId| format!("{}/{}/{}", id.low, id.triggered, id.sequence);
            let wrong: Vec<String> =
                pairs.filter(|(a, b)| a >= b).map(|(a, b)| format!("{} is not below {}", fields(a), fields(b))).collect();
            (!wrong.is_empty()).then(|| wrong.join("; "))
        }
    }
}
