//! The whole way: a gateway's recorded documents in a simulated cluster → DCP → writer → store → answers.

#[path = "dcp/cold.rs"]
mod cold;
#[path = "dcp/databases.rs"]
mod databases;
#[path = "dcp/found.rs"]
mod found;
#[path = "dcp/killed.rs"]
mod killed;
#[path = "dcp/recorded.rs"]
mod recorded;
#[path = "dcp/scale.rs"]
mod scale;
mod support;
#[path = "dcp/traffic.rs"]
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::compare::{Ids, Report, compare_marker};
use sluicegate::core::commit::read_clock;
use sluicegate::core::verify::{VerifyOptions, verify};
use sluicegate::pointer::Supersession;
use sluicegate::{
    CacheStore, Channel, Decoded, Feed, GatewayDecoder, Mutation, MutationDecoder as _, PublishedClock, ReaderConfig, ReaderNode,
    Sequence, Writer, WriterConfig,
};
use sluicegate_core::feed::MutationKind;
use sluicegate_replay::MutationsExt as _;
use sluicegate_simulator::bucket::Content;
use sluicegate_simulator::{Cluster, ClusterConfig};
use sluicegate_testkit::model::AnswerRow;
use sluicegate_testkit::observe::{Rows, rows};
use support::copies::Copies;
use support::recorded::{SETS, assert_agrees, load, truly_lost};
use support::{Kind, on_every_store};

on_every_store! {
    every_recorded_answer_is_reproduced_over_dcp
    a_cluster_in_trouble_changes_no_answer
    what_a_failover_loses_is_withdrawn
}

const PASSWORD: &str = "let-me-in";

/// How many documents are wanted; `default` where nobody says it.
fn wanted(default: usize) -> usize {
    match std::env::var("SLUICEGATE_TEST_DOCUMENTS") {
        Ok(text) => text.replace('_', "").parse().unwrap_or_else(|e| panic!("SLUICEGATE_TEST_DOCUMENTS={text}: {e}")),
        Err(_) => default,
    }
}

async fn cluster(vbuckets: u16) -> Cluster {
    let mut config = ClusterConfig::default();
    (config.nodes, config.vbuckets, config.replicas) = (3, vbuckets, 1);
    (config.user, config.password) = ("gateway".to_owned(), sluicegate_simulator::Password::new(PASSWORD));
    Cluster::start(config).await.unwrap()
}

/// Writes what a gateway wrote, in the order in which the server took it: the recording has some of a key in another.
fn write(cluster: &Cluster, mutations: &[Mutation]) {
    let mut mutations: Vec<&Mutation> = mutations.iter().collect();
    mutations.sort_by_key(|mutation| mutation.cas);
    for mutation in mutations {
        let content = Content {
            value: mutation.value.clone(),
            datatype: sluicegate_mcbp::Datatype(mutation.datatype.0),
            flags: mutation.flags,
            // The gateway's metadata name it.
            cas: mutation.cas,
            ..Content::default()
        };
        let key = mutation.key.clone();
        let written = match mutation.kind {
            MutationKind::Mutation => cluster.write(mutation.collection, key, content),
            MutationKind::Deletion | MutationKind::Expiration => cluster.delete_with(mutation.collection, key, content),
        };
        written.unwrap_or_else(|status| panic!("{}: {status:?}", mutation.key.escape_ascii()));
    }
}

fn feed_url(cluster: &Cluster, options: &str) -> String {
    let bucket = ClusterConfig::default().bucket;
    let hosts: Vec<String> = cluster.addresses().iter().map(ToString::to_string).collect();
    format!("dcp://gateway:{PASSWORD}@{}/{bucket}?{options}", hosts.join(","))
}

async fn feed(cluster: &Cluster, options: &str) -> Arc<dyn Feed> {
    sluicegate::open_feed(&feed_url(cluster, options)).await.unwrap()
}

async fn writer(store: &Arc<dyn CacheStore>, feed: &dyn Feed) -> Writer {
    // A server keeps only the last change of a document: pointers know what it supersedes.
    let config = WriterConfig::default().with_supersession(Supersession::Pointers);
    Writer::alone(store.clone(), Arc::new(GatewayDecoder::default()), &feed.info().checkpoint_name(), config).await.unwrap()
}

/// That all channels of the first `count` copies are answered as the model does.
async fn assert_answers(store: &Arc<dyn CacheStore>, copies: &Copies, count: u64) {
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let mut rows = 0;
    for number in 0..count {
        let (model, since) = (copies.model(number), Sequence(number * copies.step));
        let mut asked: Vec<Vec<Channel>> = copies.channels(number).into_iter().map(|channel| vec![channel]).collect();
        let pair = asked.iter().take(2).flatten().cloned().collect();
        asked.push(pair);
        asked.push(vec![Channel::star()]);
        for channels in asked {
            let expected = model.changes(&channels, since, None, false);
            // In the star channel the next copy's rows come after those of this one.
            let options = ChangesOptions::new().since(since).delivery(Delivery::Strict).limit(expected.len().max(1));
            let answer = reader.changes(&channels, &options).await.unwrap().answer();
            let answered: Vec<AnswerRow> = answer
                .rows
                .iter()
                .map(|row| {
                    let mut removed: Vec<String> = row.removed.iter().map(|channel| channel.name().to_owned()).collect();
                    removed.sort_unstable();
                    let entry = &row.entry;
                    (row.id.sequence, entry.key().to_owned(), entry.revision().to_owned(), row.deleted, removed)
                })
                .collect();
            if expected != answered {
                let at = expected.iter().zip(&answered).position(|(a, b)| a != b).unwrap_or(expected.len().min(answered.len()));
                let (right, wrong) = (expected.get(at), answered.get(at));
                let lengths = (expected.len(), answered.len());
                panic!("copy {number}, {channels:?}: row {at} of {lengths:?} must be {right:?}, is {wrong:?}");
            }
            rows += answered.len();
        }
    }
    let last = clock(store).await;
    assert!(last.gaps == 0 && last.stable == last.high, "{last:?}");
    let above = ChangesOptions::new().since(Sequence(count * copies.step)).delivery(Delivery::Eager);
    let more = reader.changes(&[Channel::star()], &above).await.unwrap().answer();
    assert!(more.rows.is_empty(), "above the last copy there are {} rows; {last:?}", more.rows.len());
    println!("{count} copies: {rows} rows as the model has them; {last:?}");
}

async fn clock(store: &Arc<dyn CacheStore>) -> PublishedClock {
    read_clock(store.as_ref()).await.unwrap().unwrap().value
}

/// At each marker another writer goes on where the one before has stopped, reads what there is, and ends.
async fn every_recorded_answer_is_reproduced_over_dcp(kind: Kind) {
    for set in &SETS {
        let (recording, truth) = load(set);
        let (cluster, store) = (cluster(128).await, kind.fresh().await);
        let mut report = Report::default();
        let mut kept = Vec::new();
        for (marker, part) in recording.parts() {
            write(&cluster, &part);
            kept.extend(part.deduplicated(usize::MAX));
            let feed = feed(&cluster, "until=now").await;
            writer(&store, feed.as_ref()).await.run(feed.as_ref(), std::future::pending()).await.unwrap();
            let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
            let ids = if truly_lost(recording.upto_marker(marker).unwrap(), &kept) == 0 { Ids::Exact } else { Ids::Sequences };
            report.add(compare_marker(&reader, &truth, marker, ids).await.unwrap());
        }
        assert_agrees(&format!("{}, over DCP", set.name), &report);
    }
}

/// A writer follows while frames come in pieces, connections are cut, vbuckets move, and a node is away for a while.
async fn a_cluster_in_trouble_changes_no_answer(kind: Kind) {
    let (recording, truth) = load(&SETS[2]);
    let (cluster, store) = (cluster(64).await, kind.fresh().await);
    cluster.set_faults(|faults| faults.split_percent = 10);
    let mut report = Report::default();
    for (marker, part) in recording.parts() {
        let following = feed(&cluster, "config_poll_ms=50").await;
        let mut follower = writer(&store, following.as_ref()).await;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(async move {
            let stopped = async move { drop(stopped.await) };
            follower.run(following.as_ref(), stopped).await.map(drop)
        });
        for (turn, some) in part.chunks(part.len().div_ceil(6).max(1)).enumerate() {
            write(&cluster, some);
            match turn {
                0 => cluster.drop_connections(),
                1 => cluster.rebalance(&[(3, 1), (4, 2), (5, 0), (40, 2)]),
                2 => cluster.kill_node(1),
                3 => cluster.revive_node(1).await.unwrap(),
                _ => cluster.set_faults(|faults| faults.delay = Duration::from_micros(100)),
            }
        }
        stop.send(()).unwrap();
        running.await.unwrap().unwrap();

        let rest = feed(&cluster, "until=now").await;
        writer(&store, rest.as_ref()).await.run(rest.as_ref(), std::future::pending()).await.unwrap();
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
        report.add(compare_marker(&reader, &truth, marker, Ids::Sequences).await.unwrap());
    }
    assert_agrees("a cluster in trouble", &report);
}

/// Reads what there is, and ends.
async fn catch_up(store: &Arc<dyn CacheStore>, cluster: &Cluster) -> u64 {
    let feed = feed(cluster, "until=now").await;
    let mut writer = writer(store, feed.as_ref()).await;
    writer.run(feed.as_ref(), std::future::pending()).await.unwrap();
    writer.stats().withdrawn
}

async fn answers(store: &Arc<dyn CacheStore>, channels: &BTreeSet<String>) -> BTreeMap<String, Rows> {
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    let mut answers = BTreeMap::new();
    for name in channels {
        let options = ChangesOptions::new().delivery(Delivery::Eager);
        let answer = reader.changes(&[Channel::new(name.as_str()).unwrap()], &options).await.unwrap().answer();
        answers.insert(name.clone(), rows(&answer));
    }
    answers
}

/// The cache in `store` shows what one does that reads the cluster as it is now, and is sound.
async fn assert_as_new(kind: Kind, store: &Arc<dyn CacheStore>, cluster: &Cluster, channels: &BTreeSet<String>) {
    let new = kind.fresh().await;
    catch_up(&new, cluster).await;
    let (expected, found) = (answers(&new, channels).await, answers(store, channels).await);
    for (channel, rows) in &expected {
        assert_eq!(&found[channel], rows, "{channel}");
    }
    let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
}

/// All channels that documents are or were in.
fn channels_of(mutations: &[Mutation]) -> BTreeSet<String> {
    let mut channels = BTreeSet::from(["*".to_owned()]);
    for mutation in mutations {
        if let Decoded::Document(document) = GatewayDecoder::default().decode(mutation) {
            channels.extend(document.entry.channels().iter().map(|change| change.channel.name().to_owned()));
        }
    }
    channels
}

/// Vbuckets lose their last changes: while no writer follows, while one does; and what was lost is written again.
async fn what_a_failover_loses_is_withdrawn(kind: Kind) {
    let (recording, _) = load(&SETS[2]);
    let all: Vec<Mutation> = recording.parts().into_iter().flat_map(|(_, part)| part).collect();
    let channels = channels_of(&all);
    let (cluster, store) = (cluster(64).await, kind.fresh().await);
    let (first, rest) = all.split_at(all.len() / 2);
    let (second, last) = rest.split_at(rest.len() - 200);
    write(&cluster, first);
    catch_up(&store, &cluster).await;
    write(&cluster, second);
    catch_up(&store, &cluster).await;

    for vbucket in 0..64 {
        cluster.fail_over_vbucket(vbucket, cluster.high_seqno(vbucket).saturating_sub(u64::from(vbucket % 5)));
    }
    assert!(catch_up(&store, &cluster).await > 20);
    assert_as_new(kind, &store, &cluster, &channels).await;

    let following = feed(&cluster, "config_poll_ms=50").await;
    let mut follower = writer(&store, following.as_ref()).await;
    let mut progress = follower.progress();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move {
        let stopped = async move { drop(stopped.await) };
        follower.run(following.as_ref(), stopped).await.map(drop)
    });
    write(&cluster, last);
    let keys: BTreeSet<&[u8]> = last.iter().map(|mutation| &mutation.key[..]).collect();
    progress.wait_for(|progress| progress.stats.received >= keys.len() as u64).await.unwrap();
    cluster.fail_over(1, 2);
    progress.wait_for(|progress| progress.stats.withdrawn > 0).await.unwrap();
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
    catch_up(&store, &cluster).await;
    assert_as_new(kind, &store, &cluster, &channels).await;

    // The same revisions, at other places.
    write(&cluster, last);
    catch_up(&store, &cluster).await;
    assert_as_new(kind, &store, &cluster, &channels).await;
}
