//! `sluicegate follow`: changes as they come.

use clap::Args;
use futures::future::try_join_all;
use sluicegate::{ReaderNode, Sluicegate};

use super::Exit;
use super::changes::RequestArgs;
use super::output::{Outcome, json};
use super::session::{Session, watch_for_mixture};

/// Prints every change as it comes, one JSON object a line: what there is since --since, and then what is new, late ones included.
///
/// With --feed, the writer runs in this process, and a finite feed's end is the end of it. Otherwise it follows what a writer
/// elsewhere publishes in the store, until it is interrupted.
#[derive(Debug, Args)]
pub(crate) struct FollowArgs {
    #[command(flatten)]
    request: RequestArgs,
    /// End after so many rows
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

pub(crate) async fn run(args: FollowArgs, session: Session) -> Outcome<Exit> {
    if !session.fed_by_flag {
        let reader = session.reader(&args.request.which).await?;
        follow(&args, &reader, std::future::pending()).await?;
        return Ok(Exit::Done);
    }
    let parts = session.parts(session.feed().await?).await?;
    let chosen = args.request.which.among(&parts)?;
    let (mut caches, mut watches) = (Vec::new(), Vec::new());
    for part in parts {
        let cache = session.cache(&part, false).start().await?;
        watches.extend(cache.writer().map(|status| watch_for_mixture(status, &part)));
        caches.push(cache);
    }
    let reader = caches[chosen].reader().clone();
    {
        let ended = async {
            let cuts = try_join_all(caches.iter_mut().map(Sluicegate::caught_up)).await?;
            Ok(cuts.get(chosen).map_or(0, |cut| cut.batch))
        };
        follow(&args, &reader, ended).await?;
    }
    try_join_all(caches.into_iter().map(Sluicegate::shutdown)).await?;
    Ok(Exit::Done)
}

/// Prints until the limit is reached, or everything up to the batch that `ended` gives.
async fn follow(args: &FollowArgs, reader: &ReaderNode, ended: impl Future<Output = sluicegate::Result<u64>>) -> Outcome<()> {
    let mut asked = args.request.channels(reader).await?;
    let mut options = args.request.options();
    options.limit = args.limit;
    options.late = Some(reader.cut().late);
    let mut ended = std::pin::pin!(ended);
    let mut last_batch = None;
    loop {
        if options.limit == Some(0) {
            return Ok(());
        }
        let changes = reader.changes(&asked.channels, &options).await?;
        let answer = changes.answer();
        asked.rows(&answer.rows).iter().try_for_each(json)?;
        // Everything below the last row was sent; what is missing there comes by way of the late cursor.
        options.since = answer.last.sequence.into();
        options.late = Some(answer.late);
        options.limit = options.limit.map(|left| left - answer.rows.len());
        let seen = *changes.cut();
        if last_batch.is_some_and(|last| seen.batch >= last) {
            return Ok(());
        }
        tokio::select! {
            changed = reader.wait_for_change(&asked.channels, &seen) => { changed?; }
            batch = &mut ended, if last_batch.is_none() => last_batch = Some(batch?),
        }
        // There may be collections that had no documents before.
        asked = args.request.channels(reader).await?;
    }
}
