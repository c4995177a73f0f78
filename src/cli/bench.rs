//! `sluicegate bench`: how fast this machine is with it.

use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::Serialize;
use sluicegate::bench::{self, Backpressure, Measured, PeerLoad, ReadCost};
use sluicegate::{CacheStore, Error, Result, Sequence, WriterConfig};
use sluicegate_memory::MemoryStore;

use super::cold::{self, ColdRate, Orders};
use super::output::{Outcome, Table, grouped, json, text};
use super::session::Session;
use super::{Exit, Format};

const AFTER_HELP: &str = "\
`cold` runs on each store given by --store on the command line, or in memory. Each run has a process of
its own, and on a server a namespace of its own (bench-…), which is removed after it; a run that is
interrupted leaves it there. The columns:

  MB sent    on Redis, all commands as they go over the wire; on other stores the keys and values that
             they are handed, of blocks the changes, without directories; counted in another run
  peak MiB   of the process: a store in memory is in it, with what is cached already; a server is not
  log lines  of the writer and the store, as `run` would print them
  / in order the column before it, divided by that of the order of the sequences in the same round;
             the median of the rounds";

/// Measures on the loads of the gateway's own cache benchmark: rates, CPU seconds, memory; then
/// reads. Everything on the memory store, but `cold` on each store given by --store on the command
/// line. Rates are the median of interleaved rounds.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct BenchArgs {
    /// What to measure; all if left out
    #[arg(value_enum)]
    which: Vec<Which>,
    /// Documents of each writing load
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    documents: u64,
    /// Sequences of the channel in `deep`
    #[arg(long, value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(100_000..))]
    sequences: u64,
    /// Documents that the cache of `cold` has already: what is measured is a later burst, after the
    /// writer was away
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    cached: u64,
    /// How often each writing load is run
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Orders of `cold`: how many documents of a vbucket come before some of the next one
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 100, 4_000], value_parser = clap::value_parser!(u64).range(1..))]
    chunk: Vec<u64>,
    /// How the results are printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    /// Raw mutations of 1,024 vbuckets, out of order, through the whole writer
    Raw,
    /// Decoded entries through the writer
    Decoded,
    /// Twice the channels, twice the documents
    Scaling,
    /// A whole bucket into a new cache, vbucket by vbucket beside the order of the sequences; on
    /// any store
    Cold,
    /// Reads that the tail answers
    Tail,
    /// Reads far below the tail, in a long channel that is mostly superseded
    Deep,
    /// What is queued while the store is a hundred times slower
    Backpressure,
}

#[derive(Debug, Default, Serialize)]
struct Results {
    rates: Vec<Rate>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cold: Vec<ColdRate>,
    reads: Vec<ReadCost>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tail_bytes_an_entry: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backpressure: Option<Backpressure>,
}

#[derive(Debug, Serialize)]
struct Rate {
    #[serde(flatten)]
    median: Measured,
    per_second: f64,
    per_cpu_second: f64,
    /// Wall time against the named other load of the same round, median.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<(f64, &'static str)>,
}

/// One load: its name, what it is, whether raw, and which other it is set against.
struct Load {
    name: &'static str,
    load: PeerLoad,
    kind: Kind,
    against: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Raw,
    Decoded,
    Baseline,
}

pub(crate) async fn run(args: BenchArgs, session: Session) -> Outcome<Exit> {
    let is_cold_only = !args.which.is_empty() && args.which.iter().all(|which| *which == Which::Cold);
    if !session.stores.is_empty() && !is_cold_only {
        let message = "--store is for `bench cold` only; everything else is measured on the memory store";
        return Err(Error::config(message).into());
    }
    if args.cached > 0 && !args.which.is_empty() && !args.which.contains(&Which::Cold) {
        return Err(Error::config("--cached is for `bench cold`, which is not measured").into());
    }
    let wanted = |which| args.which.is_empty() || args.which.contains(&which);
    let mut results = Results::default();
    let loads = loads(&args, wanted);
    let mut runs: Vec<Vec<Measured>> = loads.iter().map(|_| Vec::new()).collect();
    for _ in 0..args.rounds {
        for (load, runs) in loads.iter().zip(&mut runs) {
            runs.push(measure(load).await?);
        }
    }
    for (load, of_load) in loads.iter().zip(&runs) {
        let against = load.against.and_then(|name| Some((&runs[loads.iter().position(|other| other.name == name)?], name)));
        let ratio = against.map(|(others, name)| {
            let mut ratios: Vec<f64> = of_load.iter().zip(others).map(|(run, other)| run.seconds / other.seconds).collect();
            ratios.sort_by(f64::total_cmp);
            (ratios[ratios.len() / 2], name)
        });
        let mut sorted = of_load.clone();
        sorted.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let median = sorted.swap_remove(sorted.len() / 2);
        results.rates.push(Rate { per_second: median.rate(), per_cpu_second: median.rate_per_cpu(), median, ratio });
    }
    if wanted(Which::Cold) {
        let orders = Orders { cached: args.cached, documents: args.documents, chunks: &args.chunk, rounds: args.rounds };
        results.cold = cold::run(&orders, &session).await?;
    }
    if wanted(Which::Tail) {
        let (reads, bytes) = bench::tail().await?;
        results.reads.extend(reads);
        results.tail_bytes_an_entry = Some(bytes);
    }
    if wanted(Which::Deep) {
        results.reads.extend(bench::deep(args.sequences).await?);
    }
    if wanted(Which::Backpressure) {
        results.backpressure = Some(bench::backpressure(64 << 20).await?);
    }
    match args.format {
        Format::Json => json(&results)?,
        Format::Table => text(&table(&results))?,
    }
    Ok(Exit::Done)
}

fn loads(args: &BenchArgs, wanted: impl Fn(Which) -> bool) -> Vec<Load> {
    let base = PeerLoad { documents: args.documents as usize, ..PeerLoad::default() };
    let four = PeerLoad { channels_per_document: 4, ..base.clone() };
    let mut loads = Vec::new();
    let mut add = |name, load: &PeerLoad, kind, against| loads.push(Load { name, load: load.clone(), kind, against });
    if wanted(Which::Raw) {
        add("raw, 1 channel", &base, Kind::Raw, None);
        add("raw, 4 channels", &four, Kind::Raw, Some("raw, 1 channel"));
        add("raw, rapid updates", &PeerLoad { rapid_updates: true, ..base.clone() }, Kind::Raw, Some("raw, 1 channel"));
    }
    if wanted(Which::Decoded) {
        add("plain maps, 1 channel", &base, Kind::Baseline, None);
        add("decoded, 1 channel", &base, Kind::Decoded, Some("plain maps, 1 channel"));
        add("decoded, 4 nodes", &PeerLoad { nodes: 4, ..base.clone() }, Kind::Decoded, Some("plain maps, 1 channel"));
        add("decoded, 4 channels", &four, Kind::Decoded, Some("decoded, 1 channel"));
    }
    if wanted(Which::Scaling) {
        let half = PeerLoad { documents: base.documents.div_ceil(2), ..base.clone() };
        add("half the documents", &half, Kind::Raw, None);
        add("all documents", &base, Kind::Raw, Some("half the documents"));
        add("twice the channels", &PeerLoad { channels: 2_000, ..base.clone() }, Kind::Raw, Some("all documents"));
    }
    loads
}

async fn measure(load: &Load) -> Result<Measured> {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    // The load's first sequence is 2.
    let config = WriterConfig::default().with_initial(Sequence(1));
    match load.kind {
        Kind::Raw => bench::raw(load.name, store, load.load.clone(), config).await,
        Kind::Decoded => bench::decoded(load.name, store, load.load.clone(), config).await,
        Kind::Baseline => Ok(bench::baseline(load.name, load.load.clone())),
    }
}

fn table(results: &Results) -> String {
    let mut out = String::new();
    if !results.rates.is_empty() {
        let mut table =
            Table::new(["load", ">sequences/s", ">per CPU second", ">CPU s", ">wall s", ">resident MiB", ">times as long as"]);
        for rate in &results.rates {
            let m = &rate.median;
            table.row([
                m.what.clone(),
                grouped(rate.per_second as u64),
                grouped(rate.per_cpu_second as u64),
                format!("{:.2}", m.cpu_seconds),
                format!("{:.2}", m.seconds),
                format!("{:.0}", m.resident_mib),
                rate.ratio.map_or(String::new(), |(ratio, name)| format!("{ratio:.2} x {name}")),
            ]);
        }
        out.push_str(&table.render(0));
    }
    out.push_str(&cold::tables(&results.cold));
    if !results.reads.is_empty() {
        let mut table = Table::new(["read", ">rows", ">median us", ">least us", ">store operations"]);
        for read in &results.reads {
            let cells = [format!("{:.3}", read.median_us), format!("{:.3}", read.least_us)];
            let [median, least] = cells;
            table.row([read.what.clone(), read.rows.to_string(), median, least, read.operations.to_string()]);
        }
        out.push_str(&format!("\n{}", table.render(0)));
    }
    if let Some(bytes) = results.tail_bytes_an_entry {
        out.push_str(&format!("\nan entry in a tail costs {bytes:.0} bytes beyond its strings\n"));
    }
    if let Some(b) = &results.backpressure {
        out.push_str(&format!(
            "\nstore 100 times slower: at most {:.1} MiB queued (limit {:.0}) of a load of {:.0} MiB; the process grew by {:.0} MiB\n",
            b.queued_mib, b.limit_mib, b.load_mib, b.grown_mib
        ));
    }
    out
}
