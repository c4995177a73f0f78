//! A cluster's feed, written down while the cluster loses changes, and played back when it is gone.

use std::collections::BTreeSet;
use std::fs::File;

use futures::StreamExt as _;
use sluicegate::core::feed::PositionTracker;
use sluicegate::{FeedEvent, FeedStart, FeedStream, Mutation, PartitionId};
use sluicegate_replay::Recorder;
use sluicegate_simulator::Cluster;

use super::support::recorded::{SETS, load};
use super::support::{Kind, on_every_store};
use super::{answers, assert_as_new, channels_of, cluster, feed, write, writer};

on_every_store! {
    a_cache_made_from_a_recording_is_as_one_that_followed_the_cluster
}

const VBUCKETS: u16 = 64;

/// A recording under way.
struct Recording {
    events: FeedStream,
    recorder: Recorder<File>,
    tracker: PositionTracker,
    /// Partitions whose rollback has not ended.
    open: BTreeSet<PartitionId>,
    rollbacks: usize,
}

impl Recording {
    /// Goes on until all that the cluster has was taken.
    async fn catch_up(&mut self, cluster: &Cluster) {
        let high = |vbucket| cluster.high_seqno(vbucket);
        let seqno = |tracker: &PositionTracker, vbucket| tracker.at(PartitionId(vbucket)).map_or(0, |at| at.seqno);
        while !self.open.is_empty() || (0..VBUCKETS).any(|vbucket| seqno(&self.tracker, vbucket) != high(vbucket)) {
            for event in self.events.next().await.unwrap().unwrap().events {
                self.recorder.write(&event).unwrap();
                self.tracker.observe(&event);
                match event {
                    FeedEvent::Rollback { partition, .. } => {
                        self.open.insert(partition);
                        self.rollbacks += 1;
                    }
                    FeedEvent::RollbackEnded { partition } => drop(self.open.remove(&partition)),
                    _ => {}
                }
            }
        }
    }
}

async fn a_cache_made_from_a_recording_is_as_one_that_followed_the_cluster(kind: Kind) {
    let (recording, _) = load(&SETS[2]);
    let all: Vec<Mutation> = recording.parts().into_iter().flat_map(|(_, part)| part).collect();
    let cluster = cluster(VBUCKETS).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recorded.gz");

    let live = feed(&cluster, "config_poll_ms=50").await;
    let mut recording = Recording {
        events: live.open(FeedStart::Beginning).await.unwrap(),
        recorder: Recorder::create(&file, &live.info()).unwrap(),
        tracker: PositionTracker::default(),
        open: BTreeSet::new(),
        rollbacks: 0,
    };
    let (first, rest) = all.split_at(all.len() / 2);
    let (second, last) = rest.split_at(rest.len() - 200);
    write(&cluster, first);
    recording.catch_up(&cluster).await;
    write(&cluster, second);
    recording.catch_up(&cluster).await;
    for vbucket in 0..VBUCKETS {
        cluster.fail_over_vbucket(vbucket, cluster.high_seqno(vbucket).saturating_sub(1 + u64::from(vbucket % 5)));
    }
    recording.catch_up(&cluster).await;
    write(&cluster, last);
    recording.catch_up(&cluster).await;
    assert!(recording.rollbacks > 10, "{}", recording.rollbacks);
    recording.recorder.finish().unwrap();

    let replay = sluicegate::open_feed(&format!("replay:{}", file.display())).await.unwrap();
    let store = kind.fresh().await;
    let mut played = writer(&store, replay.as_ref()).await;
    played.run(replay.as_ref(), std::future::pending()).await.unwrap();
    assert!(played.stats().withdrawn > 10, "{:?}", played.stats());
    let channels = channels_of(&all);
    assert_as_new(kind, &store, &cluster, &channels).await;
    assert!(answers(&store, &channels).await["*"].len() > 100);
}
