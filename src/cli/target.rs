//! Stores given by URL, for commands that fill empty ones and empty them again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use sluicegate::registry::Location;
use sluicegate::{CacheKey, CacheStore, Error, ErrorKind, Result};

/// A store given by URL, which must be empty unless it has namespaces.
#[derive(Clone)]
pub(crate) struct Target {
    /// Its URL without secrets.
    pub(crate) name: String,
    url: String,
    /// The beginning of the names of its namespaces.
    prefix: &'static str,
    /// Whether stored documents end with the store itself.
    pub(crate) is_transient: bool,
    pub(crate) has_namespaces: bool,
}

impl Target {
    /// Opens it once, so that a wrong URL is found before anything else is done.
    pub(crate) async fn look_at(url: &str, prefix: &'static str) -> Result<Target> {
        let name = Location::parse(url)?.to_string();
        let has_namespaces = !url.contains("namespace=");
        let mut target = Target { name, url: url.to_owned(), prefix, is_transient: false, has_namespaces };
        let store = match target.open(&target.fresh_url()).await {
            Err(e) if e.kind() == ErrorKind::ConfigInvalid && e.to_string().contains("unknown field `namespace`") => {
                target.has_namespaces = false;
                target.open(url).await?
            }
            opened => opened?,
        };
        target.is_transient = !target.has_namespaces && store.info().scheme == "memory";
        Ok(target)
    }

    /// A URL with an unused namespace.
    pub(crate) fn fresh_url(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if !self.has_namespaces {
            return self.url.clone();
        }
        let mark = if self.url.contains('?') { '&' } else { '?' };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        format!("{}{mark}namespace={}-{:x}-{time:x}-{number}", self.url, self.prefix, std::process::id())
    }

    /// Opens a [fresh URL](Self::fresh_url).
    pub(crate) async fn open(&self, url: &str) -> Result<Arc<dyn CacheStore>> {
        let about = |e: Error| self.about(e);
        let store = sluicegate::open_store(url).await.map_err(about)?;
        refuse_cache(store.as_ref()).await.map_err(about)?;
        Ok(store)
    }

    /// Names the store in an error.
    pub(crate) fn about(&self, error: Error) -> Error {
        error.with_context("store", &self.name)
    }
}

/// Refuses a store that has a cache, for commands that write one of their own.
pub(crate) async fn refuse_cache(store: &dyn CacheStore) -> Result<()> {
    for key in [CacheKey::Meta, CacheKey::Clock] {
        if store.get(&key).await?.is_some() {
            let message = "this store has a cache, which would be overwritten";
            return Err(Error::config(message).with_next_step("use an empty store, or another namespace"));
        }
    }
    Ok(())
}
