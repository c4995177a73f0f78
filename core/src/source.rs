//! The source of a cache, and whether a writer may continue with it.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::feed::FeedIdentity;

/// The database of a feed that a cache holds. Each database has its own sequences, which count from
/// 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseIdentity {
    /// Its name, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its metadata id; `None` for the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_id: Option<String>,
    /// Its collections, as they are configured; `None` for all that the feed delivers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collections: Option<BTreeSet<String>>,
}

impl DatabaseIdentity {
    /// The span in which what is done for the database is logged, so that each line says which one
    /// it is about; none if it has no name. At the level of errors: one below the level that is
    /// logged would be left out of every line.
    pub fn span(&self) -> tracing::Span {
        self.name.as_ref().map_or_else(tracing::Span::none, |name| tracing::error_span!("database", name))
    }
}

/// The source of a cache. Stored in its [`Meta`](crate::meta::Meta).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheSource {
    /// The feed.
    pub feed: FeedIdentity,
    /// The database of the feed.
    #[serde(flatten)]
    pub database: DatabaseIdentity,
}

impl fmt::Display for CacheSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "feed {}", self.feed)?;
        if let Some(name) = &self.database.name {
            write!(f, ", database {name}")?;
        }
        match &self.database.metadata_id {
            Some(id) => write!(f, ", metadata id {id}"),
            None => f.write_str(", default metadata id"),
        }
    }
}

/// How a writer continues with a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resume {
    /// Whether the feed is read from its beginning instead of the checkpoint.
    pub(crate) from_beginning: bool,
    /// The source that the cache has from now on.
    pub(crate) source: Option<CacheSource>,
}

/// The feed that a term follows: the name of its checkpoint, and its source.
///
/// With a name alone (`"feed".into()`) nothing is checked: for callers that have no
/// [`Feed`](crate::Feed).
#[derive(Clone, Debug)]
pub struct Following {
    checkpoint: String,
    source: Option<CacheSource>,
    adopt: bool,
}

impl From<&str> for Following {
    fn from(checkpoint: &str) -> Self {
        Following { checkpoint: checkpoint.to_owned(), source: None, adopt: false }
    }
}

impl From<String> for Following {
    fn from(checkpoint: String) -> Self {
        Following { checkpoint, source: None, adopt: false }
    }
}

impl From<&String> for Following {
    fn from(checkpoint: &String) -> Self {
        checkpoint.as_str().into()
    }
}

impl Following {
    /// Sets the source of the feed. A cache with another source is refused.
    #[must_use]
    pub fn with_source(mut self, source: CacheSource) -> Self {
        self.source = Some(source);
        self
    }

    /// Binds the cache to this feed even if it was made from another one. The feed is then read
    /// from its beginning. The entries of the cache stay.
    #[must_use]
    pub fn adopting(mut self, adopt: bool) -> Self {
        self.adopt = adopt;
        self
    }

    /// The name of the checkpoint.
    pub fn checkpoint(&self) -> &str {
        &self.checkpoint
    }

    /// The source of the feed.
    pub fn source(&self) -> Option<&CacheSource> {
        self.source.as_ref()
    }

    /// The names of checkpoints that may be this feed's in a cache of an earlier format.
    pub(crate) fn former_checkpoints(&self) -> &[String] {
        self.source.as_ref().map_or(&[], |source| source.feed.former_checkpoints())
    }

    /// How to continue with a cache whose source is `stored`.
    ///
    /// # Errors
    /// `ConfigInvalid` if that is another source.
    pub(crate) fn resume(&self, stored: Option<&CacheSource>) -> Result<Resume> {
        let (Some(wanted), Some(stored)) = (&self.source, stored) else {
            return Ok(Resume { from_beginning: false, source: self.source.as_ref().or(stored).cloned() });
        };
        let mut source = wanted.clone();
        if !stored.feed.is_same(&wanted.feed) || stored.database.metadata_id != wanted.database.metadata_id {
            if self.adopt {
                tracing::warn!(before = %stored, now = %wanted, "the cache is bound to another feed, which is read from its beginning");
                return Ok(Resume { from_beginning: true, source: Some(source) });
            }
            return Err(is_another(format!("the cache was made from {stored}; this is {wanted}, whose sequences are unrelated")));
        }
        if wanted.feed.instance().is_empty() {
            source.feed = stored.feed.clone();
        }
        let (before, now) = (&stored.database.collections, &wanted.database.collections);
        // Up to the checkpoint, documents of collections that were not the database's were left
        // out.
        let from_beginning = match (before, now) {
            (Some(before), Some(now)) => !now.is_subset(before),
            (Some(_), None) => true,
            (None, _) => false,
        };
        if from_beginning {
            tracing::warn!(?before, ?now, "the database has new collections; the feed is read from its beginning");
        }
        Ok(Resume { from_beginning, source: Some(source) })
    }

    /// How to continue with a cache whose source is not recorded, as in format version 1, and that
    /// has no checkpoint of this feed.
    ///
    /// # Errors
    /// `ConfigInvalid`: it was made from another feed.
    pub(crate) fn resume_without_checkpoint(&self) -> Result<Resume> {
        let Some(wanted) = &self.source else { return self.resume(None) };
        if self.adopt {
            tracing::warn!(now = %wanted, "the cache is bound to another feed, which is read from its beginning");
            return Ok(Resume { from_beginning: true, source: Some(wanted.clone()) });
        }
        Err(is_another(format!(
            "the cache was made from another feed, or another part of its bucket, which an earlier build did not record: it has no \
             checkpoint `{}`, which is that of {wanted}",
            self.checkpoint
        )))
    }
}

fn is_another(message: String) -> Error {
    Error::config(message).with_next_step(
        "use another namespace for this feed; or, to continue with this cache on purpose, start the writer once with --adopt, \
         which reads the feed from its beginning",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn source(name: &str, instance: &str, metadata_id: Option<&str>, collections: Option<&[&str]>) -> CacheSource {
        CacheSource {
            feed: FeedIdentity::new(name).with_instance(instance),
            database: DatabaseIdentity {
                name: metadata_id.map(str::to_owned),
                metadata_id: metadata_id.map(str::to_owned),
                collections: collections.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
            },
        }
    }

    fn resume(stored: &CacheSource, wanted: &CacheSource) -> Result<Resume> {
        Following::from("f").with_source(wanted.clone()).resume(Some(stored))
    }

    fn unchanged(source: &CacheSource) -> Resume {
        Resume { from_beginning: false, source: Some(source.clone()) }
    }

    #[test]
    fn a_cache_goes_on_only_with_what_it_was_made_from() {
        let stored = source("dcp:b", "u1", None, None);
        assert_eq!(resume(&stored, &stored).unwrap(), unchanged(&stored));
        for other in
            [source("dcp:c", "u1", None, None), source("dcp:b", "u2", None, None), source("dcp:b", "u1", Some("x"), None)]
        {
            let error = resume(&stored, &other).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
            assert!(
                text.contains(&stored.to_string()) && text.contains(&other.to_string()) && text.contains("--adopt"),
                "{text}"
            );
            let adopting = Following::from("f").with_source(other.clone()).adopting(true);
            assert_eq!(adopting.resume(Some(&stored)).unwrap(), Resume { from_beginning: true, source: Some(other) });
        }
        assert_eq!(Following::from("f").resume(Some(&stored)).unwrap(), unchanged(&stored));
        assert_eq!(Following::from("f").with_source(stored.clone()).resume(None).unwrap(), unchanged(&stored));
    }

    #[test]
    fn an_instance_that_is_not_known_is_any_and_is_kept_once_known() {
        let (unknown, known) = (source("dcp:b", "", None, None), source("dcp:b", "u1", None, None));
        assert_eq!(resume(&unknown, &known).unwrap(), unchanged(&known));
        assert_eq!(resume(&known, &unknown).unwrap(), unchanged(&known));
    }

    #[test]
    fn collections_that_are_new_need_the_whole_feed() {
        let all = source("f", "", None, None);
        let (one, two) = (source("f", "", None, Some(&["s.a"])), source("f", "", None, Some(&["s.a", "s.b"])));
        for (stored, wanted, from_beginning) in [(&all, &one, false), (&one, &all, true), (&one, &two, true), (&two, &one, false)]
        {
            assert_eq!(resume(stored, wanted).unwrap(), Resume { from_beginning, source: Some(wanted.clone()) });
        }
    }
}
