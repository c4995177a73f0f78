//! The directory of a channel: which of its blocks hold something live.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::clock::{from_json, to_json};
use crate::document::CollectionId;
use crate::error::{Error, Result};
use crate::key::BlockIndex;
use crate::sequence::{RangeSet, Sequence};

/// Which blocks of a channel hold something live: so that a sparse channel costs reads by its own rows, not by the sequence range.
///
/// Adding a block is free to repeat. Dropping one (nothing live in it any more) is decided on a block read *after* the directory and
/// written over that directory's version; and whoever adds to a block that may be dropped rewrites the directory, so that the version
/// changes. So a drop never hides a row, whichever writers race.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// The channel's collection. Since format 2.
    #[serde(default, skip_serializing_if = "CollectionId::is_default_ref")]
    collection: CollectionId,
    /// The channel's full name: keys of long names hold only a hash.
    pub channel: Channel,
    /// Grows with every rewrite.
    pub generation: u64,
    /// The cache is complete for this channel from here on.
    pub valid_from: Sequence,
    /// Numbers of the blocks with something live.
    pub blocks: RangeSet,
    /// Of a star channel: positions whose documents a repair found to be lost. They are among what
    /// was given up, so that a writer takes them again; until then whoever needs one must fail.
    /// They stay here when they have come.
    #[serde(default, skip_serializing_if = "RangeSet::is_empty")]
    pub lost: RangeSet,
}

impl Directory {
    /// The directory of a channel that holds nothing yet.
    pub fn new(channel: Channel) -> Self {
        Directory {
            collection: channel.collection(),
            channel,
            generation: 0,
            valid_from: Sequence::ZERO,
            blocks: RangeSet::new(),
            lost: RangeSet::new(),
        }
    }

    /// Adds a block; whether it was new.
    pub fn list(&mut self, index: BlockIndex) -> bool {
        self.blocks.insert(index.0, index.0)
    }

    /// Drops a block; whether it was listed.
    pub fn unlist(&mut self, index: BlockIndex) -> bool {
        self.blocks.remove(index.0, index.0) > 0
    }

    /// JSON.
    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// Reads the directory stored for `channel`.
    ///
    /// # Errors
    /// `Corrupt` if it is none, or another channel's (two long names with one hash).
    pub fn from_bytes(bytes: &[u8], channel: &Channel) -> Result<Self> {
        let mut directory: Directory = from_json(bytes, "channel directory")?;
        directory.channel = directory.channel.in_collection(directory.collection);
        if directory.channel != *channel {
            return Err(Error::corrupt(format!(
                "the directory is that of channel {:?}: two names share a key",
                directory.channel
            )));
        }
        Ok(directory)
    }
}
