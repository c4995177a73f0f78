//! One run of a scenario: line by line, in one variation.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use sluicegate_core::changes::AnswerRow;
use sluicegate_core::{Error, ErrorKind, Result};

use super::asking::stat;
use super::cache::Cache;
use super::check;
use super::report::Disagreement;
use super::step::{Answered, Line, Question, Settings, Step};
use super::variation::Variation;
use super::watched::Pace;
use super::{Scenario, Stores};

/// The limit for findings of a check that are reported one by one.
const FINDINGS: usize = 5;

/// Runs `scenario` in its own runtime, whose clock moves only where the scenario says so.
pub(super) fn run(scenario: &Scenario, variation: Variation, stores: &Stores) -> Result<Vec<Disagreement>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .map_err(|e| Error::new(ErrorKind::Unexpected, "the runtime did not start").with_source(e))?;
    runtime.block_on(async {
        let pace = Pace::default();
        let _held = pace.hold();
        let mut run = Run { scenario, variation, stores, pace, cache: None, found: Vec::new() };
        let ran = AssertUnwindSafe(run.lines()).catch_unwind().await;
        let last = scenario.lines().last();
        match ran {
            Ok(Ok(())) => {}
            Ok(Err((line, error))) => run.differs(line, format!("error: {}", chain(&error))),
            Err(_) => run.found.extend(last.map(|line| run.disagreement(line, "no panic".to_owned(), "a panic".to_owned()))),
        }
        let found = std::mem::take(&mut run.found);
        run.clear().await?;
        Ok(found)
    })
}

struct Run<'a> {
    scenario: &'a Scenario,
    variation: Variation,
    stores: &'a Stores,
    pace: Pace,
    cache: Option<Cache>,
    found: Vec<Disagreement>,
}

/// The line at which a run cannot continue, and the error.
type Stopped<'a> = (&'a Line, Error);

impl<'a> Run<'a> {
    async fn lines(&mut self) -> std::result::Result<(), Stopped<'a>> {
        let scenario = self.scenario;
        for line in scenario.lines() {
            self.line(line).await.map_err(|error| (line, error))?;
        }
        match scenario.lines().last() {
            Some(line) => self.end(line).await.map_err(|error| (line, error)),
            None => Ok(()),
        }
    }

    async fn line(&mut self, line: &'a Line) -> Result<()> {
        match &line.step {
            Step::Id(check) => {
                if let Some(got) = check::id(check) {
                    self.differs(line, got);
                }
                return Ok(());
            }
            Step::New(settings) => {
                self.end(line).await?;
                self.clear().await?;
                return self.begin(settings).await;
            }
            _ => {}
        }
        if self.cache.is_none() {
            // A file without settings has a cache with the defaults.
            self.begin(&Settings::default()).await?;
        }
        let Some(cache) = &mut self.cache else { return Ok(()) };
        if let Step::Events(events) = &line.step {
            for event in events {
                cache.event(event).await?;
            }
            return Ok(());
        }
        cache.deliver().await?;
        match &line.step {
            Step::At(time) => cache.pass_until(*time).await,
            Step::Wait(time) => cache.wait(*time).await,
            Step::Restart => cache.restart().await,
            Step::Fresh => cache.asking.reopen().await,
            Step::Prune(keep) => {
                cache.asking.prune(*keep);
                Ok(())
            }
            _ => self.question(line).await,
        }
    }

    async fn question(&mut self, line: &'a Line) -> Result<()> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        let channels = |cache: &Cache, question: &Question| cache.channels(&question.channels, question.keyspace);
        // A failed answer is an unexpected result: the run continues.
        match &line.step {
            Step::State(expected) => {
                if let Some(peer) = &line.peer
                    && cache.state(peer.iter().map(|(key, _)| *key)).await?.iter().eq(peer.iter().map(|(_, want)| want))
                {
                    return Ok(());
                }
                let got = cache.state(expected.iter().map(|(key, _)| *key)).await?;
                let pair = |(key, value): (&str, String)| format!("{key}={value}");
                let wrong: Vec<(String, String)> = expected
                    .iter()
                    .zip(got)
                    .filter(|((_, want), got)| want != got)
                    .map(|((key, want), got)| (pair((key.name(), want.to_string())), pair((key.name(), got.to_string()))))
                    .collect();
                self.differ_in(line, wrong);
            }
            Step::Stats(expected) if !self.variation.has(Variation::Tails) => {
                if let Some(stats) = cache.asking.stats() {
                    let wrong = expected.iter().filter(|(key, want)| stat(&stats, *key) != *want);
                    let pair = |key: &str, value: u64| format!("{key}={value}");
                    let wrong = wrong.map(|(key, want)| (pair(key.name(), *want), pair(key.name(), stat(&stats, *key))));
                    let wrong = wrong.collect();
                    self.differ_in(line, wrong);
                }
            }
            Step::StatsBegin | Step::Stats(_) => {
                cache.asking.stats();
            }
            Step::Ask { client, question, expected } => {
                let channels = channels(cache, question)?;
                let answer = cache.asking.ask(client.as_deref(), question, &channels).await;
                let answer = answer.map(|answer| (answer.rows, answer.last.to_string()));
                self.answered(line, expected, answer, question.versions);
            }
            Step::Follow { name, question } => {
                let channels = channels(cache, question)?;
                cache.asking.follow(name, question, channels).await?;
            }
            Step::Next { name, rows } => match cache.asking.next(name).await {
                Ok(got) if check::agree(rows, &got, false) => {}
                Ok(got) => self.differs(line, check::text(&got, false)),
                Err(error) => self.differs(line, format!("error: {}", chain(&error))),
            },
            Step::Close(name) => cache.asking.close(name)?,
            Step::Poll { name, question } => {
                let channels = channels(cache, question)?;
                cache.asking.poll(name, question, channels).await?;
            }
            Step::Waits(name) => {
                let waits = cache.asking.waits(name).await?;
                if !waits {
                    self.differs(line, "it has returned".to_owned());
                }
            }
            Step::Returns { name, expected } => {
                let answer = cache.asking.returned(name).await;
                self.answered(line, expected, answer.map(|answer| (answer.rows, answer.last.to_string())), false);
            }
            Step::Merge { low, sources, rows } => {
                let names: Vec<String> = sources.iter().map(|source| source.channel.clone()).collect();
                let channels = cache.channels(&names, Some(0))?;
                match cache.asking.merged(*low, sources, &channels).await {
                    Ok(got) if check::agree(rows, &got, false) => {}
                    Ok(got) => self.differs(line, check::text(&got, false)),
                    Err(error) => self.differs(line, format!("error: {}", chain(&error))),
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn answered(&mut self, line: &Line, expected: &Answered, got: Result<(Vec<AnswerRow>, String)>, versions: bool) {
        match got {
            Ok((rows, last)) => {
                let is_last = expected.last.as_ref().is_none_or(|expected| *expected == last);
                if !is_last || !check::agree(&expected.rows, &rows, versions) {
                    self.differs(line, format!("{} ; last {last}", check::text(&rows, versions)));
                }
            }
            Err(error) => self.differs(line, format!("error: {}", chain(&error))),
        }
    }

    async fn begin(&mut self, settings: &Settings) -> Result<()> {
        let store = self.stores.open().await?;
        self.cache = Some(Cache::begin(store, settings, self.scenario.is_restricted(), self.variation, self.pace.clone()).await?);
        Ok(())
    }

    /// Ends the current cache, and checks it.
    async fn end(&mut self, line: &'a Line) -> Result<()> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        let findings = cache.end().await?;
        let more = findings.len().saturating_sub(FINDINGS);
        let mut findings: Vec<String> = findings.into_iter().take(FINDINGS).collect();
        if more > 0 {
            findings.push(format!("{more} more findings"));
        }
        for finding in findings {
            self.found.push(self.disagreement(line, "the whole cache is clean in the end".to_owned(), finding));
        }
        Ok(())
    }

    async fn clear(&mut self) -> Result<()> {
        match self.cache.take() {
            Some(cache) if self.stores.are_cleared() => cache.clear().await,
            _ => Ok(()),
        }
    }

    fn differs(&mut self, line: &Line, got: String) {
        let found = self.disagreement(line, line.expected.clone(), got);
        self.found.push(found);
    }

    /// Records unexpected values.
    fn differ_in(&mut self, line: &Line, wrong: Vec<(String, String)>) {
        if !wrong.is_empty() {
            let (expected, got): (Vec<String>, Vec<String>) = wrong.into_iter().unzip();
            let found = self.disagreement(line, expected.join(" "), got.join(" "));
            self.found.push(found);
        }
    }

    fn disagreement(&self, line: &Line, expected: String, got: String) -> Disagreement {
        Disagreement {
            file: self.scenario.file().display().to_string(),
            line: line.number,
            variation: self.variation.name(),
            asked: line.text.clone(),
            expected,
            got,
        }
    }
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
