//! `sluicegate scenario`: runs the expectations of a gateway's tests over any store.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use clap::builder::PossibleValuesParser;
use futures::FutureExt as _;
use serde::Serialize;
use sluicegate::registry::Location;
use sluicegate::{CacheKey, CacheStore, Error, ErrorKind, Result};
use sluicegate_testkit::scenario::{Mistake, Report, Scenario, Stores, Variation, find, judge};

use super::output::{Outcome, json, text};
use super::session::Session;
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
        let target = Target::look_at(&url).await?;
        let (name, threads, stores) = (target.name.clone(), target.threads(), target.stores());
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

/// A store given by URL.
struct Target {
    /// Its URL without secrets.
    name: String,
    url: String,
    /// Whether stored documents end with the store itself.
    is_transient: bool,
    has_namespaces: bool,
}

impl Target {
    async fn look_at(url: &str) -> Result<Target> {
        let name = Location::parse(url)?.to_string();
        let mut target = Target { name, url: url.to_owned(), is_transient: false, has_namespaces: !url.contains("namespace=") };
        let store = match target.open().await {
            Err(e) if e.kind() == ErrorKind::ConfigInvalid && e.to_string().contains("unknown field `namespace`") => {
                target.has_namespaces = false;
                target.open().await?
            }
            opened => opened?,
        };
        target.is_transient = !target.has_namespaces && store.info().scheme == "memory";
        Ok(target)
    }

    /// A URL with an unused namespace.
    fn fresh_url(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if !self.has_namespaces {
            return self.url.clone();
        }
        let mark = if self.url.contains('?') { '&' } else { '?' };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        format!("{}{mark}namespace=scenario-{:x}-{time:x}-{number}", self.url, std::process::id())
    }

    async fn open(&self) -> Result<Arc<dyn CacheStore>> {
        open(self.fresh_url(), self.name.clone()).await
    }

    /// The number of parallel runs: more if they wait for a server; one without namespaces to
    /// separate them.
    fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        match (self.is_transient, self.has_namespaces) {
            (true, _) => cores,
            (false, true) => 4 * cores,
            (false, false) => 1,
        }
    }

    fn stores(self) -> Stores {
        let is_transient = self.is_transient;
        let stores = Stores::new(move || open(self.fresh_url(), self.name.clone()).boxed());
        if is_transient { stores } else { stores.cleared() }
    }
}

async fn open(url: String, name: String) -> Result<Arc<dyn CacheStore>> {
    let about = |e: Error| e.with_context("store", name.clone());
    let store = sluicegate::open_store(&url).await.map_err(about)?;
    match store.get(&CacheKey::Meta).await.map_err(about)? {
        None => Ok(store),
        Some(_) => Err(about(Error::config("this store has a cache, which would be overwritten; use an empty store"))),
    }
}
