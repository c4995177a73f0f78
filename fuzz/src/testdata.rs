//! What was recorded from real servers, and golden vectors.

use std::path::{Path, PathBuf};

use sluicegate_core::Mutation;
use sluicegate_replay::Recording;

/// Inputs of more bytes are no seeds: damage would seldom hit what matters in them.
const LONGEST: usize = 4 << 10;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits")).collect()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The golden frames, and what stands among them without being one: by name.
pub(crate) fn golden() -> Vec<(String, Vec<u8>)> {
    let golden = text(&repository().join("feeds/mcbp/testdata/golden.txt"));
    let lines = golden.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let vector = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, bytes) = (words.next().expect("a name"), words.next().expect("bytes"));
        (name.to_owned(), hex(bytes))
    };
    lines.map(vector).collect()
}

/// Every different message of the recorded connections, and the golden ones.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = golden().into_iter().filter(|(name, _)| name != "D39").map(|(_, bytes)| bytes).collect();
    let directory = repository().join("feeds/mcbp/testdata/wire");
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    // Of messages of one kind and size a few are enough.
    let mut seen = std::collections::HashMap::new();
    for path in paths {
        for line in text(&path).lines() {
            let frame = hex(line.split_once(' ').expect("a side and bytes").1);
            let many = seen.entry((frame[..2].to_vec(), frame.len())).or_insert(0);
            *many += 1;
            if *many <= 2 && frame.len() <= LONGEST {
                frames.push(frame);
            }
        }
    }
    frames
}

/// Some of the events of a gateway's recorded feed.
pub(crate) fn mutations() -> Vec<Mutation> {
    let mut some = Vec::new();
    for name in ["mutations", "mutations-inline", "mutations-xattr33", "hazards/mutations-skips"] {
        let path = repository().join(format!("testdata/gateway/{name}.ndjson.gz"));
        let recording = Recording::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let short = recording.mutations.into_iter().filter(|mutation| mutation.value.len() <= LONGEST);
        let (first, rest): (Vec<_>, Vec<_>) = short.enumerate().partition(|(at, _)| *at < 20);
        some.extend(first.into_iter().map(|(_, mutation)| mutation));
        let step = (rest.len() / 40).max(1);
        some.extend(rest.into_iter().step_by(step).map(|(_, mutation)| mutation));
    }
    some
}
