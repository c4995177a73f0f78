//! The `replay:` feed: a recording played back.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::Deserialize;
use sluicegate_core::feed::{FeedCapabilities, FeedIdentity, FeedInfo, PartitionPosition, PositionTracker};
use sluicegate_core::registry::{FeedFactory, Location};
use sluicegate_core::{Error, ErrorKind, Feed, FeedEvent, FeedStart, FeedStream, PartitionId, Result};

use crate::line::{self, Line, Lines};
use crate::notice::Header;
use crate::stream::{self, DEFAULT_BATCH, Pace};

/// How a recording is played back. Built with `with_…`, or from the options of a `replay:` URL, which have the same names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ReplayOptions {
    /// Deliver only events after this index of the recording.
    pub after: u64,
    /// Deliver up to this index of the recording, then end. Of a recording that was cut off, what there is.
    pub until: Option<u64>,
    /// Deliver up to the end of this marker, then end.
    pub until_marker: Option<u32>,
    /// Events a second; 0 for as fast as they are taken.
    pub rate: u64,
    /// Events of a batch. A feed with a rate may use smaller ones, so as not to come in bursts.
    pub batch: usize,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        ReplayOptions { after: 0, until: None, until_marker: None, rate: 0, batch: DEFAULT_BATCH }
    }
}

impl ReplayOptions {
    /// Begins after this index of the recording.
    #[must_use]
    pub fn with_after(mut self, index: u64) -> Self {
        self.after = index;
        self
    }

    /// Ends after this index of the recording.
    #[must_use]
    pub fn with_until(mut self, index: u64) -> Self {
        self.until = Some(index);
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
/// Positions are those of the feed that was recorded; in a gateway's recording an event's place is its index. The rest after any event is exactly what a
/// stream opened at the position there delivers.
#[derive(Clone, Debug)]
pub struct ReplayFeed {
    path: PathBuf,
    options: ReplayOptions,
    header: Header,
    identity: FeedIdentity,
}

impl ReplayFeed {
    /// The recording at `path`, plain or gzip. The file must be there; what is in it shows when it is played.
    ///
    /// # Errors
    /// `NotFound` if it is not there, `Unavailable` if it cannot be opened, `ConfigInvalid` for a wrong option.
    pub async fn open(path: impl Into<PathBuf>, options: ReplayOptions) -> Result<Self> {
        options.validate()?;
        let path = path.into();
        let (header, mut lines) = open_lines(&path).await?;
        let file = path.clone();
        let identify = move || {
            let file = std::fs::canonicalize(&file).unwrap_or(file);
            let first = lines.first_event().map(|line| format!("{:08x}", crc32fast::hash(line)));
            FeedIdentity::new(format!("replay:{}", file.display())).with_instance(first.unwrap_or_default())
        };
        let identity = tokio::task::spawn_blocking(identify).await.map_err(stream::stopped)?;
        Ok(ReplayFeed { path, options, header, identity })
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
            partitions: self.header.partitions,
            capabilities: FeedCapabilities { positions: true, snapshots: self.header.snapshots, deletions: true, finite: true },
        }
    }

    /// The file, and its first event: a file that grows stays the same source, and another file in
    /// its place is another source.
    fn identity(&self) -> FeedIdentity {
        self.identity.clone()
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let position = stream::position_of(start, "replay")?;
        let (_, lines) = open_lines(&self.path).await?;
        let source = Playback {
            lines,
            ahead: position.partitions,
            tracker: PositionTracker::default(),
            taken: 0,
            options: self.options.clone(),
            file: self.path.clone(),
            ended: false,
        };
        Ok(stream::blocking(source, self.options.pace()))
    }
}

type FileLines = Lines<Box<dyn BufRead + Send>>;

/// What the recording is, and all of its lines.
async fn open_lines(path: &Path) -> Result<(Header, FileLines)> {
    let path = path.to_owned();
    let open = move || {
        let mut lines = line::open(&path)?;
        Ok((lines.header().clone(), lines))
    };
    tokio::task::spawn_blocking(open).await.map_err(stream::stopped)?
}

/// The events of a recording that come after a position, up to a marker.
struct Playback<R> {
    lines: Lines<R>,
    /// Where partitions begin that have not come to it yet.
    ahead: BTreeMap<PartitionId, PartitionPosition>,
    /// Where those partitions are.
    tracker: PositionTracker,
    /// The index of the last event that was taken.
    taken: u64,
    options: ReplayOptions,
    file: PathBuf,
    ended: bool,
}

impl<R: BufRead> Playback<R> {
    /// Whether an event comes after the position. A partition comes to its position when it is there **in the history that the position names**: what was taken
    /// back has the same seqnos as what took its place.
    fn is_after(&mut self, event: &FeedEvent) -> bool {
        let Some(id) = event.partition() else { return true };
        let Some(position) = self.ahead.get(&id) else { return true };
        let (at, uuid) = self.tracker.at(id).map_or((0, 0), |at| (at.seqno, at.uuid));
        let next = match event {
            FeedEvent::Mutation(mutation) => mutation.seqno.0,
            FeedEvent::SeqnoAdvanced { seqno, .. } => seqno.0,
            _ => 0,
        };
        let is_its_history = uuid == position.uuid || uuid == 0 || position.uuid == 0;
        if is_its_history && (at >= position.seqno || next > position.seqno) {
            self.ahead.remove(&id);
            return true;
        }
        self.tracker.observe(event);
        false
    }

    /// What is wrong with the position: nothing where a partition has not come so far.
    fn check_position(&self) -> Result<()> {
        let strange = self.ahead.iter().find(|(id, position)| {
            self.tracker.at(**id).is_some_and(|at| at.seqno >= position.seqno && at.uuid != position.uuid && position.uuid != 0)
        });
        match strange {
            Some((id, position)) => Err(Error::new(
                ErrorKind::RolledBack,
                format!(
                    "the recording does not have history {} of partition {}, where it was to go on; begin it anew",
                    position.uuid, id.0
                ),
            )
            .with_operation("read recording")
            .with_context("file", self.file.display())),
            None => Ok(()),
        }
    }

    fn read(&mut self) -> Result<Option<FeedEvent>> {
        let ReplayOptions { after, until, until_marker, .. } = self.options;
        // What comes after the last event that is wanted may be damaged.
        while until.is_none_or(|until| self.taken < until)
            && let Some(line) = self.lines.next().transpose()?
        {
            if let Line::Event(n, _) = line {
                self.taken = n;
            }
            match line {
                Line::Event(n, _) if until.is_some_and(|until| n > until) => break,
                Line::Event(n, event) if n > after && self.is_after(&event) => return Ok(Some(event)),
                Line::Collections(names) => return Ok(Some(FeedEvent::CollectionNames(names))),
                Line::MarkerEnd(marker) if until_marker == Some(marker.marker) => return self.check_position().map(|()| None),
                _ => {}
            }
        }
        if let Some(marker) = until_marker.filter(|_| until.is_none()) {
            return Err(Error::config(format!("the recording has no marker {marker}; change until_marker or leave it out"))
                .with_operation("read recording")
                .with_context("file", self.file.display()));
        }
        self.check_position().map(|()| None)
    }
}

impl<R: BufRead> Iterator for Playback<R> {
    type Item = Result<FeedEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

inventory::submit! {
    FeedFactory {
        scheme: "replay",
        about: "a recording, played back: replay:FILE?after=N&until=N&until_marker=K&rate=N&batch=N",
        open: |location| Box::pin(async move {
            let feed: std::sync::Arc<dyn Feed> = std::sync::Arc::new(ReplayFeed::open_location(location).await?);
            Ok(feed)
        }),
    }
}
