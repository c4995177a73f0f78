//! What a feed is doing, vbucket by vbucket, for those who look after it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;
use sluicegate_mcbp::config::Address;

/// What an open feed is doing. Serializable; holds no secret, key or value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DcpStatus {
    /// The vbuckets, by number.
    pub vbuckets: Vec<VbucketStatus>,
    /// Counters of the feed since it was opened.
    pub counters: Counters,
}

/// What is known of one vbucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct VbucketStatus {
    /// What it is doing.
    pub state: VbucketState,
    /// The node that it is asked of, or streams from.
    pub node: Option<String>,
    /// The last seqno that came.
    pub seqno: u64,
    /// The last seqno that the server is known to have: it is asked now and then.
    pub high_seqno: u64,
    /// How many seqnos are still to come, as far as is known. Fewer events may be: a server leaves out those that it has replaced.
    pub lag: u64,
    /// Identity of the history that is streamed; 0 before the first stream.
    pub uuid: u64,
    /// How often its stream was asked for again.
    pub reopens: u32,
    /// How often something was taken back.
    pub rollbacks: u32,
    /// Why its stream last ended or was refused.
    pub last_error: Option<String>,
}

/// What a vbucket is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum VbucketState {
    /// It waits: for a node that has it, or for a pause to be over.
    #[default]
    Waiting,
    /// Its node is asked for its stream.
    Opening,
    /// Its stream is open.
    Streaming,
    /// All that was wanted of it has come.
    Done,
}

/// Counters of a feed since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Events delivered, those that tell of snapshots and histories among them.
    pub events: u64,
    /// Connections made to nodes.
    pub connections: u64,
    /// Connections that failed or broke.
    pub connection_errors: u64,
    /// Messages of streams that were given up; dropped, and given back to flow control.
    pub stale_messages: u64,
    /// Messages that are not known here; dropped.
    pub unknown_messages: u64,
    /// Values that cannot be decompressed; they are delivered as they came.
    pub undecoded_values: u64,
    /// Cluster maps taken over.
    pub cluster_maps: u64,
    /// Bytes of messages that flow control counts.
    pub received_bytes: u64,
    /// Bytes given back to flow control.
    pub acknowledged_bytes: u64,
    /// Bytes that came over connections that are up, and are not given back.
    pub unacknowledged_bytes: u64,
    /// How often a node has asked to go back.
    pub rollbacks: u64,
    /// How often a stream was asked for again.
    pub reopens: u64,
    /// Streams that nodes have ended, by reason, for example `state_changed`.
    pub stream_ends: BTreeMap<String, u64>,
}

/// What the tasks of a feed write its status to.
#[derive(Debug)]
pub(crate) struct Board {
    cells: Vec<Cell>,
    pub(crate) events: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) connection_errors: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) unknown: AtomicU64,
    pub(crate) undecoded: AtomicU64,
    pub(crate) maps: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) unacknowledged: AtomicU64,
    pub(crate) stream_ends: Mutex<BTreeMap<String, u64>>,
}

#[derive(Debug, Default)]
struct Cell {
    state: AtomicU8,
    seqno: AtomicU64,
    high: AtomicU64,
    uuid: AtomicU64,
    reopens: AtomicU32,
    rollbacks: AtomicU32,
    told: Mutex<(Option<Address>, Option<String>)>,
}

impl Cell {
    /// The place of its state in [`STATES`].
    fn state(&self) -> usize {
        usize::from(self.state.load(Ordering::Relaxed)) % STATES.len()
    }

    /// The last seqno that came, and how many are still to come.
    fn progress(&self) -> (u64, u64) {
        let (seqno, high) = (self.seqno.load(Ordering::Relaxed), self.high.load(Ordering::Relaxed));
        (seqno, high.saturating_sub(seqno))
    }
}

/// By number.
pub(crate) const STATES: [VbucketState; 4] =
    [VbucketState::Waiting, VbucketState::Opening, VbucketState::Streaming, VbucketState::Done];

impl Board {
    pub(crate) fn new(vbuckets: usize) -> Self {
        Board {
            cells: std::iter::repeat_with(Cell::default).take(vbuckets).collect(),
            events: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            connection_errors: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            undecoded: AtomicU64::new(0),
            maps: AtomicU64::new(0),
            received: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            unacknowledged: AtomicU64::new(0),
            stream_ends: Mutex::default(),
        }
    }

    pub(crate) fn set_state(&self, vbucket: u16, state: VbucketState) {
        if let Some(cell) = self.cells.get(usize::from(vbucket)) {
            cell.state.store(state as u8, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn set_seqno(&self, vbucket: u16, seqno: u64) {
        if let Some(cell) = self.cells.get(usize::from(vbucket)) {
            cell.seqno.store(seqno, Ordering::Relaxed);
        }
    }

    /// The server has at least this seqno.
    pub(crate) fn has_high(&self, vbucket: u16, high: u64) {
        if let Some(cell) = self.cells.get(usize::from(vbucket)) {
            cell.high.fetch_max(high, Ordering::Relaxed);
        }
    }

    /// The server has this seqno and no more: it may have had more in another history.
    pub(crate) fn set_high(&self, vbucket: u16, high: u64) {
        if let Some(cell) = self.cells.get(usize::from(vbucket)) {
            cell.high.store(high, Ordering::Relaxed);
        }
    }

    pub(crate) fn set_uuid(&self, vbucket: u16, uuid: u64) {
        if let Some(cell) = self.cells.get(usize::from(vbucket)) {
            cell.uuid.store(uuid, Ordering::Relaxed);
        }
    }

    pub(crate) fn set_node(&self, vbucket: u16, node: Option<Address>) {
        if let Some(cell) = self.cells.get(usize::from(vbucket)) {
            cell.told.lock().0 = node;
        }
    }

    pub(crate) fn reopened(&self, vbucket: u16, why: String) {
        if let Some(cell) = self.cells.get(usize::from(vbucket)) {
            cell.reopens.fetch_add(1, Ordering::Relaxed);
            cell.told.lock().1 = Some(why);
        }
    }

    pub(crate) fn rolled_back(&self, vbucket: u16) {
        if let Some(cell) = self.cells.get(usize::from(vbucket)) {
            cell.rollbacks.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many vbuckets are in each of [`STATES`], and how many seqnos are still to come of all of them.
    pub(crate) fn summary(&self) -> ([u32; STATES.len()], u64) {
        let (mut states, mut lag) = ([0; STATES.len()], 0u64);
        for cell in &self.cells {
            states[cell.state()] += 1;
            lag = lag.saturating_add(cell.progress().1);
        }
        (states, lag)
    }

    pub(crate) fn snapshot(&self) -> DcpStatus {
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let vbucket = |cell: &Cell| {
            let (node, last_error) = cell.told.lock().clone();
            let (seqno, lag) = cell.progress();
            VbucketStatus {
                state: STATES[cell.state()],
                node: node.map(|node| node.to_string()),
                seqno,
                high_seqno: seqno + lag,
                lag,
                uuid: load(&cell.uuid),
                reopens: cell.reopens.load(Ordering::Relaxed),
                rollbacks: cell.rollbacks.load(Ordering::Relaxed),
                last_error,
            }
        };
        let vbuckets: Vec<VbucketStatus> = self.cells.iter().map(vbucket).collect();
        let sum = |of: fn(&VbucketStatus) -> u32| vbuckets.iter().map(|vbucket| u64::from(of(vbucket))).sum();
        let (rollbacks, reopens) = (sum(|vbucket| vbucket.rollbacks), sum(|vbucket| vbucket.reopens));
        DcpStatus {
            vbuckets,
            counters: Counters {
                events: load(&self.events),
                connections: load(&self.connections),
                connection_errors: load(&self.connection_errors),
                stale_messages: load(&self.stale),
                unknown_messages: load(&self.unknown),
                undecoded_values: load(&self.undecoded),
                cluster_maps: load(&self.maps),
                received_bytes: load(&self.received),
                acknowledged_bytes: load(&self.acknowledged),
                unacknowledged_bytes: load(&self.unacknowledged),
                rollbacks,
                reopens,
                stream_ends: self.stream_ends.lock().clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_was_written_and_serializes() {
        let board = Board::new(2);
        board.set_state(1, VbucketState::Streaming);
        board.set_seqno(1, 77);
        board.has_high(1, 80);
        board.has_high(1, 79);
        board.set_uuid(1, 5);
        board.set_node(1, Some(Address { host: "::1".to_owned(), port: 11210 }));
        board.reopened(1, "it moved".to_owned());
        board.set_seqno(9, 1);
        let json = serde_json::to_value(board.snapshot()).unwrap();
        let expected = serde_json::json!({
            "state": "streaming", "node": "[::1]:11210", "seqno": 77, "high_seqno": 80, "lag": 3, "uuid": 5,
            "reopens": 1, "rollbacks": 0, "last_error": "it moved",
        });
        assert_eq!(json["vbuckets"][1], expected);
        assert_eq!(json["vbuckets"][0]["state"], "waiting");
    }
}
