//! The text after `=>`: the rows of an answer and its end.

use super::words::{Parsed, Words, expanded, names, number, numbers, size};
use crate::scenario::step::{Answered, Row, Rows};

/// `ROWS [; last ID]`.
pub(super) fn answered(text: &str) -> Parsed<Answered> {
    let (rows_text, rest) = match text.split_once(';') {
        Some((rows, rest)) => (rows, Some(rest)),
        None => (text, None),
    };
    let mut last = None;
    if let Some(rest) = rest {
        let mut words = Words::new(rest);
        match words.need("`last ID` after `;`")? {
            "last" => last = Some(words.need("the id after `last`")?.to_owned()),
            other => return Err(format!("`{other}` after `;`: expected `last ID`")),
        }
        words.end()?;
    }
    Ok(Answered { rows: rows(rows_text)?, last })
}

/// `none`, `n=5`, `docs a b{1-3}`, `seqs 1 2-4`, `set 3 1`, or rows one by one.
pub(super) fn rows(text: &str) -> Parsed<Rows> {
    let mut words = Words::new(text);
    let Some(first) = words.peek() else {
        return Err("rows are missing after `=>`; write `none` if there must be none".to_owned());
    };
    let is_form = first.starts_with("n=") || ["none", "docs", "seqs", "set"].contains(&first);
    if !is_form {
        return words.map(row).collect::<Parsed<_>>().map(Rows::Listed);
    }
    words.next();
    match first {
        "docs" => Ok(Rows::Documents(each(words, expanded)?)),
        "seqs" => Ok(Rows::Sequences(each(words, numbers)?)),
        "set" => {
            let mut numbers = each(words, numbers)?;
            numbers.sort_unstable();
            Ok(Rows::Set(numbers))
        }
        _ => {
            words.end()?;
            first.strip_prefix("n=").map_or(Ok(Rows::None), |count| size(count).map(Rows::Count))
        }
    }
}

fn each<T>(words: Words<'_>, read: impl Fn(&str) -> Parsed<Vec<T>>) -> Parsed<Vec<T>> {
    let mut all = Vec::new();
    for word in words {
        all.extend(read(word)?);
    }
    if all.is_empty() { Err("a list without anything in it".to_owned()) } else { Ok(all) }
}

/// `ID[=doc][@rev][!][-(A,B)]`.
fn row(word: &str) -> Parsed<Row> {
    let bad = || format!("`{word}`: expected a row such as `5`, `3::5=doc@1-a`, `5=doc!` or `5=doc-(A,B)`");
    let (rest, removed) = match word.strip_suffix(')') {
        Some(open) => {
            let (rest, channels) = open.rsplit_once("-(").ok_or_else(bad)?;
            (rest, names(channels)?)
        }
        None => (word, Vec::new()),
    };
    let (rest, deleted) = match rest.strip_suffix('!') {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let (rest, revision) = match rest.split_once('@') {
        Some((rest, revision)) => (rest, Some(revision.to_owned())),
        None => (rest, None),
    };
    let (id, document) = match rest.split_once('=') {
        Some((id, document)) => (id, Some(document.to_owned())),
        None => (rest, None),
    };
    let is_id = !id.is_empty() && id.split(':').count() <= 3 && id.split(':').all(|part| part.is_empty() || number(part).is_ok());
    let is_empty = |text: &Option<String>| text.as_ref().is_some_and(String::is_empty);
    if !is_id || is_empty(&document) || is_empty(&revision) || word.trim_end_matches(')').contains("-(") && removed.is_empty() {
        return Err(bad());
    }
    let mut removed = removed;
    removed.sort_unstable();
    Ok(Row { id: id.to_owned(), document, revision, deleted, removed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_in_every_form() {
        let parsed = answered("3::5=doc-1@2-rd!-(B,A) 7 ; last 3::7").unwrap();
        let row = Row {
            id: "3::5".into(),
            document: Some("doc-1".into()),
            revision: Some("2-rd".into()),
            deleted: true,
            removed: vec!["A".into(), "B".into()],
        };
        let Rows::Listed(rows) = parsed.rows else { panic!("{parsed:?}") };
        assert_eq!((rows.len(), &rows[0], &*rows[1].id), (2, &row, "7"));
        assert_eq!(parsed.last.as_deref(), Some("3::7"));
        assert_eq!(super::rows("docs a b{1-2}").unwrap(), Rows::Documents(vec!["a".into(), "b1".into(), "b2".into()]));
        assert_eq!(super::rows("set 3 1").unwrap(), Rows::Set(vec![1, 3]));
        assert_eq!(super::rows("n=5").unwrap(), Rows::Count(5));
        for bad in ["", "none 1", "n=x", "docs", "x=y", "5=", "5=a@", "5)", "5=a-(", "1:2:3:4=a", "5 ; first 3", "5 ; last"] {
            assert!(answered(bad).is_err(), "{bad}");
        }
    }
}
