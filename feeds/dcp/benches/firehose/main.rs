//! How fast events come out of a bucket, beside Couchbase's own client in Go: on the same streams of the same simulated cluster, in turn.
//!
//! `cargo bench -p sluicegate-dcp`. Each client is a process of its own, so that neither the cluster nor the other client is in its figures.
//! Without Go it ends with an error; `-- --alone` measures without it. Other options: `--documents N`, `--value BYTES`, `--rounds N`,
//! `--seconds N` for decoding. It needs a machine that does nothing else, of two cores at least: rates say more if the cluster has a core of its
//! own. Rates per second of CPU do not depend on that.

mod client;
mod rival;
mod round;

use std::error::Error;
use std::process::{Command, ExitCode};

use round::{Contender, Figures};
use sluicegate_simulator::{Cluster, ClusterConfig, Load};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// How many events the slow consumer takes, and how many of them a second.
const SLOW_SECONDS: u64 = 10;

struct Options {
    documents: u64,
    value: usize,
    rounds: usize,
    seconds: f64,
    alone: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let done = match arguments.first().map(String::as_str) {
        Some("client") => client::run(&arguments[1..]),
        _ => Options::read(&arguments).and_then(|options| compare(&options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn read(arguments: &[String]) -> Outcome<Options> {
        let mut options = Options { documents: 400_000, value: 200, rounds: 5, seconds: 2.0, alone: false };
        let mut rest = arguments.iter();
        while let Some(name) = rest.next() {
            let mut value = || rest.next().ok_or_else(|| format!("{name} takes a number"));
            match name.as_str() {
                "--alone" => options.alone = true,
                "--documents" => options.documents = value()?.parse()?,
                "--value" => options.value = value()?.parse()?,
                "--rounds" => options.rounds = value()?.parse()?,
                "--seconds" => options.seconds = value()?.parse()?,
                other => {
                    return Err(
                        format!("{other} is no option; there are --alone, --documents, --value, --rounds, --seconds").into()
                    );
                }
            }
        }
        Ok(options)
    }
}

fn compare(options: &Options) -> Outcome<()> {
    let rival = if options.alone { None } else { Some(rival::build()?) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut config = ClusterConfig::default();
    config.vbuckets = 64;
    let cluster = runtime.block_on(Cluster::start(config))?;
    let mut load = Load::default();
    (load.documents, load.value_len) = (options.documents, options.value);
    cluster.load(&load).map_err(|status| format!("the cluster takes no documents: {status:?}"))?;
    let address = cluster.connection_string().replace("couchbase://", "");
    let url = format!("dcp://Administrator@{address}/default?password_env=PASSWORD&until=now");
    let us = std::env::current_exe()?;
    let ours = |arguments: &[&str]| {
        let mut command = Command::new(&us);
        command.arg("client").args(arguments).env("PASSWORD", "password");
        command
    };

    println!("{}", round::load_of_the_machine());
    let frames = client::recorded_frames()?;
    let (file, seconds) = (frames.path().to_string_lossy().into_owned(), options.seconds.to_string());
    let mut decoding = vec![Contender::new("Rust", ours(&["decode", &file, &seconds]))];
    let mut streaming = vec![Contender::new("Rust", ours(&["follow", &url]))];
    if let Some(rival) = &rival {
        for (name, cores) in [("Go", None), ("Go, GOMAXPROCS=1", Some(1))] {
            decoding.push(Contender::new(name, rival.decode(&file, &seconds, "observer", cores)));
            streaming.push(Contender::new(name, rival.follow(&address, cores)));
        }
        // Less than a client has to do: to tell where its time goes.
        decoding.push(Contender::new("Go, packets only", rival.decode(&file, &seconds, "packets", Some(1))));
    }
    round::play("decoding recorded frames", options.rounds, &mut decoding, |_| Ok(()))?;
    let all = |figures: &Figures| match figures.events == options.documents {
        true => Ok(()),
        false => Err(format!("{} events came instead of {}", figures.events, options.documents).into()),
    };
    let title = format!("streaming {} documents of {} bytes or more", options.documents, options.value);
    round::play(&title, options.rounds, &mut streaming, all)?;

    println!("\nmemory with a slow consumer");
    let rate = (options.documents / SLOW_SECONDS).max(1).to_string();
    round::status(ours(&["slow", &url, &rate]))?;
    println!("{}", round::load_of_the_machine());
    Ok(())
}
