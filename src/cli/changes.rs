//! `sluicegate changes`: one answer.

use clap::{Args, ValueEnum};
use sluicegate::changes::{Answer, AnswerRow, ChangesOptions, Delivery, SequenceId};
use sluicegate::reader::Cut;
use sluicegate::{Channel, Result};

use super::output::{Outcome, Table, json, text};
use super::session::Session;
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

/// What is asked for.
#[derive(Debug, Args)]
pub(crate) struct RequestArgs {
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

fn channel(name: &str) -> Result<Channel> {
    Channel::new(name)
}

impl RequestArgs {
    /// The channels asked for.
    pub(crate) fn channels(&self) -> Vec<Channel> {
        if self.channels.is_empty() { vec![Channel::star()] } else { self.channels.clone() }
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
    let reader = session.reader().await?;
    let changes = reader.changes(&args.request.channels(), &options).await?;
    let answer = changes.answer();
    match args.format {
        Format::Json => json(&answer)?,
        Format::Table => text(&table(&answer, changes.cut()))?,
    }
    Ok(Exit::Done)
}

fn table(answer: &Answer, cut: &Cut) -> String {
    let mut out = rows(&answer.rows).render(0);
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
        let mut notes = Vec::new();
        if row.deleted {
            notes.push("deleted".to_owned());
        }
        if !row.removed.is_empty() {
            let names: Vec<&str> = row.removed.iter().map(Channel::name).collect();
            notes.push(format!("removed from {}", names.join(", ")));
        }
        let (id, revision) = (row.entry.key().to_owned(), row.entry.revision().to_owned());
        table.row([row.id.to_string(), id, revision, notes.join(", ")]);
    }
    table
}
