//! The whole feed: which node streams which vbucket, and what becomes of it when nodes come and go (protocol, section 9).

mod maps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sluicegate_core::{Error, ErrorKind, FeedEvent};
use sluicegate_mcbp::client::ClientError;
use sluicegate_mcbp::config::Address;
use sluicegate_mcbp::topology::Topology;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::bootstrap::core_error;
use crate::horizon::Horizon;
use crate::names::Names;
use crate::node;
use crate::options::Target;
use crate::orders::{Filter, Node, Order, Report};
use crate::parcel::{Outlet, Parcel};
use crate::status::{Board, VbucketState};
use crate::tally::{Gauges, Tally};
use crate::vbucket::{Begin, Next, Vbucket};

/// How often in a row a connection may fail with what no pause helps, before the feed ends with it: over some 15 seconds, since a node
/// that is starting may not know users and buckets yet.
const MAX_PERMANENT: u32 = 8;
/// How often in a row a stream may be refused so.
const MAX_REFUSALS: u32 = 5;
/// A connection that has lived so long was a good one.
const GOOD_LIFE: Duration = Duration::from_secs(10);
/// How often is told how far the feed is, at least.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Least pause between two questions for the map.
const MAP_PAUSE: Duration = Duration::from_millis(100);

/// What a feed is to deliver.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: Arc<Target>,
    pub(crate) filter: Filter,
    /// The names of collections.
    pub(crate) names: Arc<Names>,
    /// Name of the connections.
    pub(crate) name: String,
    pub(crate) is_finite: bool,
}

/// Where a vbucket is.
#[derive(Debug)]
enum Place {
    /// Here, until then.
    Waiting(Box<Vbucket>, Instant),
    /// With the connection of this number.
    Given(u64),
    /// All that was wanted of it has come.
    Done,
}

#[derive(Debug)]
struct Slot {
    place: Place,
    backoff: Backoff,
    refusals: u32,
}

/// A connection to a node, or the pause before the next one.
#[derive(Debug)]
struct Peer {
    id: u64,
    orders: Option<mpsc::UnboundedSender<Order>>,
    is_up: bool,
    announces_maps: bool,
    backoff: Backoff,
    /// No connection is tried before.
    until: Instant,
    since: Instant,
    failures: u32,
    tally: Arc<Tally>,
}

/// Drives a feed. Owns what no node has.
pub(crate) struct Driver {
    plan: Plan,
    topology: Topology,
    slots: Vec<Slot>,
    peers: BTreeMap<Address, Peer>,
    tasks: JoinSet<()>,
    /// How far vbuckets are on disk, if events wait for that, and who asks.
    horizon: Option<Arc<Horizon>>,
    observers: BTreeMap<Address, AbortHandle>,
    outlet: Outlet,
    board: Arc<Board>,
    gauges: Gauges,
    reports: mpsc::UnboundedReceiver<Report>,
    reporter: mpsc::UnboundedSender<Report>,
    next_id: u64,
    caught_up: usize,
    is_caught_up: bool,
    unresolved: BTreeSet<u16>,
    resolved: Option<oneshot::Sender<()>>,
    asked_for_map: Instant,
    wants_map: bool,
    bootstrap: Backoff,
    is_bootstrapping: bool,
    bootstrap_failures: u32,
    bootstrap_due: Option<Instant>,
}

impl Driver {
    /// For a bucket whose map is known. `resolved` is told when all vbuckets know where they begin.
    pub(crate) fn new(
        plan: Plan,
        topology: Topology,
        outlet: Outlet,
        board: Arc<Board>,
        begin: impl Fn(u16) -> Begin,
        resolved: oneshot::Sender<()>,
    ) -> Self {
        let now = Instant::now();
        let ids = 0..topology.num_vbuckets() as u16;
        let vbuckets: Vec<Vbucket> = ids.map(|id| Vbucket::new(id, begin(id), plan.is_finite)).collect();
        let unresolved = vbuckets.iter().filter(|vbucket| vbucket.wants_now()).map(Vbucket::id).collect();
        let (reporter, reports) = mpsc::unbounded_channel();
        let horizon = plan.target.options.mitigate_rollbacks.then(|| Arc::new(Horizon::new(topology.num_vbuckets())));
        let mut driver = Driver {
            gauges: Gauges::new(&plan.target.name()),
            horizon,
            observers: BTreeMap::new(),
            plan,
            topology,
            slots: vbuckets.into_iter().map(|vbucket| Slot::new(vbucket, now)).collect(),
            peers: BTreeMap::new(),
            tasks: JoinSet::new(),
            outlet,
            board,
            reports,
            reporter,
            next_id: 0,
            caught_up: 0,
            is_caught_up: false,
            unresolved,
            resolved: Some(resolved),
            asked_for_map: now,
            wants_map: false,
            bootstrap: Backoff::of_nodes(),
            is_bootstrapping: false,
            bootstrap_failures: 0,
            bootstrap_due: None,
        };
        driver.tell_resolved();
        driver.observe();
        driver
    }

    /// Runs until all that was wanted is delivered, nobody takes any more, or nothing helps. Dropping the future closes all connections.
    pub(crate) async fn run(mut self) {
        let outlet = self.outlet.clone();
        tokio::select! {
            ended = self.drive() => {
                if let Err(error) = ended {
                    outlet.fail(error);
                }
            }
            () = outlet.closed() => {}
        }
    }

    async fn drive(&mut self) -> Result<(), Error> {
        loop {
            let due = self.assign();
            self.tell_caught_up();
            self.gauges.tell(&self.board);
            if self.slots.iter().all(|slot| matches!(slot.place, Place::Done)) {
                return Ok(());
            }
            tokio::select! {
                report = self.reports.recv() => {
                    if let Some(report) = report {
                        self.on_report(report).await?;
                    }
                }
                () = tokio::time::sleep_until(due) => {}
                Some(ended) = self.tasks.join_next() => {
                    match ended {
                        Err(e) if !e.is_cancelled() => {
                            return Err(Error::new(ErrorKind::Unexpected, "a task of the feed has failed; this is a bug").with_source(e));
                        }
                        _ => {}
                    }
                }
            }
            if self.bootstrap_due.is_some_and(|due| due <= Instant::now()) {
                self.begin_again();
            }
            self.ask_for_map();
        }
    }

    async fn on_report(&mut self, report: Report) -> Result<(), Error> {
        match report {
            Report::Up { id, announces_maps } => {
                if let Some((_, peer)) = self.peer(id) {
                    (peer.is_up, peer.announces_maps, peer.since) = (true, announces_maps, Instant::now());
                    self.bootstrap_due = None;
                    self.bootstrap.reset();
                }
            }
            Report::Map { map, from } => self.on_map(map, &from).await?,
            Report::Released { vbucket, next, why } => {
                self.on_released(vbucket, next, why)?;
                if self.peers.len() > self.topology.map().map_or(0, |map| map.servers().len()) {
                    self.drop_vanished();
                }
            }
            Report::Progress { resolved, caught_up } => {
                self.caught_up += caught_up;
                for id in resolved {
                    self.unresolved.remove(&id);
                }
                self.tell_resolved();
            }
            Report::Down { id, error, vbuckets } => self.on_down(id, error, vbuckets)?,
            Report::Bootstrapped(found) => self.on_bootstrapped(found).await?,
        }
        Ok(())
    }

    fn peer(&mut self, id: u64) -> Option<(&Address, &mut Peer)> {
        self.peers.iter_mut().find(|(_, peer)| peer.id == id)
    }

    fn on_released(&mut self, vbucket: Box<Vbucket>, next: Next, why: String) -> Result<(), Error> {
        let id = vbucket.id();
        let slot = &mut self.slots[usize::from(id)];
        slot.place = match next {
            Next::Done => {
                // What ends is caught up, even where the server had less to tell than it counts.
                self.caught_up += usize::from(!vbucket.is_caught_up());
                Place::Done
            }
            Next::Ask => Place::Waiting(vbucket, Instant::now()),
            Next::Again { needs_map, is_permanent } => {
                slot.refusals = if is_permanent { slot.refusals + 1 } else { 0 };
                if slot.refusals > MAX_REFUSALS {
                    return Err(Error::new(ErrorKind::Unsupported, format!("vbucket {id} cannot be streamed: {why}"))
                        .with_next_step("check the user's roles, and the options scope and collections"));
                }
                tracing::debug!(vbucket = id, why, "a stream will be asked for again");
                self.wants_map |= needs_map;
                self.board.reopened(id, why);
                slot.backoff.progressed(vbucket.seqno());
                Place::Waiting(vbucket, Instant::now() + slot.backoff.next())
            }
        };
        Ok(())
    }

    fn on_down(&mut self, id: u64, error: ClientError, vbuckets: Vec<Vbucket>) -> Result<(), Error> {
        let now = Instant::now();
        let found = self.peers.iter().find(|(_, peer)| peer.id == id).map(|(node, _)| node.clone());
        let mut has_progressed = false;
        for vbucket in vbuckets {
            let slot = &mut self.slots[usize::from(vbucket.id())];
            self.board.reopened(vbucket.id(), error.to_string());
            self.board.set_state(vbucket.id(), VbucketState::Waiting);
            has_progressed |= slot.backoff.progressed(vbucket.seqno());
            slot.place = Place::Waiting(Box::new(vbucket), now + slot.backoff.next());
        }
        self.wants_map = true;
        if let Some(node) = found
            && let Some(peer) = self.peers.get_mut(&node)
        {
            tracing::warn!(node = %node, ?error, "the connection to a node is gone; it will be tried again");
            let was_good = peer.is_up && (has_progressed || peer.since.elapsed() >= GOOD_LIFE);
            if was_good {
                peer.backoff.reset();
            }
            (peer.orders, peer.is_up) = (None, false);
            peer.until = now + peer.backoff.next();
            peer.failures = if error.is_permanent() && !was_good { peer.failures + 1 } else { 0 };
            if peer.failures > MAX_PERMANENT {
                return Err(core_error(error));
            }
        }
        self.drop_vanished();
        self.want_bootstrap();
        Ok(())
    }

    /// Gives vbuckets to nodes. Says when there is something to do next.
    fn assign(&mut self) -> Instant {
        let now = Instant::now();
        let mut next = now + self.poll_interval().min(TELL_INTERVAL);
        next = self.bootstrap_due.map_or(next, |due| next.min(due));
        if self.wants_map && self.peers.values().any(|peer| peer.is_up) {
            next = next.min((self.asked_for_map + MAP_PAUSE).max(now + Duration::from_millis(1)));
        }
        for id in 0..self.slots.len() as u16 {
            let due = match &self.slots[usize::from(id)].place {
                Place::Waiting(_, due) => *due,
                _ => continue,
            };
            if due > now {
                next = next.min(due);
                continue;
            }
            let again = match self.topology.owner(id) {
                None => {
                    self.wants_map = true;
                    Some(now + self.slots[usize::from(id)].backoff.next())
                }
                Some(node) => self.give(id, &node, now),
            };
            if let Some(again) = again {
                next = next.min(again);
                if let Place::Waiting(_, due) = &mut self.slots[usize::from(id)].place {
                    *due = again;
                }
            }
        }
        next
    }

    /// Gives a waiting vbucket to a node; if that cannot be now, says when.
    fn give(&mut self, id: u16, node: &Address, now: Instant) -> Option<Instant> {
        let tally = || Arc::new(Tally::new(self.board.clone(), self.plan.target.name(), node));
        let peer = self.peers.entry(node.clone()).or_insert_with(|| Peer::new(now, tally()));
        if peer.orders.is_none() {
            if peer.until > now {
                return Some(peer.until);
            }
            self.next_id += 1;
            let (sender, receiver) = mpsc::unbounded_channel();
            (peer.id, peer.orders, peer.is_up) = (self.next_id, Some(sender), false);
            let node = Node {
                id: peer.id,
                address: node.clone(),
                target: self.plan.target.clone(),
                name: self.plan.name.clone(),
                filter: self.plan.filter.clone(),
                names: self.plan.names.clone(),
                horizon: self.horizon.clone(),
                board: self.board.clone(),
                tally: peer.tally.clone(),
                outlet: self.outlet.clone(),
                reports: self.reporter.clone(),
            };
            let next_id = peer.id;
            tracing::debug!(node = %node.address, id = next_id, "connecting");
            self.tasks.spawn(node::run(node, receiver));
        }
        let slot = &mut self.slots[usize::from(id)];
        if let (Some(orders), Place::Waiting(..)) = (&peer.orders, &slot.place) {
            let Place::Waiting(vbucket, _) = std::mem::replace(&mut slot.place, Place::Given(peer.id)) else { return None };
            if let Err(mpsc::error::SendError(Order::Open(vbucket))) = orders.send(Order::Open(vbucket)) {
                // The connection is just going down; its report is on the way.
                let again = now + slot.backoff.next();
                slot.place = Place::Waiting(vbucket, again);
                return Some(again);
            }
        }
        None
    }

    fn tell_resolved(&mut self) {
        if self.unresolved.is_empty()
            && let Some(resolved) = self.resolved.take()
        {
            let _ = resolved.send(());
        }
    }

    fn tell_caught_up(&mut self) {
        if !self.is_caught_up && self.caught_up >= self.slots.len() {
            self.is_caught_up = true;
            self.outlet.send(Parcel::own(vec![FeedEvent::CaughtUp]));
        }
    }
}

impl Slot {
    fn new(vbucket: Vbucket, now: Instant) -> Self {
        Slot { place: Place::Waiting(Box::new(vbucket), now), backoff: Backoff::of_streams(), refusals: 0 }
    }
}

impl Peer {
    fn new(now: Instant, tally: Arc<Tally>) -> Self {
        let backoff = Backoff::of_nodes();
        Peer { id: 0, orders: None, is_up: false, announces_maps: false, backoff, until: now, since: now, failures: 0, tally }
    }
}
