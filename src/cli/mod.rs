//! The command line: options, the process around a command, and one module a command.

mod backends;
#[cfg(feature = "bench")]
mod bench;
mod changes;
#[cfg(feature = "bench")]
mod cold;
#[cfg(feature = "replay")]
mod compare;
#[cfg(all(feature = "memory", feature = "replay"))]
mod demo;
mod follow;
mod inspect;
#[cfg(feature = "dcp")]
mod inspect_feed;
mod output;
mod progress;
#[cfg(feature = "replay")]
mod record;
mod run;
#[cfg(feature = "scenario")]
mod scenario;
mod session;
mod settings;
mod signal;
#[cfg(any(feature = "scenario", feature = "bench"))]
mod target;
mod verify;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sluicegate::{Error, ErrorKind};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry};

use output::{Failure, Outcome, chain};
use progress::Terminal;
use session::Session;
use settings::{Layers, Settings};
use signal::{Signal, Signals};

const AFTER_HELP: &str = "\
Precedence of settings: flag, environment variable, file, default.

Environment:
  SLUICEGATE_CONFIG, SLUICEGATE_FEED, SLUICEGATE_STORE, SLUICEGATE_NODE,
  SLUICEGATE_LOG, SLUICEGATE_LOG_FORMAT, SLUICEGATE_DATABASES
  SLUICEGATE_WRITER_…, SLUICEGATE_READER_…, SLUICEGATE_DECODER_…
                       what the file has in [writer], [reader], [decoder],
                       for example SLUICEGATE_WRITER_MAX_BATCH

Exit codes:
  0    done
  1    failed while running
  2    wrong usage or settings
  3    something was found (verify, compare, demo, scenario, inspect feed), or is left after a repair
  130  interrupted";

/// A shared change cache: one writer follows a change feed, any number of readers answer what changed in a channel.
#[derive(Parser)]
#[command(name = "sluicegate", version, about, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes. Not `Debug`: URLs, also among `set`, may hold secrets.
#[derive(Args)]
#[command(next_help_heading = "Settings")]
struct Global {
    /// TOML file: feed, store, node, log, log_format, databases, [writer], [reader], [decoder],
    /// [databases.NAME]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Where mutations come from, for example replay:FILE; `sluicegate backends` lists what there is
    #[arg(long, value_name = "URL", global = true)]
    feed: Option<String>,
    /// Where the cache is, for example memory: (the default); `scenario` and `bench cold` take
    /// several
    #[arg(long, value_name = "URL", global = true)]
    store: Vec<String>,
    /// Name of this node among others
    #[arg(long, value_name = "NAME", global = true)]
    node: Option<String>,
    /// auto: serve all databases that the documents of the feed name, each with its own cache; to
    /// name them, use [databases.NAME] in the file, or --set
    /// databases.NAME.collections=SCOPE.COLLECTION,…
    #[arg(long, value_name = "auto", global = true)]
    databases: Option<String>,
    /// Any setting by its name in the file, for example writer.max_batch=100
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    set: Vec<String>,
    /// What is logged, on standard error: error, warn, info, debug, trace, or a list such as warn,sluicegate_core=debug
    #[arg(long, value_name = "LEVEL", global = true)]
    log: Option<String>,
    /// How it is logged
    #[arg(long, value_name = "FORMAT", global = true, value_parser = ["human", "json"])]
    log_format: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Follow the feed and write the cache, with a reader beside it
    Run(run::RunArgs),
    /// Answer once what changed in some channels
    Changes(changes::ChangesArgs),
    /// Print every change as it comes, one JSON object a line
    Follow(follow::FollowArgs),
    /// Look at what is stored, or at a feed
    Inspect(inspect::InspectArgs),
    /// Check a whole cache against its own rules
    Verify(verify::VerifyArgs),
    /// Write a feed's events to a file, to be played back without it
    #[cfg(feature = "replay")]
    Record(record::RecordArgs),
    /// Compare our answers with those that a gateway gave
    #[cfg(feature = "replay")]
    Compare(compare::CompareArgs),
    /// Run what a gateway's tests expect of a cache, from text files, over any store
    #[cfg(feature = "scenario")]
    Scenario(scenario::ScenarioArgs),
    /// List what is compiled in
    Backends(backends::BackendsArgs),
    /// Measure rates, memory and the cost of reads on this machine
    #[cfg(feature = "bench")]
    Bench(bench::BenchArgs),
    #[cfg(feature = "bench")]
    #[command(name = cold::MEASURE, hide = true)]
    MeasureCold(cold::MeasureArgs),
    /// Show it at work, on recorded data
    #[cfg(all(feature = "memory", feature = "replay"))]
    Demo(demo::DemoArgs),
}

impl Command {
    /// Whether it goes on until it is asked to stop, and then stops in order by itself.
    fn stops_in_order(&self) -> bool {
        match self {
            Command::Run(_) => true,
            #[cfg(feature = "replay")]
            Command::Record(_) => true,
            _ => false,
        }
    }

    /// Whether it takes several stores.
    fn takes_several_stores(&self) -> bool {
        match self {
            #[cfg(feature = "scenario")]
            Command::Scenario(_) => true,
            #[cfg(feature = "bench")]
            Command::Bench(_) => true,
            _ => false,
        }
    }

    /// What it does with its log, beside printing it.
    fn layer(&self) -> Option<OwnLayer> {
        match self {
            #[cfg(feature = "bench")]
            Command::MeasureCold(args) => Some(args.layer()),
            _ => None,
        }
    }
}

/// What a command does with its log.
type OwnLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done,
    Found,
    Interrupted,
}

/// What a command comes to that has stopped in order.
impl From<Signal> for Exit {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Interrupt => Exit::Interrupted,
            Signal::Terminate => Exit::Done,
        }
    }
}

/// Parses the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let code = match prepare(cli) {
        Ok(exit) => match exit {
            Exit::Done => 0,
            Exit::Found => 3,
            Exit::Interrupted => 130,
        },
        // Whoever read our output has seen enough.
        Err(Failure::PipeClosed) => 0,
        Err(Failure::Error(error)) => {
            eprintln!("error: {}", chain(&error));
            if error.kind() == ErrorKind::ConfigInvalid { 2 } else { 1 }
        }
    };
    ExitCode::from(code)
}

fn prepare(cli: Cli) -> Outcome<Exit> {
    let Cli { global, command } = cli;
    let fed_by_flag = global.feed.is_some();
    let mut layers = Layers::new();
    let file = global.config.or_else(|| std::env::var_os(settings::CONFIG_VARIABLE).map(PathBuf::from));
    if let Some(file) = file {
        layers.file(&file)?;
    }
    layers.environment(std::env::vars_os())?;
    for pair in &global.set {
        layers.pair(pair)?;
    }
    if global.store.len() > 1 && !command.takes_several_stores() {
        return Err(Error::config("--store is given more than once; this command works on one store").into());
    }
    for (key, value) in [
        ("feed", global.feed),
        ("store", global.store.first().cloned()),
        ("node", global.node),
        ("databases", global.databases),
        ("log", global.log),
        ("log_format", global.log_format),
    ] {
        if let Some(value) = value {
            layers.flag(key, value)?;
        }
    }
    let settings = layers.settings()?;
    let terminal = Terminal::default();
    let quiet = if command.stops_in_order() { "info" } else { "warn" };
    start_log(&settings, quiet, &layers, &terminal, command.layer())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(ErrorKind::Unexpected, "the runtime did not start").with_source(e))?;
    let exit = runtime.block_on(execute(command, settings, global.store, fed_by_flag, terminal));
    // A blocking read of standard input or of a file may still be under way; nothing needs its end.
    runtime.shutdown_background();
    exit
}

async fn execute(
    command: Command,
    settings: Settings,
    stores: Vec<String>,
    fed_by_flag: bool,
    terminal: Terminal,
) -> Outcome<Exit> {
    let signals = Signals::listen()?;
    let session = Session { settings, stores, fed_by_flag, terminal, signals: signals.clone() };
    let stops_in_order = command.stops_in_order();
    let command = async {
        match command {
            Command::Run(args) => run::run(args, session).await,
            Command::Changes(args) => changes::run(args, session).await,
            Command::Follow(args) => follow::run(args, session).await,
            Command::Inspect(args) => inspect::run(args, session).await,
            Command::Verify(args) => verify::run(args, session).await,
            #[cfg(feature = "replay")]
            Command::Record(args) => record::run(args, session).await,
            #[cfg(feature = "replay")]
            Command::Compare(args) => compare::run(args, session).await,
            #[cfg(feature = "scenario")]
            Command::Scenario(args) => scenario::run(args, session).await,
            Command::Backends(args) => backends::run(args),
            #[cfg(feature = "bench")]
            Command::Bench(args) => bench::run(args, session).await,
            #[cfg(feature = "bench")]
            Command::MeasureCold(args) => cold::measure(args, session).await,
            #[cfg(all(feature = "memory", feature = "replay"))]
            Command::Demo(args) => demo::run(args, session).await,
        }
    };
    tokio::select! {
        exit = command => exit,
        Signal::Interrupt | Signal::Terminate = signals.first(), if !stops_in_order => Ok(Exit::Interrupted),
    }
}

fn start_log(settings: &Settings, quiet: &str, layers: &Layers, terminal: &Terminal, own: Option<OwnLayer>) -> Outcome<()> {
    // A blank in a level would make it the name of a target, too.
    let level = settings.log.as_deref().unwrap_or(quiet).split(',').map(str::trim).collect::<Vec<_>>().join(",");
    let refused =
        |why: String| Error::config(format!("{}: {level:?} is no log level, nor a list of them: {why}", layers.source_of("log")));
    // `EnvFilter` takes any other word for the name of a target, and turns all other targets off.
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let is_wrong = |part: &&str| !part.contains(['=', '[']) && !is_level(part);
    if let Some(wrong) = level.split(',').find(is_wrong) {
        return Err(refused(format!("{wrong:?} is none of error, warn, info, debug, trace, off and TARGET=LEVEL")).into());
    }
    let filter = EnvFilter::builder().parse(&level).map_err(|e| refused(e.to_string()))?;
    let log = tracing_subscriber::fmt::layer().with_writer(terminal.clone());
    let log = match settings.log_format.as_deref() {
        None | Some("human") => log.with_ansi(std::io::stderr().is_terminal()).boxed(),
        Some("json") => log.json().boxed(),
        Some(other) => {
            let source = layers.source_of("log_format");
            return Err(Error::config(format!("{source}: a log is `human` or `json`, not {other:?}")).into());
        }
    };
    tracing_subscriber::registry().with(own).with(log.with_filter(filter)).init();
    Ok(())
}
