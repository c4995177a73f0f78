//! Flow control: what the consumer has taken is given back to the server, of the connection it came on (protocol, section 6).

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// What one connection has received and given back. Counts whole frames, as the server does.
///
/// It belongs to one connection, not to a node: when that is gone nobody reads it any more, so nothing of it is ever given back on
/// another one.
#[derive(Debug)]
pub(crate) struct Credit {
    window: u64,
    /// Received, and not taken by the consumer.
    outstanding: AtomicU64,
    /// Taken, and not given back.
    owed: AtomicU64,
    wake: Notify,
}

impl Credit {
    /// For a server that sends up to `window` bytes ahead.
    pub(crate) fn new(window: u32) -> Self {
        Credit { window: u64::from(window), outstanding: AtomicU64::new(0), owed: AtomicU64::new(0), wake: Notify::new() }
    }

    /// From here on it is worth a message.
    fn threshold(&self) -> u64 {
        self.window / 4
    }

    /// Bytes have come.
    pub(crate) fn receive(&self, bytes: u64) {
        self.outstanding.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The consumer has taken bytes that had come.
    pub(crate) fn consume(&self, bytes: u64) {
        let before = self.owed.fetch_add(bytes, Ordering::Relaxed);
        let outstanding = self.outstanding.fetch_sub(bytes, Ordering::Relaxed);
        let is_due = before < self.threshold() && before + bytes >= self.threshold();
        if is_due || outstanding >= self.limit() {
            self.wake.notify_one();
        }
    }

    /// What to give back now, if it is worth a message.
    pub(crate) fn due(&self) -> Option<u32> {
        if self.owed.load(Ordering::Relaxed) < self.threshold() { None } else { self.rest() }
    }

    /// What to give back now, however little.
    pub(crate) fn rest(&self) -> Option<u32> {
        let owed = self.owed.load(Ordering::Relaxed);
        let bytes = u32::try_from(owed).unwrap_or(u32::MAX);
        self.owed.fetch_sub(u64::from(bytes), Ordering::Relaxed);
        (bytes > 0).then_some(bytes)
    }

    /// Whether to stop reading: a server that keeps to its window never gets this far.
    pub(crate) fn is_full(&self) -> bool {
        self.outstanding.load(Ordering::Relaxed) >= self.limit()
    }

    /// The window, and what one message may overshoot it by.
    fn limit(&self) -> u64 {
        2 * self.window + (32 << 20)
    }

    /// Waits until [`due`](Self::due) or [`is_full`](Self::is_full) may have changed. Cancel safe.
    pub(crate) async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Received, and not taken by the consumer.
    #[cfg(test)]
    pub(crate) fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn little_waits_and_much_is_given_back() {
        let credit = Credit::new(1000);
        credit.receive(600);
        credit.consume(200);
        assert_eq!((credit.due(), credit.outstanding()), (None, 400));
        assert!(credit.changed().now_or_never().is_none());
        credit.consume(60);
        assert!(credit.changed().now_or_never().is_some());
        assert_eq!((credit.due(), credit.due()), (Some(260), None));
        credit.consume(1);
        assert_eq!((credit.due(), credit.rest(), credit.rest()), (None, Some(1), None));
    }

    #[test]
    fn a_server_that_ignores_its_window_is_not_read_without_limit() {
        let credit = Credit::new(1000);
        credit.receive(2000 + (32 << 20));
        assert!(credit.is_full());
        credit.consume(1);
        assert!(!credit.is_full());
        assert!(credit.changed().now_or_never().is_some(), "the reader goes on");
    }

    proptest! {
        #[test]
        fn what_is_given_back_is_what_was_taken(sizes in proptest::collection::vec(1_u64..5000, 1..200)) {
            let credit = Credit::new(10_000);
            let (mut taken, mut given) = (0, 0);
            for size in sizes {
                credit.receive(size);
                credit.consume(size);
                taken += size;
                given += credit.due().map_or(0, u64::from);
                prop_assert!(taken - given < 10_000, "the server could stall");
            }
            given += credit.rest().map_or(0, u64::from);
            prop_assert_eq!((given, credit.outstanding()), (taken, 0));
        }
    }
}
