//! A whole recording in memory, for tests and benchmarks.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

use sluicegate_core::{Error, ErrorKind, FeedEvent, Mutation, Result, Sequence};

use crate::line::{self, Line, Lines};

/// A point of a recording at which the gateway was at rest and its answers were recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Its number.
    pub marker: u32,
    /// The feed index of the last event before it.
    pub after_n: u64,
    /// The highest sequence allocated by then.
    pub high_seq: Sequence,
}

/// A gateway's recording, all of it in memory: mutations at the places of their indices, and markers. To follow one without holding it, and for one of any other
/// feed, use [`ReplayFeed`](crate::ReplayFeed).
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// The mutations in the order of the feed; their `seqno` is the feed index, from 1.
    pub mutations: Vec<Mutation>,
    /// The markers' ends, in order.
    pub markers: Vec<Marker>,
    /// The names of collections, `SCOPE.COLLECTION`, by number; empty if the recording has none.
    pub collections: BTreeMap<u32, Box<str>>,
}

impl Recording {
    /// Reads the recording at `path`, plain or gzip. Blocks.
    ///
    /// # Errors
    /// `NotFound` or `Unavailable` if the file cannot be opened; `Corrupt`, naming file and line, for what cannot be understood; `Unsupported` for what another
    /// feed's recording may hold besides.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Recording::collect(line::open(path.as_ref())?)
    }

    /// Reads a recording that is not compressed. Blocks.
    ///
    /// # Errors
    /// `Corrupt`, naming the line, for what cannot be understood; `Unavailable` if `reader` fails.
    pub fn from_reader(reader: impl BufRead) -> Result<Self> {
        Recording::collect(Lines::new(reader, Path::new("-")))
    }

    /// The events of a recording of whatever feed, which is not compressed. Blocks.
    ///
    /// # Errors
    /// As [`from_reader`](Self::from_reader), in the place of the first event that cannot be understood; none comes after it.
    pub fn events(reader: impl BufRead) -> impl Iterator<Item = Result<FeedEvent>> {
        Lines::new(reader, Path::new("-")).filter_map(|line| match line {
            Ok(Line::Event(_, event)) => Some(Ok(event)),
            Ok(Line::Collections(names)) => Some(Ok(FeedEvent::CollectionNames(names))),
            Ok(Line::MarkerBegin | Line::MarkerEnd(_)) => None,
            Err(error) => Some(Err(error)),
        })
    }

    fn collect(lines: Lines<impl BufRead>) -> Result<Self> {
        let mut recording = Recording::default();
        for line in lines {
            match line? {
                Line::Event(n, FeedEvent::Mutation(mutation)) if mutation.seqno.0 == n => recording.mutations.push(mutation),
                Line::Event(n, _) => {
                    let message = format!(
                        "event {n} has a place of its own, or is no mutation: not a gateway's recording, but one of a feed; play it back as one"
                    );
                    return Err(Error::new(ErrorKind::Unsupported, message).with_operation("read recording"));
                }
                Line::MarkerEnd(marker) => recording.markers.push(marker),
                Line::Collections(names) => recording.collections.extend(names),
                Line::MarkerBegin => {}
            }
        }
        Ok(recording)
    }

    /// The marker of this number.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn marker(&self, marker: u32) -> Result<Marker> {
        self.markers.iter().find(|m| m.marker == marker).copied().ok_or_else(|| {
            let known: Vec<_> = self.markers.iter().map(|m| m.marker).collect();
            Error::new(ErrorKind::NotFound, format!("the recording has no marker {marker}, only {known:?}"))
        })
    }

    /// The mutations before the end of marker `marker`.
    ///
    /// # Errors
    /// `NotFound` if there is no such marker.
    pub fn upto_marker(&self, marker: u32) -> Result<&[Mutation]> {
        let after = self.marker(marker)?.after_n;
        let count = self.mutations.partition_point(|m| m.seqno.0 <= after);
        Ok(&self.mutations[..count])
    }

    /// The mutations cut at the markers: each marker's number, and what came since the one before.
    pub fn parts(&self) -> Vec<(u32, Vec<Mutation>)> {
        let mut from = 0;
        let part = |marker: &Marker| {
            let upto = self.mutations.partition_point(|m| m.seqno.0 <= marker.after_n);
            let part = self.mutations[from.min(upto)..upto].to_vec();
            from = upto;
            (marker.marker, part)
        };
        self.markers.iter().map(part).collect()
    }
}
