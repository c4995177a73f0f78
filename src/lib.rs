//! Sluicegate.
#[cfg(all(feature = "memory", feature = "replay"))]
pub mod bench;
pub mod compare;
