//! The stores that are compared: opened empty for each round, and emptied after it.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluicegate::registry::Location;
use sluicegate::{CacheKey, CacheStore, Error, ErrorKind, PublishedClock, Registry, Result};
use sluicegate_testkit::clear::{self, Contents};

use crate::load::Load;

/// A store given by URL.
pub(crate) struct Target {
    /// Its URL without secrets, and a number if it is given more than once.
    pub(crate) name: String,
    url: String,
    /// Whether each round can have a namespace of its own.
    has_namespaces: bool,
}

impl Target {
    /// Looks at all of them: so that a wrong URL is found before anything is measured.
    pub(crate) async fn all(registry: &Registry, urls: &[String]) -> Result<Vec<Target>> {
        let mut targets = Vec::new();
        let mut seen = BTreeMap::<String, u32>::new();
        for url in urls {
            let mut name = Location::parse(url)?.to_string();
            let times = seen.entry(name.clone()).or_default();
            *times += 1;
            if *times > 1 {
                name = format!("{name} ({times})");
            }
            let mut target = Target { name, url: url.clone(), has_namespaces: !url.contains("namespace=") };
            if target.has_namespaces {
                target.has_namespaces = match registry.open_store(&target.fresh_url()).await {
                    Ok(_) => true,
                    Err(e) if e.kind() == ErrorKind::ConfigInvalid && e.to_string().contains("unknown field `namespace`") => {
                        false
                    }
                    Err(e) => return Err(e),
                };
            }
            target.open(registry).await?;
            targets.push(target);
        }
        Ok(targets)
    }

    fn fresh_url(&self) -> String {
        if !self.has_namespaces {
            return self.url.clone();
        }
        let mark = if self.url.contains('?') { '&' } else { '?' };
        format!("{}{mark}namespace=cmp-{:08x}", self.url, rand::random::<u32>())
    }

    /// Opens it for a round.
    pub(crate) async fn open(&self, registry: &Registry) -> Result<Arc<dyn CacheStore>> {
        let url = self.fresh_url();
        let about = |e: Error| match Location::parse(&url) {
            Ok(location) => e.with_context("store", location),
            Err(_) => e,
        };
        let store = registry.open_store(&url).await.map_err(about)?;
        match store.get(&CacheKey::Meta).await.map_err(about)? {
            None => Ok(store),
            Some(_) => Err(about(Error::config("this store holds a cache, which would be written over; give one that is empty"))),
        }
    }
}

/// Removes everything that a round has written.
pub(crate) async fn clear(store: &Arc<dyn CacheStore>, load: &Load, feed: &str, clock: &PublishedClock) -> Result<()> {
    let mut contents = Contents { feed: feed.to_owned(), channels: load.channels.clone(), ..Contents::default() };
    contents.sequences.insert(1, clock.high.max(load.last).0);
    clear::clear(store, &contents).await
}
