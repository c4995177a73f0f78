//! Running the cases of a suite.
//!
//! The code of an async function comes into being where it is awaited. Cases are awaited here, behind a box, so that it is this crate that
//! contains them, once, and not each program that runs a suite.

use std::time::Duration;

use futures::future::LocalBoxFuture;

/// Longest time a case may take before it counts as hanging.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A case under way.
pub type Case = LocalBoxFuture<'static, ()>;

/// What a case works on, being made.
pub type Making<T> = LocalBoxFuture<'static, T>;

/// Runs one case of a suite, on four threads so that races are races.
///
/// # Panics
/// If the case fails or hangs.
pub fn run_case(case: impl Future<Output = ()>) {
    run(Box::pin(case));
}

/// Runs a case on what `made` makes. The suites' macros call it.
pub fn run_on<T: 'static>(made: Making<T>, case: fn(T) -> Case) {
    run(Box::pin(async { case(made.await).await }));
}

fn run(case: LocalBoxFuture<'_, ()>) {
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

/// A test of each case of a suite. Not for use by itself.
#[doc(hidden)]
#[macro_export]
macro_rules! case_tests {
    (($suite:ident, $fresh:ident, $what:ty, $make:expr) $($case:ident)*) => {
        fn $fresh() -> $crate::Making<$what> {
            Box::pin(async {
                let made: $what = $make;
                made
            })
        }

        $(
            #[test]
            fn $case() {
                $crate::run_on($fresh(), $crate::$suite::boxed::$case);
            }
        )*
    };
}

/// Each case of a suite, behind a box. Not for use by itself.
#[doc(hidden)]
#[macro_export]
macro_rules! boxed_cases {
    (($what:ty) $($case:ident)*) => {
        $(
            pub fn $case(made: $what) -> $crate::Case {
                Box::pin(super::$case(made))
            }
        )*
    };
}

/// The names of the cases of a suite. Not for use by itself.
#[doc(hidden)]
#[macro_export]
macro_rules! case_names {
    (() $($case:ident)*) => {
        [$(stringify!($case)),*]
    };
}
