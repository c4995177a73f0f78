//! What is wrong and where, and what was done about it.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::error::Error;
use crate::key::CacheKey;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Problem {
    /// A document that must be there is not.
    Missing,
    /// A document is there and cannot be read.
    Unreadable,
    /// A document says that it belongs under another key.
    Misplaced,
    /// A block does not say of a sequence what its entry says.
    WrongState,
    /// A block shows a sequence whose entry is not in its channel.
    StrayRow,
    /// An older row of a document is still shown beside a newer one.
    DuplicateRow,
    /// The newest row of a document is not shown.
    LostRow,
    /// A block that shows something is not in its channel's directory.
    UnlistedBlock,
    /// A channel has rows and no counter.
    NoCounter,
    /// Two documents contradict each other.
    Contradiction,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Problem::Missing => "missing",
            Problem::Unreadable => "unreadable",
            Problem::Misplaced => "misplaced",
            Problem::WrongState => "wrong-state",
            Problem::StrayRow => "stray-row",
            Problem::DuplicateRow => "duplicate-row",
            Problem::LostRow => "lost-row",
            Problem::UnlistedBlock => "unlisted-block",
            Problem::NoCounter => "no-counter",
            Problem::Contradiction => "contradiction",
        })
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What is wrong.
    pub problem: Problem,
    /// The document in which it shows.
    #[serde(serialize_with = "as_text")]
    pub key: CacheKey,
    /// What was found there.
    pub detail: String,
}

impl Finding {
    /// That a document cannot be read, with the whole chain of causes.
    pub(super) fn unreadable(key: CacheKey, error: &Error) -> Finding {
        let mut detail = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            detail.push_str(": ");
            detail.push_str(&cause.to_string());
            source = cause.source();
        }
        Finding { problem: Problem::Unreadable, key, detail }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.problem, self.key, self.detail)
    }
}

/// What a repair did about a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Action {
    /// Written anew from what is sound.
    Rebuilt,
    /// Removed: nothing depends on it.
    Removed,
    /// It cannot be made up for from the cache. Requests that need it fail and name it; see [`repair`](super::repair()).
    Lost,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Rebuilt => "rebuilt",
            Action::Removed => "removed",
            Action::Lost => "lost",
        })
    }
}

/// One thing that a repair did, or could not do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct Repair {
    /// What it did.
    pub action: Action,
    /// To which document.
    #[serde(serialize_with = "as_text")]
    pub key: CacheKey,
    /// From what, and what follows from it.
    pub detail: String,
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.action, self.key, self.detail)
    }
}

fn as_text<S: Serializer>(key: &CacheKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&key.canonical("_cache"))
}
