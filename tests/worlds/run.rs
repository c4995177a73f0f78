//! Runs a world, and checks what comes of it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluicegate::{CacheStore, ErrorKind, GatewayDecoder, Result, Writer, WriterConfig};
use sluicegate_testkit::{FaultStore, Faults, Pause, PlainStore};
use tokio::task::{JoinError, JoinHandle, yield_now};

use super::FEED;
use super::bucket::Bucket;
use super::checks::{Clients, Failure, answers, check};
use super::feed::WorldFeed;
use super::model::{Event, Fault, Settings, Term, Then, World};

/// How many writes are held at most.
const MAX_HELD: u64 = 60;

/// Yields until everything has gone as far as it can while a write is held.
const YIELDS: u32 = 400;

/// In paused time: nothing that makes progress takes as long.
const FOREVER: Duration = Duration::from_secs(1_000_000);

/// What happened in a world.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    /// Writers that were cut off, killed or held.
    pub(crate) faults: u64,
    /// Held writers that went on.
    pub(crate) resumed: u64,
}

/// Runs a world to its end, where a last writer that has no fault reads everything.
pub(crate) fn run(world: &World) -> Result<Counts, Failure> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    let world = world.clone();
    // In a task: a panic is a failure like others, so that its world is shrunk.
    let run = async { tokio::spawn(async move { tokio::time::timeout(FOREVER, Life::live(&world)).await }).await };
    match runtime.block_on(run) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Failure::Writer("it does not come to an end".to_owned())),
        Err(panic) => Err(Failure::Writer(panic.to_string())),
    }
}

type WriterHandle = JoinHandle<Result<()>>;

/// A writer of which writes are held.
#[derive(Debug)]
struct Held {
    writer: WriterHandle,
    pauses: Vec<Pause>,
    then: Then,
}

impl Held {
    /// Lets it go on, and waits for its end.
    async fn resume(self) -> Result<(), Failure> {
        drop(self.pauses);
        ended(self.writer.await, Some(ErrorKind::Fenced)).map(drop)
    }

    /// Ends it. What is held is never written.
    async fn kill(self) -> Result<(), Failure> {
        self.writer.abort();
        match self.writer.await {
            Err(error) if error.is_cancelled() => Ok(()),
            outcome => Err(Failure::Writer(format!("a held writer ended: {outcome:?}"))),
        }
    }
}

/// Whether a writer ended with an error. Only one of the kind `allowed` is no failure.
fn ended(outcome: Result<Result<()>, JoinError>, allowed: Option<ErrorKind>) -> Result<bool, Failure> {
    match outcome {
        Ok(Ok(())) => Ok(false),
        Ok(Err(error)) if Some(error.kind()) == allowed => Ok(true),
        other => Err(Failure::Writer(format!("{other:?}"))),
    }
}

async fn writer(store: Arc<dyn CacheStore>, config: WriterConfig) -> Result<Writer> {
    Writer::alone(store, Arc::new(GatewayDecoder::default()), FEED, config).await
}

/// A world that is running.
struct Life<'a> {
    settings: &'a Settings,
    store: Arc<dyn CacheStore>,
    bucket: Arc<Mutex<Bucket>>,
    held: Vec<Held>,
    clients: Option<Clients>,
    counts: Counts,
}

impl Life<'_> {
    async fn live(world: &World) -> Result<Counts, Failure> {
        let mut life = Life {
            settings: &world.settings,
            store: Arc::new(PlainStore::new()),
            bucket: Arc::new(Mutex::new(Bucket::new(world.settings.has_stays))),
            held: Vec::new(),
            clients: None,
            counts: Counts::default(),
        };
        // Writers that are held to the end go on after the last term.
        let (before, resumes) = match world.events.split_last() {
            Some((Event::Resume, before)) => (before, true),
            _ => (&world.events[..], false),
        };
        for event in before {
            life.happen(event).await?;
        }
        life.bucket.lock().import();
        life.term(&Term { seed: 1, fault: Fault::Healthy, meanwhile: Vec::new(), rollbacks_first: true }).await?;
        if resumes {
            life.resume().await?;
        }
        life.end().await
    }

    async fn happen(&mut self, event: &Event) -> Result<(), Failure> {
        match event {
            Event::Term(term) => self.term(term).await,
            Event::Resume => self.resume().await,
            event => {
                self.bucket.lock().apply(event);
                Ok(())
            }
        }
    }

    async fn resume(&mut self) -> Result<(), Failure> {
        for held in std::mem::take(&mut self.held) {
            self.counts.resumed += 1;
            held.resume().await?;
        }
        Ok(())
    }

    async fn term(&mut self, term: &Term) -> Result<(), Failure> {
        let faulty = Arc::new(FaultStore::new(self.store.clone(), term.seed, Faults::none()));
        if let Fault::Crash { from_take_over: true, point } = term.fault {
            faulty.crash_at(point);
        }
        let mut writer = match writer(faulty.clone(), self.settings.config()).await {
            Ok(writer) => writer,
            Err(error) if error.kind() == ErrorKind::Closed && faulty.crashed() => {
                self.counts.faults += 1;
                return Ok(());
            }
            Err(error) => return Err(Failure::Writer(format!("take-over: {error:?}"))),
        };
        let mut pauses = Vec::new();
        match term.fault {
            Fault::Crash { from_take_over: false, point } => faulty.crash_at(point),
            Fault::Hold { step, nth, all, .. } => {
                let count = if all { MAX_HELD } else { 1 };
                pauses = (nth..nth + count).map(|nth| faulty.pause_at_write(step, nth)).collect();
            }
            Fault::Healthy | Fault::Crash { .. } => {}
        }
        let resumed = self.resume_soon();
        let feed = WorldFeed::new(self.bucket.clone(), term, self.settings.leaves_out);
        let handle = tokio::spawn(async move { writer.run(&feed, std::future::pending()).await.map(drop) });
        self.follow(term, handle, pauses).await?;
        for held in resumed {
            held.await.unwrap()?;
        }
        if self.clients.is_none() {
            self.clients = Clients::open(&self.store).await;
        }
        match &mut self.clients {
            Some(clients) => clients.look().await,
            None => Ok(()),
        }
    }

    /// Writers that go on in this term, each after its time.
    fn resume_soon(&mut self) -> Vec<JoinHandle<Result<(), Failure>>> {
        let (mut resumed, mut kept) = (Vec::new(), Vec::new());
        for held in std::mem::take(&mut self.held) {
            let Then::IntoNext(yields) = held.then else {
                kept.push(held);
                continue;
            };
            self.counts.resumed += 1;
            resumed.push(tokio::spawn(async move {
                for _ in 0..yields {
                    yield_now().await;
                }
                held.resume().await
            }));
        }
        self.held = kept;
        resumed
    }

    /// Waits until a writer ends, or is held; then does with it what the fault says.
    async fn follow(&mut self, term: &Term, mut writer: WriterHandle, mut pauses: Vec<Pause>) -> Result<(), Failure> {
        let Fault::Hold { then, .. } = term.fault else {
            let allowed = matches!(term.fault, Fault::Crash { .. }).then_some(ErrorKind::Closed);
            self.counts.faults += u64::from(ended(writer.await, allowed)?);
            return Ok(());
        };
        tokio::select! {
            biased;
            outcome = &mut writer => return ended(outcome, None).map(drop),
            _ = pauses[0].reached() => {}
        }
        self.counts.faults += 1;
        for _ in 0..YIELDS {
            yield_now().await;
        }
        let held = Held { writer, pauses, then };
        match then {
            Then::Killed => held.kill().await,
            Then::UntilResume | Then::IntoNext(_) => {
                self.held.push(held);
                Ok(())
            }
        }
    }

    async fn end(mut self) -> Result<Counts, Failure> {
        for held in std::mem::take(&mut self.held) {
            held.kill().await?;
        }
        self.abandon_missing().await?;
        let expected = self.bucket.lock().expected();
        answers(&self.store, &expected).await?;
        if let Some(clients) = &mut self.clients {
            clients.look().await?;
            clients.compare(&expected)?;
        }
        check(&self.store).await?;
        Ok(self.counts)
    }

    /// Abandons missing sequences, so that all that is superseded is marked.
    async fn abandon_missing(&self) -> Result<(), Failure> {
        let mut config = self.settings.config();
        config.max_wait_ms = 1;
        config.skip_wait_ms = 1;
        let abandon = async {
            let mut writer = writer(self.store.clone(), config).await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
            writer.finish().await?;
            Ok(writer.clock().clone())
        };
        let clock = abandon.await.map_err(|error: sluicegate::Error| Failure::Writer(format!("{error:?}")))?;
        if clock.gaps > 0 || clock.stable != clock.high {
            return Err(Failure::Writer(format!("sequences are still missing: {clock:?}")));
        }
        Ok(())
    }
}
