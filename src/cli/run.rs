//! `sluicegate run`: the writer, and a reader beside it.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use sluicegate::core::engine::WriterStats;
use sluicegate::core::writer::Ended;
use sluicegate::{PublishedClock, Sluicegate};

use super::output::{Outcome, Table, grouped, json, text};
use super::progress::Meter;
use super::session::Session;
use super::{Exit, Format};

/// Follows the feed until it ends, or until Ctrl-C (exit code 130) or SIGTERM (0): then what was taken is put away first.
/// A second Ctrl-C stops at once.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// How the summary is printed at the end
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Go on with a cache that was made from another feed or database, which is refused otherwise: it is bound to this one, which is read
    /// from its beginning. What the cache holds stays
    #[arg(long)]
    adopt: bool,
}

#[derive(Debug, Serialize)]
struct Summary {
    store: String,
    feed: String,
    ended: &'static str,
    seconds: f64,
    events_per_second: f64,
    writer: WriterStats,
    pending: usize,
    takeovers: u64,
    clock: Option<PublishedClock>,
}

pub(crate) async fn run(args: RunArgs, session: Session) -> Outcome<Exit> {
    let (feed, store) = (session.feed().await?, session.store().await?);
    let names = (store.info().name, feed.info().checkpoint_name());
    tracing::info!(store = names.0, feed = names.1, "starting");
    let began = Instant::now();
    let mut builder = Sluicegate::builder()
        .with_store(store)
        .with_feed(feed)
        .decoder(session.decoder()?)
        .writer_config(session.settings.writer.clone())
        .reader_config(session.settings.reader.clone())
        .adopt(args.adopt);
    if let Some(node) = &session.settings.node {
        builder = builder.node(node);
    }
    let mut cache = tokio::select! {
        cache = builder.start() => cache?,
        // There is no cache to read yet: what may have been taken from the feed is taken again.
        signal = session.signals.first() => return Ok(signal.into()),
    };
    tracing::info!("ready");
    let meter = cache.writer().map(|status| Meter::start(&session.terminal, status));
    let (ended, exit) = tokio::select! {
        ended = cache.writer_ended() => match ended? {
            Ended::Feed => ("the feed ended", Exit::Done),
            Ended::Stopped => ("stopped", Exit::Done),
        },
        signal = session.signals.first() => {
            tracing::info!("stopping: what was taken from the feed is put away first");
            ("stopped", signal.into())
        }
    };
    let status = cache.shutdown().await?;
    drop(meter);
    let Some(status) = status else { return Ok(exit) };
    let summary = summary(names, ended, began.elapsed(), status);
    match args.format {
        Format::Json => json(&summary)?,
        Format::Table => text(&table(&summary))?,
    }
    Ok(exit)
}

fn summary(names: (String, String), ended: &'static str, took: Duration, status: sluicegate::WriterStatus) -> Summary {
    let seconds = took.as_secs_f64();
    Summary {
        store: names.0,
        feed: names.1,
        ended,
        seconds,
        events_per_second: status.stats.received as f64 / seconds.max(0.000_001),
        writer: status.stats,
        pending: status.pending,
        takeovers: status.takeovers,
        clock: status.clock,
    }
}

fn table(summary: &Summary) -> String {
    let stats = &summary.writer;
    let rate = summary.events_per_second as u64;
    let clock = match &summary.clock {
        Some(clock) => format!(
            "stable {}, high {}, {} skipped, batch {}, epoch {}",
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
        (stats.purged, "gone for good"),
        (stats.bad_channels, "channels that cannot be kept"),
        (stats.cut_numbers, "numbers cut off"),
    ] {
        if count > 0 {
            rest = format!("{rest}, {} {what}", grouped(count));
        }
    }
    let events = format!("{} in {:.2} s, {}/s", grouped(stats.received), summary.seconds, grouped(rate));
    Table::pairs([
        ("store", summary.store.clone()),
        ("feed", summary.feed.clone()),
        ("ended", summary.ended.to_owned()),
        ("events", events),
        ("sequences", sequences),
        ("the rest", rest),
        ("clock", clock),
    ])
    .render(0)
}
