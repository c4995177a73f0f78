//! `sluicegate compare`: our answers against recorded ones.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use sluicegate::compare::{ComparedDatabase, Ids, Truth, compare, compare_keyspaces};
use sluicegate::databases::{discover, number_of, store_url};
use sluicegate::{CollectionId, Error, ErrorKind};
use sluicegate_replay::Recording;

use super::output::{Outcome, json, text};
use super::session::Session;
use super::settings::DatabasesSetting;
use super::target::refuse_cache;
use super::{Exit, Format};

/// Ingests a recording up to each of its markers, and compares every answer that was recorded there
/// with ours. The store must not have a cache. Exit code 3 if an answer differs, or cannot be
/// compared because the mutations do not have its marker, or if no answer was compared.
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
    /// Of several databases, only this one; may be given several times
    #[arg(long = "database", value_name = "NAME")]
    only: Vec<String>,
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
    if truth.answers.is_empty() {
        return Err(
            Error::config("the file given by --truth has no recorded answer to a changes request; record answers first").into()
        );
    }
    let ids = match args.ids {
        CompareIds::Exact => Ids::Exact,
        CompareIds::Sequences => Ids::Sequences,
    };
    if truth.has_keyspaces() {
        let databases = compared(&session, &recording, &args.only).await?;
        let config = session.settings.writer.clone();
        let report = compare_keyspaces(&databases, &recording.collections, recording.parts(), &truth, ids, config).await?;
        match args.format {
            Format::Json => json(&report)?,
            Format::Table => text(&report.to_string())?,
        }
        return Ok(if report.total.is_agreed() { Exit::Done } else { Exit::Found });
    }
    if let Some(name) = args.only.first() {
        let message = format!(
            "--database {name} selects among several databases, but the recorded answers are of one database; leave the option out"
        );
        return Err(Error::config(message).into());
    }
    let store = session.store().await?;
    refuse_cache(store.as_ref()).await.map_err(|e| e.with_context("store", store.info().name))?;
    let report = compare(store, recording.parts(), &truth, ids, session.settings.writer.clone()).await?;
    match args.format {
        Format::Json => json(&report)?,
        Format::Table => text(&report.to_string())?,
    }
    Ok(if report.is_agreed() { Exit::Done } else { Exit::Found })
}

/// The databases whose keyspaces are compared: those of the settings, or those found in the
/// recording.
async fn compared(session: &Session, recording: &Recording, wanted: &[String]) -> Outcome<Vec<ComparedDatabase>> {
    let names = || recording.collections.iter().map(|(id, name)| (*id, name.to_string()));
    let known = match &session.settings.databases {
        Some(DatabasesSetting::Named(named)) => named.clone(),
        _ => discover(names(), &recording.mutations)?,
    };
    if known.is_empty() {
        return Err(
            Error::config("no document of the recording names a database; name them in the settings, [databases.NAME]").into()
        );
    }
    if let Some(unknown) = wanted.iter().find(|name| !known.contains_key(*name)) {
        let known: Vec<&str> = known.keys().map(String::as_str).collect();
        return Err(Error::config(format!("there is no database {unknown}; there are: {}", known.join(", "))).into());
    }
    let mut databases = Vec::new();
    for (name, config) in known.iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(*name)) {
        let mut decoder = config.decoder(name, &session.settings.decoder.options()?)?;
        let find = |name: &str| names().filter(|(_, known)| known == name).map(|(id, _)| CollectionId(id)).next_back();
        let numbers = config.collections().iter().filter_map(|name| number_of(name, find)).map(|id| id.0).collect();
        decoder.collections = Some(numbers);
        let store = sluicegate::open_store(&store_url(session.store_url(), name, config)).await?;
        refuse_cache(store.as_ref())
            .await
            .map_err(|e| e.with_context("store", store.info().name).with_context("database", name))?;
        databases.push(ComparedDatabase { name: name.clone(), decoder, store });
    }
    Ok(databases)
}
