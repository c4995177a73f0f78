//! Which backend for this load? The same mutations, recorded or made up, go through the whole writer into every store given by URL, round by
//! round in turn, and are read back. It prints rates, latencies, store calls and bytes, and draws a plot.
//!
//! A run that is too short or too uneven is not concluded from: then it says why and what to pass, and exits with code 3.
//!
//! ```text
//! cargo run --release --example compare_backends -- --store memory: --store redis://127.0.0.1/ [--feed URL] [--entries N] [--svg FILE]
//! ```

mod load;
mod measure;
mod plot;
mod report;
mod target;
mod timed;
mod verdict;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sluicegate::{ErrorKind, Result, WriterConfig};

use load::Load;
use measure::Results;
use target::Target;
use verdict::Verdict;

// As in the command: what is measured here is what one gets there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Entries written to each store before anything is measured, or a tenth of all, if that is more.
const WARM_UP: u64 = 20_000;

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  failed while running
  2  wrong usage
  3  too short or too uneven to conclude from";

/// Compares stores under the same load: rates, latencies, store calls and bytes.
#[derive(Debug, Parser)]
#[command(name = "compare_backends", after_help = AFTER_HELP, max_term_width = 110)]
struct Args {
    /// A store to compare, may be given several times; the others are set against the first
    #[arg(long = "store", value_name = "URL", default_value = "memory:")]
    stores: Vec<String>,
    /// Where the mutations come from: synthetic:, with options, or replay:FILE
    #[arg(long, value_name = "URL", default_value = "synthetic:?documents=50000&out_of_order=50")]
    feed: String,
    /// Entries to take from the feed; each round writes them all
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    entries: u64,
    /// How often each store is written from empty
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// How blocks are written; `sluicegate backends` lists the codecs
    #[arg(long, value_name = "NAME", default_value_t = WriterConfig::default().codec)]
    codec: String,
    /// Sequences a block
    #[arg(long, value_name = "N", default_value_t = WriterConfig::default().block_capacity)]
    block_capacity: u32,
    /// Draw a plot
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// How long each store must have been written to, in all rounds together, for a conclusion
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match compare(&Args::parse()).await {
        Ok(Verdict::Concludes(_)) => ExitCode::SUCCESS,
        Ok(Verdict::Refuses(_)) => ExitCode::from(3),
        Err(error) => {
            eprintln!("error: {}", report::chain(&error));
            ExitCode::from(if error.kind() == ErrorKind::ConfigInvalid { 2 } else { 1 })
        }
    }
}

async fn compare(args: &Args) -> Result<Verdict> {
    let registry = sluicegate::registry()?;
    let targets = Target::all(&registry, &args.stores).await?;
    let mut config = WriterConfig::default();
    config.codec.clone_from(&args.codec);
    config.block_capacity = args.block_capacity;
    config.validate()?;
    let load = Load::take(&registry, &args.feed, args.entries, config).await?;
    println!("{load}");

    // The first use of anything costs more: of connections, and of memory.
    let part = load.part(args.entries.div_ceil(10).max(WARM_UP))?;
    for target in &targets {
        measure::round(&registry, target, &part, &mut Results::new(target)?).await?;
    }
    let mut results = targets.iter().map(Results::new).collect::<Result<Vec<_>>>()?;
    for round in 1..=args.rounds {
        for (target, results) in targets.iter().zip(&mut results) {
            measure::round(&registry, target, &load, results).await?;
            eprintln!("round {round} of {}: {}", args.rounds, report::last_round(results));
        }
    }
    measure::check_same(&results)?;

    println!("\n{}", report::tables(&results));
    if let Some(path) = &args.svg {
        plot::draw(path, &results)?;
        println!("The plot is in {}.\n", path.display());
    }
    let verdict = report::verdict(&results, args.seconds, &load);
    println!("{verdict}");
    Ok(verdict)
}
