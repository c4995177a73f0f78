//! What a cache holds, and what a client that follows it is told: to compare a run that was disturbed with one that was not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluicegate_core::changes::{Answer, AnswerRow, ChangesOptions, Delivery};
use sluicegate_core::reader::WhileBuilding;
use sluicegate_core::{BlockCodec, CacheKey, CacheStore, Channel, ReaderConfig, ReaderNode, Result};

use crate::expect::Expect as _;

/// Rows of an answer: sequence, document, revision, whether deleted, whether removed from a channel.
pub type Rows = Vec<(u64, String, String, bool, bool)>;

/// The rows of `answer`.
pub fn rows(answer: &Answer) -> Rows {
    let row = |row: &AnswerRow| {
        let entry = &row.entry;
        (row.id.sequence.0, entry.document().to_string(), entry.revision().to_owned(), row.deleted, !row.removed.is_empty())
    };
    answer.rows.iter().map(row).collect()
}

/// What a cache holds, as far as it must not depend on what happened on the way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    /// The clock's.
    pub stable: u64,
    /// The clock's.
    pub high: u64,
    /// The clock's.
    pub gaps: u64,
    /// All rows of each channel. The collection's number comes before the name of a channel, but
    /// for the default collection.
    pub answers: BTreeMap<String, Rows>,
    /// Offset and state of what is not absent in a block.
    pub blocks: BTreeMap<String, Vec<(u32, u8)>>,
    /// Document and revision of each sequence.
    pub entries: BTreeMap<u64, Option<(String, String)>>,
}

impl Content {
    /// Reads the answers of `channels`, and those of `keys` that are blocks or sequence documents.
    ///
    /// # Panics
    /// If something cannot be read.
    pub async fn read(
        store: &Arc<dyn CacheStore>,
        channels: impl IntoIterator<Item = Channel>,
        keys: &[CacheKey],
        codec: &dyn BlockCodec,
    ) -> Content {
        let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.must("open the cache");
        let clock = reader.clock();
        let mut content = Content { stable: clock.stable.0, high: clock.high.0, gaps: clock.gaps, ..Content::default() };
        for channel in channels {
            let options = ChangesOptions::new().delivery(Delivery::Eager);
            let answer = reader.changes(std::slice::from_ref(&channel), &options).await.must("answer").answer();
            content.answers.insert(channel.to_string(), rows(&answer));
        }
        for key in keys {
            match key {
                CacheKey::Block(..) => {
                    let stored = store.get(key).await.must("read a block");
                    let block = stored.map(|stored| codec.decode(&stored.value).must("decode a block"));
                    let states = block.map(|block| block.iter().map(|(at, state)| (at, state as u8)).collect());
                    content.blocks.insert(key.to_string(), states.unwrap_or_default());
                }
                CacheKey::Sequence(sequence) => {
                    let entry = store.entries(&[*sequence]).await.must("read an entry").remove(0);
                    let names = entry.map(|entry| (entry.document().to_string(), entry.revision().to_owned()));
                    content.entries.insert(sequence.0, names);
                }
                _ => {}
            }
        }
        content
    }
}

/// A client that follows all documents, from writer to writer, with the late cursor, and keeps what
/// it is told.
#[derive(Debug)]
pub struct Follower {
    stars: Vec<Channel>,
    reader: Option<ReaderNode>,
    options: ChangesOptions,
    rows: BTreeMap<String, (u64, String, bool)>,
    seen: BTreeSet<u64>,
    repeats: usize,
}

/// A client of the default collection.
impl Default for Follower {
    fn default() -> Self {
        Follower::of(vec![Channel::star()])
    }
}

impl Follower {
    /// A client of these star channels.
    pub fn of(stars: Vec<Channel>) -> Self {
        let (options, rows, seen) = (ChangesOptions::default(), BTreeMap::new(), BTreeSet::new());
        Follower { stars, reader: None, options, rows, seen, repeats: 0 }
    }

    /// Takes in what is new; whether there is a cache to look at.
    ///
    /// # Errors
    /// What the reader says. It may be called again.
    pub async fn look(&mut self, store: &Arc<dyn CacheStore>) -> Result<bool> {
        if self.reader.is_none() {
            // It follows while the cache is built, too.
            let mut config = ReaderConfig::default();
            config.while_building = WhileBuilding::Show;
            self.reader = ReaderNode::open(store.clone(), config).await.ok();
            self.options = ChangesOptions::new().delivery(Delivery::Eager).late(Default::default());
        }
        let Some(reader) = &self.reader else { return Ok(false) };
        reader.refresh().await?;
        let answer = reader.changes(&self.stars, &self.options).await?.answer();
        self.options.since = answer.last.sequence.into();
        self.options.late = Some(answer.late);
        for (sequence, document, revision, deleted, _) in rows(&answer) {
            self.repeats += usize::from(!self.seen.insert(sequence));
            let newest = self.rows.entry(document).or_default();
            if newest.0 < sequence {
                *newest = (sequence, revision, deleted);
            }
        }
        Ok(true)
    }

    /// What it was told must be what its star channels show, and nothing twice.
    ///
    /// # Panics
    /// Otherwise, with `what` in the message.
    #[track_caller]
    pub fn check(&self, star: &Rows, what: &str) {
        let shown: BTreeMap<String, (u64, String, bool)> = star
            .iter()
            .map(|(sequence, document, revision, deleted, _)| (document.clone(), (*sequence, revision.clone(), *deleted)))
            .collect();
        assert_eq!(self.rows, shown, "{what}: what a following client was told, and what is there");
        assert_eq!(self.repeats, 0, "{what}: rows that it was told twice");
    }
}
