//! What a command works with.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use futures::StreamExt as _;
use futures::future::try_join_all;
use sluicegate::collections::Collections;
use sluicegate::core::feed::{FeedInfo, SharedFeed, Territory};
use sluicegate::core::meta::Meta;
use sluicegate::databases::{DatabaseConfig, Keyspace, listed, number_of, store_url, store_urls};
use sluicegate::decode::databases::Databases;
use sluicegate::registry::Location;
use sluicegate::source::DatabaseIdentity;
use sluicegate::{
    Builder, CacheKey, CacheStore, CollectionId, Error, ErrorKind, Feed, FeedEvent, FeedStart, GatewayDecoder, MutationDecoder,
    ReaderNode, Sluicegate, WriterNode, WriterStatus,
};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::output::Outcome;
use super::progress::{Meter, Terminal};
use super::settings::{DatabasesSetting, Redacted, Settings};
use super::signal::Signals;

/// Settings, and the process around the command.
pub(crate) struct Session {
    pub(crate) settings: Settings,
    /// The stores named on the command line, for a command that takes several.
    #[cfg_attr(not(any(feature = "scenario", feature = "bench")), allow(dead_code, reason = "no command takes several"))]
    pub(crate) stores: Vec<String>,
    /// Whether the feed was named on the command line. One from the file or the environment is that of the writer which runs
    /// elsewhere: a command that only reads must not follow it too.
    pub(crate) fed_by_flag: bool,
    pub(crate) terminal: Terminal,
    pub(crate) signals: Signals,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stores: Vec<Redacted<'_>> = self.stores.iter().map(|url| Redacted(url)).collect();
        f.debug_struct("Session").field("settings", &self.settings).field("stores", &stores).finish_non_exhaustive()
    }
}

/// The database of a command, and its collection.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Which {
    /// The database, if several are served
    #[arg(long, value_name = "NAME")]
    pub(crate) database: Option<String>,
    /// The collection: database.scope.collection, scope.collection, or the name of a database for
    /// its default collection. A number such as 0x8 may stand for scope.collection. Without it, all
    /// collections of the database
    #[arg(long, value_name = "KEYSPACE")]
    pub(crate) keyspace: Option<Keyspace>,
}

impl Which {
    /// Whether one collection is named.
    pub(crate) fn is_one_collection(&self) -> bool {
        self.keyspace.is_some()
    }

    /// The database that is named, by itself or in the keyspace.
    fn database(&self) -> Outcome<Option<&str>> {
        let in_keyspace = self.keyspace.as_ref().and_then(|keyspace| keyspace.database.as_deref());
        match (self.database.as_deref(), in_keyspace) {
            (Some(one), Some(other)) if one != other => {
                Err(Error::config(format!("--database {one} and --keyspace of database {other} exclude each other")).into())
            }
            (one, other) => Ok(one.or(other)),
        }
    }

    /// The number of the collection that is named, if one is. Its name must be known, or it must
    /// have documents.
    pub(crate) fn collection(&self, known: &Collections) -> Outcome<Option<CollectionId>> {
        let Some(keyspace) = &self.keyspace else { return Ok(None) };
        let name = &keyspace.collection;
        let is_known = |number: &CollectionId| known.name_of(*number).is_some() || known.used().any(|used| used == *number);
        match number_of(name, |name| known.find(name)).filter(is_known) {
            Some(number) => Ok(Some(number)),
            None => {
                let message = format!(
                    "the cache knows no collection {name} (it has documents in: {}); without --keyspace all are asked",
                    used(known)
                );
                Err(Error::new(ErrorKind::NotFound, message).into())
            }
        }
    }
}

/// The collections that have documents, by name or number. The default one is named if there is no
/// other: it counts as used whether it has documents or not.
pub(crate) fn used(known: &Collections) -> String {
    let shown = |collection: CollectionId| known.name_of(collection).map_or(format!("{:#x}", collection.0), str::to_owned);
    let others: Vec<String> = known.used().filter(|collection| !collection.is_default()).map(shown).collect();
    if others.is_empty() { shown(CollectionId::DEFAULT) } else { others.join(", ") }
}

/// A database with all that its writer needs.
pub(crate) struct Part {
    /// `None` if only one is served, which need not be named.
    pub(crate) name: Option<String>,
    pub(crate) store: Arc<dyn CacheStore>,
    pub(crate) feed: Arc<dyn Feed>,
    pub(crate) decoder: Arc<dyn MutationDecoder>,
    pub(crate) identity: DatabaseIdentity,
    /// The feed, if it is shared, with the counts of events of no database.
    pub(crate) shared: Option<SharedFeed>,
    /// Whether the log has the warning that this seems to be several databases.
    told: Arc<Mutex<bool>>,
}

impl Session {
    /// The URL of the store.
    pub(crate) fn store_url(&self) -> &str {
        self.settings.store.as_deref().unwrap_or("memory:")
    }

    /// The name of the store, or of the stores of several databases.
    pub(crate) fn store_name(&self, parts: &[Part]) -> String {
        match parts {
            [part] => part.store.info().name,
            _ => parts.iter().map(|part| part.store.info().name).collect::<Vec<_>>().join(", "),
        }
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

    /// The databases that are served, by name; `None` for one without a name.
    async fn databases(&self, feed: &Arc<dyn Feed>) -> Outcome<Option<BTreeMap<String, DatabaseConfig>>> {
        match &self.settings.databases {
            None => Ok(None),
            Some(DatabasesSetting::Named(named)) => Ok(Some(named.clone())),
            Some(DatabasesSetting::Word(_)) => find_databases(feed).await.map(Some),
        }
    }

    /// The feed, and each database that is served from it.
    pub(crate) async fn parts(&self, feed: Arc<dyn Feed>) -> Outcome<Vec<Part>> {
        let base = self.settings.decoder.options()?;
        let Some(databases) = self.databases(&feed).await? else {
            let identity = self.settings.decoder.identity()?;
            let mut part = Part {
                name: None,
                store: self.store().await?,
                feed: feed.clone(),
                decoder: Arc::new(GatewayDecoder::new(&base)),
                identity: identity.clone(),
                shared: None,
                told: Arc::default(),
            };
            if identity.collections.is_some() {
                // Only the feed knows their numbers.
                let territory = Territory::new(identity.metadata_id, identity.collections);
                part.shared = SharedFeed::split(feed, vec![territory]).pop();
                if let Some(shared) = &part.shared {
                    part.feed = Arc::new(shared.clone());
                }
            }
            return Ok(vec![part]);
        };
        if let Some(url) = &self.settings.feed {
            check_filter(url, &databases)?;
        }
        let urls = store_urls(self.store_url(), &databases)?;
        let territories = databases.iter().map(|(name, config)| config.territory(name)).collect();
        let mut parts = Vec::new();
        for (((name, config), url), shared) in databases.iter().zip(urls).zip(SharedFeed::split(feed, territories)) {
            parts.push(Part {
                name: Some(name.clone()),
                store: sluicegate::open_store(&url).await?,
                feed: Arc::new(shared.clone()),
                decoder: Arc::new(GatewayDecoder::new(&config.decoder(name, &base)?)),
                identity: config.identity(name),
                shared: Some(shared),
                told: Arc::default(),
            });
        }
        Ok(parts)
    }

    /// Opens the store for a command that reads; after all of the feed has been ingested, if one was named on the command line.
    pub(crate) async fn filled_store(&self, which: &Which) -> Outcome<(Arc<dyn CacheStore>, Option<FeedInfo>)> {
        let wanted = which.database()?;
        if !self.fed_by_flag {
            let store = self.stored(wanted).await?;
            check_database(store.as_ref(), wanted).await?;
            return Ok((store, None));
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
        let parts = self.parts(feed).await?;
        let chosen = choose(&parts, wanted)?;
        let store = parts[chosen].store.clone();
        let nodes: Vec<WriterNode> = parts.iter().map(|part| self.writer(part)).collect();
        let meter = Meter::start(&self.terminal, nodes[chosen].status());
        let watches: Vec<_> = nodes.iter().zip(&parts).map(|(node, part)| watch_for_mixture(node.status(), part)).collect();
        let ended = try_join_all(nodes.iter().map(|node| node.run(std::future::pending()))).await;
        meter.finish();
        ended?;
        for (node, part) in nodes.iter().zip(&parts) {
            warn_of_mixture(&node.status().borrow(), part).await;
        }
        drop(watches);
        Ok((store, Some(info)))
    }

    /// A writer of a database.
    pub(crate) fn writer(&self, part: &Part) -> WriterNode {
        WriterNode::new(part.store.clone(), part.feed.clone())
            .with_config(self.settings.writer.clone())
            .with_decoder(part.decoder.clone())
            .with_database(part.identity.clone())
    }

    /// A writer of a database and a reader, to be started.
    pub(crate) fn cache(&self, part: &Part, adopt: bool) -> Builder {
        let builder = Sluicegate::builder()
            .with_store(part.store.clone())
            .with_feed(part.feed.clone())
            .decoder(part.decoder.clone())
            .database(part.identity.clone())
            .adopt(adopt)
            .writer_config(self.settings.writer.clone())
            .reader_config(self.settings.reader.clone());
        match &self.settings.node {
            Some(node) => builder.node(node),
            None => builder,
        }
    }

    /// The store with the cache of a database that another process writes.
    async fn stored(&self, wanted: Option<&str>) -> Outcome<Arc<dyn CacheStore>> {
        let unnamed = DatabaseConfig::default();
        let (name, config) = match (&self.settings.databases, wanted) {
            (None, None) => return self.store().await,
            // A writer of one database need not name it. Its cache has the namespace of the store's
            // URL.
            (None, Some(_)) => return self.store().await,
            (Some(DatabasesSetting::Word(_)), Some(name)) => (name, &unnamed),
            (Some(DatabasesSetting::Word(_)), None) => {
                return Err(Error::config("several databases may be served; choose one with --database").into());
            }
            (Some(DatabasesSetting::Named(named)), wanted) => {
                let names: Vec<&str> = named.keys().map(String::as_str).collect();
                let name = names[chosen(&names, wanted)?];
                (name, named.get(name).unwrap_or(&unnamed))
            }
        };
        Ok(sluicegate::open_store(&store_url(self.store_url(), name, config)).await?)
    }

    /// Opens the cache for a command that reads, as [`filled_store`](Self::filled_store).
    pub(crate) async fn reader(&self, which: &Which) -> Outcome<ReaderNode> {
        let (store, _) = self.filled_store(which).await?;
        let database = DatabaseIdentity { name: which.database()?.map(str::to_owned), ..DatabaseIdentity::default() };
        Ok(ReaderNode::open(store, self.settings.reader.clone()).instrument(database.span()).await?)
    }
}

/// Refuses a cache that was made from another database than the wanted one.
async fn check_database(store: &dyn CacheStore, wanted: Option<&str>) -> Outcome<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    let Some(stored) = store.get(&CacheKey::Meta).await? else { return Ok(()) };
    match Meta::from_bytes(&stored.value)?.source {
        Some(source) if source.database.name.as_deref().is_some_and(|name| name != wanted) => {
            let message = format!("the cache was made from {source}, and database {wanted} was asked for");
            let next = "ask for the database that the cache was made from, or name the store or namespace of the other one";
            Err(Error::config(message).with_next_step(next).into())
        }
        _ => Ok(()),
    }
}

/// Checks that a bucket's feed which is limited to some collections has all that the databases
/// need. All collections of a counter must come: the sequences of a collection that is left out are
/// missing.
fn check_filter(url: &str, databases: &BTreeMap<String, DatabaseConfig>) -> Outcome<()> {
    let location = Location::parse(url)?;
    if !matches!(location.scheme(), "dcp" | "dcps") {
        return Ok(());
    }
    let options: BTreeMap<String, String> = location.options()?;
    if let Some(scope) = options.get("scope") {
        let message = format!("the feed's URL limits it to the scope {scope}, which does not have all that a database needs");
        return Err(Error::config(message).with_next_step("leave the option scope out where databases are named").into());
    }
    let Some(collections) = options.get("collections") else { return Ok(()) };
    let delivered: Vec<&str> = collections.split(',').map(str::trim).collect();
    let needed = databases.values().flat_map(DatabaseConfig::collections);
    let mut missing: Vec<String> = needed.filter(|name| !delivered.contains(&name.as_str())).collect();
    if !METADATA.iter().any(|name| delivered.contains(name)) {
        missing.push(format!("{}, in one of which the gateway keeps its metadata", METADATA.join(" or ")));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!("the feed's URL limits it to some collections, and leaves out: {}", missing.join(", "));
    Err(Error::config(message).with_next_step("add them to the option collections, or leave the option out").into())
}

/// The collections in which the gateway keeps its users, roles and markers.
const METADATA: [&str; 2] = ["_default._default", "_system._mobile"];

/// The index of the wanted database in `parts`.
pub(crate) fn choose(parts: &[Part], wanted: Option<&str>) -> Outcome<usize> {
    if let [Part { name: None, .. }] = parts {
        return Ok(0);
    }
    let names: Vec<&str> = parts.iter().filter_map(|part| part.name.as_deref()).collect();
    chosen(&names, wanted)
}

impl Which {
    /// The index of the database in `parts`.
    pub(crate) fn among(&self, parts: &[Part]) -> Outcome<usize> {
        choose(parts, self.database()?)
    }
}

fn chosen(names: &[&str], wanted: Option<&str>) -> Outcome<usize> {
    let known = names.join(", ");
    match wanted {
        None if names.len() == 1 => Ok(0),
        None => Err(Error::config(format!("several databases are served; choose one with --database: {known}")).into()),
        Some(wanted) => match names.iter().position(|name| *name == wanted) {
            Some(at) => Ok(at),
            None => Err(Error::config(format!("there is no database {wanted}; there are: {known}")).into()),
        },
    }
}

/// Reads the feed up to its end, or to its current end, for the databases in it.
async fn find_databases(feed: &Arc<dyn Feed>) -> Outcome<BTreeMap<String, DatabaseConfig>> {
    tracing::info!("looking for databases: the whole feed is read once");
    let mut found = Databases::new([]);
    let mut stream = feed.open(FeedStart::Beginning).await.map_err(|e| e.with_operation("open the feed"))?;
    'read: while let Some(batch) = stream.next().await {
        for event in &batch.map_err(|e| e.with_operation("look for databases"))?.events {
            match event {
                FeedEvent::CollectionNames(names) => {
                    for (number, name) in names {
                        found.name(*number, name);
                    }
                }
                FeedEvent::Mutation(mutation) => {
                    found.observe(mutation);
                }
                FeedEvent::CaughtUp => break 'read,
                _ => {}
            }
        }
    }
    let found = listed(&found)?;
    if found.is_empty() {
        let message = "no document of the feed names a database";
        return Err(Error::config(message)
            .with_next_step("name the databases: [databases.NAME] with metadata_id and collections in the settings file")
            .into());
    }
    for (name, config) in &found {
        let metadata_id = config.metadata_id(name);
        tracing::info!(database = name, metadata_id, collections = ?config.collections(), "found a database");
    }
    Ok(found)
}

/// Watches a writer of one database without a name for signs that there are several.
pub(crate) fn watch_for_mixture(mut status: watch::Receiver<WriterStatus>, part: &Part) -> AbortOnDropHandle<()> {
    let (store, told, is_named) = (part.store.clone(), part.told.clone(), part.name.is_some());
    AbortOnDropHandle::new(tokio::spawn(async move {
        if !is_named && status.wait_for(|status| status.stats.conflicts > 0).await.is_ok() {
            let conflicts = status.borrow().stats.conflicts;
            tell_of_mixture(store.as_ref(), &told, conflicts).await;
        }
    }))
}

/// As [`watch_for_mixture`], at the end.
pub(crate) async fn warn_of_mixture(status: &WriterStatus, part: &Part) {
    if part.name.is_some() {
        return;
    }
    let WriterStatus { stats, clock, .. } = status;
    if stats.conflicts > 0 {
        tell_of_mixture(part.store.as_ref(), &part.told, stats.conflicts).await;
    }
    let missing = clock.as_ref().map_or(0, |clock| clock.gaps);
    if missing > 0 && stats.other_database > 0 {
        tracing::warn!(
            missing,
            left_out = stats.other_database,
            "sequences are missing, and users, roles or unused sequences of another metadata id were left out: if that is the metadata id of \
             this database, set decoder.metadata_id, or databases=auto"
        );
    }
}

async fn tell_of_mixture(store: &dyn CacheStore, told: &Mutex<bool>, conflicts: u64) {
    let stored = store.get(&CacheKey::Collections).await.ok().flatten();
    let known = stored.and_then(|stored| Collections::from_bytes(&stored.value).ok()).unwrap_or_default();
    let named = |id: CollectionId| known.name_of(id).map_or_else(|| format!("0x{:x}", id.0), str::to_owned);
    let used: Vec<String> = known.used().map(named).collect();
    // Held until the line is written: the process may end as soon as another finds that it was
    // told.
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    if used.len() > 1 && !std::mem::replace(&mut *told, true) {
        tracing::warn!(
            conflicts,
            collections = ?used,
            "documents of several collections have the same sequences: this looks like several databases in one bucket, which one cache \
             cannot hold; name them in the settings, [databases.NAME] with metadata_id and collections, or databases=auto, and create \
             new caches for them"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_that_is_limited_to_some_collections_must_have_what_databases_need() {
        let databases = BTreeMap::from([("a".to_owned(), DatabaseConfig::default())]);
        let check = |query: &str| check_filter(&format!("dcp://h/b?user=u&password=p{query}"), &databases);
        assert!(check("").is_ok() && check("&collections=_default._default,s.c").is_ok());
        for (query, word) in
            [("&scope=s", "scope s"), ("&collections=s.c", "_default._default"), ("&collections=_system._mobile", "_default")]
        {
            let Err(super::super::output::Failure::Error(error)) = check(query) else { panic!("{query}") };
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(check_filter("replay:x?collections=1", &databases).is_ok());
    }

    #[cfg(feature = "memory")]
    #[tokio::test]
    async fn a_cache_of_another_database_is_not_read() {
        use sluicegate::core::block::codec_named;
        use sluicegate::core::store::Expiry;
        use sluicegate::feed::FeedIdentity;
        use sluicegate::source::CacheSource;

        let store = sluicegate::open_store("memory:").await.unwrap();
        assert!(check_database(store.as_ref(), Some("orders")).await.is_ok(), "it has no cache yet");
        let mut meta = Meta::new(codec_named("adaptive", 40_000).unwrap().as_ref(), 128, 0);
        let database = DatabaseIdentity { name: Some("orders".to_owned()), ..DatabaseIdentity::default() };
        meta.source = Some(CacheSource { feed: FeedIdentity::new("dcp:b"), database });
        store.insert(&CacheKey::Meta, meta.to_bytes(), Expiry::Never).await.unwrap();
        for wanted in [None, Some("orders")] {
            assert!(check_database(store.as_ref(), wanted).await.is_ok(), "{wanted:?}");
        }
        let refused = check_database(store.as_ref(), Some("people")).await;
        let Err(super::super::output::Failure::Error(error)) = refused else { panic!("it was read") };
        let text = error.to_string();
        assert!(text.contains("dcp:b, database orders") && text.contains("database people"), "{text}");
    }
}
