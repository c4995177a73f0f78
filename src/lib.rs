//! Sluicegate: a shared cache of what changed in which channel, for documents written by a Couchbase Sync Gateway.
//!
//! One elected writer follows one change feed, puts the mutations in sequence order and publishes them in a cache store. Any number of
//! readers answer "what changed in these channels since?" from that store, and never touch the feed.
//!
//! This crate brings the parts together: it re-exports [`sluicegate_core`], links the stores and feeds that its features name, and opens
//! them by URL. [`Sluicegate`] runs a writer and a reader in one process:
//!
//! ```no_run
//! use sluicegate::changes::ChangesOptions;
//! use sluicegate::{Channel, Result, Sluicegate};
//!
//! #[tokio::main]
//! async fn main() -> Result<()> {
//!     let mut cache = Sluicegate::builder()
//!         .store("memory:")
//!         .feed("replay:testdata/gateway/mutations.ndjson.gz")
//!         .start()
//!         .await?;
//!     cache.caught_up().await?;
//!
//!     let channel = Channel::new("ch021")?;
//!     let answer = cache.changes(&[channel], &ChangesOptions::new().since(20_000).limit(10)).await?;
//!     for row in &answer.rows {
//!         println!("{} {} {}", row.id, row.entry.document(), row.entry.revision());
//!     }
//!     println!("go on at since={}", answer.last);
//!
//!     cache.shutdown().await?;
//!     Ok(())
//! }
//! ```
//!
//! # Features
//!
//! | feature | what it adds | default |
//! |---|---|---|
//! | `memory` | the store `memory:`, in the memory of the process | yes |
//! | `redis` | the stores `redis:`, `rediss:`, `redis+cluster:` and `rediss+cluster:`, on Redis or Valkey | yes |
//! | `dcp` | the feeds `dcp:` and `dcps:`, from a Couchbase bucket | yes |
//! | `replay` | the feeds `replay:` (a recording) and `synthetic:` (a load from a seed) | yes |
//! | `bench` | the loads and measurements behind `sluicegate bench` | yes |
//! | `cli` | the `sluicegate` command; a program that uses the library needs none of it | yes |
//!
//! A store or feed of one's own needs no feature: implement [`CacheStore`] or [`Feed`] and hand it over, or submit a factory
//! ([`mod@registry`]) to have it opened by URL.

#[cfg(feature = "bench")]
pub mod bench;
pub mod compare;
pub mod databases;
mod instance;

use std::sync::Arc;

pub use sluicegate_core as core;
#[doc(no_inline)]
pub use sluicegate_core::*;

pub use instance::{Builder, Sluicegate};

// A crate that is only named in Cargo.toml is not linked, and its registry entries with it.
#[cfg(feature = "dcp")]
use sluicegate_dcp as _;
#[cfg(feature = "memory")]
use sluicegate_memory as _;
#[cfg(feature = "redis")]
use sluicegate_redis as _;
#[cfg(feature = "replay")]
use sluicegate_replay as _;

/// The stores and feeds that are linked into this program.
///
/// # Errors
/// `ConfigInvalid` if two claim one scheme.
pub fn registry() -> Result<Registry> {
    Registry::discover()
}

/// Opens the store at `url`, for example `memory:`.
///
/// # Errors
/// `ConfigInvalid` for an unknown scheme (the message lists the known ones) or option; what the store says otherwise.
pub async fn open_store(url: &str) -> Result<Arc<dyn CacheStore>> {
    registry()?.open_store(url).await
}

/// Opens the feed at `url`, for example `replay:mutations.ndjson.gz`.
///
/// # Errors
/// As [`open_store`].
pub async fn open_feed(url: &str) -> Result<Arc<dyn Feed>> {
    registry()?.open_feed(url).await
}
