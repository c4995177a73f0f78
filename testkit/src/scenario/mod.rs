//! Scenarios: the expectations of a gateway's own tests as text files, and a runner for them over
//! any store.
//!
//! A file has events (documents with their metadata, users, released sequences, time) and expected
//! answers. Documents go through the decoder, the writer and a store; questions go to readers. Each
//! file is run in every [`Variation`], and all must give the expected answers. Time moves only
//! where the file says so. The format is described in `testdata/scenarios/README.md`.

mod asking;
mod cache;
mod check;
mod gateway;
mod parse;
mod report;
mod run;
mod script;
mod step;
mod variation;
mod watched;
mod writing;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use sluicegate_core::{CacheStore, Error, Result};
use std::sync::Arc;

pub use parse::Mistake;
pub use report::{Disagreement, Report};
pub use variation::Variation;

use step::{Event, Line, Step};

/// Features that some files wait for (`# missing:`) and that exist by now. A file is run if the
/// feature that it waits for begins with one of them.
pub const BUILT: &[&str] = &["collections", "purge", "current version"];

/// A scenario: one file.
#[derive(Clone, Debug)]
pub struct Scenario {
    file: PathBuf,
    text: parse::Text,
}

impl Scenario {
    /// Reads the text of a file. Reports name it `file`.
    ///
    /// # Errors
    /// The first line that cannot be understood.
    pub fn parse(file: impl Into<PathBuf>, text: &str) -> std::result::Result<Self, Mistake> {
        let file = file.into();
        let text = parse::parse(&file, text)?;
        Ok(Scenario { file, text })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), or that the file cannot be read.
    pub fn read(file: &Path) -> std::result::Result<Self, Mistake> {
        let failed = |e: std::io::Error| Mistake { file: file.to_owned(), line: 0, what: format!("cannot be read: {e}") };
        let text = std::fs::read_to_string(file).map_err(failed)?;
        Scenario::parse(file, text.trim_start_matches('\u{feff}'))
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The missing feature that the file needs, if there is one.
    pub fn waits_for(&self) -> Option<String> {
        let missing = self.text.missing.as_deref()?;
        let feature = missing.split([':', '(']).next().unwrap_or(missing).trim().to_owned();
        if !BUILT.iter().any(|built| missing.starts_with(built)) {
            return Some(feature);
        }
        self.text.lines.is_empty().then(|| format!("{feature}: it is there, and the file has no lines yet"))
    }

    /// Whether the file leaves a variation out.
    pub fn leaves_out(&self, variation: Variation) -> bool {
        variation.parts().iter().any(|part| self.text.skipped.iter().any(|(_, name)| name == part.name()))
    }

    /// Runs it in one variation, over stores from `stores`; returns every line with an unexpected
    /// result. Blocks; not for async code.
    ///
    /// # Errors
    /// If the runtime does not start, or stored documents cannot be removed.
    pub fn run(&self, variation: Variation, stores: &Stores) -> Result<Vec<Disagreement>> {
        run::run(self, variation, stores)
    }

    fn lines(&self) -> &[Line] {
        &self.text.lines
    }

    /// Whether all its events are documents of one named collection. Its feed is then restricted to
    /// that, so that nothing comes of the numbers of others. A feed that delivers other
    /// collections, or metadata, is not restricted: a number that does not come is missing.
    fn is_restricted(&self) -> bool {
        let events = self.lines().iter().filter_map(|line| match &line.step {
            Step::Events(events) => Some(events),
            _ => None,
        });
        let mut collections = events.flatten().map(Event::collection);
        let first = collections.next().flatten().filter(|collection| *collection != 0);
        first.is_some() && collections.all(|collection| collection == first)
    }

    /// Variations that it leaves out and that do not exist.
    fn notes(&self) -> Vec<String> {
        let unknown = self.text.skipped.iter().filter(|(_, name)| Variation::named(name).is_none());
        let file = self.file.display();
        unknown.map(|(line, name)| format!("{file}:{line} leaves out the variation `{name}`, which does not exist")).collect()
    }
}

/// The scenario files at `path`: itself if it is a file, or all files `*.txt` in the folder and
/// those below it, in order.
///
/// # Errors
/// `ConfigInvalid` if there is nothing at `path`, or no scenario in it.
pub fn find(path: &Path) -> Result<Vec<PathBuf>> {
    let wrong = |e: std::io::Error| Error::config(format!("{} cannot be read", path.display())).with_source(e);
    if std::fs::metadata(path).map_err(wrong)?.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let (mut files, mut folders) = (Vec::new(), vec![path.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(wrong)? {
            let path = entry.map_err(wrong)?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "txt") {
                files.push(path);
            }
        }
    }
    if files.is_empty() {
        return Err(Error::config(format!("{} has no scenarios: files that end in .txt", path.display())));
    }
    files.sort_unstable();
    Ok(files)
}

/// A source of stores: an empty one for each cache of each run.
pub struct Stores {
    open: Box<Open>,
    are_cleared: bool,
}

type Open = dyn Fn() -> BoxFuture<'static, Result<Arc<dyn CacheStore>>> + Send + Sync;

impl Stores {
    /// Stores that `open` opens, each of them empty. It is called in the runtime of the run that
    /// uses the store.
    pub fn new(open: impl Fn() -> BoxFuture<'static, Result<Arc<dyn CacheStore>>> + Send + Sync + 'static) -> Self {
        Stores { open: Box::new(open), are_cleared: false }
    }

    /// The documents that a run stores are removed after it.
    #[must_use]
    pub fn cleared(self) -> Self {
        Stores { are_cleared: true, ..self }
    }

    pub(self) fn open(&self) -> BoxFuture<'static, Result<Arc<dyn CacheStore>>> {
        (self.open)()
    }

    pub(self) fn are_cleared(&self) -> bool {
        self.are_cleared
    }
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stores").field("are_cleared", &self.are_cleared).finish_non_exhaustive()
    }
}

/// Runs every scenario in each of `variations`, on `threads` threads. Blocks; not for async code.
///
/// # Errors
/// As [`Scenario::run`].
pub fn judge(scenarios: &[Scenario], variations: &[Variation], stores: &Stores, threads: usize) -> Result<Report> {
    let next = AtomicUsize::new(0);
    let outcome = Mutex::new((Report::default(), None));
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, scenarios.len().max(1)) {
            scope.spawn(|| {
                while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let judged = judge_one(scenario, variations, stores);
                    let mut outcome = outcome.lock();
                    match judged {
                        Ok(report) => outcome.0.add(report),
                        Err(error) => outcome.1 = Some(error),
                    }
                    if outcome.1.is_some() {
                        return;
                    }
                }
            });
        }
    });
    let (mut report, error) = outcome.into_inner();
    report.sort();
    error.map_or(Ok(report), Err)
}

fn judge_one(scenario: &Scenario, variations: &[Variation], stores: &Stores) -> Result<Report> {
    let mut report = Report { files: 1, notes: scenario.notes(), ..Report::default() };
    if let Some(feature) = scenario.waits_for() {
        report.skipped.insert(feature, vec![scenario.file.display().to_string()]);
        return Ok(report);
    }
    for variation in variations {
        if scenario.leaves_out(*variation) {
            report.left_out += 1;
        } else {
            report.ran(variation.name(), scenario.run(*variation, stores)?);
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests;
