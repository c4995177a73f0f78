//! From the tasks that receive to the consumer that takes.

use std::collections::VecDeque;
use std::sync::Arc;

use sluicegate_core::{Error, FeedBatch, FeedEvent};
use tokio::sync::mpsc;

use crate::flow::Credit;

/// Events that a batch holds, about.
pub(crate) const BATCH: usize = 512;

/// Some events, and what to give back once they are taken.
#[derive(Debug)]
pub(crate) struct Parcel {
    events: Vec<FeedEvent>,
    bytes: u64,
    credit: Option<Arc<Credit>>,
}

impl Parcel {
    pub(crate) fn new(events: Vec<FeedEvent>, bytes: u64, credit: Arc<Credit>) -> Self {
        Parcel { events, bytes, credit: Some(credit) }
    }

    /// Events that came over no connection.
    pub(crate) fn own(events: Vec<FeedEvent>) -> Self {
        Parcel { events, bytes: 0, credit: None }
    }
}

/// Where parcels are put. It has no limit of its own: what comes over a connection is limited by its [`Credit`].
#[derive(Clone, Debug)]
pub(crate) struct Outlet(mpsc::UnboundedSender<Result<Parcel, Error>>);

/// Where parcels are taken.
#[derive(Debug)]
pub(crate) struct Inlet {
    receiver: mpsc::UnboundedReceiver<Result<Parcel, Error>>,
    /// Taken, and did not fit into the batch before.
    kept: VecDeque<Result<Parcel, Error>>,
}

pub(crate) fn channel() -> (Outlet, Inlet) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Outlet(sender), Inlet { receiver, kept: VecDeque::new() })
}

impl Outlet {
    /// Puts a parcel. If nobody takes any more, it goes.
    pub(crate) fn send(&self, parcel: Parcel) {
        let _ = self.0.send(Ok(parcel));
    }

    /// Puts the error that ends the feed.
    pub(crate) fn fail(&self, error: Error) {
        let _ = self.0.send(Err(error));
    }

    /// Waits until nobody takes any more. Cancel safe.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

impl Inlet {
    /// The next batch; small parcels that are there already are put together. None when there will be no more. Cancel safe.
    pub(crate) async fn take(&mut self) -> Option<Result<FeedBatch, Error>> {
        let first = match self.kept.pop_front() {
            Some(kept) => kept,
            None => self.receiver.recv().await?,
        };
        let mut parcel = match first {
            Ok(parcel) => parcel,
            Err(error) => return Some(Err(error)),
        };
        let mut events = opened(&mut parcel);
        while events.len() < BATCH
            && let Ok(next) = self.receiver.try_recv()
        {
            match next {
                Ok(mut parcel) if events.len() + parcel.events.len() <= BATCH => events.append(&mut opened(&mut parcel)),
                other => {
                    self.kept.push_back(other);
                    break;
                }
            }
        }
        Some(Ok(FeedBatch::from(events)))
    }
}

/// What is in a parcel; what it took of the connection's window is given back.
fn opened(parcel: &mut Parcel) -> Vec<FeedEvent> {
    if let Some(credit) = parcel.credit.take() {
        credit.consume(parcel.bytes);
    }
    std::mem::take(&mut parcel.events)
}

#[cfg(test)]
mod tests {
    use sluicegate_core::Mutation;

    use super::*;

    fn events(n: usize) -> Vec<FeedEvent> {
        (0..n).map(|n| FeedEvent::Mutation(Mutation::new(format!("k{n}"), ""))).collect()
    }

    #[tokio::test]
    async fn small_parcels_are_put_together_and_credit_is_given_for_what_is_taken() {
        let (outlet, mut inlet) = channel();
        let credit = Arc::new(Credit::new(1000));
        credit.receive(60);
        for size in [100, 200, 300, 600] {
            outlet.send(Parcel::new(events(size), 10, credit.clone()));
        }
        outlet.fail(Error::config("over"));
        drop(outlet);
        assert_eq!(credit.outstanding(), 60);
        assert_eq!(inlet.take().await.unwrap().unwrap().events.len(), 300);
        assert_eq!(credit.outstanding(), 40, "what is not taken is not given back");
        assert_eq!(inlet.take().await.unwrap().unwrap().events.len(), 300);
        assert_eq!(inlet.take().await.unwrap().unwrap().events.len(), 600);
        assert_eq!(credit.outstanding(), 20);
        assert!(inlet.take().await.unwrap().is_err());
        assert!(inlet.take().await.is_none());
    }
}
