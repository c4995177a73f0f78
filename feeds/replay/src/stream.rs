//! From an iterator of events to a feed's stream: batches, pace, and no work ahead of the consumer.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use sluicegate_core::{Error, ErrorKind, FeedBatch, FeedEvent, FeedPosition, FeedStart, FeedStream, Mutation, Result};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

/// Events of a batch unless said otherwise.
pub(crate) const DEFAULT_BATCH: usize = 512;
/// The largest batch accepted: enough to amortise everything, little enough to bound memory.
const MAX_BATCH: usize = 1 << 16;
/// A paced feed delivers at least this often, if the rate allows.
const PACED_BATCHES_A_SECOND: u64 = 50;

/// How fast events are delivered, and in what portions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) rate: u64,
    pub(crate) batch: usize,
}

impl Pace {
    /// What is wrong with it.
    pub(crate) fn violations(&self) -> Vec<String> {
        let valid = (1..=MAX_BATCH).contains(&self.batch);
        if valid { Vec::new() } else { vec![format!("batch={} must be from 1 to {MAX_BATCH}", self.batch)] }
    }

    /// Events of one batch: a slow feed delivers small ones, so that it does not come in bursts.
    fn batch(&self) -> usize {
        match self.rate {
            0 => self.batch,
            rate => self.batch.min((rate / PACED_BATCHES_A_SECOND).max(1) as usize),
        }
    }

    /// When the event after the first `delivered` ones is due.
    fn due(&self, started: Instant, delivered: u64) -> Option<Instant> {
        if self.rate == 0 {
            return None;
        }
        let nanos = u128::from(delivered) * 1_000_000_000 / u128::from(self.rate);
        started.checked_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

/// Whether `mutation` lies before `position`, so that it need not be delivered again.
pub(crate) fn is_before(mutation: &Mutation, position: &FeedPosition) -> bool {
    position.partitions.get(&mutation.partition).is_some_and(|at| mutation.seqno.0 <= at.seqno)
}

/// The position to start after.
///
/// # Errors
/// `Unsupported` for [`FeedStart::Now`]: in a recording nothing is new.
pub(crate) fn position_of(start: FeedStart, scheme: &str) -> Result<FeedPosition> {
    match start {
        FeedStart::Beginning => Ok(FeedPosition::default()),
        FeedStart::At(position) => Ok(position),
        FeedStart::Now => Err(Error::new(
            ErrorKind::Unsupported,
            format!("a `{scheme}:` feed has nothing new to wait for; open it from the beginning or at a position"),
        )),
    }
}

/// What one turn of the source gave.
struct Portion<I> {
    /// The source, if there is more in it.
    source: Option<I>,
    events: Vec<FeedEvent>,
    error: Option<Error>,
}

fn read_portion<I: Iterator<Item = Result<FeedEvent>>>(mut source: I, size: usize) -> Portion<I> {
    let mut events = Vec::with_capacity(size);
    for next in source.by_ref().take(size) {
        match next {
            Ok(event) => events.push(event),
            Err(error) => return Portion { source: None, events, error: Some(error) },
        }
    }
    let more = events.len() == size;
    Portion { source: more.then_some(source), events, error: None }
}

enum State<I> {
    /// Nothing has been read yet.
    New(I),
    /// The next portion is being read.
    Reading(JoinHandle<Portion<I>>),
    /// The source failed after what has been delivered.
    Failing(Error),
    /// Everything has been delivered but the word that it has.
    CaughtUp,
    Ended,
}

struct Reader<I> {
    state: State<I>,
    pace: Pace,
    started: Instant,
    delivered: u64,
}

impl<I: Iterator<Item = Result<FeedEvent>> + Send + 'static> Reader<I> {
    fn read(&self, source: I) -> State<I> {
        let size = self.pace.batch();
        State::Reading(tokio::task::spawn_blocking(move || read_portion(source, size)))
    }

    async fn next(&mut self) -> Option<Result<FeedBatch>> {
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::New(source) => {
                    self.started = Instant::now();
                    self.state = self.read(source);
                }
                State::Reading(portion) => {
                    let Portion { source, events, error } = match portion.await {
                        Ok(portion) => portion,
                        Err(e) => return Some(Err(stopped(e))),
                    };
                    self.state = match (source, error) {
                        (Some(source), _) => self.read(source),
                        (None, Some(error)) => State::Failing(error),
                        (None, None) => State::CaughtUp,
                    };
                    if events.is_empty() {
                        continue;
                    }
                    if let Some(due) = self.pace.due(self.started, self.delivered) {
                        tokio::time::sleep_until(due).await;
                    }
                    self.delivered += events.len() as u64;
                    return Some(Ok(FeedBatch::from(events)));
                }
                State::Failing(error) => return Some(Err(error)),
                State::CaughtUp => return Some(Ok(FeedBatch::from(vec![FeedEvent::CaughtUp]))),
                State::Ended => return None,
            }
        }
    }
}

/// Why a blocking task did not come to its end.
pub(crate) fn stopped(e: JoinError) -> Error {
    let (kind, message) = if e.is_panic() {
        (ErrorKind::Unexpected, "the feed's reader has panicked; this is a bug")
    } else {
        (ErrorKind::Closed, "the runtime is shutting down")
    };
    Error::new(kind, message).with_source(e)
}

/// A stream over `source`, which may block: it runs on the blocking pool, one portion a call. One portion is read ahead
/// while the consumer works on the last one, and no more: nobody takes, nothing is read. A thread is never held between
/// portions, so that neither a forgotten stream nor a paused clock waits for one.
pub(crate) fn blocking<I>(source: I, pace: Pace) -> FeedStream
where
    I: Iterator<Item = Result<FeedEvent>> + Send + 'static,
{
    let reader = Reader { state: State::New(source), pace, started: Instant::now(), delivered: 0 };
    stream::unfold(reader, |mut reader| async move { Some((reader.next().await?, reader)) }).boxed()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn some() -> FeedEvent {
        FeedEvent::Mutation(Mutation::new("k", ""))
    }

    fn counted(read: &Arc<AtomicU64>, n: u64) -> impl Iterator<Item = Result<FeedEvent>> + Send + use<> {
        let read = read.clone();
        (0..n).map(move |_| {
            read.fetch_add(1, Ordering::SeqCst);
            Ok(some())
        })
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_read_further_ahead_than_one_portion() {
        let read = Arc::new(AtomicU64::new(0));
        let mut stream = blocking(counted(&read, 100_000), Pace { rate: 0, batch: 10 });
        assert_eq!(read.load(Ordering::SeqCst), 0);
        for taken in 1..=50 {
            stream.next().await.unwrap().unwrap();
            // With the clock paused this returns when nothing else runs, reading ahead included.
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert_eq!(read.load(Ordering::SeqCst), (taken + 1) * 10);
        }
        drop(stream);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(read.load(Ordering::SeqCst), 510);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept() {
        let started = Instant::now();
        let mut stream = blocking(counted(&Arc::default(), 1000), Pace { rate: 100, batch: 512 });
        let mut delivered = 0u64;
        while let Some(batch) = stream.next().await {
            for event in batch.unwrap().events {
                if matches!(event, FeedEvent::Mutation(_)) {
                    let due = started + Duration::from_millis(delivered * 10);
                    assert!(Instant::now() + Duration::from_millis(30) >= due, "event {delivered}");
                    assert!(Instant::now() <= due + Duration::from_millis(30), "event {delivered}");
                    delivered += 1;
                }
            }
        }
        assert_eq!(delivered, 1000);
    }

    #[tokio::test]
    async fn what_came_before_an_error_is_delivered_and_nothing_after_it() {
        let source = (0..9).map(|n| if n == 5 { Err(Error::corrupt("five")) } else { Ok(some()) });
        let batches: Vec<_> = blocking(source, Pace { rate: 0, batch: 3 }).collect().await;
        let lengths: Vec<_> = batches.iter().map(|b| b.as_ref().map(|b| b.events.len()).map_err(Error::kind)).collect();
        assert_eq!(lengths, [Ok(3), Ok(2), Err(ErrorKind::Corrupt)]);
    }

    #[tokio::test]
    async fn an_exact_multiple_of_the_batch_ends_as_anything_else() {
        for n in [0, 9, 10] {
            let batches: Vec<_> = blocking(counted(&Arc::default(), n), Pace { rate: 0, batch: 3 }).collect().await;
            let events: Vec<_> = batches.into_iter().flat_map(|b| b.unwrap().events).collect();
            assert_eq!(events.len() as u64, n + 1);
            assert_eq!(events.last(), Some(&FeedEvent::CaughtUp));
        }
    }
}
