//! A load, writers that write it, and what must come out.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluicegate_core::block::codec_named;
use sluicegate_core::pointer::Supersession;
use sluicegate_core::verify::{VerifyOptions, verify};
use sluicegate_core::{BlockCodec, CacheKey, CacheStore, Channel, Feed, GatewayDecoder, Result, Writer, WriterConfig};
use sluicegate_replay::MemoryFeed;
use sluicegate_replay::synthetic::{ExpectedRow, Generated, Synthetic, SyntheticConfig};
use sluicegate_testkit::{Content, PlainStore, Rows};

/// The name of the feed.
pub(crate) const FEED: &str = "load";

/// What a writer writes, and what a cache that nothing happened to holds then.
pub(crate) struct Load {
    pub(crate) feed: MemoryFeed,
    pub(crate) seed: u64,
    /// And what verification finds in it.
    expected: (Content, String),
    /// Of its blocks and sequence documents.
    keys: Vec<CacheKey>,
    generated: Generated,
}

impl Load {
    /// `events` from a seed, and the undisturbed run.
    pub(crate) async fn new(seed: u64, events: usize) -> Load {
        let mut config = SyntheticConfig::rough();
        (config.documents, config.channels, config.body, config.principals) = (40, 6, 8, 2);
        (config.out_of_order, config.late, config.late_by, config.gaps) = (10, 0.03, 30, 0.01);
        (config.unused, config.unused_max, config.restart_every, config.restart_repeats) = (0.02, 40, 60, 10);
        let generated = Synthetic::new(config, seed).unwrap().generate(events);
        let feed = MemoryFeed::new(FEED, generated.mutations.clone()).with_batch(8).unwrap();
        let plain = Arc::new(PlainStore::new());
        let mut load = Load { feed, seed, expected: Default::default(), keys: Vec::new(), generated };
        load.run(plain.clone(), 2_000).await.unwrap();
        load.keys = plain.keys();
        load.expected = load.content(plain).await;
        assert_eq!(load.expected.0.answers, load.truth(), "what the generator says, and what comes out undisturbed");
        load
    }

    fn truth(&self) -> BTreeMap<String, Rows> {
        let row = |r: &ExpectedRow| (r.sequence.0, r.document.clone(), r.revision.clone(), r.deleted, r.removed);
        self.generated.truth.iter().map(|(channel, rows)| (channel.clone(), rows.iter().map(row).collect())).collect()
    }

    /// One whose blocks are appended to, or are raised in place.
    pub(crate) fn codec(&self) -> Arc<dyn BlockCodec> {
        codec_named(if (self.seed / 2).is_multiple_of(2) { "log" } else { "two-bit" }, 64).unwrap()
    }

    /// Small batches, small blocks, an early skipped list: so that few events reach every step often.
    pub(crate) fn config(&self, give_up_after_ms: u64) -> WriterConfig {
        let text = format!(
            r#"{{"max_batch": 8, "max_in_flight": 3, "max_pending": 12, "hold_first_read": false, "checkpoint_interval_ms": 1, "ring": 8,
                "codec": "{}", "block_capacity": 64, "give_up_after_ms": {give_up_after_ms}}}"#,
            self.codec().name()
        );
        let config: WriterConfig = serde_json::from_str(&text).unwrap();
        config.with_supersession(if self.seed.is_multiple_of(2) { Supersession::Recents } else { Supersession::Pointers })
    }

    /// The writer of the next term.
    pub(crate) async fn writer(&self, store: Arc<dyn CacheStore>, give_up_after_ms: u64) -> Result<Writer> {
        Writer::alone(store, Arc::new(GatewayDecoder::default()), FEED, self.config(give_up_after_ms)).await
    }

    /// One term, to the end of the feed or an error.
    pub(crate) async fn run(&self, store: Arc<dyn CacheStore>, give_up_after_ms: u64) -> Result<()> {
        self.writer(store, give_up_after_ms).await?.run(&self.feed, std::future::pending()).await.map(drop)
    }

    /// Batches of the feed.
    pub(crate) fn batches(&self) -> u64 {
        self.feed.mutations().len() as u64 / 8
    }

    /// As many terms as it takes over `feed`; how many. Each must end with an error after which one may try again.
    pub(crate) async fn finish(&self, feed: &dyn Feed, store: &Arc<dyn CacheStore>, give_up_after_ms: u64) -> usize {
        let mut terms = 1;
        let run = async || self.writer(store.clone(), give_up_after_ms).await?.run(feed, std::future::pending()).await;
        while let Err(error) = run().await {
            assert!(error.is_retryable(), "seed {}: {error:?}", self.seed);
            assert!(terms < 1_000, "seed {}: never got through: {error:?}", self.seed);
            terms += 1;
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        terms
    }

    /// What `store` holds, as far as it must not depend on what happened on the way; it must be sound.
    pub(crate) async fn content(&self, store: Arc<dyn CacheStore>) -> (Content, String) {
        let report = verify(store.as_ref(), &VerifyOptions::default().feed(FEED)).await.unwrap();
        let channels: Vec<Channel> = self.generated.truth.keys().map(|name| Channel::new(name).unwrap()).collect();
        let content = Content::read(&store, channels, &self.keys, self.codec().as_ref()).await;
        (content, format!("{:?}", report.findings))
    }

    /// Nothing was lost, nothing is there twice.
    pub(crate) async fn check(&self, store: Arc<dyn CacheStore>, what: &str) -> Content {
        let content = self.content(store).await;
        assert_eq!(content, self.expected, "{what}, seed {}", self.seed);
        content.0
    }
}
