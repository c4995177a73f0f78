//! What a command works with.

use std::sync::Arc;

use sluicegate::core::feed::FeedInfo;
use sluicegate::{CacheStore, Error, Feed, GatewayDecoder, MutationDecoder, ReaderNode, WriterNode};

use super::output::Outcome;
use super::progress::{Meter, Terminal};
use super::settings::Settings;
use super::signal::Signals;

/// Settings, and the process around the command.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) settings: Settings,
    /// Whether the feed was named on the command line. One from the file or the environment is that of the writer which runs
    /// elsewhere: a command that only reads must not follow it too.
    pub(crate) fed_by_flag: bool,
    pub(crate) terminal: Terminal,
    pub(crate) signals: Signals,
}

impl Session {
    /// The URL of the store.
    pub(crate) fn store_url(&self) -> &str {
        self.settings.store.as_deref().unwrap_or("memory:")
    }

    /// Opens the store.
    pub(crate) async fn store(&self) -> Outcome<Arc<dyn CacheStore>> {
        Ok(sluicegate::open_store(self.store_url()).await?)
    }

    /// Opens the feed that the settings name.
    pub(crate) async fn feed(&self) -> Outcome<Arc<dyn Feed>> {
        match &self.settings.feed {
            Some(url) => Ok(sluicegate::open_feed(url).await?),
            None => Err(Error::config("no feed is given; use --feed URL, for example --feed replay:FILE").into()),
        }
    }

    /// What understands the feed's documents.
    pub(crate) fn decoder(&self) -> Outcome<Arc<dyn MutationDecoder>> {
        Ok(Arc::new(GatewayDecoder::new(&self.settings.decoder.options()?)))
    }

    /// A writer of `feed`.
    pub(crate) fn writer(&self, store: Arc<dyn CacheStore>, feed: Arc<dyn Feed>) -> Outcome<WriterNode> {
        Ok(WriterNode::new(store, feed).with_config(self.settings.writer.clone()).with_decoder(self.decoder()?))
    }

    /// Opens the store for a command that reads; after all of the feed has been ingested, if one was named on the command line.
    pub(crate) async fn filled_store(&self) -> Outcome<(Arc<dyn CacheStore>, Option<FeedInfo>)> {
        if !self.fed_by_flag {
            return Ok((self.store().await?, None));
        }
        let feed = self.feed().await?;
        let info = feed.info();
        if !info.capabilities.finite {
            let scheme = info.scheme;
            return Err(Error::config(format!(
                "the feed `{scheme}:` does not end, so it cannot be ingested first; give it to `sluicegate run` and leave --feed out here"
            ))
            .into());
        }
        let store = self.store().await?;
        let writer = self.writer(store.clone(), feed)?;
        let meter = Meter::start(&self.terminal, writer.status());
        let ended = writer.run(std::future::pending()).await;
        meter.finish();
        ended?;
        Ok((store, Some(info)))
    }

    /// Opens the cache for a command that reads, as [`filled_store`](Self::filled_store).
    pub(crate) async fn reader(&self) -> Outcome<ReaderNode> {
        let (store, _) = self.filled_store().await?;
        Ok(ReaderNode::open(store, self.settings.reader.clone()).await?)
    }
}
