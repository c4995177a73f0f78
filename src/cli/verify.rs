//! `sluicegate verify`: whether a cache keeps its own rules.

use clap::Args;
use sluicegate::core::verify::{VerifyOptions, VerifyReport, verify};

use super::output::{Outcome, Table, grouped, json, text};
use super::session::Session;
use super::{Exit, Format};

/// Checks a whole cache against its own rules, reading everything in it; exit code 3 if something is wrong. With --feed, all of the feed is
/// ingested first.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Also check the checkpoint of this feed, named as `sluicegate run` names it; with --feed it is checked anyway
    #[arg(long, value_name = "NAME")]
    checkpoint: Option<String>,
    /// Findings listed at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_findings: usize,
    /// How the report is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(crate) async fn run(args: VerifyArgs, session: Session) -> Outcome<Exit> {
    let (store, ingested) = session.filled_store().await?;
    let mut options = VerifyOptions::default().max_findings(args.max_findings);
    options.feed = args.checkpoint.or_else(|| ingested.map(|feed| feed.checkpoint_name()));
    let report = verify(store.as_ref(), &options).await?;
    match args.format {
        Format::Json => json(&report)?,
        Format::Table => text(&table(&report))?,
    }
    Ok(if report.is_clean() { Exit::Done } else { Exit::Found })
}

fn table(report: &VerifyReport) -> String {
    let mut out = format!("{}\n", summary(report));
    if report.is_clean() {
        out.push_str("clean: nothing is wrong\n");
        return out;
    }
    let mut table = Table::new(["problem", "key", "found"]);
    for finding in &report.findings {
        table.row([finding.problem.to_string(), finding.key.to_string(), finding.detail.clone()]);
    }
    out.push_str(&table.render(0));
    if report.more_findings > 0 {
        out.push_str(&format!("and {} more\n", grouped(report.more_findings)));
    }
    out
}

/// What was checked, in one line.
pub(crate) fn summary(report: &VerifyReport) -> String {
    format!(
        "checked {} channels, {} blocks, {} sequence documents, {} rows",
        grouped(report.channels),
        grouped(report.blocks),
        grouped(report.documents),
        grouped(report.rows)
    )
}
