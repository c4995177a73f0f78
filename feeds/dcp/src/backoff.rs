//! Pauses between tries: they grow, up to a limit, and vary so that many do not try at once (protocol, section 9).

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// The pauses of one thing that is tried again and again.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: ExponentialBuilder,
    pauses: ExponentialBackoff,
    longest: Duration,
    seen: u64,
}

impl Backoff {
    /// For streams: 50 ms, up to 5 s.
    pub(crate) fn of_streams() -> Self {
        Backoff::new(Duration::from_millis(50), Duration::from_secs(5))
    }

    /// For connections: 50 ms, up to 10 s.
    pub(crate) fn of_nodes() -> Self {
        Backoff::new(Duration::from_millis(50), Duration::from_secs(10))
    }

    fn new(shortest: Duration, longest: Duration) -> Self {
        let policy = ExponentialBuilder::default()
            .with_min_delay(shortest)
            .with_max_delay(longest)
            .with_factor(2.0)
            .without_max_times()
            .with_jitter();
        Backoff { policy, pauses: policy.build(), longest, seen: 0 }
    }

    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.longest)
    }

    /// Begins anew: it worked.
    pub(crate) fn reset(&mut self) {
        self.pauses = self.policy.build();
    }

    /// Begins anew if something has come since the last time; whether it has.
    pub(crate) fn progressed(&mut self, seqno: u64) -> bool {
        let has_progressed = std::mem::replace(&mut self.seen, seqno) != seqno;
        if has_progressed {
            self.reset();
        }
        has_progressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_begin_anew() {
        let mut backoff = Backoff::of_streams();
        let pauses: Vec<Duration> = std::iter::repeat_with(|| backoff.next()).take(50).collect();
        assert!(pauses[0] >= Duration::from_millis(50) && pauses[0] <= Duration::from_millis(100), "{:?}", pauses[0]);
        assert!(pauses[49] >= Duration::from_secs(5) && pauses[49] <= Duration::from_secs(10), "{:?}", pauses[49]);
        backoff.progressed(0);
        assert!(backoff.next() >= Duration::from_secs(5), "nothing has come");
        backoff.progressed(9);
        assert!(backoff.next() <= Duration::from_millis(100));
    }
}
