//! A cold start: a bucket that is there already is read into a new cache by the command, once
//! undisturbed and once by a writer that is killed ten times on the way.
//!
//! How many documents: the environment variable `SLUICEGATE_TEST_DOCUMENTS`. See the README.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use sluicegate::core::batch::Checkpoint;
use sluicegate::core::clock::Progress;
use sluicegate::core::commit::read_clock;
use sluicegate::core::verify::{VerifyOptions, verify};
use sluicegate::{CacheKey, CacheStore};
use sluicegate_simulator::Cluster;
use sluicegate_test_servers::{Process, RedisServer, command, wait_until};

use super::killed::PROGRAM;
use super::support::copies::Copies;
use super::support::recorded::SETS;
use super::{assert_answers, clock, cluster, feed, feed_url, wanted, write};

/// Documents where nobody says how many.
const DOCUMENTS: usize = 6_000;

/// How often the writer is killed.
const KILLS: u64 = 10;

/// The most lines that the log may have.
const LINES: usize = 20;

/// What the command says when it has read everything.
fn read_all(cluster: &Cluster, store: &str) -> (Value, Vec<String>) {
    let arguments = ["run", "--feed", &feed_url(cluster, "until=now"), "--store", store, "--format", "json"].map(str::to_owned);
    let ended = command(PROGRAM).args(arguments).stdin(Stdio::null()).output().unwrap();
    let log: Vec<String> = String::from_utf8_lossy(&ended.stderr).lines().map(str::to_owned).collect();
    assert!(ended.status.success(), "{}: {log:#?}", ended.status);
    (serde_json::from_slice(&ended.stdout).unwrap(), log)
}

/// That the cache has all documents, and that nothing is wrong in it.
async fn assert_whole(store: &str, checkpoint: &str, copies: &Copies, count: u64) {
    let store = sluicegate::open_store(store).await.unwrap();
    assert_answers(&store, copies, count).await;
    let report = verify(store.as_ref(), &VerifyOptions::default().feed(checkpoint)).await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
}

/// Waits until a running writer has stored so many sequences of the bucket, and where the next one
/// goes on. The cache must not be complete then. Returns how far it is.
async fn wait_for_arrived(writer: &Process, store: &dyn CacheStore, checkpoint: &str, arrived: u64) -> Progress {
    let key = CacheKey::Checkpoint(checkpoint.to_owned());
    loop {
        let stored = read_clock(store).await.unwrap().map(|clock| clock.value);
        // Before the first batch nothing is said of the progress.
        if let Some(clock) = stored.filter(|clock| clock.batch > 0) {
            let building = clock.building.unwrap_or_else(|| panic!("all was read before {arrived} were counted: {clock:?}"));
            let stored = store.get(&key).await.unwrap().expect("each term begins with a checkpoint");
            let position = Checkpoint::from_bytes(&stored.value).unwrap().position;
            let goes_on = position.partitions.values().any(|at| at.seqno > 0);
            if building.arrived >= arrived && goes_on {
                return building;
            }
        }
        assert!(writer.is_running(), "the writer has ended by itself before {arrived} had arrived");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A server sends its vbuckets side by side, each in its own order, so most sequences arrive before
/// lower ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_has_nothing_late_and_goes_on_wherever_it_is_killed() {
    let copies = Copies::of(&SETS[0]);
    let count = wanted(DOCUMENTS).div_ceil(copies.documents).max(4) as u64;
    let documents = count * copies.documents as u64;
    let (cluster, servers) = (cluster(1024).await, [RedisServer::start(), RedisServer::start()]);
    (0..count).for_each(|number| write(&cluster, &copies.copy(number)));
    let checkpoint = feed(&cluster, "until=now").await.info().checkpoint_name();
    let [undisturbed, killed] = servers.each_ref().map(RedisServer::url);

    let (summary, log) = read_all(&cluster, &undisturbed);
    let (received, rate) = (summary["writer"]["received"].as_u64().unwrap(), summary["events_per_second"].as_f64().unwrap());
    println!("{documents} documents in {received} events, {rate:.0}/s, {} lines in the log", log.len());
    for count in ["late", "skipped", "abandoned", "duplicates", "conflicts", "invalid"] {
        assert_eq!(summary["writer"][count], 0, "{count}: {summary:#}");
    }
    assert!(log.len() <= LINES, "{log:#?}");
    assert_whole(&undisturbed, &checkpoint, &copies, count).await;

    let store = sluicegate::open_store(&killed).await.unwrap();
    let whole = clock(&sluicegate::open_store(&undisturbed).await.unwrap()).await;
    let url = feed_url(&cluster, "");
    let mut arguments = ["run", "--feed", &url, "--store", &killed].map(str::to_owned).to_vec();
    let settings = ["writer.max_batch=100", "writer.checkpoint_interval_ms=20"];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", *setting]).map(str::to_owned));
    let (began, mut resumed) = (Instant::now(), BTreeSet::new());
    for kill in 1..=KILLS {
        cluster.take_lowest_starts();
        let writer = Process::start(PROGRAM, &arguments);
        let building = wait_for_arrived(&writer, store.as_ref(), &checkpoint, whole.stable.0 * kill / (KILLS + 1)).await;
        let (total, expected) = (whole.stable.0, building.expected.unwrap_or_default());
        assert!((total / 2..total * 2).contains(&expected), "{building:?} of {total}");
        writer.signal("KILL");
        wait_until("the killed writer is gone", || !writer.is_running());
        let starts = cluster.take_lowest_starts();
        resumed.extend(starts.values().any(|start| *start > 0).then_some(kill));
    }
    let (summary, _) = read_all(&cluster, &killed);
    let last = summary["writer"]["received"].as_u64().unwrap();
    println!("killed {KILLS} times; {last} events came after that; all stored after {:.1?}", began.elapsed());
    assert!(resumed.iter().copied().eq(2..=KILLS), "only these lives went on at a checkpoint: {resumed:?}");
    assert!(last < received / 2, "{last} of {received} events came again after the last kill");
    for count in ["late", "skipped", "abandoned", "conflicts", "invalid"] {
        assert_eq!(summary["writer"][count], 0, "{count}: {summary:#}");
    }
    let now = clock(&sluicegate::open_store(&killed).await.unwrap()).await;
    assert_eq!((now.stable, now.high, now.gaps, now.late), (whole.stable, whole.high, whole.gaps, whole.late));
    assert_whole(&killed, &checkpoint, &copies, count).await;
}
