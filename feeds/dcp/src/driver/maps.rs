//! Cluster maps: asking for them, and what follows from a new one.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sluicegate_core::{Error, ErrorKind, FeedEvent, PartitionId, PartitionSeqno};
use sluicegate_mcbp::client::ClientError;
use sluicegate_mcbp::config::{Address, ClusterMap};
use sluicegate_mcbp::topology::Offer;
use tokio::time::Instant;

use super::{Driver, MAP_PAUSE, MAX_PERMANENT, Peer, Place, Slot};
use crate::bootstrap::{bootstrap, core_error};
use crate::observer;
use crate::orders::{Order, Report};
use crate::parcel::Parcel;
use crate::status::VbucketState;
use crate::vbucket::Vbucket;

/// How often the map is asked for where nodes announce it: a notice may be lost.
const RARE_POLL: Duration = Duration::from_secs(20);

impl Driver {
    pub(super) async fn on_map(&mut self, map: ClusterMap, from: &Address) -> Result<(), Error> {
        let offer = self.topology.offer(map, from);
        if offer == Offer::Ignored {
            return Ok(());
        }
        self.board.maps.fetch_add(1, Relaxed);
        if self.topology.num_vbuckets() != self.slots.len() {
            let message = format!("the bucket has {} vbuckets now, and had {}", self.topology.num_vbuckets(), self.slots.len());
            return Err(
                Error::new(ErrorKind::RolledBack, message).with_next_step("open the feed again by its URL, from the beginning")
            );
        }
        if offer == Offer::Recreated {
            self.start_over().await;
        }
        let owners: Vec<Option<Address>> = (0..self.slots.len() as u16).map(|id| self.topology.owner(id)).collect();
        for (node, peer) in &self.peers {
            let moved = || owners.iter().zip(0..).filter(|(owner, _)| owner.as_ref() != Some(node)).map(|(_, id)| id).collect();
            if let Some(orders) = &peer.orders {
                let _ = orders.send(Order::Moved(moved()));
            }
        }
        self.drop_vanished();
        self.observe();
        let now = Instant::now();
        for slot in &mut self.slots {
            if let Place::Waiting(_, due) = &mut slot.place {
                // A new map is worth a try at once.
                *due = now;
            }
        }
        Ok(())
    }

    /// Has all nodes of the map asked how far they are on disk, and no others, if events wait for that.
    pub(super) fn observe(&mut self) {
        let Some(horizon) = &self.horizon else { return };
        for id in 0..self.slots.len() as u16 {
            horizon.set_copies(id, self.topology.copies(id).into_iter().flatten().collect());
        }
        let nodes = self.topology.nodes();
        self.observers.retain(|node, observer| {
            let stays = nodes.contains(node);
            if !stays {
                observer.abort();
            }
            stays
        });
        for node in nodes {
            let (target, horizon) = (self.plan.target.clone(), horizon.clone());
            let spawn = || self.tasks.spawn(observer::run(node.clone(), target, horizon));
            self.observers.entry(node.clone()).or_insert_with(spawn);
        }
    }

    /// Lets go of nodes that the map does not name any more, once they have given back what they had.
    pub(super) fn drop_vanished(&mut self) {
        let nodes = self.topology.nodes();
        let slots = &self.slots;
        let has_some = |id: u64| slots.iter().any(|slot| matches!(slot.place, Place::Given(given) if given == id));
        self.peers.retain(|node, peer| nodes.contains(node) || has_some(peer.id));
    }

    /// The bucket is another one of the same name: nothing that was delivered holds.
    async fn start_over(&mut self) {
        tracing::warn!(bucket = self.plan.target.connect.bucket, "the bucket was created again; all of it is taken back");
        // What is under way must not be delivered after this.
        self.peers.clear();
        self.observers.clear();
        self.tasks.shutdown().await;
        self.is_bootstrapping = false;
        while self.reports.try_recv().is_ok() {}
        let now = Instant::now();
        let ids = 0..self.slots.len() as u16;
        let to = PartitionSeqno(0);
        let events = ids.clone().map(|id| FeedEvent::Rollback { partition: PartitionId(id), to }).collect();
        self.outlet.send(Parcel::own(events));
        self.slots = ids.map(|id| Slot::new(Vbucket::taken_back(id, self.plan.is_finite), now)).collect();
        (0..self.slots.len() as u16).for_each(|id| {
            self.board.rolled_back(id);
            self.board.set_seqno(id, 0);
            self.board.set_high(id, 0);
            self.board.set_state(id, VbucketState::Waiting);
        });
        self.caught_up = 0;
        self.unresolved.clear();
        self.tell_resolved();
    }

    pub(super) fn poll_interval(&self) -> Duration {
        let is_announced = self.peers.values().any(|peer| peer.is_up && peer.announces_maps);
        let often = Duration::from_millis(self.plan.target.options.config_poll_ms);
        if is_announced { often.max(RARE_POLL) } else { often }
    }

    /// Asks a node for the map if that is wanted, or due: another one each time.
    pub(super) fn ask_for_map(&mut self) {
        let since = self.asked_for_map.elapsed();
        if !(self.wants_map && since >= MAP_PAUSE) && since < self.poll_interval() {
            return;
        }
        let up: Vec<&Peer> = self.peers.values().filter(|peer| peer.is_up).collect();
        if up.is_empty() {
            self.want_bootstrap();
            return;
        }
        let peer = up[rand::random_range(0..up.len())];
        if let Some(orders) = &peer.orders {
            let _ = orders.send(Order::AskForMap);
        }
        (self.asked_for_map, self.wants_map) = (Instant::now(), false);
    }

    /// All nodes are lost: asks those that were known, and those that were named first, for a map.
    pub(super) fn begin_again(&mut self) {
        (self.bootstrap_due, self.is_bootstrapping) = (None, true);
        let (target, known, reporter) = (self.plan.target.clone(), self.topology.nodes(), self.reporter.clone());
        self.tasks.spawn(async move {
            let found = bootstrap(&target, known).await;
            let _ = reporter.send(Report::Bootstrapped(found.map(|(session, map)| (map, session.address().clone()))));
        });
    }

    pub(super) async fn on_bootstrapped(&mut self, found: Result<(ClusterMap, Address), ClientError>) -> Result<(), Error> {
        match found {
            Ok((map, from)) => {
                (self.bootstrap_failures, self.is_bootstrapping) = (0, false);
                if self.peers.values().any(|peer| peer.is_up) {
                    return Ok(());
                }
                self.topology.expect_anything();
                self.on_map(map, &from).await
            }
            Err(error) => {
                self.is_bootstrapping = false;
                self.bootstrap_failures = if error.is_permanent() { self.bootstrap_failures + 1 } else { 0 };
                if self.bootstrap_failures > MAX_PERMANENT {
                    return Err(core_error(error));
                }
                tracing::warn!(?error, "no node can be reached; trying again");
                self.want_bootstrap();
                Ok(())
            }
        }
    }

    /// Asks for a map from the beginning, after a pause, if no connection is up.
    pub(super) fn want_bootstrap(&mut self) {
        if self.bootstrap_due.is_none() && !self.is_bootstrapping && !self.peers.values().any(|peer| peer.is_up) {
            self.bootstrap_due = Some(Instant::now() + self.bootstrap.next());
        }
    }
}
