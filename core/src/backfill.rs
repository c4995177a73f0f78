//! Where a range of a channel can be read when the cache does not hold it.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::channel::Channel;
use crate::entry::ChangeEntry;
use crate::error::Result;
use crate::sequence::{Sequence, SequenceRange};

/// Which part of a range to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Continue after this sequence of the range; `None` for its beginning.
    pub after: Option<Sequence>,
    /// At most so many entries.
    pub limit: usize,
}

/// One page of a range.
#[derive(Clone, Debug, Default)]
pub struct BackfillPage {
    /// The channel's rows, ascending by sequence, each document at its newest sequence.
    pub entries: Vec<Arc<ChangeEntry>>,
    /// Where the next page continues; `None` at the end.
    pub next: Option<Sequence>,
}

/// The system of record behind the feed, asked by channel and range (Couchbase: the channels view or index).
#[async_trait]
pub trait BackfillSource: Send + Sync + fmt::Debug + 'static {
    /// One page of `channel`'s rows in `range`. May be repeated.
    ///
    /// # Errors
    /// `Unavailable` and `Timeout` where the source cannot answer.
    async fn range(&self, channel: &Channel, range: SequenceRange, page: Page) -> Result<BackfillPage>;

    /// The highest sequence allocated so far.
    ///
    /// # Errors
    /// As [`range`](Self::range).
    async fn current_sequence(&self) -> Result<Sequence>;
}
