//! `sluicegate bench cold`: a bucket is read into a new cache, in several orders, or what has been
//! written since into one that is there. Each run has a process of its own, so that its peak memory
//! is its own.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use serde::{Deserialize, Serialize};
use sluicegate::bench::{self, ColdLoad, ColdStart, MeteredStore};
use sluicegate::{Error, ErrorKind, Result};
use tokio::process::Command;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::output::{Outcome, Table, grouped, json};
use super::session::Session;
use super::settings::Settings;
use super::target::Target;
use super::{Exit, OwnLayer};

/// The name of the command that measures one run; not for people.
pub(crate) const MEASURE: &str = "measure-cold";

/// The beginning of the names of namespaces.
const NAMESPACES: &str = "bench";

const MEGABYTE: f64 = 1e6;

/// What is read, and in which orders.
#[derive(Debug)]
pub(crate) struct Orders<'a> {
    pub(crate) cached: u64,
    pub(crate) documents: u64,
    pub(crate) chunks: &'a [u64],
    pub(crate) rounds: u64,
}

impl Orders<'_> {
    /// All loads; the first is in order.
    fn loads(&self) -> Vec<ColdLoad> {
        let chunks = std::iter::once(None).chain(self.chunks.iter().copied().map(Some));
        chunks.map(|chunk| ColdLoad { cached: self.cached, documents: self.documents, chunk }).collect()
    }
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ColdRun {
    #[serde(flatten)]
    start: ColdStart,
    /// Lines that `run` would log.
    log_lines: u64,
}

/// The runs of one order on one store.
#[derive(Debug, Serialize)]
pub(crate) struct ColdRate {
    store: String,
    /// The run of median time, with the most late documents, skipped sequences and log lines of
    /// all.
    #[serde(flatten)]
    median: ColdRun,
    per_second: f64,
    /// What follows is divided by that of the order of the sequences in the same round, median.
    rate_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_ratio: Option<f64>,
}

/// Measures every order on every store, in interleaved rounds.
pub(crate) async fn run(orders: &Orders<'_>, session: &Session) -> Result<Vec<ColdRate>> {
    // Not that of the settings: a server in use is measured only if it is asked for.
    let urls = if session.stores.is_empty() { vec!["memory:".to_owned()] } else { session.stores.clone() };
    let mut targets = Vec::new();
    for url in &urls {
        targets.push(Target::look_at(url, NAMESPACES).await?);
    }
    let mut rates = Vec::new();
    for target in &targets {
        let loads = orders.loads();
        let mut runs: Vec<Vec<ColdRun>> = loads.iter().map(|_| Vec::new()).collect();
        for _ in 0..orders.rounds {
            for (load, runs) in loads.iter().zip(&mut runs) {
                runs.push(run_once(target, *load, &session.settings).await.map_err(|e| target.about(e))?);
            }
        }
        rates.extend(rated(&target.name, runs));
    }
    Ok(rates)
}

/// Measures one run. Where the store does not count the bytes that it is sent, they are counted in
/// another run, as that takes time.
async fn run_once(target: &Target, load: ColdLoad, settings: &Settings) -> Result<ColdRun> {
    let mut run = run_and_clear(target, load, false, settings).await?;
    if run.start.sent_bytes.is_none() {
        run.start.sent_bytes = run_and_clear(target, load, true, settings).await?.start.sent_bytes;
    }
    Ok(run)
}

/// Measures in a process of its own; then removes what it has stored, whether it failed or not.
async fn run_and_clear(target: &Target, load: ColdLoad, count: bool, settings: &Settings) -> Result<ColdRun> {
    let url = target.fresh_url();
    let run = run_in_process(&url, load, count, settings).await;
    if target.is_transient {
        return run;
    }
    let cleared = async { bench::clear_cold(&sluicegate::open_store(&url).await?, load).await }.await;
    let run = run?;
    cleared.map(|()| run)
}

async fn run_in_process(url: &str, load: ColdLoad, count: bool, settings: &Settings) -> Result<ColdRun> {
    let failed = |what: String| Error::new(ErrorKind::Unexpected, what);
    let program = std::env::current_exe()
        .map_err(|e| failed("the path of this program, which measures each run, is not known".to_owned()).with_source(e))?;
    let mut command = Command::new(program);
    command.arg(MEASURE).arg(format!("--cached={}", load.cached)).arg(format!("--documents={}", load.documents));
    if let Some(chunk) = load.chunk {
        command.arg(format!("--chunk={chunk}"));
    }
    if count {
        command.arg("--count");
    }
    // Everyone may see the arguments of a process, and a URL may have a password.
    command.env("SLUICEGATE_STORE", url);
    let log = [("SLUICEGATE_LOG", &settings.log), ("SLUICEGATE_LOG_FORMAT", &settings.log_format)];
    command.envs(log.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))));
    command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = command
        .output()
        .await
        .map_err(|e| failed("this program, which measures each run, cannot be started".to_owned()).with_source(e))?;
    if !output.status.success() {
        return Err(failed(format!("measuring {} failed ({}); the reason is printed above", name(load), output.status)));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|e| failed(format!("what was measured of {} cannot be read", name(load))).with_source(e))
}

fn name(load: ColdLoad) -> String {
    let order = match load.chunk {
        None => "in order".to_owned(),
        Some(chunk) => format!("by vbucket, {} at a time", grouped(chunk)),
    };
    // A later burst must not be taken for a cold start.
    if load.cached > 0 { format!("{order}, after {} in the cache", grouped(load.cached)) } else { order }
}

/// Compares the runs of each order with those of the first.
fn rated(store: &str, runs: Vec<Vec<ColdRun>>) -> Vec<ColdRate> {
    let in_order = runs.first().cloned().unwrap_or_default();
    let rate = |mut of_order: Vec<ColdRun>| {
        let ratio = |of: &dyn Fn(&ColdRun) -> Option<f64>| {
            let ratios = of_order.iter().zip(&in_order).map(|(run, other)| Some(of(run)? / of(other)?));
            let mut ratios = ratios.collect::<Option<Vec<f64>>>()?;
            ratios.sort_by(f64::total_cmp);
            ratios.get(ratios.len() / 2).copied()
        };
        let rate_ratio = ratio(&|run| Some(run.start.measured.rate()))?;
        let sent_ratio = ratio(&|run| run.start.sent_bytes.map(|bytes| bytes as f64));
        let peak_ratio = ratio(&|run| run.start.peak_mib);
        let most = |of: fn(&ColdRun) -> u64| of_order.iter().map(of).max().unwrap_or(0);
        let (late, skipped, log_lines) = (most(|run| run.start.late), most(|run| run.start.skipped), most(|run| run.log_lines));
        of_order.sort_by(|a, b| a.start.measured.seconds.total_cmp(&b.start.measured.seconds));
        let median = of_order.swap_remove(of_order.len() / 2);
        let start = ColdStart { late, skipped, ..median.start };
        let per_second = start.measured.rate();
        let median = ColdRun { start, log_lines };
        Some(ColdRate { store: store.to_owned(), median, per_second, rate_ratio, sent_ratio, peak_ratio })
    };
    runs.into_iter().filter_map(rate).collect()
}

/// A table of each store.
pub(crate) fn tables(rates: &[ColdRate]) -> String {
    let mut out = String::new();
    for of_store in rates.chunk_by(|a, b| a.store == b.store) {
        let mut table = Table::new([
            "order",
            ">documents/s",
            ">/ in order",
            ">MB sent",
            ">/ in order",
            ">peak MiB",
            ">/ in order",
            ">CPU s",
            ">wall s",
            ">late",
            ">skipped",
            ">log lines",
        ]);
        let number = |number: Option<f64>, digits: usize| number.map_or("-".to_owned(), |number| format!("{number:.digits$}"));
        for ColdRate { median, per_second, rate_ratio, sent_ratio, peak_ratio, .. } in of_store {
            let start = &median.start;
            table.row([
                start.measured.what.clone(),
                grouped(*per_second as u64),
                format!("{rate_ratio:.2}"),
                number(start.sent_bytes.map(|bytes| bytes as f64 / MEGABYTE), 1),
                number(*sent_ratio, 2),
                number(start.peak_mib, 0),
                number(*peak_ratio, 2),
                format!("{:.2}", start.measured.cpu_seconds),
                format!("{:.2}", start.measured.seconds),
                grouped(start.late),
                grouped(start.skipped),
                grouped(median.log_lines),
            ]);
        }
        out.push_str(&format!("\nstore {}\n{}", of_store[0].store, table.render(0)));
    }
    out
}

/// One run to be measured in this process.
#[derive(Debug, Args)]
pub(crate) struct MeasureArgs {
    #[arg(long)]
    cached: u64,
    #[arg(long)]
    documents: u64,
    #[arg(long)]
    chunk: Option<u64>,
    /// Whether to count the bytes that the store is handed
    #[arg(long)]
    count: bool,
    #[arg(skip)]
    lines: LogLines,
}

impl MeasureArgs {
    /// What counts the lines of the log.
    pub(crate) fn layer(&self) -> OwnLayer {
        // The level of `run`, whatever is printed.
        self.lines.clone().with_filter(LevelFilter::INFO).boxed()
    }
}

/// Counts the lines that are logged.
#[derive(Clone, Debug, Default)]
struct LogLines(Arc<AtomicU64>);

impl LogLines {
    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<S: Subscriber> Layer<S> for LogLines {
    fn on_event(&self, _event: &Event<'_>, _context: Context<'_, S>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Measures one run and prints it for [`run`].
pub(crate) async fn measure(args: MeasureArgs, session: Session) -> Outcome<Exit> {
    let load = ColdLoad { cached: args.cached, documents: args.documents, chunk: args.chunk };
    let store = match args.count {
        true => MeteredStore::counting(session.store().await?),
        false => MeteredStore::open(session.store_url()).await?,
    };
    bench::fill(&store, load).await?;
    let before = args.lines.count();
    let start = bench::cold(&name(load), &store, load).await?;
    json(&ColdRun { start, log_lines: args.lines.count() - before })?;
    Ok(Exit::Done)
}
