//! `sluicegate verify`: whether a cache keeps its own rules, and making it do so.

use clap::Args;
use sluicegate::CacheStore;
use sluicegate::core::verify::{Action, RepairOptions, RepairReport, VerifyOptions, VerifyReport, repair, verify};

use super::output::{Outcome, Table, grouped, json, text};
use super::session::{Session, Which};
use super::{Exit, Format};

/// Checks a whole cache against its own rules, reading everything in it; exit code 3 if something is wrong. With --feed, all of the feed is
/// ingested first. With --repair, what can be rebuilt is rebuilt.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The database, if several are served
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Name of the checkpoint to check, as `sluicegate run` gives it. By default the name that the
    /// cache records; caches of older versions record none
    #[arg(long, value_name = "NAME")]
    checkpoint: Option<String>,
    /// Rebuild what is wrong from what is sound, and check again; exit code 3 if something is left. A writer that runs is fenced: stop it first
    #[arg(long)]
    repair: bool,
    /// With --repair: forget the feed's position, so that the next writer reads the feed from its beginning and takes what is lost again
    #[arg(long, requires = "repair")]
    from_beginning: bool,
    /// Findings listed at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_findings: usize,
    /// How the report is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(crate) async fn run(args: VerifyArgs, session: Session) -> Outcome<Exit> {
    let which = Which { database: args.database.clone(), keyspace: None };
    let (store, ingested) = session.filled_store(&which).await?;
    let mut options = VerifyOptions::default().max_findings(args.max_findings);
    options.feed = args.checkpoint.clone().or_else(|| ingested.map(|feed| feed.checkpoint_name()));
    if args.repair {
        return repaired(args, store.as_ref(), options).await;
    }
    let report = verify(store.as_ref(), &options).await?;
    match args.format {
        Format::Json => json(&report)?,
        Format::Table => text(&table(&report))?,
    }
    Ok(exit(&report))
}

async fn repaired(args: VerifyArgs, store: &dyn CacheStore, verify: VerifyOptions) -> Outcome<Exit> {
    let mut options = RepairOptions::default();
    (options.verify, options.from_beginning) = (verify, args.from_beginning);
    let report = repair(store, &options).await?;
    match args.format {
        Format::Json => json(&report)?,
        Format::Table => text(&repairs(&report, args.from_beginning))?,
    }
    Ok(exit(&report.left))
}

fn exit(report: &VerifyReport) -> Exit {
    if report.is_clean() { Exit::Done } else { Exit::Found }
}

/// What was repaired, and what is left.
fn repairs(report: &RepairReport, from_beginning: bool) -> String {
    if report.repairs.is_empty() {
        return format!("nothing was repaired\n{}", table(&report.left));
    }
    let mut table_of = Table::new(["done", "key", "how"]);
    for repair in &report.repairs {
        table_of.row([repair.action.to_string(), repair.key.to_string(), repair.detail.clone()]);
    }
    let mut out = table_of.render(0);
    if report.more_repairs > 0 {
        out.push_str(&format!("and {} more\n", grouped(report.more_repairs)));
    }
    out.push_str(&table(&report.left));
    if report.repairs.iter().any(|repair| repair.action == Action::Lost) {
        out.push_str(if from_beginning { READ_AGAIN } else { LOST });
    }
    out
}

const LOST: &str = "\
To get back what is lost, let a writer read the feed from its beginning:
  sluicegate verify --repair --from-beginning, with the same --store, then sluicegate run.
Or make the cache anew in another namespace.
";

const READ_AGAIN: &str = "\
To get back what is lost, start the writer: sluicegate run, with the same --store. It reads the feed from its beginning.
Or make the cache anew in another namespace.
";

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
