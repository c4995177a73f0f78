//! A node that wants to write goes on through whatever passes by itself, and stops at what does not.

#![cfg(all(feature = "memory", feature = "replay"))]

mod support;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use sluicegate::core::feed::{FeedCapabilities, FeedInfo};
use sluicegate::core::writer::Ended;
use sluicegate::{
    CacheStore, Candidate, Channel, Epoch, Error, ErrorKind, Feed, FeedEvent, FeedStart, FeedStream, ReaderConfig, ReaderNode,
    Result, Role, Sluicegate, Writer, WriterConfig, WriterNode, WriterStatus,
};
use sluicegate_memory::MemoryStore;
use sluicegate_replay::MemoryFeed;
use support::{Notation, Told, mutations};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A feed that never ends. Each time it is opened it takes the next of its scripts, all of whose events it delivers at once; after the
/// last it is only quiet.
#[derive(Debug, Default)]
struct Scripted {
    scripts: Mutex<VecDeque<Script>>,
    opened: AtomicUsize,
}

#[derive(Debug)]
enum Script {
    /// It cannot be opened.
    Refuse(ErrorKind),
    /// These, and then an error.
    Break(&'static [&'static str], ErrorKind),
    /// These, and then its end, which such a feed must not have.
    End(&'static [&'static str]),
    /// These, and then nothing more.
    Quiet(&'static [&'static str]),
}

impl Scripted {
    fn new(scripts: impl IntoIterator<Item = Script>) -> Arc<Self> {
        Arc::new(Scripted { scripts: Mutex::new(scripts.into_iter().collect()), opened: AtomicUsize::new(0) })
    }
}

#[async_trait::async_trait]
impl Feed for Scripted {
    fn info(&self) -> FeedInfo {
        // Without positions, so that each opening is from the beginning.
        let capabilities = FeedCapabilities { positions: false, snapshots: false, deletions: false, finite: false };
        FeedInfo { scheme: "test", name: "scripted".to_owned(), partitions: 1, capabilities }
    }

    async fn open(&self, _start: FeedStart) -> Result<FeedStream> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let script = self.scripts.lock().unwrap().pop_front().unwrap_or(Script::Quiet(&[]));
        let batch = |lines: &[&str]| Ok(mutations(lines).into_iter().map(FeedEvent::Mutation).collect::<Vec<_>>().into());
        let items = match script {
            Script::Refuse(kind) => return Err(Error::new(kind, "refused")),
            Script::Break(lines, kind) => vec![batch(lines), Err(Error::new(kind, "broken"))],
            Script::End(lines) => return Ok(futures::stream::iter([batch(lines)]).boxed()),
            Script::Quiet(lines) => vec![batch(lines)],
        };
        Ok(futures::stream::iter(items).chain(futures::stream::pending()).boxed())
    }
}

struct Running {
    status: watch::Receiver<WriterStatus>,
    stop: tokio::sync::oneshot::Sender<()>,
    task: JoinHandle<Result<Ended>>,
}

fn start(node: WriterNode) -> Running {
    let status = node.status();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        node.run(async {
            let _ = stopped.await;
        })
        .await
    });
    Running { status, stop, task }
}

impl Running {
    async fn until(&mut self, what: impl FnMut(&WriterStatus) -> bool) -> WriterStatus {
        self.status.wait_for(what).await.unwrap().clone()
    }

    async fn stop(self) -> Result<Ended> {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }
}

fn store() -> Arc<dyn CacheStore> {
    Arc::new(MemoryStore::new())
}

fn node(store: &Arc<dyn CacheStore>, feed: Arc<dyn Feed>) -> WriterNode {
    WriterNode::new(store.clone(), feed).with_decoder(Arc::new(Notation))
}

fn high(status: &WriterStatus) -> u64 {
    status.clock.as_ref().map_or(0, |clock| clock.high.0)
}

fn epoch(counter: u64) -> Epoch {
    Epoch { counter, writer: 7 }
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_fails_is_opened_again_in_the_same_term() {
    let feed = Scripted::new([
        Script::Refuse(ErrorKind::Unavailable),
        Script::Break(&["1 a +A"], ErrorKind::Timeout),
        Script::End(&["1 a +A", "2 b +A"]),
        Script::Quiet(&["1 a +A", "2 b +A", "3 c +A"]),
    ]);
    let (told, _roles) = Told::new(Role::Writer { epoch: epoch(1) });
    let store = store();
    let mut running = start(node(&store, feed.clone()).with_coordinator(told.clone(), Candidate::new("a")));
    let status = running.until(|status| high(status) == 3).await;
    assert_eq!((status.takeovers, status.stats.cached, status.clock.unwrap().epoch), (4, 3, epoch(1)));
    assert!(status.trouble.is_none());
    assert_eq!((feed.opened.load(Ordering::SeqCst), told.campaigns.load(Ordering::SeqCst)), (4, 1));
    assert_eq!(running.stop().await.unwrap(), Ended::Stopped);
}

#[tokio::test(start_paused = true)]
async fn trouble_is_told_while_it_lasts() {
    let feed = Scripted::new([Script::Refuse(ErrorKind::Unavailable)]);
    let store = store();
    let mut running = start(node(&store, feed));
    let status = running.until(|status| status.trouble.is_some()).await;
    assert!(status.trouble.unwrap().to_string().contains("refused"));
    running.until(|status| status.trouble.is_none()).await;
    assert_eq!(running.stop().await.unwrap(), Ended::Stopped);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_by_itself_ends_it() {
    let feed = Scripted::new([Script::Break(&["1 a +A"], ErrorKind::Corrupt)]);
    let store = store();
    let mut running = start(node(&store, feed));
    running.until(|status| high(status) == 1).await;
    assert_eq!(running.task.await.unwrap().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test(start_paused = true)]
async fn a_fenced_writer_campaigns_again() {
    let feed = Scripted::new([Script::Quiet(&["1 a +A"]), Script::Break(&["1 a +A", "2 b +A"], ErrorKind::Unavailable)]);
    let (told, roles) = Told::new(Role::Writer { epoch: epoch(1) });
    let store = store();
    let mut running = start(node(&store, feed).with_coordinator(told.clone(), Candidate::new("a")));
    running.until(|status| high(status) == 1).await;
    // Someone else takes over without its being told, and it learns of it when it begins its term again.
    let decoder = Arc::new(Notation);
    Writer::take_over(store.clone(), decoder, "another", epoch(5), WriterConfig::default()).await.unwrap();
    roles.send(Role::Writer { epoch: epoch(2) }).unwrap();
    running.until(|status| status.trouble.as_ref().is_some_and(|e| e.kind() == ErrorKind::Fenced)).await;
    roles.send(Role::Writer { epoch: epoch(6) }).unwrap();
    let status = running.until(|status| high(status) == 2).await;
    assert_eq!(status.clock.unwrap().epoch, epoch(6));
    assert!(told.campaigns.load(Ordering::SeqCst) >= 2);
    assert_eq!(running.stop().await.unwrap(), Ended::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_loses_the_role_stops_writing_and_goes_on_when_it_has_it_back() {
    let feed = Scripted::new([Script::Quiet(&["1 a +A"]), Script::Quiet(&["1 a +A", "2 b +A"])]);
    let (told, roles) = Told::new(Role::Standby { leader: None });
    let store = store();
    let mut running = start(node(&store, feed.clone()).with_coordinator(told.clone(), Candidate::new("a")));
    tokio::task::yield_now().await;
    assert_eq!(feed.opened.load(Ordering::SeqCst), 0);
    roles.send(Role::Writer { epoch: epoch(1) }).unwrap();
    running.until(|status| high(status) == 1).await;
    roles.send(Role::Offline { reason: "nobody answers".into() }).unwrap();
    running.until(|status| matches!(status.role, Role::Offline { .. })).await;
    assert_eq!(feed.opened.load(Ordering::SeqCst), 1);
    roles.send(Role::Writer { epoch: epoch(2) }).unwrap();
    let status = running.until(|status| high(status) == 2).await;
    assert_eq!((status.takeovers, status.clock.unwrap().epoch), (2, epoch(2)));
    assert_eq!(told.campaigns.load(Ordering::SeqCst), 1);
    assert_eq!(running.stop().await.unwrap(), Ended::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stands_by_stops_when_it_is_asked_to() {
    let (told, _roles) = Told::new(Role::Standby { leader: None });
    let store = store();
    let running = start(node(&store, Scripted::new([])).with_coordinator(told, Candidate::new("a")));
    assert_eq!(running.stop().await.unwrap(), Ended::Stopped);
}

#[tokio::test]
async fn a_cache_put_together_from_parts_answers_and_shuts_down_in_order() {
    let feed = Arc::new(MemoryFeed::new("parts", mutations(&["1 a +A", "2 b +B", "3 a +A over 1"])));
    let mut cache =
        Sluicegate::builder().with_store(store()).with_feed(feed).decoder(Arc::new(Notation)).node("n").start().await.unwrap();
    cache.caught_up().await.unwrap();
    let answer = cache.changes(&[Channel::new("A").unwrap()], &Default::default()).await.unwrap();
    assert_eq!(answer.rows.iter().map(|row| row.id.sequence.0).collect::<Vec<_>>(), [3]);
    assert_eq!(cache.writer_ended().await.unwrap(), Ended::Feed);
    let reader = cache.reader().clone();
    let status = cache.shutdown().await.unwrap().unwrap();
    assert_eq!((status.stats.cached, high(&status)), (3, 3));
    assert_eq!(reader.cut().high.0, 3);
}

#[tokio::test]
async fn a_cache_without_a_feed_reads_what_is_there_and_nothing_else() {
    let store = store();
    let error = Sluicegate::builder().with_store(store.clone()).start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let feed = Arc::new(MemoryFeed::new("parts", mutations(&["1 a +A"])));
    node(&store, feed).run(std::future::pending()).await.unwrap();
    let cache = Sluicegate::builder().with_store(store).start().await.unwrap();
    assert!(cache.writer().is_none());
    assert_eq!(cache.changes(&[Channel::star()], &Default::default()).await.unwrap().rows.len(), 1);
    assert!(cache.shutdown().await.unwrap().is_none());
}

#[tokio::test]
async fn a_writer_that_cannot_begin_is_told_at_the_start() {
    let store = store();
    Writer::take_over(store.clone(), Arc::new(Notation), "x", epoch(1), WriterConfig::default()).await.unwrap();
    let feed = Scripted::new([Script::Refuse(ErrorKind::Corrupt)]);
    let mut cache = Sluicegate::builder().with_store(store).with_feed(feed).start().await.unwrap();
    assert_eq!(cache.writer_ended().await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(cache.writer_ended().await.unwrap_err().kind(), ErrorKind::Closed);

    let mut config = WriterConfig::default();
    config.ring = 0;
    let error = Sluicegate::builder().store("memory:").feed("synthetic:").writer_config(config).start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
}

#[tokio::test]
async fn a_reader_opens_when_the_writer_has_begun() {
    let store = store();
    let opening = tokio::spawn(ReaderNode::open_when_ready(store.clone(), ReaderConfig::default()));
    let feed = Arc::new(MemoryFeed::new("parts", mutations(&["1 a +A"])));
    node(&store, feed).run(std::future::pending()).await.unwrap();
    let reader = opening.await.unwrap().unwrap();
    reader.wait_for_batch(1).await.unwrap();
    assert_eq!(reader.refresh().await.unwrap().high.0, 1);
}
