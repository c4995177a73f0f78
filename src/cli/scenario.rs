//! `sluicegate scenario`: runs the expectations of a gateway's tests over any store.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use clap::builder::PossibleValuesParser;
use futures::FutureExt as _;
use serde::Serialize;
use sluicegate::{Error, ErrorKind};
use sluicegate_testkit::scenario::{Mistake, Report, Scenario, Stores, Variation, find, judge};

use super::output::{Outcome, json, text};
use super::session::Session;
use super::target::Target;
use super::{Exit, Format};

/// Runs scenario files in every variation over each store given by --store (memory: by default),
/// and names every line with an unexpected result; exit code 3 if there is one, otherwise 2 if a
/// file is no scenario. On a server each run has its own namespace, which is removed after it.
#[derive(Debug, Args)]
pub(crate) struct ScenarioArgs {
    /// A scenario, or a folder: all *.txt files in it and below it are scenarios
    #[arg(value_name = "FOLDER")]
    path: PathBuf,
    /// Only this variation; may be given more than once
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(Variation::ALL.map(Variation::name)))]
    variation: Vec<String>,
    /// How the report is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The results on one store.
#[derive(Serialize)]
struct OnStore {
    store: String,
    #[serde(flatten)]
    report: Report,
}

#[derive(Serialize)]
struct Results {
    stores: Vec<OnStore>,
    /// Files that are not scenarios.
    mistakes: Vec<String>,
}

pub(crate) async fn run(args: ScenarioArgs, session: Session) -> Outcome<Exit> {
    let urls = match &session.stores[..] {
        [] => vec![session.store_url().to_owned()],
        urls => urls.to_vec(),
    };
    let read: Vec<std::result::Result<Scenario, Mistake>> = find(&args.path)?.iter().map(|file| Scenario::read(file)).collect();
    let (mut scenarios, mut mistakes) = (Vec::new(), Vec::new());
    for one in read {
        match one {
            Ok(scenario) => scenarios.push(scenario),
            Err(mistake) => mistakes.push(mistake.to_string()),
        }
    }
    let variations: Vec<Variation> = match args.variation.is_empty() {
        true => Variation::ALL.to_vec(),
        false => args.variation.iter().filter_map(|name| Variation::named(name)).collect(),
    };
    let scenarios = Arc::new(scenarios);
    let mut results = Results { stores: Vec::new(), mistakes };
    for url in urls {
        let target = Target::look_at(&url, "scenario").await?;
        let (name, threads, stores) = (target.name.clone(), threads(&target), stores(target));
        let (scenarios, variations) = (scenarios.clone(), variations.clone());
        let judged = tokio::task::spawn_blocking(move || judge(&scenarios, &variations, &stores, threads));
        let failed = |e| Error::new(ErrorKind::Unexpected, "the scenarios could not be run").with_source(e);
        results.stores.push(OnStore { store: name, report: judged.await.map_err(failed)?? });
    }
    match args.format {
        Format::Json => json(&results)?,
        Format::Table => text(&table(&results))?,
    }
    if !results.stores.iter().all(|on_store| on_store.report.agrees()) {
        return Ok(Exit::Found);
    }
    if !results.mistakes.is_empty() {
        let files = results.mistakes.len();
        return Err(Error::config(format!("{files} files are not scenarios, the first: {}", results.mistakes[0])).into());
    }
    Ok(Exit::Done)
}

fn table(results: &Results) -> String {
    let mut out = String::new();
    for mistake in &results.mistakes {
        out.push_str(&format!("no scenario: {mistake}\n"));
    }
    for OnStore { store, report } in &results.stores {
        out.push_str(&format!("{report}store {store}\n"));
    }
    out
}

/// The number of parallel runs: more if they wait for a server; one without namespaces to separate
/// them.
fn threads(target: &Target) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match (target.is_transient, target.has_namespaces) {
        (true, _) => cores,
        (false, true) => 4 * cores,
        (false, false) => 1,
    }
}

fn stores(target: Target) -> Stores {
    let is_transient = target.is_transient;
    let stores = Stores::new(move || {
        let target = target.clone();
        async move { target.open(&target.fresh_url()).await }.boxed()
    });
    if is_transient { stores } else { stores.cleared() }
}
