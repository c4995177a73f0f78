//! The `replay:` feed: a recording played back.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::Deserialize;
use sluicegate_core::feed::{FeedCapabilities, FeedInfo};
use sluicegate_core::registry::{FeedFactory, Location};
use sluicegate_core::{Error, Feed, FeedPosition, FeedStart, FeedStream, Mutation, Result};

use crate::PARTITIONS;
use crate::line::{self, Line, Lines};
use crate::stream::{self, DEFAULT_BATCH, Pace};

/// How a recording is played back. Built with `with_…`, or from the options of a `replay:` URL, which have the same names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ReplayOptions {
    /// Deliver only events after this index of the recording.
    pub after: u64,
    /// Deliver up to the end of this marker, then end.
    pub until_marker: Option<u32>,
    /// Events a second; 0 for as fast as they are taken.
    pub rate: u64,
    /// Events of a batch. A feed with a rate may use smaller ones, so as not to come in bursts.
    pub batch: usize,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        ReplayOptions { after: 0, until_marker: None, rate: 0, batch: DEFAULT_BATCH }
    }
}

impl ReplayOptions {
    /// Begins after this index of the recording.
    #[must_use]
    pub fn with_after(mut self, index: u64) -> Self {
        self.after = index;
        self
    }

    /// Ends after this marker.
    #[must_use]
    pub fn with_until_marker(mut self, marker: u32) -> Self {
        self.until_marker = Some(marker);
        self
    }

    /// Sets the events a second; 0 for as fast as they are taken.
    #[must_use]
    pub fn with_rate(mut self, rate: u64) -> Self {
        self.rate = rate;
        self
    }

    /// Sets the events of a batch.
    #[must_use]
    pub fn with_batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }

    fn pace(&self) -> Pace {
        Pace { rate: self.rate, batch: self.batch }
    }

    /// Checks all options.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming all that is wrong.
    pub fn validate(&self) -> Result<()> {
        match self.pace().violations() {
            wrong if wrong.is_empty() => Ok(()),
            wrong => Err(Error::config(format!("options of `replay:`: {}", wrong.join("; ")))),
        }
    }
}

/// A recording played back as a feed. It ends, and can be opened as often as one likes.
///
/// An event's position is its index in the recording, and a position holds the last index of each partition, so that the rest
/// after any event is exactly what a stream opened there delivers.
#[derive(Clone, Debug)]
pub struct ReplayFeed {
    path: PathBuf,
    options: ReplayOptions,
}

impl ReplayFeed {
    /// The recording at `path`, plain or gzip. The file must be there; what is in it shows when it is played.
    ///
    /// # Errors
    /// `NotFound` if it is not there, `Unavailable` if it cannot be opened, `ConfigInvalid` for a wrong option.
    pub async fn open(path: impl Into<PathBuf>, options: ReplayOptions) -> Result<Self> {
        options.validate()?;
        let path = path.into();
        open_lines(&path).await?;
        Ok(ReplayFeed { path, options })
    }

    async fn open_location(location: Location) -> Result<Self> {
        let options = location.options()?;
        ReplayFeed::open(location.rest(), options).await
    }
}

#[async_trait]
impl Feed for ReplayFeed {
    fn info(&self) -> FeedInfo {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        FeedInfo {
            scheme: "replay",
            name: name.to_string_lossy().into_owned(),
            partitions: PARTITIONS,
            capabilities: FeedCapabilities { positions: true, snapshots: false, deletions: true, finite: true },
        }
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let position = stream::position_of(start, "replay")?;
        let lines = open_lines(&self.path).await?;
        let until = self.options.until_marker;
        let after = self.options.after;
        let source = Playback { lines, position, after, until, file: self.path.clone(), ended: false };
        Ok(stream::blocking(source, self.options.pace()))
    }
}

type FileLines = Lines<Box<dyn BufRead + Send>>;

async fn open_lines(path: &Path) -> Result<FileLines> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || line::open(&path)).await.map_err(stream::stopped)?
}

/// The mutations of a recording that come after a position, up to a marker.
struct Playback<R> {
    lines: Lines<R>,
    position: FeedPosition,
    after: u64,
    until: Option<u32>,
    file: PathBuf,
    ended: bool,
}

impl<R: BufRead> Iterator for Playback<R> {
    type Item = Result<Mutation>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.lines.next() {
                Some(Ok(Line::Mutation(mutation)))
                    if mutation.seqno.0 <= self.after || stream::is_before(&mutation, &self.position) => {}
                Some(Ok(Line::Mutation(mutation))) => return Some(Ok(mutation)),
                Some(Ok(Line::MarkerEnd(marker))) => self.ended = self.until == Some(marker.marker),
                Some(Ok(Line::MarkerBegin)) => {}
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                None => {
                    self.ended = true;
                    return self.until.map(|marker| {
                        Err(Error::config(format!("the recording has no marker {marker}; change until_marker or leave it out"))
                            .with_operation("read recording")
                            .with_context("file", self.file.display()))
                    });
                }
            }
        }
        None
    }
}

inventory::submit! {
    FeedFactory {
        scheme: "replay",
        about: "a recording of a gateway's feed, played back: replay:FILE?after=N&until_marker=K&rate=N&batch=N",
        open: |location| Box::pin(async move {
            let feed: std::sync::Arc<dyn Feed> = std::sync::Arc::new(ReplayFeed::open_location(location).await?);
            Ok(feed)
        }),
    }
}
