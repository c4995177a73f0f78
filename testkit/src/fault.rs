//! A store that misbehaves to order.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate_core::store::{Capabilities, Expiry, StoreInfo, Version, Versioned};
use sluicegate_core::{CacheKey, CacheStore, Error, ErrorKind, Result, Status};

use crate::pause::{Hold, Pause};

/// How often what goes wrong: probabilities from 0 to 1. At most one of them befalls an operation, and a delay beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Faults {
    /// The operation takes its time before anything else happens: up to `max_delay`, or some yields if that is zero.
    pub delay: f64,
    /// Longest delay. For paused time.
    pub max_delay: Duration,
    /// `Unavailable`, temporary; not applied. Reads as well.
    pub fail_before: f64,
    /// `Timeout`, indeterminate; applied.
    pub fail_after: f64,
    /// `Timeout`, indeterminate; **not** applied.
    pub lost: f64,
    /// A `replace` is refused with `Conflict` although the version was right.
    pub conflict: f64,
    /// A write is applied twice, and answered as the second time was: what a client does that repeats by itself after a lost reply. An
    /// insert is then told `AlreadyExists`, a replace `Conflict`; an increment counts twice.
    pub duplicate: f64,
}

impl Faults {
    /// No faults.
    pub fn none() -> Self {
        Faults::default()
    }

    /// Everything there is, each with this probability.
    pub fn all(probability: f64) -> Self {
        Faults {
            delay: probability,
            max_delay: Duration::ZERO,
            fail_before: probability,
            fail_after: probability,
            lost: probability,
            conflict: probability,
            duplicate: probability,
        }
    }
}

/// A step of commit and publish, by what it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// The list of commits in progress.
    Intent,
    /// Sequence documents.
    SequenceDocuments,
    /// Blocks.
    Blocks,
    /// Channel directories.
    Directories,
    /// Channel counters.
    Counters,
    /// Pointers of documents, where a writer keeps them.
    Pointers,
    /// The list of missing sequences, where there are many.
    MissingList,
    /// Pages of late entries.
    LatePages,
    /// The batch record.
    BatchRecord,
    /// The checkpoint.
    Checkpoint,
    /// The published clock.
    Clock,
}

impl Step {
    /// The steps of every batch, in the order of the algorithm.
    pub const ALL: [Step; 9] = [
        Step::Intent,
        Step::SequenceDocuments,
        Step::Blocks,
        Step::Directories,
        Step::Counters,
        Step::LatePages,
        Step::BatchRecord,
        Step::Checkpoint,
        Step::Clock,
    ];

    /// The step that writes `key`; `None` for keys that no batch writes.
    pub fn of(key: &CacheKey) -> Option<Step> {
        match key {
            CacheKey::Intent => Some(Step::Intent),
            CacheKey::Sequence(_) => Some(Step::SequenceDocuments),
            CacheKey::Block(..) => Some(Step::Blocks),
            CacheKey::Directory(_) => Some(Step::Directories),
            CacheKey::Counter(_) => Some(Step::Counters),
            CacheKey::Late(_) => Some(Step::LatePages),
            CacheKey::Missing(_) => Some(Step::MissingList),
            CacheKey::Batch(_) => Some(Step::BatchRecord),
            CacheKey::Checkpoint(_) => Some(Step::Checkpoint),
            CacheKey::Document(_) => Some(Step::Pointers),
            CacheKey::Clock => Some(Step::Clock),
            _ => None,
        }
    }
}

/// When a crash happens in regard to its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// The write is not applied, and fails.
    Before,
    /// The write is applied and acknowledged; whatever follows fails.
    After,
    /// The write fails, and the seed decides whether it was applied.
    Unknown,
}

/// Where a writer is cut off from its store: from there on every operation fails with `Closed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CrashPoint {
    /// At which step.
    pub step: Step,
    /// Before or after the write.
    pub when: When,
    /// At the how-manieth write of that step, from 1.
    pub nth: u64,
}

impl CrashPoint {
    /// Every step before, after and in the middle of its `nth` write: 27 points.
    pub fn all(nth: u64) -> impl Iterator<Item = CrashPoint> {
        Step::ALL.into_iter().flat_map(move |step| CrashPoint::of(step, nth))
    }

    /// The same of the steps that a writer takes only if its configuration or the load calls for
    /// them: 6 points.
    pub fn occasional(nth: u64) -> impl Iterator<Item = CrashPoint> {
        [Step::Pointers, Step::MissingList].into_iter().flat_map(move |step| CrashPoint::of(step, nth))
    }

    /// One step before, after and in the middle of its `nth` write.
    pub fn of(step: Step, nth: u64) -> [CrashPoint; 3] {
        [When::Before, When::After, When::Unknown].map(|when| CrashPoint { step, when, nth })
    }
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} write {} of {:?}", self.when, self.nth, self.step)
    }
}

/// A store whose primitives fail, stall, repeat and crash, as a seed and the test say.
///
/// Only the six primitives are forwarded, **not** the provided methods: `commit`, `publish` and the others are the provided
/// algorithms, each of whose single operations can go wrong. Forwarding the inner store's own would hide these algorithms,
/// and with them every crash point between two steps. For the same reason this store has no wakes and no native commit.
///
/// Over one seed and one order of operations (a current-thread runtime) it does the same every time.
#[derive(Debug)]
pub struct FaultStore<S: ?Sized> {
    plan: Mutex<Plan>,
    inner: Arc<S>,
}

#[derive(Debug)]
struct Plan {
    random: ChaCha8Rng,
    faults: Faults,
    crash: Option<CrashPoint>,
    crashed: bool,
    gates: Vec<Gate>,
    operations: u64,
}

#[derive(Debug)]
struct Gate {
    step: Option<Step>,
    /// How many matching operations are still to pass before the one that stops.
    left: u64,
    hold: Hold,
}

/// What the plan has in store for one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Fine,
    FailBefore,
    FailAfter,
    Lost,
    Conflict,
    Duplicate,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Replace,
}

impl<S: CacheStore + ?Sized> FaultStore<S> {
    /// One over `inner`, which may have other users.
    pub fn new(inner: Arc<S>, seed: u64, faults: Faults) -> Self {
        let random = ChaCha8Rng::seed_from_u64(seed);
        let plan = Plan { random, faults, crash: None, crashed: false, gates: Vec::new(), operations: 0 };
        FaultStore { plan: Mutex::new(plan), inner }
    }

    /// The store behind it, which does not fail.
    pub fn inner(&self) -> &Arc<S> {
        &self.inner
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.plan.lock().faults = faults;
    }

    /// Plans a crash. Writes are counted from now on.
    pub fn crash_at(&self, point: CrashPoint) {
        self.plan.lock().crash = Some(point);
    }

    /// Whether it has crashed.
    pub fn crashed(&self) -> bool {
        self.plan.lock().crashed
    }

    /// Makes it work again after a crash, and forgets a crash still planned.
    pub fn revive(&self) {
        let mut plan = self.plan.lock();
        (plan.crash, plan.crashed) = (None, false);
    }

    /// How many operations it was asked for, the failed ones included.
    pub fn operations(&self) -> u64 {
        self.plan.lock().operations
    }

    /// Holds back the `nth` operation from now (from 1), before it is applied.
    pub fn pause_at(&self, nth: u64) -> Pause {
        self.gate(None, nth)
    }

    /// Holds back the `nth` write of `step` from now (from 1), before it is applied.
    pub fn pause_at_write(&self, step: Step, nth: u64) -> Pause {
        self.gate(Some(step), nth)
    }

    fn gate(&self, step: Option<Step>, nth: u64) -> Pause {
        let (pause, hold) = Pause::new();
        self.plan.lock().gates.push(Gate { step, left: nth.saturating_sub(1), hold });
        pause
    }

    async fn run<T, F>(
        &self,
        operation: &'static str,
        key: &CacheKey,
        kind: Kind,
        apply: impl Fn() -> F + Send + Sync,
    ) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        let gates = self.plan.lock().gates_for(key, kind);
        for gate in gates {
            gate.hold.wait().await;
        }
        let delay = self.plan.lock().delay();
        match delay {
            Some(Delay::Sleep(time)) => tokio::time::sleep(time).await,
            Some(Delay::Yield(times)) => {
                for _ in 0..times {
                    tokio::task::yield_now().await;
                }
            }
            None => {}
        }
        let error = |kind, status, message: &str| {
            Err(Error::new(kind, message).with_status(status).with_operation(operation).with_context("key", key))
        };
        let fate = self.plan.lock().fate(key, kind);
        match fate {
            Fate::Fine => apply().await,
            Fate::Duplicate => {
                apply().await?;
                apply().await
            }
            Fate::FailBefore => error(ErrorKind::Unavailable, Status::Temporary, "injected: not reached"),
            Fate::FailAfter => {
                apply().await?;
                error(ErrorKind::Timeout, Status::Indeterminate, "injected: no answer")
            }
            Fate::Lost => error(ErrorKind::Timeout, Status::Indeterminate, "injected: no answer"),
            Fate::Conflict => error(ErrorKind::Conflict, Status::Permanent, "injected: another version"),
            Fate::Closed => error(ErrorKind::Closed, Status::Permanent, "injected: the store has crashed"),
        }
    }
}

enum Delay {
    Sleep(Duration),
    Yield(u32),
}

impl Plan {
    fn gates_for(&mut self, key: &CacheKey, kind: Kind) -> Vec<Gate> {
        self.operations += 1;
        let matches = |gate: &Gate| gate.step.is_none() || (kind != Kind::Read && gate.step == Step::of(key));
        let mut open = Vec::new();
        for mut gate in std::mem::take(&mut self.gates) {
            if !matches(&gate) {
                self.gates.push(gate);
            } else if gate.left > 0 {
                gate.left -= 1;
                self.gates.push(gate);
            } else {
                open.push(gate);
            }
        }
        open
    }

    fn delay(&mut self) -> Option<Delay> {
        if self.faults.delay == 0.0 || self.random.random::<f64>() >= self.faults.delay {
            return None;
        }
        let part = self.random.random::<f64>();
        Some(match self.faults.max_delay {
            Duration::ZERO => Delay::Yield(1 + (part * 8.0) as u32),
            longest => Delay::Sleep(longest.mul_f64(part)),
        })
    }

    fn fate(&mut self, key: &CacheKey, kind: Kind) -> Fate {
        if self.crashed {
            return Fate::Closed;
        }
        if let Some(point) = &mut self.crash
            && kind != Kind::Read
            && Step::of(key) == Some(point.step)
        {
            point.nth = point.nth.saturating_sub(1);
            if point.nth == 0 {
                self.crashed = true;
                return match point.when {
                    When::Before => Fate::Closed,
                    When::After => Fate::Fine,
                    When::Unknown if self.random.random::<bool>() => Fate::FailAfter,
                    When::Unknown => Fate::Lost,
                };
            }
        }
        let mut roll = self.random.random::<f64>();
        let mut hit = |probability: f64| {
            roll -= probability;
            roll < 0.0
        };
        let faults = self.faults;
        if hit(faults.fail_before) {
            Fate::FailBefore
        } else if kind == Kind::Read {
            Fate::Fine
        } else if hit(faults.fail_after) {
            Fate::FailAfter
        } else if hit(faults.lost) {
            Fate::Lost
        } else if hit(faults.duplicate) {
            Fate::Duplicate
        } else if kind == Kind::Replace && hit(faults.conflict) {
            Fate::Conflict
        } else {
            Fate::Fine
        }
    }
}

#[async_trait]
impl<S: CacheStore + ?Sized> CacheStore for FaultStore<S> {
    fn info(&self) -> StoreInfo {
        let inner = self.inner.info();
        let capabilities = Capabilities { native_commit: false, notify: false, ..inner.capabilities };
        StoreInfo { scheme: "fault", name: format!("fault:{}", inner.name), capabilities }
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Versioned<Bytes>>> {
        self.run("get", key, Kind::Read, || self.inner.get(key)).await
    }

    async fn insert(&self, key: &CacheKey, value: Bytes, expiry: Expiry) -> Result<Version> {
        self.run("insert", key, Kind::Write, || self.inner.insert(key, value.clone(), expiry)).await
    }

    async fn replace(&self, key: &CacheKey, value: Bytes, expected: Version, expiry: Expiry) -> Result<Version> {
        self.run("replace", key, Kind::Replace, || self.inner.replace(key, value.clone(), expected, expiry)).await
    }

    async fn remove(&self, key: &CacheKey, expected: Option<Version>) -> Result<()> {
        self.run("remove", key, Kind::Write, || self.inner.remove(key, expected)).await
    }

    async fn increment(&self, key: &CacheKey, by: u64) -> Result<u64> {
        let kind = if by == 0 { Kind::Read } else { Kind::Write };
        self.run("increment", key, kind, || self.inner.increment(key, by)).await
    }

    async fn ping(&self) -> Result<Duration> {
        // It concerns no document; any key of no step will do.
        self.run("ping", &CacheKey::Meta, Kind::Read, || self.inner.ping()).await
    }
}
