//! `sluicegate changes`: one answer.

use clap::{Args, ValueEnum};
use serde::Serialize;
use sluicegate::changes::{Answer, AnswerRow, ChangesOptions, Delivery, SequenceId};
use sluicegate::collections::Collections;
use sluicegate::reader::Cut;
use sluicegate::{Channel, CollectionId, ReaderNode, Result};

use super::output::{Outcome, Table, json, text};
use super::session::{Session, Which, used};
use super::{Exit, Format};

/// Answers once what changed in some channels. With --feed, all of the feed is ingested first.
#[derive(Debug, Args)]
pub(crate) struct ChangesArgs {
    #[command(flatten)]
    request: RequestArgs,
    /// At most so many rows
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// How the answer is printed; json is what a `_changes` request gets
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A request.
#[derive(Debug, Args)]
pub(crate) struct RequestArgs {
    #[command(flatten)]
    pub(crate) which: Which,
    /// A channel; may be given several times. Without one: the star channel, which has everything
    #[arg(long = "channel", value_name = "NAME", value_parser = channel)]
    channels: Vec<Channel>,
    /// Only what comes after this place: S, T:S, L::S or L:T:S
    #[arg(long, value_name = "ID", default_value = "0")]
    since: SequenceId,
    /// Leave out deletions and removals
    #[arg(long)]
    active_only: bool,
    /// How far to go while some sequences are missing
    #[arg(long, value_enum, default_value_t)]
    delivery: DeliveryArg,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum DeliveryArg {
    /// Up to the stable sequence: nothing is ever late
    Strict,
    /// Everything there is; ids carry the low sequence
    Eager,
    /// Strict until a gap is old, then past it
    #[default]
    Auto,
}

/// A request.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) channels: Vec<Channel>,
    /// The names of collections, if rows may be of several ones and so name theirs.
    pub(crate) known: Option<Collections>,
}

/// A row, and its collection if the answer has several.
#[derive(Serialize)]
pub(crate) struct RowOf<'a> {
    #[serde(flatten)]
    row: &'a AnswerRow,
    #[serde(skip_serializing_if = "Option::is_none")]
    collection: Option<String>,
}

impl Asked {
    /// The rows of an answer, as they are printed.
    pub(crate) fn rows<'a>(&self, rows: &'a [AnswerRow]) -> Vec<RowOf<'a>> {
        rows.iter().map(|row| RowOf { row, collection: self.collection_of(row) }).collect()
    }

    /// The name of a row's collection, or its number; `None` if all rows are of one.
    fn collection_of(&self, row: &AnswerRow) -> Option<String> {
        let known = self.known.as_ref()?;
        let id = row.entry.document().collection;
        Some(known.name_of(id).map_or_else(|| format!("0x{:x}", id.0), str::to_owned))
    }
}

/// An answer whose rows name their collections.
#[derive(Serialize)]
struct AnswerOf<'a> {
    results: Vec<RowOf<'a>>,
    last_seq: String,
}

fn channel(name: &str) -> Result<Channel> {
    Channel::new(name)
}

impl RequestArgs {
    /// The requested channels: in the named collection, or else in each that has documents.
    pub(crate) async fn channels(&self, reader: &ReaderNode) -> Outcome<Asked> {
        let known = reader.collections().await?;
        let named = self.which.collection(&known)?;
        let collections: Vec<CollectionId> = named.map_or_else(|| known.used().collect(), |one| vec![one]);
        let names = if self.channels.is_empty() { vec![Channel::star()] } else { self.channels.clone() };
        let of = |id: &CollectionId| names.iter().map(|name| name.clone().in_collection(*id)).collect::<Vec<_>>();
        let channels = collections.iter().flat_map(of).collect();
        Ok(Asked { channels, known: (collections.len() > 1).then_some(known) })
    }

    /// The options, without a limit.
    pub(crate) fn options(&self) -> ChangesOptions {
        let delivery = match self.delivery {
            DeliveryArg::Strict => Delivery::Strict,
            DeliveryArg::Eager => Delivery::Eager,
            DeliveryArg::Auto => Delivery::Auto,
        };
        ChangesOptions::new().since(self.since).active_only(self.active_only).delivery(delivery)
    }
}

pub(crate) async fn run(args: ChangesArgs, session: Session) -> Outcome<Exit> {
    let mut options = args.request.options();
    options.limit = args.limit;
    let reader = session.reader(&args.request.which).await?;
    let asked = args.request.channels(&reader).await?;
    let changes = reader.changes(&asked.channels, &options).await?;
    let answer = changes.answer();
    if answer.rows.is_empty() && args.request.which.is_one_collection() {
        let known = reader.collections().await?;
        if known.used().count() > 1 {
            tracing::warn!(has_documents_in = %used(&known), "no rows: the keyspace may name another collection than was meant");
        }
    }
    match (args.format, &asked.known) {
        (Format::Json, None) => json(&answer)?,
        (Format::Json, Some(_)) => {
            json(&AnswerOf { results: asked.rows(&answer.rows), last_seq: answer.last.text().to_string() })?;
        }
        (Format::Table, _) => text(&table(&answer, &asked, changes.cut()))?,
    }
    Ok(Exit::Done)
}

fn table(answer: &Answer, asked: &Asked, cut: &Cut) -> String {
    let mut out = match &asked.known {
        None => rows(&answer.rows).render(0),
        Some(_) => {
            let mut table = Table::new([">seq", "collection", "id", "rev", ""]);
            for row in &answer.rows {
                let [seq, id, rev, notes] = cells(row);
                table.row([seq, asked.collection_of(row).unwrap_or_default(), id, rev, notes]);
            }
            table.render(0)
        }
    };
    let count = answer.rows.len();
    let plural = if count == 1 { "" } else { "s" };
    let gaps = if cut.has_gaps { "; sequences are missing in between" } else { "" };
    out.push_str(&format!("last_seq {}  ({count} row{plural}; stable {}, high {}{gaps})\n", answer.last, cut.stable, cut.high));
    out
}

/// A table of rows.
pub(crate) fn rows(rows: &[AnswerRow]) -> Table {
    let mut table = Table::new([">seq", "id", "rev", ""]);
    for row in rows {
        table.row(cells(row));
    }
    table
}

/// Sequence, document, revision, and notes.
fn cells(row: &AnswerRow) -> [String; 4] {
    let mut notes = Vec::new();
    if row.deleted {
        notes.push("deleted".to_owned());
    }
    if !row.removed.is_empty() {
        let names: Vec<&str> = row.removed.iter().map(Channel::name).collect();
        notes.push(format!("removed from {}", names.join(", ")));
    }
    let (id, revision) = (row.entry.key().to_owned(), row.entry.revision().to_owned());
    [row.id.to_string(), id, revision, notes.join(", ")]
}
