//! Repeating a single operation of a store that fails.

#[cfg(feature = "runtime")]
pub(crate) use repeated::*;

#[cfg(feature = "runtime")]
mod repeated {
    use std::time::Duration;

    use backon::{ExponentialBuilder, Retryable as _};

    use crate::error::{Error, ErrorKind, Result};

    /// How often the operation is repeated.
    const RETRIES: usize = 4;

    /// How long to wait before each repetition.
    pub(crate) fn delays() -> ExponentialBuilder {
        ExponentialBuilder::default().with_min_delay(Duration::from_millis(5)).with_max_times(RETRIES).with_jitter()
    }

    /// Says that an operation is repeated after a time.
    pub(crate) fn log(error: &Error, after: Duration) {
        tracing::warn!(?error, ?after, "the store failed; trying again");
    }

    /// Repeats a read that fails and may be repeated, a few times at most. For a caller that reads
    /// much: if it began anew whenever one of its reads failed, it would hardly get to the end.
    ///
    /// A read that timed out is not repeated: the store was waited for already.
    pub(crate) async fn read<T, F: Future<Output = Result<T>>>(read: impl FnMut() -> F) -> Result<T> {
        let is_brief = |error: &Error| error.is_retryable() && error.kind() != ErrorKind::Timeout;
        read.retry(delays()).when(is_brief).notify(log).await
    }
}

/// Reads once: without a runtime there is nothing to wait with.
#[cfg(not(feature = "runtime"))]
pub(crate) async fn read<T, F: Future<Output = crate::Result<T>>>(mut read: impl FnMut() -> F) -> crate::Result<T> {
    read().await
}
