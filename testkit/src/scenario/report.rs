//! The results of many runs.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// The limit for printed characters of an expectation or an answer.
const SHOWN: usize = 600;

/// One line with an unexpected result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disagreement {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The variation.
    pub variation: &'static str,
    /// The line's text.
    pub asked: String,
    /// What was expected.
    pub expected: String,
    /// The result.
    pub got: String,
}

/// The results of many files in many variations.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Files read, including those that were left out.
    pub files: usize,
    /// Runs: a file in a variation.
    pub runs: usize,
    /// Runs with only expected results.
    pub agreed: usize,
    /// Runs with an unexpected result.
    pub disagreed: usize,
    /// By variation: the number of runs, and of those with an unexpected result.
    pub variations: BTreeMap<&'static str, (usize, usize)>,
    /// Runs left out because their file says so.
    pub left_out: usize,
    /// Files left out, by the feature that they wait for.
    pub skipped: BTreeMap<String, Vec<String>>,
    /// Other remarks.
    pub notes: Vec<String>,
    /// All lines with unexpected results, by file.
    pub disagreements: Vec<Disagreement>,
}

impl Report {
    /// Whether all results were the expected ones.
    pub fn agrees(&self) -> bool {
        self.disagreements.is_empty()
    }

    /// Adds the result of one run.
    pub(super) fn ran(&mut self, variation: &'static str, found: Vec<Disagreement>) {
        self.runs += 1;
        let counts = self.variations.entry(variation).or_default();
        counts.0 += 1;
        if found.is_empty() {
            self.agreed += 1;
        } else {
            counts.1 += 1;
            self.disagreed += 1;
        }
        self.disagreements.extend(found);
    }

    /// Adds another report.
    pub(super) fn add(&mut self, other: Report) {
        let Report { files, runs, agreed, disagreed, variations, left_out, skipped, notes, disagreements } = other;
        self.files += files;
        self.runs += runs;
        self.agreed += agreed;
        self.disagreed += disagreed;
        self.left_out += left_out;
        for (name, (runs, disagreed)) in variations {
            let counts = self.variations.entry(name).or_default();
            *counts = (counts.0 + runs, counts.1 + disagreed);
        }
        for (feature, files) in skipped {
            self.skipped.entry(feature).or_default().extend(files);
        }
        self.notes.extend(notes);
        self.disagreements.extend(disagreements);
    }

    pub(super) fn sort(&mut self) {
        self.skipped.values_mut().for_each(|files| files.sort_unstable());
        self.notes.sort_unstable();
        self.disagreements.sort_by(|a, b| (&a.file, a.line, &a.expected, &a.got).cmp(&(&b.file, b.line, &b.expected, &b.got)));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let same =
            |a: &Disagreement, b: &Disagreement| (&a.file, a.line, &a.expected, &a.got) == (&b.file, b.line, &b.expected, &b.got);
        for group in self.disagreements.chunk_by(same) {
            let Some(first) = group.first() else { continue };
            let names: Vec<&str> = group.iter().map(|one| one.variation).collect();
            writeln!(f, "{}:{} [{}]", first.file, first.line, names.join(", "))?;
            writeln!(f, "  line      {}", shortened(&first.asked))?;
            writeln!(f, "  expected  {}", shortened(&first.expected))?;
            writeln!(f, "  got       {}", shortened(&first.got))?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        for (feature, files) in &self.skipped {
            writeln!(f, "skipped, {} files: {feature}", files.len())?;
        }
        for (name, (runs, disagreed)) in &self.variations {
            writeln!(f, "variation {name}: {} of {runs} runs agree", runs - disagreed)?;
        }
        let skipped: usize = self.skipped.values().map(Vec::len).sum();
        writeln!(
            f,
            "{} files, {} runs: {} agree, {} disagree; {skipped} files skipped for a feature, {} runs left out by their files",
            self.files, self.runs, self.agreed, self.disagreed, self.left_out
        )
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}
