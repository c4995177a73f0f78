//! The published clock: the one document readers watch.

use std::fmt;

use bytes::Bytes;
use rand::Rng as _;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sequence::Sequence;

/// Version of the cache format that this build writes. It reads all versions from 1 on; a writer
/// upgrades the cache when it takes over (ARCHITECTURE.md, "Format versions").
pub const FORMAT_VERSION: u32 = 3;

/// Refuses a cache of a format version that this build does not know.
pub(crate) fn check_format(format: u32) -> Result<()> {
    if (1..=FORMAT_VERSION).contains(&format) {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "the cache has format version {format}; this build knows 1 to {FORMAT_VERSION}; use a newer build, or another namespace"
    )))
}

/// Random identity of one cache; everything published is relative to it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CacheId(String);

impl CacheId {
    /// A new identity.
    pub fn random() -> Self {
        CacheId(format!("{:032x}", rand::rng().random::<u128>()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for CacheId {
    fn from(text: &str) -> Self {
        CacheId(text.to_owned())
    }
}

impl fmt::Debug for CacheId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for CacheId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Fencing number of a writer's term. The counter grows by one with each change of writer; the
/// writer's random id is part of it, so that a counter that was lost with a store and issued again
/// is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// The term.
    pub counter: u64,
    /// The writer.
    pub writer: u64,
}

impl Epoch {
    /// The epoch of `writer` after this one.
    #[must_use]
    pub fn successor(self, writer: u64) -> Epoch {
        Epoch { counter: self.counter + 1, writer }
    }

    /// Whether this term comes after `other`.
    pub fn supersedes(self, other: Epoch) -> bool {
        self.counter > other.counter
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:016x}", self.counter, self.writer)
    }
}

/// What readers may believe: the only commit point of the cache. Every field but the epoch's holder
/// only grows (gaps excepted, which come and go).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedClock {
    /// Identity of the cache.
    pub cache: CacheId,
    /// Format version.
    pub format: u32,
    /// The term in which it was published.
    pub epoch: Epoch,
    /// Every sequence at or below it is accounted for: cached, unused, or given up.
    pub stable: Sequence,
    /// Up to here every gap is older than the configured wait: what `Delivery::Auto` shows. Between
    /// stable and high.
    pub settled: Sequence,
    /// Every sequence at or below it is accounted for or is on the skipped list.
    pub high: Sequence,
    /// How many late entries there have been.
    pub late: u64,
    /// How many sequences are on the skipped list.
    pub gaps: u64,
    /// Number of the last batch published.
    pub batch: u64,
    /// Every entry at or below it has its superseded predecessors marked in the blocks.
    pub marked: Sequence,
    /// Number of the batch that the stored checkpoint belongs to; 0 if that is the feed's
    /// beginning.
    pub checkpoint: u64,
    /// How far the first read of the feed is; `None` if it is over. Until then sequences come in
    /// any order, and high and stable stay below the first that is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub building: Option<Progress>,
}

/// How far the first read of a feed is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The number of sequences that are accounted for. A range that is unused counts as one.
    pub arrived: u64,
    /// The highest of them.
    pub highest: Sequence,
    /// About how many there will be, by the share of the feed that has been delivered. `None` if
    /// the feed does not tell how much it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
}

impl Progress {
    /// About how many sequences there will be. It may go down while the feed is read. If the feed
    /// does not tell how much it has, it is the highest, since all lower ones may still come.
    pub fn total(self) -> u64 {
        self.expected.unwrap_or(self.highest.0).max(self.arrived)
    }

    /// The percentage of these sequences that are accounted for, at most 99.
    pub fn percent(self) -> u64 {
        (self.arrived as f64 / self.total().max(1) as f64 * 100.0).clamp(0.0, 99.0) as u64
    }
}

impl PublishedClock {
    /// The clock of a cache that holds nothing yet.
    pub fn new(cache: CacheId) -> Self {
        PublishedClock {
            cache,
            format: FORMAT_VERSION,
            epoch: Epoch::default(),
            stable: Sequence::ZERO,
            settled: Sequence::ZERO,
            high: Sequence::ZERO,
            late: 0,
            gaps: 0,
            batch: 0,
            marked: Sequence::ZERO,
            checkpoint: 0,
            building: None,
        }
    }

    /// Whether this clock, seen after `earlier`, means that the store lost acknowledged writes or
    /// is another cache.
    pub fn lost_since(&self, earlier: &PublishedClock) -> Option<&'static str> {
        if self.cache != earlier.cache {
            Some("another cache id")
        } else if earlier.epoch.supersedes(self.epoch) {
            Some("the epoch went down")
        } else if self.epoch.counter == earlier.epoch.counter && self.epoch.writer != earlier.epoch.writer {
            Some("one epoch has two writers")
        } else if self.stable < earlier.stable {
            Some("the stable sequence went down")
        } else if self.high < earlier.high {
            Some("the high sequence went down")
        } else if self.late < earlier.late {
            Some("the late number went down")
        } else if self.batch < earlier.batch {
            Some("the batch number went down")
        } else {
            None
        }
    }

    /// JSON, as the cache format has it.
    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// Reads a stored clock.
    ///
    /// # Errors
    /// `Corrupt` if it is none, or if its format version is unknown.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let clock: PublishedClock = from_json(bytes, "published clock")?;
        check_format(clock.format)?;
        Ok(clock)
    }
}

/// JSON of a stored document.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Bytes {
    // Every stored document is plain data with string keys, which always serializes.
    Bytes::from(serde_json::to_vec(value).unwrap_or_default())
}

/// Reads a stored document.
pub(crate) fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::corrupt(format!("not a {what}")).with_source(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_reads_back_as_written_and_refuses_other_formats() {
        let mut clock = PublishedClock::new(CacheId::random());
        clock.stable = Sequence(u64::MAX);
        assert_eq!(PublishedClock::from_bytes(&clock.to_bytes()).unwrap(), clock);
        clock.format = 1;
        assert_eq!(PublishedClock::from_bytes(&clock.to_bytes()).unwrap(), clock);
        clock.format = FORMAT_VERSION + 1;
        let refused = PublishedClock::from_bytes(&clock.to_bytes()).unwrap_err().to_string();
        assert!(refused.contains(&format!("version {}", FORMAT_VERSION + 1)), "{refused}");
    }

    #[test]
    fn whatever_goes_down_is_a_loss() {
        let earlier =
            PublishedClock { stable: Sequence(5), high: Sequence(8), late: 2, batch: 4, ..PublishedClock::new("a".into()) };
        assert_eq!(earlier.lost_since(&earlier), None);
        for later in [
            PublishedClock { stable: Sequence(4), ..earlier.clone() },
            PublishedClock { high: Sequence(7), ..earlier.clone() },
            PublishedClock { late: 1, ..earlier.clone() },
            PublishedClock { batch: 3, ..earlier.clone() },
            PublishedClock { cache: "b".into(), ..earlier.clone() },
        ] {
            assert!(later.lost_since(&earlier).is_some(), "{later:?}");
        }
    }
}
