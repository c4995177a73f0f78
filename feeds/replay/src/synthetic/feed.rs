//! The `synthetic:` feed.

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt as _, stream as streams};
use serde::Deserialize;
use sluicegate_core::feed::{FeedCapabilities, FeedIdentity, FeedInfo};
use sluicegate_core::registry::{FeedFactory, Location};
use sluicegate_core::{Error, Feed, FeedBatch, FeedEvent, FeedStart, FeedStream, Result};

use super::{Synthetic, SyntheticConfig};
use crate::PARTITIONS;
use crate::stream::{self, DEFAULT_BATCH, Pace};

/// A feed that is made up while it is read. It can be opened as often as one likes, and always delivers the same; to open it at a position
/// it is made up again from the beginning.
///
/// Without a number of events it never ends. Then nothing exists when it is opened, so it says at once that it has caught up.
#[derive(Clone, Debug)]
pub struct SyntheticFeed {
    config: SyntheticConfig,
    seed: u64,
    events: Option<u64>,
    pace: Pace,
}

impl SyntheticFeed {
    /// The feed of `config` and `seed`, of so many `events` or without end.
    ///
    /// # Errors
    /// As [`SyntheticConfig::validate`].
    pub fn new(config: SyntheticConfig, seed: u64, events: Option<u64>) -> Result<Self> {
        config.validate()?;
        Ok(SyntheticFeed { config, seed, events, pace: Pace { rate: 0, batch: DEFAULT_BATCH } })
    }

    /// Sets the events a second, 0 for as fast as they are taken, and the events of a batch.
    ///
    /// # Errors
    /// `ConfigInvalid` for a batch out of range.
    pub fn with_pace(mut self, rate: u64, batch: usize) -> Result<Self> {
        self.pace = Pace { rate, batch };
        match self.pace.violations() {
            wrong if wrong.is_empty() => Ok(self),
            wrong => Err(Error::config(format!("synthetic feed: {}", wrong.join("; ")))),
        }
    }
}

#[async_trait]
impl Feed for SyntheticFeed {
    fn info(&self) -> FeedInfo {
        // Another configuration is another feed: a position in one means nothing in the other.
        let identity = crc32fast::hash(format!("{:?} {:?}", self.config, self.events).as_bytes());
        FeedInfo {
            scheme: "synthetic",
            name: format!("{}-{identity:08x}", self.seed),
            partitions: PARTITIONS,
            capabilities: FeedCapabilities { positions: true, snapshots: false, deletions: true, finite: self.events.is_some() },
        }
    }

    /// The number of events and their rate do not matter: the events are the first of the same
    /// sequence.
    fn identity(&self) -> FeedIdentity {
        let content = crc32fast::hash(format!("{:?}", self.config).as_bytes());
        FeedIdentity::new(format!("synthetic:{}", self.seed)).with_instance(format!("{content:08x}"))
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        let position = stream::position_of(start, "synthetic")?;
        let source = Synthetic::new(self.config.clone(), self.seed)?.with_limit(self.events.unwrap_or(u64::MAX));
        let rest = source.filter(move |mutation| !stream::is_before(mutation, &position)).map(FeedEvent::Mutation).map(Ok);
        let events = stream::blocking(rest, self.pace);
        if self.events.is_some() {
            return Ok(events);
        }
        let caught_up = streams::once(async { Ok(FeedBatch::from(vec![FeedEvent::CaughtUp])) });
        Ok(caught_up.chain(events).boxed())
    }
}

/// The options of a `synthetic:` URL: those of [`SyntheticConfig`], the seed, how many events, and the pace.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    events: Option<u64>,
    seed: u64,
    rate: u64,
    batch: usize,
    documents: u32,
    channels: u32,
    zipf: f64,
    min_channels: u32,
    max_channels: u32,
    moves: f64,
    deletions: f64,
    body: u32,
    principals: u32,
    principal_writes: f64,
    retries: f64,
    foreign: f64,
    internal: f64,
    out_of_order: u64,
    gaps: f64,
    late: f64,
    late_by: u64,
    unused: f64,
    unused_max: u64,
    duplicates: f64,
    restart_every: u64,
    restart_repeats: usize,
}

/// Copies every field of the configuration from one struct into another.
macro_rules! config_fields {
    ($from:ident => $into:ident { $($rest:tt)* }) => {
        $into {
            documents: $from.documents,
            channels: $from.channels,
            zipf: $from.zipf,
            min_channels: $from.min_channels,
            max_channels: $from.max_channels,
            moves: $from.moves,
            deletions: $from.deletions,
            body: $from.body,
            principals: $from.principals,
            principal_writes: $from.principal_writes,
            retries: $from.retries,
            foreign: $from.foreign,
            internal: $from.internal,
            out_of_order: $from.out_of_order,
            gaps: $from.gaps,
            late: $from.late,
            late_by: $from.late_by,
            unused: $from.unused,
            unused_max: $from.unused_max,
            duplicates: $from.duplicates,
            restart_every: $from.restart_every,
            restart_repeats: $from.restart_repeats,
            $($rest)*
        }
    };
}

impl Default for Options {
    fn default() -> Self {
        let config = SyntheticConfig::default();
        config_fields!(config => Options { events: None, seed: 1, rate: 0, batch: DEFAULT_BATCH })
    }
}

fn open(location: &Location) -> Result<SyntheticFeed> {
    if !location.rest().is_empty() {
        return Err(Error::config(format!(
            "synthetic: takes options only, not `{}`; write synthetic:?events=N",
            location.rest()
        )));
    }
    let options: Options = location.options()?;
    let config = config_fields!(options => SyntheticConfig {});
    SyntheticFeed::new(config, options.seed, options.events)?.with_pace(options.rate, options.batch)
}

inventory::submit! {
    FeedFactory {
        scheme: "synthetic",
        about: "a feed made up from a seed: synthetic:?events=N&seed=N&documents=N&channels=N&gaps=P&late=P&…",
        open: |location| Box::pin(async move {
            let feed: Arc<dyn Feed> = Arc::new(open(&location)?);
            Ok(feed)
        }),
    }
}
