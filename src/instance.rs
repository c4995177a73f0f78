//! A writer and a reader in one process.

use std::fmt;
use std::sync::Arc;

use sluicegate_core::changes::{Answer, ChangesOptions};
use sluicegate_core::decode::GatewayDecoder;
use sluicegate_core::reader::Cut;
use sluicegate_core::source::DatabaseIdentity;
use sluicegate_core::writer::Ended;
use sluicegate_core::{
    AlwaysWriter, CacheStore, Candidate, Channel, Coordinator, Error, ErrorKind, Feed, MutationDecoder, ReaderConfig, ReaderNode,
    Registry, Result, WriterConfig, WriterNode, WriterStatus,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

/// A reader, and a writer if there is a feed, over one store, in tasks of this process.
///
/// Dropping it stops both at once. That loses nothing, but what the writer had taken and not yet published is read from the feed again;
/// [`shutdown`](Self::shutdown) puts it away first.
#[derive(Debug)]
pub struct Sluicegate {
    store: Arc<dyn CacheStore>,
    reader: ReaderNode,
    writer: Option<RunningWriter>,
}

#[derive(Debug)]
struct RunningWriter {
    status: watch::Receiver<WriterStatus>,
    stop: CancellationToken,
    /// Until it was joined.
    task: Option<AbortOnDropHandle<Result<Ended>>>,
    ended: Option<Ended>,
}

/// What a [`Sluicegate`] is made of. Only the store is required.
#[must_use]
pub struct Builder {
    store: Option<Part<dyn CacheStore>>,
    feed: Option<Part<dyn Feed>>,
    decoder: Arc<dyn MutationDecoder>,
    coordinator: Option<Arc<dyn Coordinator>>,
    node: String,
    registry: Option<Registry>,
    writer: WriterConfig,
    reader: ReaderConfig,
    database: DatabaseIdentity,
    adopt: bool,
}

enum Part<T: ?Sized> {
    Url(String),
    Open(Arc<T>),
}

impl Sluicegate {
    /// Begins to put one together.
    pub fn builder() -> Builder {
        Builder {
            store: None,
            feed: None,
            decoder: Arc::new(GatewayDecoder::default()),
            coordinator: None,
            node: "sluicegate".to_owned(),
            registry: None,
            writer: WriterConfig::default(),
            reader: ReaderConfig::default(),
            database: DatabaseIdentity::default(),
            adopt: false,
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn CacheStore> {
        &self.store
    }

    /// The reader. Cheap to clone.
    pub fn reader(&self) -> &ReaderNode {
        &self.reader
    }

    /// What the writer is doing, as it changes; `None` without a feed.
    pub fn writer(&self) -> Option<watch::Receiver<WriterStatus>> {
        self.writer.as_ref().map(|writer| writer.status.clone())
    }

    /// What changed in `channels`, merged, filtered and limited as `options` say. For more than that, ask the [`reader`](Self::reader).
    ///
    /// # Errors
    /// As [`ReaderNode::changes`].
    pub async fn changes(&self, channels: &[Channel], options: &ChangesOptions) -> Result<Answer> {
        Ok(self.reader.changes(channels, options).await?.answer())
    }

    /// Waits until the writer has ended: because a finite feed has, or with the error for which it cannot go on. Without a feed it never
    /// comes back.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// What ended the writer, as [`WriterNode::run`]; `Closed` if that was told before.
    pub async fn writer_ended(&mut self) -> Result<Ended> {
        match &mut self.writer {
            Some(writer) => writer.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until a finite feed has ended and the reader shows all of it; what requests see then.
    ///
    /// # Errors
    /// As [`writer_ended`](Self::writer_ended).
    pub async fn caught_up(&mut self) -> Result<Cut> {
        self.writer_ended().await?;
        let batch = self.writer.as_ref().and_then(|w| w.status.borrow().clock.as_ref().map(|clock| clock.batch));
        self.reader.wait_for_batch(batch.unwrap_or_default()).await
    }

    /// Stops the writer after it has stored and published what it has taken from the feed; what it has seen, if there was one.
    ///
    /// # Errors
    /// What ended the writer, if it was not told yet.
    pub async fn shutdown(mut self) -> Result<Option<WriterStatus>> {
        let Some(writer) = &mut self.writer else { return Ok(None) };
        writer.stop.cancel();
        match writer.ended().await {
            Err(e) if e.kind() != ErrorKind::Closed => Err(e),
            _ => Ok(Some(writer.status.borrow().clone())),
        }
    }
}

impl RunningWriter {
    async fn ended(&mut self) -> Result<Ended> {
        let task = match (&mut self.task, self.ended) {
            (Some(task), _) => task,
            (None, Some(ended)) => return Ok(ended),
            (None, None) => return Err(Error::new(ErrorKind::Closed, "the writer has failed, which was told before")),
        };
        let joined = task.await;
        self.task = None;
        let ended = joined.map_err(|e| Error::new(ErrorKind::Unexpected, "the writer's task failed").with_source(e))??;
        self.ended = Some(ended);
        Ok(ended)
    }
}

impl Builder {
    /// The store, by URL.
    pub fn store(mut self, url: impl Into<String>) -> Self {
        self.store = Some(Part::Url(url.into()));
        self
    }

    /// The store itself.
    pub fn with_store(mut self, store: Arc<dyn CacheStore>) -> Self {
        self.store = Some(Part::Open(store));
        self
    }

    /// The feed to write from, by URL. Without one, only reading is done.
    pub fn feed(mut self, url: impl Into<String>) -> Self {
        self.feed = Some(Part::Url(url.into()));
        self
    }

    /// The feed itself.
    pub fn with_feed(mut self, feed: Arc<dyn Feed>) -> Self {
        self.feed = Some(Part::Open(feed));
        self
    }

    /// Understands other documents than the gateway's.
    pub fn decoder(mut self, decoder: Arc<dyn MutationDecoder>) -> Self {
        self.decoder = decoder;
        self
    }

    /// Asks `coordinator` who writes. Without one, this process does.
    pub fn coordinator(mut self, coordinator: Arc<dyn Coordinator>) -> Self {
        self.coordinator = Some(coordinator);
        self
    }

    /// The name of this node among others.
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.node = name.into();
        self
    }

    /// Where URLs are looked up, instead of in what is linked.
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// How the writer works.
    pub fn writer_config(mut self, config: WriterConfig) -> Self {
        self.writer = config;
        self
    }

    /// How the reader works.
    pub fn reader_config(mut self, config: ReaderConfig) -> Self {
        self.reader = config;
        self
    }

    /// The database of the feed that the decoder takes, as [`WriterNode::with_database`].
    pub fn database(mut self, database: DatabaseIdentity) -> Self {
        self.database = database;
        self
    }

    /// Whether a cache that was made from another feed is bound to this one, as
    /// [`WriterNode::adopting`].
    pub fn adopt(mut self, adopt: bool) -> Self {
        self.adopt = adopt;
        self
    }

    /// Opens store and feed, starts the writer if there is a feed, and waits until there is a cache to read.
    ///
    /// # Errors
    /// `ConfigInvalid` for what does not fit together; `NotFound` without a feed if the store holds no cache; what store and feed say.
    pub async fn start(self) -> Result<Sluicegate> {
        let span = self.database.span();
        self.start_all().instrument(span).await
    }

    async fn start_all(self) -> Result<Sluicegate> {
        self.writer.validate()?;
        self.reader.validate()?;
        let registry = match self.registry {
            Some(registry) => registry,
            None => Registry::discover()?,
        };
        let store = match self.store {
            Some(Part::Url(url)) => registry.open_store(&url).await?,
            Some(Part::Open(store)) => store,
            None => return Err(Error::config("no store is given; `memory:` is the simplest")),
        };
        let feed = match self.feed {
            Some(Part::Url(url)) => Some(registry.open_feed(&url).await?),
            Some(Part::Open(feed)) => Some(feed),
            None => None,
        };
        let Some(feed) = feed else {
            let reader = ReaderNode::open(store.clone(), self.reader).await?;
            return Ok(Sluicegate { store, reader, writer: None });
        };
        let coordinator = self.coordinator.unwrap_or_else(|| Arc::new(AlwaysWriter::new(store.clone())));
        let node = WriterNode::new(store.clone(), feed)
            .with_decoder(self.decoder)
            .with_coordinator(coordinator, Candidate::new(self.node))
            .with_config(self.writer)
            .with_database(self.database)
            .adopting(self.adopt);
        let (status, stop) = (node.status(), CancellationToken::new());
        let stopping = stop.clone();
        let task = tokio::spawn(async move { node.run(stopping.cancelled_owned()).await });
        let mut writer = RunningWriter { status, stop, task: Some(AbortOnDropHandle::new(task)), ended: None };
        let ready = ReaderNode::open_when_ready(store.clone(), self.reader.clone());
        let reader = tokio::select! {
            reader = ready => reader?,
            ended = writer.ended() => {
                ended?;
                ReaderNode::open(store.clone(), self.reader).await?
            }
        };
        Ok(Sluicegate { store, reader, writer: Some(writer) })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // URLs may hold secrets.
        f.debug_struct("Builder").field("node", &self.node).finish_non_exhaustive()
    }
}
