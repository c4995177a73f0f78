//! What the feed counts, as a recorder of metrics gets it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;
use sluicegate_simulator::EndReason;

use crate::{Follower, cluster, keys, write};

/// Keeps what is counted, by name and labels.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>);

impl Kept {
    fn cell(&self, key: &Key) -> Arc<AtomicU64> {
        let labels = key.labels().filter(|label| label.key() != "node");
        let labels: Vec<String> = labels.map(|label| format!("{}={}", label.key(), label.value())).collect();
        let node = key.labels().find(|label| label.key() == "node").map_or("all", |label| label.value());
        self.0.lock().entry(format!("{}{{{}}} {node}", key.name(), labels.join(","))).or_default().clone()
    }

    /// The sum over all nodes, as integers and as floating point numbers are added.
    fn sums(&self, name: &str) -> (u64, f64) {
        let kept = self.0.lock();
        let cells =
            kept.iter().filter(|(key, _)| key.split(' ').next() == Some(name)).map(|(_, cell)| cell.load(Ordering::Relaxed));
        let cells: Vec<u64> = cells.collect();
        (cells.iter().sum(), cells.iter().map(|bits| f64::from_bits(*bits)).sum())
    }

    fn counted(&self, name: &str) -> u64 {
        self.sums(name).0
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Last(self.cell(key))))
    }
}

/// Keeps the last value only.
struct Last(Arc<AtomicU64>);

impl metrics::HistogramFn for Last {
    fn record(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

#[test]
fn what_is_counted_is_what_the_readme_names() {
    let kept = Kept::default();
    // All tasks run on this thread, where the recorder is.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&kept, || runtime.block_on(follow(&kept)));
    let readme = include_str!("../../README.md");
    for key in kept.0.lock().keys() {
        let name = key.split('{').next().unwrap();
        assert!(readme.contains(&format!("`{name}`")), "{name}");
    }
}

/// Seconds since the time at which the cluster's clock stands.
fn now() -> f64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - 1_750_000_000.0
}

async fn follow(kept: &Kept) {
    let began = now() - 0.001;
    let cluster = cluster(16, 300).await;
    let mut follower = Follower::open(&cluster, "").await;
    follower.catch_up().await;
    follower.has_exactly(keys("document-", 300));
    cluster.end_streams(3, EndReason::StateChanged);
    cluster.fail_over_vbucket(5, cluster.high_seqno(5) - 1);
    write(&cluster, "new-", 100);
    follower.has(keys("new-", 100)).await;
    cluster.delete("new-0000007").unwrap();
    let of_kind = |kind| kept.counted(&format!("sluicegate_dcp_events_total{{feed=default,kind={kind}}}"));
    follower.until(|follower| !follower.rollbacks.is_empty() && of_kind("deletion") > 0).await;
    let vbuckets = |state: &str| kept.sums(&format!("sluicegate_dcp_vbuckets{{feed=default,state={state}}}")).1;
    let streaming = async {
        while vbuckets("streaming") != 16.0 || kept.sums("sluicegate_dcp_lag_seqnos{feed=default}").1 != 0.0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), streaming).await.expect("all are told to be streaming");
    assert_eq!((vbuckets("waiting"), vbuckets("opening"), vbuckets("done")), (0.0, 0.0, 0.0));
    let counters = follower.feed.status().counters;
    let all = |name: &str| kept.counted(&format!("sluicegate_dcp_{name}{{feed=default}}"));
    let kinds = ["mutation", "deletion", "expiration", "other"].map(of_kind);
    assert_eq!(kinds.iter().sum::<u64>(), counters.events);
    assert!(kinds[0] >= 399 && kinds[1] == 1 && kinds[3] > 16, "{kinds:?}");
    // The mean of three nodes.
    let age = kept.sums("sluicegate_dcp_age_seconds{feed=default}").1 / 3.0;
    assert!((began..=now()).contains(&age), "{age}");
    assert_eq!(all("received_bytes_total"), counters.received_bytes);
    assert_eq!(all("acknowledged_bytes_total"), counters.acknowledged_bytes);
    assert_eq!((all("connections_total"), counters.connections), (3, 3));
    assert_eq!((all("rollbacks_total"), counters.rollbacks), (1, 1));
    assert_eq!(all("unknown_messages_total"), 0);
    let ended = kept.counted("sluicegate_dcp_stream_ends_total{feed=default,reason=state_changed}");
    assert_eq!((ended, counters.stream_ends["state_changed"]), (1, 1));
    assert_eq!(counters.stream_ends["rollback"], 1);
    assert!(counters.received_bytes > 400 * 24 && counters.reopens >= 2, "{counters:?}");
    let unacknowledged = kept.sums("sluicegate_dcp_unacknowledged_bytes{feed=default}").1;
    assert_eq!(unacknowledged as u64, counters.unacknowledged_bytes);
    assert_eq!(counters.unacknowledged_bytes, counters.received_bytes - counters.acknowledged_bytes);
    let status = follower.feed.status();
    for (id, vbucket) in (0..).zip(&status.vbuckets) {
        assert_eq!((vbucket.seqno, vbucket.high_seqno, vbucket.lag), (cluster.high_seqno(id), cluster.high_seqno(id), 0), "{id}");
        assert_eq!(vbucket.uuid, cluster.failover_log(id).newest().unwrap().vbucket_uuid);
    }
    cluster.drop_connections();
    write(&cluster, "again-", 100);
    follower.has(keys("again-", 100)).await;
    assert_eq!((all("connections_total"), all("connection_errors_total")), (6, 3));
    drop(follower);
    // What ends with the feed lets go when its tasks are gone.
    let gone = async {
        while kept.sums("sluicegate_dcp_unacknowledged_bytes{feed=default}").1 != 0.0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("what was not given back is forgotten");
}
