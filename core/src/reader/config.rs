//! How a reader is set.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How a reader works. Times in milliseconds where the name says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ReaderConfig {
    /// Rows a channel's tail keeps whatever their age.
    pub tail_min: usize,
    /// Rows a channel's tail keeps at most (rows above stable come on top).
    pub tail_max: usize,
    /// How old a row above the minimum gets.
    pub tail_age_ms: u64,
    /// Channels with a tail, at most; those not read for longest go.
    pub max_channels: usize,
    /// How often the clock is looked at, at least, while the store wakes us.
    pub poll_max_ms: u64,
    /// How often it is looked at while it changes, where the store does not wake us.
    pub poll_min_ms: u64,
    /// How long the store may not answer before the node is offline.
    pub offline_after_ms: u64,
    /// How requests are answered while a new cache is built.
    pub while_building: WhileBuilding,
    /// Late entries kept in memory for late cursors; older ones are read from the store.
    pub late_kept: usize,
}

/// How requests are answered while a new cache is built: until the feed has delivered what was
/// there when the writer began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WhileBuilding {
    /// With an error that tells how far the first read is.
    #[default]
    Refuse,
    /// With what is complete, up to the first sequence that is missing. The node holds all entries
    /// above that in memory.
    Show,
}

impl Default for ReaderConfig {
    fn default() -> Self {
        ReaderConfig {
            tail_min: 50,
            tail_max: 500,
            tail_age_ms: 60_000,
            max_channels: 50_000,
            poll_max_ms: 1_000,
            poll_min_ms: 5,
            offline_after_ms: 10_000,
            while_building: WhileBuilding::default(),
            late_kept: 10_000,
        }
    }
}

impl ReaderConfig {
    /// Whether the values make sense together.
    ///
    /// # Errors
    /// `ConfigInvalid`, naming every one that does not.
    pub fn validate(&self) -> Result<()> {
        let mut wrong = Vec::new();
        if self.tail_min > self.tail_max {
            wrong.push(format!("tail_min is {}, must be at most tail_max, {}", self.tail_min, self.tail_max));
        }
        if self.poll_min_ms == 0 || self.poll_min_ms > self.poll_max_ms {
            wrong.push(format!("poll_min_ms is {}, must be from 1 to poll_max_ms, {}", self.poll_min_ms, self.poll_max_ms));
        }
        if self.max_channels == 0 {
            wrong.push("max_channels is 0, must be at least 1".to_owned());
        }
        if wrong.is_empty() { Ok(()) } else { Err(Error::config(wrong.join("; "))) }
    }
}
