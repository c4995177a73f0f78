//! The load: mutations taken from a feed once, and held in memory for all stores and rounds.

use std::collections::BTreeSet;
use std::fmt;

use futures::StreamExt as _;
use sluicegate::channel::ChannelMap;
use sluicegate::registry::Location;
use sluicegate::{
    Channel, Decoded, Error, FeedEvent, FeedStart, GatewayDecoder, Mutation, MutationDecoder as _, Registry, Result, Sequence,
    WriterConfig,
};
use sluicegate_replay::MemoryFeed;

/// How many channels are read back.
const READ: usize = 100;

/// What is written to every store.
pub(crate) struct Load {
    /// The feed's URL, without secrets.
    name: String,
    /// The mutations.
    pub(crate) feed: MemoryFeed,
    /// Documents among them, which become entries.
    pub(crate) entries: u64,
    /// Whether the feed has no more.
    pub(crate) is_all: bool,
    /// All channels that they name.
    pub(crate) channels: BTreeSet<Channel>,
    /// Channels to read back, from the busiest to the quietest.
    pub(crate) read: Vec<Channel>,
    /// The highest sequence.
    pub(crate) last: Sequence,
    /// How it is written.
    pub(crate) config: WriterConfig,
}

impl Load {
    /// Takes mutations from the feed at `url` until there are `wanted` documents, or no more.
    pub(crate) async fn take(registry: &Registry, url: &str, wanted: u64, config: WriterConfig) -> Result<Self> {
        let name = Location::parse(url)?.to_string();
        let mut stream = registry.open_feed(url).await?.open(FeedStart::Beginning).await?;
        let mut taking = Taking::default();
        while taking.entries < wanted
            && let Some(batch) = stream.next().await
        {
            for event in batch.map_err(|e| e.with_context("feed", &name))?.events {
                if let FeedEvent::Mutation(mutation) = event
                    && taking.entries < wanted
                {
                    taking.add(mutation);
                }
            }
        }
        taking.finish(name, wanted, config)
    }

    /// The first `wanted` documents of it.
    pub(crate) fn part(&self, wanted: u64) -> Result<Self> {
        let mut taking = Taking::default();
        for mutation in self.feed.mutations() {
            if taking.entries < wanted {
                taking.add(mutation.clone());
            }
        }
        taking.finish(self.name.clone(), wanted, self.config.clone())
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load { name, entries, channels, config, .. } = self;
        let mutations = self.feed.mutations().len();
        write!(
            f,
            "The load is {name}: {entries} documents in {mutations} mutations, {} channels; codec {}",
            channels.len() - 1,
            config.codec
        )?;
        f.write_str(if self.is_all { "; the feed has no more." } else { "." })
    }
}

#[derive(Default)]
struct Taking {
    decoder: GatewayDecoder,
    mutations: Vec<Mutation>,
    entries: u64,
    last: Sequence,
    counts: ChannelMap<u64>,
}

impl Taking {
    fn add(&mut self, mutation: Mutation) {
        if let Decoded::Document(document) = self.decoder.decode(&mutation) {
            self.entries += 1;
            self.last = self.last.max(document.entry.sequence());
            for change in document.entry.channels() {
                *self.counts.entry(change.channel.clone()).or_default() += 1;
            }
            for departure in document.departures {
                self.counts.entry(departure.channel).or_default();
            }
        }
        self.mutations.push(mutation);
    }

    fn finish(self, name: String, wanted: u64, config: WriterConfig) -> Result<Load> {
        if self.entries == 0 {
            return Err(Error::config("the feed has no documents; give another with --feed").with_context("feed", name));
        }
        let mut busiest: Vec<(u64, Channel)> = self.counts.into_iter().map(|(channel, count)| (count, channel)).collect();
        busiest.sort_unstable_by(|a, b| b.cmp(a));
        let mut channels: BTreeSet<Channel> = busiest.iter().map(|(_, channel)| channel.clone()).collect();
        channels.insert(Channel::star());
        if busiest.is_empty() {
            busiest.push((self.entries, Channel::star()));
        }
        let read = READ.min(busiest.len());
        let read = (0..read).map(|n| busiest[n * busiest.len() / read].1.clone()).collect();
        let is_all = self.entries < wanted;
        let feed = MemoryFeed::new("compare", self.mutations);
        Ok(Load { name, feed, entries: self.entries, is_all, channels, read, last: self.last, config })
    }
}
