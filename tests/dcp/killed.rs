//! The writer is a process of its own, killed again and again while the cluster is being written to.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate::core::batch::Checkpoint;
use sluicegate::core::commit::read_clock;
use sluicegate::core::verify::{VerifyOptions, verify};
use sluicegate::{CacheKey, CacheStore, Epoch, PartitionId};
use sluicegate_simulator::Cluster;
use sluicegate_test_servers::{Process, RedisServer, command, wait_until};

use super::support::copies::Copies;
use super::support::recorded::SETS;
use super::{assert_answers, cluster, feed, feed_url, write};

pub(super) const PROGRAM: &str = env!("CARGO_BIN_EXE_sluicegate");
const VBUCKETS: u16 = 128;

/// How often it is killed.
const LIVES: usize = 30;

/// How often what is written is a copy of the recording.
const COPIES: u64 = 12;

/// Longest time in which it gets where it is to be killed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Many small batches, and checkpoints as often as can be.
fn arguments(feed: &str, store: &str) -> Vec<String> {
    let settings = ["writer.max_batch=40", "writer.checkpoint_interval_ms=20", "writer.supersession=pointers"];
    let options = ["run", "--feed", feed, "--store", store].into_iter();
    options.chain(settings.into_iter().flat_map(|setting| ["--set", setting])).map(str::to_owned).collect()
}

/// When it is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// As soon as it runs.
    AtOnce,
    /// When it has published so many batches; or has taken everything.
    After(u64),
    /// When it has taken everything.
    InPeace,
}

/// What is stored.
struct Stored {
    store: Arc<dyn CacheStore>,
    checkpoint: CacheKey,
}

impl Stored {
    /// The writer's term, and the last batch.
    async fn clock(&self) -> (Epoch, u64) {
        let clock = read_clock(self.store.as_ref()).await.unwrap();
        clock.map_or((Epoch::default(), 0), |clock| (clock.value.epoch, clock.value.batch))
    }

    async fn checkpoint(&self) -> Option<Checkpoint> {
        let stored = self.store.get(&self.checkpoint).await.unwrap();
        stored.map(|stored| Checkpoint::from_bytes(&stored.value).unwrap())
    }

    /// Whether the checkpoint covers all that the cluster has.
    async fn covers_all_of(&self, cluster: &Cluster) -> bool {
        let checkpoint = self.checkpoint().await;
        (0..VBUCKETS).all(|vbucket| position(checkpoint.as_ref(), vbucket) == cluster.high_seqno(vbucket))
    }
}

/// What a checkpoint covers of a vbucket.
fn position(checkpoint: Option<&Checkpoint>, vbucket: u16) -> u64 {
    checkpoint.and_then(|checkpoint| checkpoint.position.partitions.get(&PartitionId(vbucket))).map_or(0, |at| at.seqno)
}

/// Before it has done anything, in the middle, after it has taken everything. The next one begins in each vbucket where the last checkpoint says:
/// nothing that a checkpoint covers comes again, and nothing is left out.
#[tokio::test(flavor = "multi_thread")]
async fn a_writers_process_killed_at_any_moment_loses_nothing_and_repeats_nothing_that_its_checkpoint_covers() {
    let copies = Copies::of(&SETS[2]);
    let mutations: Vec<_> = (0..COPIES).flat_map(|number| copies.copy(number)).collect();
    let server = RedisServer::start();
    let (cluster, url) = (cluster(VBUCKETS).await, server.url());
    cluster.set_faults(|faults| faults.split_percent = 10);
    let checkpoint = CacheKey::Checkpoint(feed(&cluster, "").await.info().checkpoint_name());
    let stored = Stored { store: sluicegate::open_store(&url).await.unwrap(), checkpoint };
    let following = arguments(&feed_url(&cluster, "config_poll_ms=50"), &url);
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let (mut resumed, mut halfway) = (0, 0);

    for (life, part) in mutations.chunks(mutations.len().div_ceil(LIVES)).enumerate() {
        let moment = match random.random_range(0..6) {
            0 => Moment::AtOnce,
            1 => Moment::InPeace,
            _ => Moment::After(random.random_range(1..12)),
        };
        let (before, (epoch, batch)) = (stored.checkpoint().await, stored.clock().await);
        cluster.take_lowest_starts();
        let writer = Process::start(PROGRAM, &following);
        let mut rest = part.chunks(5);
        let lived = tokio::time::timeout(PATIENCE, async {
            if let Moment::AtOnce = moment {
                return;
            }
            // Some of it has happened already when it begins; the rest happens while it writes.
            (0..rest.len() / 3).for_each(|_| write(&cluster, rest.next().unwrap_or_default()));
            while stored.clock().await.0 == epoch {
                assert!(writer.is_running(), "life {life}: the writer has ended by itself");
            }
            loop {
                if let Some(some) = rest.next() {
                    write(&cluster, some);
                }
                match moment {
                    Moment::After(batches) if stored.clock().await.1 >= batch + batches => return,
                    _ if rest.len() == 0 && stored.covers_all_of(&cluster).await => return,
                    _ => {}
                }
            }
        });
        assert!(lived.await.is_ok(), "life {life}, {moment:?}: not within {PATIENCE:?}");
        writer.signal("KILL");
        wait_until("the killed writer is gone", || !writer.is_running());
        rest.for_each(|some| write(&cluster, some));

        let starts = cluster.take_lowest_starts();
        for (vbucket, start) in &starts {
            let covered = position(before.as_ref(), *vbucket);
            assert_eq!(*start, covered, "life {life}, {moment:?}: where the streams of vbucket {vbucket} begin");
        }
        resumed += usize::from(before.is_some() && starts.len() == usize::from(VBUCKETS));
        let is_advanced = stored.clock().await.1 > batch;
        halfway += usize::from(is_advanced && !stored.covers_all_of(&cluster).await);
    }
    println!("{LIVES} lives: {resumed} went on at a checkpoint, {halfway} were ended halfway");
    assert!(resumed > 3 && halfway > 3, "{resumed} went on at a checkpoint, {halfway} were ended halfway");

    let last = arguments(&feed_url(&cluster, "until=now"), &url);
    let ended = command(PROGRAM).args(last).stdin(Stdio::null()).output().unwrap();
    assert!(ended.status.success(), "{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr));
    assert_answers(&stored.store, &copies, COPIES).await;
    let CacheKey::Checkpoint(name) = &stored.checkpoint else { panic!("{}", stored.checkpoint) };
    let report = verify(stored.store.as_ref(), &VerifyOptions::default().feed(name.as_str())).await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
}
