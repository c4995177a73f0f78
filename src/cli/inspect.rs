//! `sluicegate inspect`: what is stored.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;
use sluicegate::block::{Block, BlockCodec, BlockState};
use sluicegate::collections::Collections;
use sluicegate::core::batch::Gap;
use sluicegate::core::commit::read_clock;
use sluicegate::core::meta::Meta;
use sluicegate::core::missing::LastBatch;
use sluicegate::core::scan;
use sluicegate::databases::Keyspace;
use sluicegate::{
    BlockIndex, CacheKey, CacheStore, ChangeEntry, Channel, Error, ErrorKind, PublishedClock, Result, Sequence, SequenceRange,
};

use super::output::{Outcome, Table, grouped, json, text};
use super::session::{Session, Which};
use super::{Exit, Format};

/// Looks at what is stored. With --feed, all of the feed is ingested first.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(subcommand)]
    what: What,
    /// The database, if several are served
    #[arg(long, value_name = "NAME", global = true)]
    database: Option<String>,
    /// The collection of the channel: database.scope.collection, or scope.collection; without it,
    /// the default one
    #[arg(long, value_name = "KEYSPACE", global = true)]
    keyspace: Option<Keyspace>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t, global = true)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The published clock and what the cache was made with
    Clock,
    /// A channel: its counter, its directory, its blocks
    Channel {
        /// The channel
        #[arg(value_parser = channel)]
        name: Channel,
    },
    /// One block of a channel: the state of each of its sequences
    Block {
        /// The channel
        #[arg(value_parser = channel)]
        channel: Channel,
        /// Number of the block
        index: u64,
    },
    /// The entry of one sequence, and how its channels show it
    Sequence {
        /// The sequence
        number: u64,
        /// Where several documents have the sequence, which of them: as findings name it,
        /// `1 (slot 2)`
        #[arg(long, value_name = "N", default_value_t = 0)]
        slot: u8,
    },
    /// What is missing and waited for
    Skipped,
    /// A Couchbase bucket, as the feed sees it: each vbucket, its node, how far it is
    ///
    /// A stream of each vbucket is opened at its end, so nothing is fetched, and a writer that follows the bucket is not disturbed. With
    /// --store it is also shown how far the cache in it is behind, by the writer's last checkpoint. The exit code is 3 if a vbucket has no
    /// stream.
    #[cfg(feature = "dcp")]
    Feed(super::inspect_feed::FeedArgs),
}

fn channel(name: &str) -> Result<Channel> {
    Channel::new(name)
}

pub(crate) async fn run(args: InspectArgs, session: Session) -> Outcome<Exit> {
    #[cfg(feature = "dcp")]
    if let What::Feed(feed) = args.what {
        return super::inspect_feed::run(feed, args.format, session).await;
    }
    let which = Which { database: args.database, keyspace: args.keyspace };
    let (store, _) = session.filled_store(&which).await?;
    let store = store.as_ref();
    let absent = || Error::new(ErrorKind::NotFound, "the store holds no cache yet; start a writer first");
    let meta = store.get(&CacheKey::Meta).await?.ok_or_else(absent)?;
    let meta = Meta::from_bytes(&meta.value).map_err(|e| e.with_context("key", CacheKey::Meta))?;
    let codec = meta.block_codec()?;
    let clock = read_clock(store).await?.ok_or_else(absent)?.value;
    let known = store.get(&CacheKey::Collections).await?;
    let known = known.map(|found| Collections::from_bytes(&found.value)).transpose();
    let known = known.map_err(|e| e.with_context("key", CacheKey::Collections))?.unwrap_or_default();
    let collection = which.collection(&known)?.unwrap_or_default();
    let shown = match args.what {
        What::Clock => Shown::of(ClockView { clock, meta })?,
        What::Channel { name } => Shown::of(channel_view(store, codec.as_ref(), name.in_collection(collection)).await?)?,
        What::Block { channel, index } => {
            Shown::of(block_view(store, codec.as_ref(), channel.in_collection(collection), BlockIndex(index)).await?)?
        }
        What::Sequence { number, slot } => {
            let none =
                || Error::config(format!("sequence {number} has no slot {slot}; there are at most {}", Sequence::SLOTS - 1));
            let position = Sequence(number).in_slot(slot).ok_or_else(none)?;
            Shown::of(sequence_view(store, codec.as_ref(), position).await?)?
        }
        What::Skipped => Shown::of(skipped_view(store, clock, meta.ring).await?)?,
        // It needs no cache, and has been shown.
        #[cfg(feature = "dcp")]
        What::Feed(_) => return Ok(Exit::Done),
    };
    shown.print(args.format)?;
    Ok(Exit::Done)
}

/// Both ways to print something.
pub(super) struct Shown {
    json: serde_json::Value,
    table: String,
}

pub(super) trait View: Serialize {
    fn table(&self) -> String;
}

impl Shown {
    pub(super) fn of(view: impl View) -> Result<Self> {
        let json = serde_json::to_value(&view);
        let json = json.map_err(|e| Error::new(ErrorKind::Unexpected, "it cannot be printed").with_source(e))?;
        Ok(Shown { json, table: view.table() })
    }

    pub(super) fn print(&self, format: Format) -> Outcome<()> {
        match format {
            Format::Json => json(&self.json),
            Format::Table => text(&self.table),
        }
    }
}

#[derive(Serialize)]
struct ClockView {
    clock: PublishedClock,
    meta: Meta,
}

impl View for ClockView {
    fn table(&self) -> String {
        let ClockView { clock, meta } = self;
        Table::pairs([
            ("cache", clock.cache.to_string()),
            ("stable", clock.stable.to_string()),
            ("settled", clock.settled.to_string()),
            ("high", clock.high.to_string()),
            ("skipped", grouped(clock.gaps)),
            ("late", grouped(clock.late)),
            ("marked", clock.marked.to_string()),
            ("batch", clock.batch.to_string()),
            ("checkpoint", format!("of batch {}", clock.checkpoint)),
            ("epoch", clock.epoch.to_string()),
            ("format", clock.format.to_string()),
            ("blocks", format!("{}, {} sequences each", meta.codec, grouped(meta.capacity.into()))),
            ("ring", format!("{} batch records", meta.ring)),
            ("made from", meta.source.as_ref().map_or_else(|| "not known".to_owned(), ToString::to_string)),
            ("made by", format!("{}, {} s after 1970", meta.created_by, meta.created_at)),
        ])
        .render(0)
    }
}

#[derive(Serialize)]
struct ChannelView {
    channel: Channel,
    counter: u64,
    generation: u64,
    valid_from: Sequence,
    blocks: Vec<BlockSummary>,
}

#[derive(Serialize)]
struct BlockSummary {
    index: u64,
    range: SequenceRange,
    stored: bool,
    present: u64,
    removals: u64,
    superseded: u64,
}

impl View for ChannelView {
    fn table(&self) -> String {
        let mut out = Table::pairs([
            ("channel", self.channel.to_string()),
            ("counter", self.counter.to_string()),
            ("directory", format!("{} blocks, generation {}", self.blocks.len(), self.generation)),
            ("complete from", self.valid_from.to_string()),
        ])
        .render(0);
        if !self.blocks.is_empty() {
            let mut table = Table::new([">block", "sequences", ">present", ">removals", ">superseded", ""]);
            for b in &self.blocks {
                let note = if b.stored { "" } else { "not stored" };
                let counts = [b.present, b.removals, b.superseded].map(grouped);
                let [present, removals, superseded] = counts;
                table.row([b.index.to_string(), b.range.shown().to_string(), present, removals, superseded, note.to_owned()]);
            }
            out.push('\n');
            out.push_str(&table.render(0));
        }
        out
    }
}

async fn channel_view(store: &dyn CacheStore, codec: &dyn BlockCodec, channel: Channel) -> Result<ChannelView> {
    let directory = scan::directory(store, &channel).await?;
    let counter = store.increment(&CacheKey::Counter(channel.clone()), 0).await?;
    if counter == 0 && directory.blocks.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "the cache knows no such channel").with_context("channel", channel));
    }
    let mut blocks = Vec::new();
    for index in directory.blocks.iter().flat_map(|(a, b)| a..=b) {
        let stored = store.get(&CacheKey::Block(channel.clone(), BlockIndex(index))).await?.is_some();
        let block = scan::block(store, codec, &channel, BlockIndex(index)).await?;
        let count = |wanted: BlockState| block.iter().filter(|(_, state)| *state == wanted).count() as u64;
        blocks.push(BlockSummary {
            index,
            range: Block::range(BlockIndex(index), codec.capacity()),
            stored,
            present: count(BlockState::Present),
            removals: count(BlockState::Removal),
            superseded: count(BlockState::Superseded),
        });
    }
    let (generation, valid_from) = (directory.generation, directory.valid_from);
    Ok(ChannelView { channel, counter, generation, valid_from, blocks })
}

#[derive(Serialize)]
struct BlockView {
    channel: Channel,
    index: u64,
    range: SequenceRange,
    present: Vec<Sequence>,
    removals: Vec<Sequence>,
    superseded: Vec<Sequence>,
}

impl View for BlockView {
    fn table(&self) -> String {
        Table::pairs([
            ("block", format!("{} of channel {}", self.index, self.channel)),
            ("sequences", self.range.shown().to_string()),
            ("present", runs(&self.present)),
            ("removals", runs(&self.removals)),
            ("superseded", runs(&self.superseded)),
        ])
        .render(0)
    }
}

/// Sequences as runs: `3, 7-9`, with their number in front.
fn runs(sequences: &[Sequence]) -> String {
    let runs: Vec<String> = sequences
        .chunk_by(|a, b| a.next() == *b)
        .filter_map(|run| SequenceRange::new(*run.first()?, *run.last()?))
        .map(|range| range.shown().to_string())
        .collect();
    if runs.is_empty() { "none".to_owned() } else { format!("{}: {}", grouped(sequences.len() as u64), runs.join(", ")) }
}

async fn block_view(store: &dyn CacheStore, codec: &dyn BlockCodec, channel: Channel, index: BlockIndex) -> Result<BlockView> {
    let key = CacheKey::Block(channel.clone(), index);
    if store.get(&key).await?.is_none() {
        return Err(Error::new(ErrorKind::NotFound, "no such block is stored").with_context("key", key));
    }
    let block = scan::block(store, codec, &channel, index).await?;
    let range = Block::range(index, codec.capacity());
    let of = |wanted: BlockState| {
        let named = block.iter().filter(|(_, state)| *state == wanted);
        named.map(|(offset, _)| Sequence(range.first().0 + u64::from(offset))).collect()
    };
    let (present, removals, superseded) = (of(BlockState::Present), of(BlockState::Removal), of(BlockState::Superseded));
    Ok(BlockView { channel, index: index.0, range, present, removals, superseded })
}

#[derive(Serialize)]
struct SequenceView {
    entry: ChangeEntry,
    /// How each channel shows it.
    states: BTreeMap<Channel, &'static str>,
}

impl View for SequenceView {
    fn table(&self) -> String {
        let entry = &self.entry;
        let supersedes = runs(entry.supersedes());
        let origin = entry.origin();
        let mut out = Table::pairs([
            ("sequence", entry.position().shown().to_string()),
            ("document", entry.key().to_owned()),
            ("revision", entry.revision().to_owned()),
            ("deleted", if entry.is_deleted() { "yes" } else { "no" }.to_owned()),
            ("supersedes", supersedes),
            ("feed", format!("partition {}, position {}", origin.partition.0, origin.seqno.0)),
        ])
        .render(0);
        let mut table = Table::new(["channel", "entry", "block"]);
        for (channel, state) in &self.states {
            let by_entry = match entry.membership(channel) {
                Some(membership) if membership.is_removal() => "removed",
                Some(_) => "present",
                None => "not in it",
            };
            table.row([channel.to_string(), by_entry.to_owned(), (*state).to_owned()]);
        }
        out.push('\n');
        out.push_str(&table.render(0));
        out
    }
}

async fn sequence_view(store: &dyn CacheStore, codec: &dyn BlockCodec, sequence: Sequence) -> Result<SequenceView> {
    let key = CacheKey::Sequence(sequence);
    let absent = || {
        let why = "no entry is stored for this sequence: unused, a user's or role's, superseded before it was seen, or missing";
        Error::new(ErrorKind::NotFound, why).with_context("key", &key)
    };
    let entry = store.entries(&[sequence]).await?.pop().flatten().ok_or_else(absent)?;
    let (index, offset) = Block::locate(sequence, codec.capacity());
    let mut states = BTreeMap::new();
    for channel in entry.channels().iter().map(|change| &change.channel).chain([entry.star()]) {
        let state = match scan::block(store, codec, channel, index).await?.get(offset) {
            BlockState::Absent => "absent",
            BlockState::Present => "present",
            BlockState::Removal => "removal",
            BlockState::Superseded => "superseded",
        };
        states.insert(channel.clone(), state);
    }
    Ok(SequenceView { entry: (*entry).clone(), states })
}

#[derive(Serialize)]
struct SkippedView {
    stable: Sequence,
    high: Sequence,
    skipped: u64,
    gaps: Vec<Gap>,
}

impl View for SkippedView {
    fn table(&self) -> String {
        let mut out = format!("{} skipped between stable {} and high {}\n", grouped(self.skipped), self.stable, self.high);
        if !self.gaps.is_empty() {
            let mut table = Table::new(["sequences", ">how many", ">missed for"]);
            for gap in &self.gaps {
                let missed = format!("{:.1} s", gap.age_ms as f64 / 1e3);
                table.row([gap.range.shown().to_string(), grouped(gap.range.count()), missed]);
            }
            out.push_str(&table.render(0));
        }
        out
    }
}

async fn skipped_view(store: &dyn CacheStore, clock: PublishedClock, ring: u64) -> Result<SkippedView> {
    let LastBatch { clock, missing, .. } = LastBatch::read(store, ring, clock).await?;
    let gaps = missing.gaps;
    Ok(SkippedView { stable: clock.stable, high: clock.high, skipped: clock.gaps, gaps })
}
