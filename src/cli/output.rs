//! What commands print, and how they fail.

use std::io::{self, Write};

use serde::Serialize;
use sluicegate::{Error, ErrorKind};
use unicode_width::UnicodeWidthStr as _;

/// Why a command did not end well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It failed.
    Error(Error),
    /// Nobody reads what it prints.
    PipeClosed,
}

/// What a command comes to.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::PipeClosed,
            _ => Failure::Error(Error::new(ErrorKind::Unexpected, "output cannot be written").with_source(error)),
        }
    }
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text.replace('\n', " ")
}

/// Prints one JSON value and a line end.
pub(crate) fn json(value: &impl Serialize) -> Outcome<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Prints text as it is.
pub(crate) fn text(text: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Columns of text, each as wide as its widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// One with these headings; a heading that begins with `>` has its column set flush right.
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        let right = headings.iter().map(|h| h.starts_with('>')).collect();
        Table { right, rows: vec![headings.iter().map(|h| h.trim_start_matches('>').to_owned()).collect()] }
    }

    /// Names and values, without headings.
    pub(crate) fn pairs<const N: usize>(pairs: [(impl Into<String>, String); N]) -> Self {
        let mut table = Table { right: vec![false; 2], rows: Vec::new() };
        pairs.into_iter().for_each(|(name, value)| table.row([name.into(), value]));
        table
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| cell.replace(|c: char| c.is_control(), "\u{fffd}")).into());
    }

    /// The text of it, every line after `indent` spaces.
    pub(crate) fn render(&self, indent: usize) -> String {
        let width = |column: usize| self.rows.iter().map(|row| row[column].width()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                let space = " ".repeat(width - cell.width());
                let (before, after) = if *right { (space.as_str(), "") } else { ("", space.as_str()) };
                line.extend([before, cell, after, "  "]);
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// A number with its thousands set apart.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_is_in_them() {
        let mut table = Table::new([">n", "name", "more"]);
        table.row(["7".into(), "größe".into(), "a".into()]);
        table.row(["1,000".into(), "日本".into(), "b\n".into()]);
        assert_eq!(table.render(1), "     n  name   more\n     7  größe  a\n 1,000  日本   b\u{fffd}\n");
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
