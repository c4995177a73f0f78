//! Recorded gateways, and what their answers are compared by.

use std::path::{Path, PathBuf};

use sluicegate::compare::{Report, Truth};
use sluicegate::decode::GatewayDecoder;
use sluicegate::sequence::RangeSet;
use sluicegate::{Decoded, Mutation, MutationDecoder as _, Sequence};
use sluicegate_replay::Recording;

/// One recorded gateway.
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) mutations: &'static str,
    pub(crate) truth: &'static str,
}

pub(crate) const SETS: [Set; 3] = [
    Set { name: "attributes", mutations: "mutations.ndjson.gz", truth: "changes-truth.ndjson.gz" },
    Set { name: "inline", mutations: "mutations-inline.ndjson.gz", truth: "changes-truth-inline.ndjson.gz" },
    Set { name: "attributes, older gateway", mutations: "mutations-xattr33.ndjson.gz", truth: "changes-truth-xattr33.ndjson.gz" },
];

/// Answers a cache can give, in each recording.
pub(crate) const MODELLED: usize = 526;

pub(crate) fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/gateway").join(file)
}

pub(crate) fn load(set: &Set) -> (Recording, Truth) {
    (Recording::read(path(set.mutations)).unwrap(), Truth::read(path(set.truth)).unwrap())
}

#[track_caller]
pub(crate) fn assert_agrees(what: &str, report: &Report) {
    println!("{what}: {report}");
    assert!(report.differences.is_empty(), "{what}: {report}");
    assert_eq!(report.answers, MODELLED, "{what}: {report}");
    assert_eq!(report.refused, 4, "{what}");
}

/// Numbers that something in `all` accounts for, and nothing in `kept`.
pub(crate) fn truly_lost(all: &[Mutation], kept: &[Mutation]) -> usize {
    let decoder = GatewayDecoder::default();
    let numbers = |mutations: &[Mutation]| {
        let mut numbers = RangeSet::new();
        let mut add = |s: Sequence| {
            numbers.insert(s.0, s.0);
        };
        for mutation in mutations {
            match decoder.decode(mutation) {
                Decoded::Principal(principal) => add(principal.sequence),
                Decoded::Document(document) | Decoded::Foreign(document) => {
                    document.unused.iter().copied().chain(document.earlier()).for_each(&mut add);
                    add(document.entry.sequence());
                }
                _ => {}
            }
        }
        numbers
    };
    let (all, kept) = (numbers(all), numbers(kept));
    all.iter().flat_map(|(a, b)| a..=b).filter(|n| !kept.contains(*n)).count()
}
