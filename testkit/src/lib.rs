#![doc = include_str!("../README.md")]

pub mod branching;
pub mod codec;
pub mod coordinator;
mod expect;
pub mod fault;
pub mod feed;
pub mod model;
pub mod observe;
pub mod pause;
pub mod plain;
pub mod sample;
pub mod store;

pub use branching::BranchingFeed;
pub use codec::SmallBlocks;
pub use fault::{CrashPoint, FaultStore, Faults, Step, When};

pub use feed::ListFeed;
pub use model::Model;
pub use observe::{Content, Follower, Rows};
pub use pause::{Pause, PausingFeed};
pub use plain::PlainStore;

use std::time::Duration;

/// Longest time a case may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs one case of a suite, on four threads so that races are races. The suites' macros call it.
///
/// # Panics
/// If the case fails or hangs.
pub fn run_case(case: impl Future<Output = ()>) {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => panic!("no runtime: {e}"),
    };
    runtime.block_on(async {
        if tokio::time::timeout(PATIENCE, case).await.is_err() {
            panic!("the case did not end within {PATIENCE:?}");
        }
    });
}

/// One test a case. Not for use by itself.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    ($suite:ident, $what:ty, $make:expr; $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::run_case(async {
                    let made: $what = $make;
                    $crate::$suite::$case(made).await
                });
            }
        )*
    };
}
