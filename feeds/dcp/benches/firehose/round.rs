//! Rounds in which contenders take turns, and what they come to.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Outcome;

/// What one process measured of itself.
pub(crate) struct Figures {
    pub(crate) events: u64,
    bytes: f64,
    seconds: f64,
    cpu: f64,
    /// The most memory it had, in bytes, if it says so.
    memory: Option<f64>,
}

/// A program that prints a line of JSON.
pub(crate) struct Contender {
    name: &'static str,
    command: Command,
    figures: Vec<Figures>,
}

impl Contender {
    pub(crate) fn new(name: &'static str, command: Command) -> Self {
        Contender { name, command, figures: Vec::new() }
    }

    fn run(&mut self) -> Outcome<&Figures> {
        // Some wait for a line, and end when there is no other.
        let mut child = self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        std::io::Write::write_all(&mut child.stdin.take().ok_or("it has no standard input")?, b"\n")?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("{} ended with {}; what went wrong is above", self.name, output.status).into());
        }
        let said: Value = serde_json::from_slice(&output.stdout)?;
        let number = |name: &str| said[name].as_f64().ok_or_else(|| format!("{} does not say {name}", self.name));
        self.figures.push(Figures {
            events: number("mutations")? as u64,
            bytes: number("bytes")?,
            seconds: number("seconds")?,
            cpu: number("cpu_seconds")?,
            memory: said["max_rss"].as_f64(),
        });
        Ok(self.figures.last().expect("it was pushed"))
    }
}

impl Figures {
    /// Millions of events a second.
    fn rate(&self) -> f64 {
        self.events as f64 / self.seconds / 1e6
    }

    /// Millions of events a second of one core.
    fn per_core(&self) -> f64 {
        self.events as f64 / self.cpu / 1e6
    }
}

/// Lets all run once a round, and prints what the first does in comparison with each other.
pub(crate) fn play(
    title: &str,
    rounds: usize,
    contenders: &mut [Contender],
    check: impl Fn(&Figures) -> Outcome<()>,
) -> Outcome<()> {
    println!("\n{title}\n");
    println!("{:<7}{:<20}{:>12}{:>18}{:>10}{:>12}", "round", "client", "million/s", "million/s a core", "MB/s", "most MiB");
    for round in 1..=rounds {
        let count = contenders.len();
        for turn in 0..count {
            // Whoever begins changes.
            let contender = &mut contenders[(round + turn) % count];
            let name = contender.name;
            let figures = contender.run()?;
            check(figures)?;
            let memory = figures.memory.map_or("-".to_owned(), |bytes| format!("{:.0}", bytes / f64::from(1 << 20)));
            let volume = figures.bytes / figures.seconds / 1e6;
            println!("{round:<7}{name:<20}{:>12.2}{:>18.2}{volume:>10.0}{memory:>12}", figures.rate(), figures.per_core());
        }
    }
    let Some((first, others)) = contenders.split_first() else { return Ok(()) };
    println!();
    println!("{} median: {} million/s, {} a core", first.name, spread(first, Figures::rate), spread(first, Figures::per_core));
    for other in others {
        let of = |measure: fn(&Figures) -> f64| {
            let ratios = first.figures.iter().zip(&other.figures).map(|(ours, theirs)| measure(ours) / measure(theirs));
            median(ratios.collect())
        };
        println!(
            "{} over {}: {} times the events a core, {} times the events a second",
            first.name,
            other.name,
            of(Figures::per_core),
            of(Figures::rate)
        );
    }
    Ok(())
}

fn spread(contender: &Contender, measure: fn(&Figures) -> f64) -> String {
    median(contender.figures.iter().map(measure).collect())
}

/// The middle one, and the lowest and the highest.
fn median(mut numbers: Vec<f64>) -> String {
    numbers.sort_by(f64::total_cmp);
    match (numbers.first(), numbers.get(numbers.len() / 2), numbers.last()) {
        (Some(low), Some(middle), Some(high)) => format!("{middle:.2} ({low:.2} to {high:.2})"),
        _ => "-".to_owned(),
    }
}

/// Lets a program run that prints by itself.
pub(crate) fn status(mut command: Command) -> Outcome<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("it ended with {status}; what went wrong is above").into()) }
}

/// What else the machine does, as far as it tells.
pub(crate) fn load_of_the_machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    match std::fs::read_to_string("/proc/loadavg") {
        Ok(load) => format!(
            "{cores} cores; load of the last 1, 5 and 15 minutes: {}",
            load.split(' ').take(3).collect::<Vec<_>>().join(", ")
        ),
        Err(_) => format!("{cores} cores"),
    }
}
