//! The cache's `Meta` document: what must be known before anything else is read.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::block::{BlockCodec, codec_named};
use crate::clock::{FORMAT_VERSION, check_format, from_json, to_json};
use crate::error::Result;
use crate::source::CacheSource;

/// What must be known before anything else of a cache is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Format version.
    pub format: u32,
    /// Name of the block codec.
    pub codec: String,
    /// Sequences a block.
    pub capacity: u32,
    /// Slots of the ring of batch records.
    pub ring: u64,
    /// Which build made it.
    pub created_by: String,
    /// When, in seconds since 1970.
    pub created_at: u64,
    /// The source of the cache; `None` if it was made by a writer without a feed, or by a build
    /// that did not record the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<CacheSource>,
    /// The name of the checkpoint of its last writer; `None` if a build made it that did not record
    /// that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Whether all its writers have kept pointers, so that every document has one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_pointers: bool,
    /// Whether a build of format version 1 has made it. Such a build stored the documents of all
    /// collections as those of the default one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lacks_collections: bool,
}

impl Meta {
    /// For a new cache.
    pub fn new(codec: &dyn BlockCodec, ring: u64, created_at: u64) -> Self {
        Meta {
            format: FORMAT_VERSION,
            codec: codec.name().to_owned(),
            capacity: codec.capacity(),
            ring,
            created_by: format!("sluicegate {}", env!("CARGO_PKG_VERSION")),
            created_at,
            source: None,
            checkpoint: None,
            has_pointers: false,
            lacks_collections: false,
        }
    }

    /// The codec it names.
    ///
    /// # Errors
    /// `ConfigInvalid` if this build does not know it.
    pub fn block_codec(&self) -> Result<Arc<dyn BlockCodec>> {
        codec_named(&self.codec, self.capacity)
    }

    /// JSON.
    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// Reads a stored `Meta`.
    ///
    /// # Errors
    /// `Corrupt` if it is none, or if its format version is unknown.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let meta: Meta = from_json(bytes, "cache description")?;
        check_format(meta.format)?;
        Ok(meta)
    }
}
