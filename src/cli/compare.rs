//! `sluicegate compare`: our answers against recorded ones.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use sluicegate::compare::{Ids, Truth, compare};
use sluicegate::{Error, ErrorKind};
use sluicegate_replay::Recording;

use super::output::{Outcome, json, text};
use super::session::Session;
use super::{Exit, Format};

/// Ingests a recording up to each of its markers, and compares every answer that was recorded there with ours; exit code 3 if one differs.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Recorded mutations (NDJSON, plain or gzip)
    #[arg(long, value_name = "FILE")]
    mutations: PathBuf,
    /// Recorded answers (NDJSON, plain or gzip)
    #[arg(long, value_name = "FILE")]
    truth: PathBuf,
    /// What is compared of the ids: all, or only the sequence, for a gateway that lost sequences which the feed still has
    #[arg(long, value_enum, default_value_t)]
    ids: CompareIds,
    /// How the report is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum CompareIds {
    #[default]
    Exact,
    Sequences,
}

pub(crate) async fn run(args: CompareArgs, session: Session) -> Outcome<Exit> {
    let (mutations, truth) = (args.mutations, args.truth);
    let read = tokio::task::spawn_blocking(move || Ok::<_, Error>((Recording::read(mutations)?, Truth::read(truth)?)));
    let failed = |e| Error::new(ErrorKind::Unexpected, "reading the recordings failed").with_source(e);
    let (recording, truth) = read.await.map_err(failed)??;
    let ids = match args.ids {
        CompareIds::Exact => Ids::Exact,
        CompareIds::Sequences => Ids::Sequences,
    };
    let store = session.store().await?;
    let report = compare(store, recording.parts(), &truth, ids, session.settings.writer.clone()).await?;
    match args.format {
        Format::Json => json(&report)?,
        Format::Table => text(&report.to_string())?,
    }
    Ok(if report.differences.is_empty() { Exit::Done } else { Exit::Found })
}
