//! Log lines that are said at most so often.

use std::time::Duration;

use tokio::time::Instant;

/// So many lines of a kind are let through in each [`PERIOD`].
const LINES: u64 = 10;

const PERIOD: Duration = Duration::from_secs(60);

/// Lets some log lines of one kind through, and counts the others.
#[derive(Debug)]
pub(crate) struct Throttle {
    /// What the lines are about, for the line that sums up the others.
    what: &'static str,
    began: Option<Instant>,
    lines: u64,
}

impl Throttle {
    pub(crate) fn new(what: &'static str) -> Self {
        Throttle { what, began: None, lines: 0 }
    }

    /// Calls `log`, unless there have been too many of late.
    pub(crate) fn warn(&mut self, log: impl FnOnce()) {
        let now = Instant::now();
        if self.began.is_none_or(|began| now.duration_since(began) >= PERIOD) {
            self.sum_up();
            (self.began, self.lines) = (Some(now), 0);
        }
        self.lines += 1;
        if self.lines <= LINES {
            log();
        }
    }

    /// Says how many lines were left out.
    fn sum_up(&self) {
        let left_out = self.lines.saturating_sub(LINES);
        if left_out > 0 {
            tracing::warn!(left_out, what = self.what, "more of these were not logged");
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.sum_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_some_lines_a_minute_are_let_through() {
        let (mut throttle, mut lines) = (Throttle::new("test"), 0);
        for _ in 0..100 {
            throttle.warn(|| lines += 1);
        }
        assert_eq!(lines, 10);
        tokio::time::advance(PERIOD).await;
        throttle.warn(|| lines += 1);
        assert_eq!(lines, 11);
    }
}
