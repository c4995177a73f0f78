//! `sluicegate run`: the writer, and a reader beside it.

use std::collections::BTreeMap;
use std::time::Instant;

use clap::Args;
use futures::future::try_join_all;
use serde::Serialize;
use sluicegate::core::engine::WriterStats;
use sluicegate::core::feed::{SharedFeed, Strangers};
use sluicegate::core::writer::Ended;
use sluicegate::{Error, PublishedClock, Sluicegate, WriterStatus};

use super::output::{Outcome, Table, grouped, json, text};
use super::progress::Meter;
use super::session::{Part, Session, warn_of_mixture, watch_for_mixture};
use super::{Exit, Format};

/// Follows the feed until it ends, or until Ctrl-C (exit code 130) or SIGTERM (0): then what was
/// read from the feed is stored first. A second Ctrl-C stops at once.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// How the summary is printed at the end
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Continue with a cache that was made from another feed or database, which is refused
    /// otherwise: the cache is bound to this feed, which is read from its beginning. The entries of
    /// the cache stay
    #[arg(long)]
    adopt: bool,
}

/// The output of `--format json`. README.md describes each member; they are stable.
#[derive(Debug, Serialize)]
struct Summary {
    store: String,
    feed: String,
    ended: &'static str,
    seconds: f64,
    events_per_second: f64,
    /// The sum, for several databases.
    writer: WriterStats,
    pending: usize,
    takeovers: u64,
    /// `None` for several databases.
    clock: Option<PublishedClock>,
    /// Each database that is served, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    databases: BTreeMap<String, DatabaseSummary>,
    /// Counts of events that belong to none of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    others: Option<Strangers>,
}

#[derive(Debug, Serialize)]
struct DatabaseSummary {
    store: String,
    writer: WriterStats,
    pending: usize,
    takeovers: u64,
    clock: Option<PublishedClock>,
}

pub(crate) async fn run(args: RunArgs, session: Session) -> Outcome<Exit> {
    let feed = session.feed().await?;
    let feed_name = feed.info().checkpoint_name();
    let began = Instant::now();
    let parts = tokio::select! {
        parts = session.parts(feed) => parts?,
        signal = session.signals.first() => return Ok(signal.into()),
    };
    let mut caches = Vec::new();
    let mut watches = Vec::new();
    for part in &parts {
        let store = part.store.info().name;
        tracing::info!(store, feed = feed_name, database = part.name, "starting");
        let cache = tokio::select! {
            cache = session.cache(part, args.adopt).start() => cache.map_err(|e| named(e, part))?,
            // There is no cache to read yet. Events that were taken from the feed will come again.
            signal = session.signals.first() => return Ok(signal.into()),
        };
        watches.extend(cache.writer().map(|status| watch_for_mixture(status, part)));
        caches.push(cache);
    }
    tracing::info!("ready");
    let status_of = |(cache, part): (&Sluicegate, &Part)| Some((part.name.clone().unwrap_or_default(), cache.writer()?));
    let mut statuses: Vec<_> = caches.iter().zip(&parts).filter_map(status_of).collect();
    let meter = match statuses.len() {
        1 => statuses.pop().map(|(_, status)| Meter::start(&session.terminal, status)),
        _ => Some(Meter::start_all(&session.terminal, statuses)),
    };
    let all_ended = try_join_all(
        caches.iter_mut().zip(&parts).map(|(cache, part)| async move { cache.writer_ended().await.map_err(|e| named(e, part)) }),
    );
    let (ended, exit) = tokio::select! {
        ended = all_ended => match ended?.contains(&Ended::Stopped) {
            false => ("the feed ended", Exit::Done),
            true => ("stopped", Exit::Done),
        },
        signal = session.signals.first() => {
            tracing::info!("stopping: storing what was read from the feed");
            ("stopped", signal.into())
        }
    };
    // All at once: if one of them stops, the shared feed ends for the others.
    let ends =
        caches.into_iter().zip(&parts).map(|(cache, part)| async move { cache.shutdown().await.map_err(|e| named(e, part)) });
    let statuses = try_join_all(ends).await?;
    drop((meter, watches));
    let mut summary = Summary {
        store: session.store_name(&parts),
        feed: feed_name,
        ended,
        seconds: began.elapsed().as_secs_f64(),
        events_per_second: 0.0,
        writer: WriterStats::default(),
        pending: 0,
        takeovers: 0,
        clock: None,
        databases: BTreeMap::new(),
        others: parts.first().and_then(|part| part.shared.as_ref()).map(SharedFeed::strangers),
    };
    for (status, part) in statuses.into_iter().zip(&parts) {
        let Some(status) = status else { continue };
        warn_of_mixture(&status, part).await;
        summary.add(status, part);
    }
    summary.events_per_second = summary.writer.received as f64 / summary.seconds.max(0.000_001);
    match args.format {
        Format::Json => json(&summary)?,
        Format::Table => text(&table(&summary))?,
    }
    Ok(exit)
}

/// The error of a database's writer, with the database's name.
fn named(error: Error, part: &Part) -> Error {
    match &part.name {
        Some(name) => error.with_context("database", name),
        None => error,
    }
}

impl Summary {
    fn add(&mut self, status: WriterStatus, part: &Part) {
        self.writer += status.stats;
        self.pending += status.pending;
        self.takeovers += status.takeovers;
        match &part.name {
            None => self.clock = status.clock,
            Some(name) => {
                let WriterStatus { stats, pending, takeovers, clock, .. } = status;
                let store = part.store.info().name;
                self.databases.insert(name.clone(), DatabaseSummary { store, writer: stats, pending, takeovers, clock });
            }
        }
    }
}

fn table(summary: &Summary) -> String {
    let stats = &summary.writer;
    let rate = summary.events_per_second as u64;
    let clock_text = |clock: &Option<PublishedClock>| match clock {
        Some(clock) => format!(
            "{}stable {}, high {}, {} skipped, batch {}, epoch {}",
            clock.building.map(|progress| format!("building, {} %; ", progress.percent())).unwrap_or_default(),
            clock.stable,
            clock.high,
            grouped(clock.gaps),
            clock.batch,
            clock.epoch.counter
        ),
        None => "none was published".to_owned(),
    };
    let sequences = format!(
        "{} cached, {} superseded unseen, {} unused, {} of users and roles, {} late, {} given up",
        grouped(stats.cached),
        grouped(stats.superseded),
        grouped(stats.unused),
        grouped(stats.principals),
        grouped(stats.late),
        grouped(stats.abandoned)
    );
    let mut rest = format!(
        "{} not about the cache, {} written by other programs, {} duplicate, {} not understood",
        grouped(stats.ignored),
        grouped(stats.foreign),
        grouped(stats.duplicates),
        grouped(stats.invalid)
    );
    for (count, what) in [
        (stats.other_database, "of users, roles and markers of other databases"),
        (stats.other_collection, "in other collections"),
        (stats.undelivered, "sequences that the restricted feed leaves out"),
        (stats.purged, "purged"),
        (stats.bad_channels, "channels refused"),
        (stats.cut_numbers, "numbers cut off"),
    ] {
        if count > 0 {
            rest = format!("{rest}, {} {what}", grouped(count));
        }
    }
    let events = format!("{} in {:.2} s, {}/s", grouped(stats.received), summary.seconds, grouped(rate));
    let mut pairs = Table::pairs([
        ("store", summary.store.clone()),
        ("feed", summary.feed.clone()),
        ("ended", summary.ended.to_owned()),
        ("events", events),
        ("sequences", sequences),
        ("the rest", rest),
    ]);
    if summary.databases.is_empty() {
        pairs.row(["clock".to_owned(), clock_text(&summary.clock)]);
    }
    for (name, one) in &summary.databases {
        pairs.row([name.clone(), format!("{} cached; {}", grouped(one.writer.cached), clock_text(&one.clock))]);
    }
    if let Some(others) = &summary.others {
        let kinds = [("documents of", &others.collections), ("metadata documents of", &others.databases)];
        for (what, counts) in kinds.into_iter().filter(|(_, counts)| !counts.is_empty()) {
            let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} ({})", grouped(*count))).collect();
            pairs.row(["left out".to_owned(), format!("{what} {}", counts.join(", "))]);
        }
    }
    pairs.render(0)
}
