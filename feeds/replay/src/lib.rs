#![doc = include_str!("../README.md")]

mod line;
mod memory;
mod notice;
pub mod peer;
mod recorder;
mod recording;
mod replay;
mod stream;
pub mod synthetic;
mod text;
mod transform;

pub use memory::MemoryFeed;
pub use recorder::{Recorded, Recorder};
pub use recording::{Marker, Recording};
pub use replay::{ReplayFeed, ReplayOptions};
pub use synthetic::{Synthetic, SyntheticConfig, SyntheticFeed};
pub use transform::MutationsExt;

/// Partitions of every feed in this crate, as a Couchbase bucket has them.
pub const PARTITIONS: u16 = 1024;
