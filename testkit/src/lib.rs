#![doc = include_str!("../README.md")]

pub mod branching;
mod case;
pub mod clear;
pub mod codec;
pub mod coordinator;
mod expect;
pub mod fault;
pub mod feed;
pub mod gateway;
pub mod history;
pub mod model;
pub mod observe;
pub mod pause;
pub mod plain;
pub mod sample;
#[cfg(feature = "scenario")]
pub mod scenario;
pub mod store;

pub use branching::BranchingFeed;
pub use case::run_case;
#[doc(hidden)]
pub use case::{Case, Making, run_on};
pub use codec::SmallBlocks;
pub use fault::{CrashPoint, FaultStore, Faults, Step, When};

pub use feed::ListFeed;
pub use model::Model;
pub use observe::{Content, Follower, Rows};
pub use pause::{Pause, PausingFeed};
pub use plain::PlainStore;
