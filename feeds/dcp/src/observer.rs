//! Asks one node how far it is on disk, of the vbuckets for which something waits.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_mcbp::client::{ClientResult, Session};
use sluicegate_mcbp::config::Address;
use sluicegate_mcbp::dcp::ObserveSeqno;
use sluicegate_mcbp::{Command, Reply, Request};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::backoff::Backoff;
use crate::horizon::Horizon;
use crate::options::Target;

/// Questions that are sent at once.
const AT_ONCE: usize = 64;

/// Asks for as long as it is let, over a connection of its own.
pub(crate) async fn run(node: Address, target: Arc<Target>, horizon: Arc<Horizon>) {
    let mut backoff = Backoff::of_nodes();
    loop {
        let Err(error) = observe(&node, &target, &horizon, &mut backoff).await;
        tracing::debug!(%error, "a node cannot be asked how far it is on disk; trying again");
        sleep(backoff.next()).await;
    }
}

async fn observe(node: &Address, target: &Target, horizon: &Horizon, backoff: &mut Backoff) -> ClientResult<Infallible> {
    let mut session = Session::open(node, &target.connect).await?;
    let mut tick = interval(Duration::from_millis(target.options.persistence_poll_ms));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let questions = horizon.questions(node);
        for some in questions.chunks(AT_ONCE) {
            let request = |(id, uuid): &(u16, u64)| {
                Request::new(Command::ObserveSeqno(ObserveSeqno { vbucket_uuid: *uuid })).with_vbucket(*id)
            };
            let answers = session.ask_all(some.iter().map(request).collect()).await?;
            for ((id, _), answer) in some.iter().zip(answers) {
                match answer.reply {
                    Reply::ObservedSeqno(seen) => horizon.observe(*id, node, seen.vbucket_uuid, seen.persisted),
                    // It does not know the history, or has no copy.
                    _ => horizon.observe(*id, node, 0, 0),
                }
            }
        }
        if !questions.is_empty() {
            backoff.reset();
            horizon.changed();
        }
    }
}
