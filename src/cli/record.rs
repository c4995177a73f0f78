//! `sluicegate record`: a feed written down, to be played back without it.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use futures::StreamExt as _;
use serde::Serialize;
use sluicegate::{Error, ErrorKind, FeedBatch, FeedEvent, FeedStart, FeedStream, Result};
use sluicegate_replay::{Recorded, Recorder};

use super::output::{Outcome, Table, grouped, json, text};
use super::session::Session;
use super::signal::{Signal, Signals};
use super::{Exit, Format};

/// How often what was taken is put on the disk, and how often it is told how far it is.
const FLUSHED: Duration = Duration::from_secs(1);
const TOLD: Duration = Duration::from_secs(10);

/// Writes a feed's events to a file, until it ends, or until Ctrl-C (exit code 130) or SIGTERM (0). Then `--feed replay:FILE` stands for the feed
/// wherever one is named: no server is needed, and everything comes again as it came, what was taken back included.
///
/// The file holds the documents as they are; only its owner may read it. Of a dcp: feed, `until=now` in its URL ends with what there is.
#[derive(Debug, Args)]
pub(crate) struct RecordArgs {
    /// The file, which must not be there yet; compressed if its name ends in .gz
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Leave out what there is already: only what is new from now on
    #[arg(long)]
    now: bool,
    /// End after so many mutations
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// How the summary is printed at the end
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Summary {
    feed: String,
    file: String,
    ended: &'static str,
    seconds: f64,
    #[serde(flatten)]
    recorded: Recorded,
}

pub(crate) async fn run(args: RecordArgs, session: Session) -> Outcome<Exit> {
    let feed = session.feed().await?;
    let info = feed.info();
    let start = if args.now { FeedStart::Now } else { FeedStart::Beginning };
    let events = tokio::select! {
        opened = feed.open(start) => opened.map_err(|e| e.with_operation("open the feed"))?,
        signal = session.signals.first() => return Ok(signal.into()),
    };
    let recorder = Recorder::create(&args.to, &info)?;
    let began = Instant::now();
    let (recorder, ended) = record(events, recorder, args.limit.unwrap_or(u64::MAX), &session.signals).await?;
    // What was taken is kept, whatever the end was.
    let (file, recorded) = recorder.finish()?;
    file.sync_all().map_err(|e| Error::new(ErrorKind::Unavailable, "the recording cannot be put on the disk").with_source(e))?;
    let (ended, exit) = match ended? {
        End::Feed => ("the feed ended", Exit::Done),
        End::Limit => ("as many as were wanted", Exit::Done),
        End::Signal(signal) => ("stopped", signal.into()),
    };
    let seconds = began.elapsed().as_secs_f64();
    let summary = Summary { feed: info.checkpoint_name(), file: args.to.display().to_string(), ended, seconds, recorded };
    match args.format {
        Format::Json => json(&summary)?,
        Format::Table => text(&table(&summary))?,
    }
    Ok(exit)
}

enum End {
    Feed,
    Limit,
    Signal(Signal),
}

/// The recorder with all that was taken, and how it ended. Only what cannot be written is an error of its own.
async fn record(
    mut events: FeedStream,
    mut recorder: Recorder<File>,
    limit: u64,
    signals: &Signals,
) -> Result<(Recorder<File>, Result<End>)> {
    let (mut flushed, mut told) = (Instant::now(), Instant::now());
    loop {
        if recorder.recorded().mutations >= limit {
            return Ok((recorder, Ok(End::Limit)));
        }
        let batch = tokio::select! {
            batch = events.next() => batch,
            signal = signals.first() => return Ok((recorder, Ok(End::Signal(signal)))),
        };
        let batch = match batch {
            Some(Ok(batch)) => batch,
            Some(Err(error)) => return Ok((recorder, Err(error))),
            None => return Ok((recorder, Ok(End::Feed))),
        };
        let is_due = flushed.elapsed() >= FLUSHED;
        let write = move || -> Result<Recorder<File>> {
            write(&mut recorder, &batch, limit)?;
            if is_due {
                recorder.flush()?;
            }
            Ok(recorder)
        };
        let written = tokio::task::spawn_blocking(write).await;
        recorder =
            written.map_err(|e| Error::new(ErrorKind::Unexpected, "what records has failed; this is a bug").with_source(e))??;
        if is_due {
            flushed = Instant::now();
        }
        if told.elapsed() >= TOLD {
            let Recorded { events, mutations, bytes, .. } = recorder.recorded();
            tracing::info!(events, mutations, bytes, "recording");
            told = Instant::now();
        }
    }
}

fn write(recorder: &mut Recorder<File>, batch: &FeedBatch, limit: u64) -> Result<()> {
    for event in &batch.events {
        if matches!(event, FeedEvent::Mutation(_)) && recorder.recorded().mutations >= limit {
            return Ok(());
        }
        recorder.write(event)?;
    }
    Ok(())
}

fn table(summary: &Summary) -> String {
    let Recorded { events, mutations, bytes, .. } = summary.recorded;
    Table::pairs([
        ("feed", summary.feed.clone()),
        ("file", summary.file.clone()),
        ("ended", summary.ended.to_owned()),
        ("events", format!("{} in {:.2} s, {} of them mutations", grouped(events), summary.seconds, grouped(mutations))),
        ("bytes", format!("{} before compression", grouped(bytes))),
    ])
    .render(0)
}
