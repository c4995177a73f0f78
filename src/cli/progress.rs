//! The progress line, and how the log gets out of its way.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sluicegate::WriterStatus;
use sluicegate::core::clock::Progress;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing_subscriber::fmt::MakeWriter;

use super::output::grouped;

/// How often the line is drawn.
const DRAWN: Duration = Duration::from_millis(100);

/// How often progress is logged where there is no terminal to draw on.
const LOGGED: Duration = Duration::from_secs(30);

/// Standard error, which the log and a progress line share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terminal(Arc<Mutex<Option<ProgressBar>>>);

impl Terminal {
    fn bar(&self) -> Option<ProgressBar> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_bar(&self, bar: Option<ProgressBar>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bar;
    }
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.bar() {
            Some(bar) => bar.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = Terminal;

    fn make_writer(&'a self) -> Terminal {
        self.clone()
    }
}

/// Shows how far a writer is: as a line on a terminal, else now and then in the log. Until it is
/// finished or dropped.
#[derive(Debug)]
pub(crate) struct Meter {
    terminal: Terminal,
    tasks: Vec<JoinHandle<()>>,
}

impl Meter {
    /// Begins to show `status`.
    pub(crate) fn start(terminal: &Terminal, status: watch::Receiver<WriterStatus>) -> Self {
        let task = if io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4}  {msg}") {
                bar.set_style(style);
            }
            terminal.set_bar(Some(bar.clone()));
            tokio::spawn(draw(bar, status))
        } else {
            tokio::spawn(log(None, status))
        };
        Meter { terminal: terminal.clone(), tasks: vec![task] }
    }

    /// Begins to show several writers, each by its name, in the log only.
    pub(crate) fn start_all(terminal: &Terminal, all: Vec<(String, watch::Receiver<WriterStatus>)>) -> Self {
        let tasks = all.into_iter().map(|(name, status)| tokio::spawn(log(Some(name), status))).collect();
        Meter { terminal: terminal.clone(), tasks }
    }

    /// Takes the line away.
    pub(crate) fn finish(self) {}
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Some(bar) = self.terminal.bar() {
            bar.finish_and_clear();
            self.terminal.set_bar(None);
        }
    }
}

/// The time that the rest of a first read takes at the rate since `begun`, when `arrived` sequences
/// had arrived.
fn remaining(now: Progress, arrived: u64, begun: Duration) -> Option<Duration> {
    let (done, left) = (now.arrived.saturating_sub(arrived), now.total().saturating_sub(now.arrived));
    (done > 0).then(|| Duration::try_from_secs_f64(begun.as_secs_f64() * left as f64 / done as f64).ok()).flatten()
}

/// Tells how far a first read is.
#[derive(Debug, Default)]
struct FirstRead(Option<(Instant, u64)>);

impl FirstRead {
    /// The percentage, and how many seconds are left if that can be said.
    fn tell(&mut self, progress: Option<Progress>) -> Option<(u64, Option<u64>)> {
        let progress = progress?;
        let (begun, arrived) = *self.0.get_or_insert_with(|| (Instant::now(), progress.arrived));
        Some((progress.percent(), remaining(progress, arrived, begun.elapsed()).map(|left| left.as_secs())))
    }
}

async fn draw(bar: ProgressBar, status: watch::Receiver<WriterStatus>) {
    let mut ticks = tokio::time::interval(DRAWN);
    // Of the last second or so.
    let mut from = (Instant::now(), 0);
    let mut rate = 0.0;
    let mut first_read = FirstRead::default();
    loop {
        ticks.tick().await;
        let status = status.borrow().clone();
        let seen = status.stats.received;
        if from.0.elapsed() >= Duration::from_secs(1) || rate == 0.0 {
            rate = (seen - from.1) as f64 / from.0.elapsed().as_secs_f64().max(0.001);
            from = (Instant::now(), seen);
        }
        let (stable, high) = status.clock.as_ref().map_or((0, 0), |clock| (clock.stable.0, clock.high.0));
        let skipped = status.clock.as_ref().map_or(0, |clock| clock.gaps);
        let trouble = status.trouble.map(|e| format!("  trying again: {e}")).unwrap_or_default();
        let building = match first_read.tell(status.clock.as_ref().and_then(|clock| clock.building)) {
            Some((percent, Some(left))) => format!("building: {percent} %, about {left} s left  "),
            Some((percent, None)) => format!("building: {percent} %  "),
            None => String::new(),
        };
        bar.set_message(format!(
            "{building}{} events  {}/s  stable {stable}  high {high}  pending {}  skipped {skipped}{trouble}",
            grouped(seen),
            grouped(rate as u64),
            status.pending
        ));
        bar.tick();
    }
}

async fn log(database: Option<String>, status: watch::Receiver<WriterStatus>) {
    let mut ticks = tokio::time::interval(LOGGED);
    ticks.tick().await;
    let mut first_read = FirstRead::default();
    loop {
        ticks.tick().await;
        let status = status.borrow().clone();
        let Some(clock) = status.clock else { continue };
        let (events, pending, skipped) = (status.stats.received, status.pending, clock.gaps);
        if let Some((percent, seconds_left)) = first_read.tell(clock.building) {
            tracing::info!(database, events, percent, seconds_left, "building the cache");
            continue;
        }
        tracing::info!(database, events, stable = clock.stable.0, high = clock.high.0, pending, skipped, "progress");
    }
}

#[cfg(test)]
mod tests {
    use sluicegate::Sequence;

    use super::*;

    #[test]
    fn the_rest_of_a_first_read_is_estimated_from_its_rate() {
        let progress = |arrived, highest| Progress { arrived, highest: Sequence(highest), expected: None };
        let ten = Duration::from_secs(10);
        assert_eq!(remaining(progress(400, 1_000), 100, ten), Some(Duration::from_secs(20)));
        assert_eq!(remaining(progress(100, 1_000), 100, ten), None);
        assert_eq!(remaining(progress(5, 3), 1, ten), Some(Duration::ZERO));
    }
}
