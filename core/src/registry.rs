//! Which backends and feeds are compiled in, and how a URL picks one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::feed::Feed;
use crate::store::CacheStore;

/// A URL taken apart: `scheme:rest?option=value&…`. Its password never shows in `Debug` or `Display`.
#[derive(Clone)]
pub struct Location {
    scheme: String,
    rest: String,
    query: String,
}

impl Location {
    /// Takes `url` apart.
    ///
    /// # Errors
    /// `ConfigInvalid` without a scheme.
    pub fn parse(url: &str) -> Result<Self> {
        let valid = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        let (scheme, rest) = url
            .split_once(':')
            .filter(|(scheme, _)| valid(scheme))
            .ok_or_else(|| Error::config("a URL must begin with a scheme, such as memory: or replay:FILE"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        Ok(Location { scheme: scheme.to_ascii_lowercase(), rest: rest.to_owned(), query: query.to_owned() })
    }

    /// The scheme, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// What stands between the scheme's colon and the question mark, leading slashes included.
    pub fn rest(&self) -> &str {
        &self.rest
    }

    /// The options after the question mark, in a struct that should deny unknown fields.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming the option.
    pub fn options<T: DeserializeOwned>(&self) -> Result<T> {
        serde_urlencoded::from_str(&self.query).map_err(|e| Error::config(format!("options of `{}:`: {e}", self.scheme)))
    }

    /// The whole URL as given, secrets included: for clients that parse it themselves. Not for logs.
    pub fn expose(&self) -> String {
        let mark = if self.query.is_empty() { "" } else { "?" };
        format!("{}:{}{mark}{}", self.scheme, self.rest, self.query)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (authority, path) = match self.rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", self.rest.as_str()),
        };
        let slashes = if self.rest.starts_with("//") { "//" } else { "" };
        let host = match authority.rsplit_once('@') {
            Some((user, host)) => match user.split_once(':') {
                Some((user, _)) => format!("{user}:***@{host}"),
                None => authority.to_owned(),
            },
            None => authority.to_owned(),
        };
        write!(f, "{}:{slashes}{host}{path}", self.scheme)?;
        for (i, pair) in self.query.split('&').filter(|p| !p.is_empty()).enumerate() {
            let mark = if i == 0 { '?' } else { '&' };
            let name = pair.split_once('=').map_or(pair, |(name, _)| name);
            let secret = ["password", "secret", "token", "key"].iter().any(|word| name.to_ascii_lowercase().contains(word));
            if secret { write!(f, "{mark}{name}=***")? } else { write!(f, "{mark}{pair}")? }
        }
        Ok(())
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What opening a plug-in gives.
pub type Opening<T> = BoxFuture<'static, Result<Arc<T>>>;

/// One kind of store. Submit it with `inventory::submit!`.
#[derive(Clone, Copy)]
pub struct StoreFactory {
    /// The URL scheme that picks it.
    pub scheme: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// Opens it. Must refuse options it does not know, by name.
    pub open: fn(Location) -> Opening<dyn CacheStore>,
}

/// One kind of feed. Submit it with `inventory::submit!`.
#[derive(Clone, Copy)]
pub struct FeedFactory {
    /// The URL scheme that picks it.
    pub scheme: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// Opens it. Must refuse options it does not know, by name.
    pub open: fn(Location) -> Opening<dyn Feed>,
}

inventory::collect!(StoreFactory);
inventory::collect!(FeedFactory);

/// Schemes this project has, and the Cargo feature that adds them.
const KNOWN: &[(&str, &str)] = &[
    ("dcp", "dcp"),
    ("dcps", "dcp"),
    ("memory", "memory"),
    ("redis", "redis"),
    ("rediss", "redis"),
    ("redis+cluster", "redis"),
    ("rediss+cluster", "redis"),
    ("replay", "replay"),
    ("synthetic", "replay"),
];

/// The stores and feeds that can be opened by URL.
#[derive(Clone, Default)]
pub struct Registry {
    stores: BTreeMap<&'static str, StoreFactory>,
    feeds: BTreeMap<&'static str, FeedFactory>,
}

impl Registry {
    /// One that knows nothing.
    pub fn empty() -> Self {
        Registry::default()
    }

    /// All that is linked into this program.
    ///
    /// # Errors
    /// `ConfigInvalid` if two claim one scheme.
    pub fn discover() -> Result<Self> {
        let mut registry = Registry::empty();
        for factory in inventory::iter::<StoreFactory> {
            registry.register_store(*factory)?;
        }
        for factory in inventory::iter::<FeedFactory> {
            registry.register_feed(*factory)?;
        }
        Ok(registry)
    }

    /// Adds a store by hand.
    ///
    /// # Errors
    /// `ConfigInvalid` if its scheme is taken; the message names both.
    pub fn register_store(&mut self, factory: StoreFactory) -> Result<()> {
        match self.stores.insert(factory.scheme, factory) {
            Some(other) => Err(taken("store", factory.scheme, other.about, factory.about)),
            None => Ok(()),
        }
    }

    /// Adds a feed by hand.
    ///
    /// # Errors
    /// `ConfigInvalid` if its scheme is taken; the message names both.
    pub fn register_feed(&mut self, factory: FeedFactory) -> Result<()> {
        match self.feeds.insert(factory.scheme, factory) {
            Some(other) => Err(taken("feed", factory.scheme, other.about, factory.about)),
            None => Ok(()),
        }
    }

    /// The stores, by scheme.
    pub fn stores(&self) -> impl Iterator<Item = &StoreFactory> {
        self.stores.values()
    }

    /// The feeds, by scheme.
    pub fn feeds(&self) -> impl Iterator<Item = &FeedFactory> {
        self.feeds.values()
    }

    /// Opens the store at `url`.
    ///
    /// # Errors
    /// `ConfigInvalid` for an unknown scheme (the message lists the known ones) or option; what the backend says otherwise.
    pub async fn open_store(&self, url: &str) -> Result<Arc<dyn CacheStore>> {
        let location = Location::parse(url)?;
        match self.stores.get(location.scheme()) {
            Some(factory) => (factory.open)(location).await,
            None => Err(unknown("store", location.scheme(), self.stores.keys().copied())),
        }
    }

    /// Opens the feed at `url`.
    ///
    /// # Errors
    /// As [`open_store`](Self::open_store).
    pub async fn open_feed(&self, url: &str) -> Result<Arc<dyn Feed>> {
        let location = Location::parse(url)?;
        match self.feeds.get(location.scheme()) {
            Some(factory) => (factory.open)(location).await,
            None => Err(unknown("feed", location.scheme(), self.feeds.keys().copied())),
        }
    }
}

fn taken(what: &str, scheme: &str, first: &str, second: &str) -> Error {
    Error::config(format!("two {what}s claim the scheme `{scheme}`: {first:?} and {second:?}"))
}

fn unknown(what: &str, scheme: &str, available: impl Iterator<Item = &'static str>) -> Error {
    let available = available.collect::<Vec<_>>().join(", ");
    let available = if available.is_empty() { "none".to_owned() } else { available };
    match KNOWN.iter().find(|(known, _)| *known == scheme) {
        Some((_, feature)) => Error::config(format!(
            "{what} `{scheme}:` is not compiled in as a {what}; enable feature `{feature}` (available: {available})"
        )),
        None => Error::config(format!("no {what} is called `{scheme}:` (available: {available})")),
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("stores", &self.stores.keys()).field("feeds", &self.feeds.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Options {
        pool: u32,
    }

    impl Default for Options {
        fn default() -> Self {
            Options { pool: 4 }
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let location = Location::parse("redis://app:hunter2@host:6379/1?password=hunter2&pool=3").unwrap();
        assert_eq!(format!("{location:?}"), "redis://app:***@host:6379/1?password=***&pool=3");
        assert!(location.expose().contains("hunter2"));
    }

    #[test]
    fn unknown_and_wrong_options_are_named() {
        let options = |url: &str| Location::parse(url).unwrap().options::<Options>();
        assert_eq!(options("x:?pool=7").unwrap(), Options { pool: 7 });
        assert_eq!(options("x:").unwrap(), Options { pool: 4 });
        assert!(options("x:?pol=7").unwrap_err().to_string().contains("`pol`"));
        assert!(options("x:?pool=many").is_err());
        assert!(Location::parse("nothing").is_err());
    }

    #[tokio::test]
    async fn an_unknown_scheme_lists_what_there_is() {
        let error = Registry::empty().open_store("memory:").await.unwrap_err().to_string();
        assert!(error.contains("enable feature `memory`") && error.contains("available: none"), "{error}");
    }
}
