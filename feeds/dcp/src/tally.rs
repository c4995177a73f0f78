//! What a connection counts: for the feed's status, and for whoever collects metrics. The names are in the README.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use parking_lot::Mutex;
use sluicegate_core::FeedEvent;
use sluicegate_core::feed::MutationKind;
use sluicegate_mcbp::config::Address;
use sluicegate_mcbp::dcp::EndReason;

use crate::status::{Board, STATES, VbucketState};

/// What events are told apart as: the kinds of mutations by their numbers, and the rest.
const KINDS: [&str; MutationKind::ALL.len() + 1] =
    [MutationKind::ALL[0].name(), MutationKind::ALL[1].name(), MutationKind::ALL[2].name(), "other"];

/// The place in [`KINDS`].
#[inline]
fn kind_of(event: &FeedEvent) -> usize {
    match event {
        FeedEvent::Mutation(mutation) => mutation.kind as usize,
        _ => MutationKind::ALL.len(),
    }
}

/// How long ago a document was changed: its compare-and-swap value is the server's time then, in nanoseconds since 1970, if it is one that the server gave.
fn age_of(event: &FeedEvent, now: Duration) -> Option<Duration> {
    match event {
        FeedEvent::Mutation(mutation) => Some(now.saturating_sub(Duration::from_nanos(mutation.cas))),
        _ => None,
    }
}

/// What a feed tells of all its vbuckets together, now and then.
#[derive(Debug)]
pub(crate) struct Gauges {
    lag: Gauge,
    states: [Gauge; STATES.len()],
}

impl Gauges {
    /// For the feed called `feed`.
    pub(crate) fn new(feed: &str) -> Self {
        let feed = ("feed", feed.to_owned());
        let of_state = |state: VbucketState| {
            let state = snake(&format!("{state:?}"));
            gauge!("sluicegate_dcp_vbuckets", &[feed.clone(), ("state", state)])
        };
        let states = STATES.map(of_state);
        Gauges { lag: gauge!("sluicegate_dcp_lag_seqnos", &[feed]), states }
    }

    pub(crate) fn tell(&self, board: &Board) {
        let (states, lag) = board.summary();
        self.set(states, lag);
    }

    fn set(&self, states: [u32; STATES.len()], lag: u64) {
        self.lag.set(lag as f64);
        for (gauge, count) in self.states.iter().zip(states) {
            gauge.set(f64::from(count));
        }
    }
}

impl Drop for Gauges {
    fn drop(&mut self) {
        self.set([0; STATES.len()], 0);
    }
}

/// Counts what happens on connections to one node.
#[derive(Debug)]
pub(crate) struct Tally {
    board: Arc<Board>,
    labels: [(&'static str, String); 2],
    events: [Counter; KINDS.len()],
    age: Histogram,
    received: Counter,
    acknowledged: Counter,
    unacknowledged: Gauge,
    connections: Counter,
    connection_errors: Counter,
    stale: Counter,
    unknown: Counter,
    undecoded: Counter,
    rollbacks: Counter,
    /// By reason, as far as there were any.
    stream_ends: Mutex<BTreeMap<String, Counter>>,
}

impl Tally {
    /// For connections of the feed called `feed` to `node`.
    pub(crate) fn new(board: Arc<Board>, feed: String, node: &Address) -> Self {
        let labels = [("feed", feed), ("node", node.to_string())];
        Tally {
            events: KINDS.map(|kind| {
                let [feed, node] = labels.clone();
                counter!("sluicegate_dcp_events_total", &[feed, node, ("kind", kind.to_owned())])
            }),
            age: histogram!("sluicegate_dcp_age_seconds", &labels),
            received: counter!("sluicegate_dcp_received_bytes_total", &labels),
            acknowledged: counter!("sluicegate_dcp_acknowledged_bytes_total", &labels),
            unacknowledged: gauge!("sluicegate_dcp_unacknowledged_bytes", &labels),
            connections: counter!("sluicegate_dcp_connections_total", &labels),
            connection_errors: counter!("sluicegate_dcp_connection_errors_total", &labels),
            stale: counter!("sluicegate_dcp_stale_messages_total", &labels),
            unknown: counter!("sluicegate_dcp_unknown_messages_total", &labels),
            undecoded: counter!("sluicegate_dcp_undecoded_values_total", &labels),
            rollbacks: counter!("sluicegate_dcp_rollbacks_total", &labels),
            stream_ends: Mutex::default(),
            board,
            labels,
        }
    }

    /// A connection could not be made, or broke.
    pub(crate) fn disconnected(&self) {
        self.board.connection_errors.fetch_add(1, Relaxed);
        self.connection_errors.increment(1);
    }

    /// Events are delivered. `now` is the time since 1970.
    pub(crate) fn delivered(&self, events: &[FeedEvent], now: Duration) {
        self.board.events.fetch_add(events.len() as u64, Relaxed);
        let mut kinds = [0; KINDS.len()];
        for event in events {
            kinds[kind_of(event)] += 1;
        }
        for (counter, count) in self.events.iter().zip(kinds) {
            if count > 0 {
                counter.increment(count);
            }
        }
        if let Some(age) = events.iter().rev().find_map(|event| age_of(event, now)) {
            self.age.record(age.as_secs_f64());
        }
    }

    pub(crate) fn stale(&self) {
        self.board.stale.fetch_add(1, Relaxed);
        self.stale.increment(1);
    }

    /// Whether it is the first message of the feed that is not known.
    pub(crate) fn unknown(&self) -> bool {
        self.unknown.increment(1);
        self.board.unknown.fetch_add(1, Relaxed) == 0
    }

    /// A value cannot be decompressed.
    #[cold]
    pub(crate) fn undecoded(&self) {
        self.undecoded.increment(1);
        self.board.undecoded.fetch_add(1, Relaxed);
    }

    /// The node has asked to go back.
    pub(crate) fn rolled_back(&self, vbucket: u16) {
        self.board.rolled_back(vbucket);
        self.rollbacks.increment(1);
    }

    /// The node has ended a stream.
    pub(crate) fn stream_ended(&self, reason: EndReason) {
        let name = match reason {
            EndReason::Other(_) => "other".to_owned(),
            reason => snake(&format!("{reason:?}")),
        };
        *self.board.stream_ends.lock().entry(name.clone()).or_default() += 1;
        let mut ends = self.stream_ends.lock();
        let counter = ends.entry(name).or_insert_with_key(|name| {
            let [feed, node] = self.labels.clone();
            counter!("sluicegate_dcp_stream_ends_total", &[feed, node, ("reason", name.clone())])
        });
        counter.increment(1);
    }
}

/// What one connection has received and not given back. When it is gone nothing of that counts any more.
#[derive(Debug)]
pub(crate) struct Open {
    tally: Arc<Tally>,
    unacknowledged: u64,
}

impl Open {
    pub(crate) fn new(tally: Arc<Tally>) -> Self {
        tally.board.connections.fetch_add(1, Relaxed);
        tally.connections.increment(1);
        Open { tally, unacknowledged: 0 }
    }

    /// Bytes have come that flow control counts.
    pub(crate) fn received(&mut self, bytes: u64) {
        self.unacknowledged += bytes;
        self.tally.board.received.fetch_add(bytes, Relaxed);
        self.tally.board.unacknowledged.fetch_add(bytes, Relaxed);
        self.tally.received.increment(bytes);
        self.tally.unacknowledged.increment(bytes as f64);
    }

    /// Bytes are given back to flow control.
    pub(crate) fn acknowledged(&mut self, bytes: u64) {
        self.tally.board.acknowledged.fetch_add(bytes, Relaxed);
        self.tally.acknowledged.increment(bytes);
        self.forget(bytes);
    }

    fn forget(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unacknowledged);
        self.unacknowledged -= bytes;
        self.tally.board.unacknowledged.fetch_sub(bytes, Relaxed);
        self.tally.unacknowledged.decrement(bytes as f64);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.forget(self.unacknowledged);
    }
}

/// `StateChanged` as `state_changed`.
fn snake(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_had_not_given_back_is_forgotten_with_it() {
        let board = Arc::new(Board::new(1));
        let tally = Arc::new(Tally::new(board.clone(), "b".to_owned(), &Address { host: "a".to_owned(), port: 1 }));
        let (mut first, mut second) = (Open::new(tally.clone()), Open::new(tally));
        first.received(70);
        second.received(30);
        second.acknowledged(10);
        let unacknowledged = || board.snapshot().counters.unacknowledged_bytes;
        assert_eq!(unacknowledged(), 90);
        drop(first);
        assert_eq!(unacknowledged(), 20);
        drop(second);
        let counters = board.snapshot().counters;
        assert_eq!(
            (counters.unacknowledged_bytes, counters.received_bytes, counters.acknowledged_bytes, counters.connections),
            (0, 100, 10, 2)
        );
    }

    #[test]
    fn names_of_reasons_are_spelled_as_metrics_are() {
        assert_eq!([snake("Ok"), snake("StateChanged"), snake("LostPrivileges")], ["ok", "state_changed", "lost_privileges"]);
    }
}
