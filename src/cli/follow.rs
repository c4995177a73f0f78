//! `sluicegate follow`: changes as they come.

use clap::Args;
use sluicegate::changes::AnswerRow;
use sluicegate::{ReaderNode, Sluicegate};

use super::Exit;
use super::changes::RequestArgs;
use super::output::{Outcome, json};
use super::session::Session;

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
    let store = session.store().await?;
    if !session.fed_by_flag {
        let reader = ReaderNode::open(store, session.settings.reader.clone()).await?;
        follow(&args, &reader, std::future::pending()).await?;
        return Ok(Exit::Done);
    }
    let mut cache = Sluicegate::builder()
        .with_store(store)
        .with_feed(session.feed().await?)
        .decoder(session.decoder()?)
        .writer_config(session.settings.writer.clone())
        .reader_config(session.settings.reader.clone())
        .start()
        .await?;
    let reader = cache.reader().clone();
    let ended = async { cache.caught_up().await.map(|cut| cut.batch) };
    follow(&args, &reader, ended).await?;
    cache.shutdown().await?;
    Ok(Exit::Done)
}

/// Prints until the limit is reached, or everything up to the batch that `ended` gives.
async fn follow(args: &FollowArgs, reader: &ReaderNode, ended: impl Future<Output = sluicegate::Result<u64>>) -> Outcome<()> {
    let channels = args.request.channels();
    let mut options = args.request.options();
    options.limit = args.limit;
    options.late = Some(reader.cut().late);
    let mut ended = std::pin::pin!(ended);
    let mut last_batch = None;
    loop {
        if options.limit == Some(0) {
            return Ok(());
        }
        let changes = reader.changes(&channels, &options).await?;
        let answer = changes.answer();
        print(&answer.rows)?;
        // Everything below the last row was sent; what is missing there comes by way of the late cursor.
        options.since = answer.last.sequence.into();
        options.late = Some(answer.late);
        options.limit = options.limit.map(|left| left - answer.rows.len());
        let seen = *changes.cut();
        if last_batch.is_some_and(|last| seen.batch >= last) {
            return Ok(());
        }
        tokio::select! {
            changed = reader.wait_for_change(&channels, &seen) => { changed?; }
            batch = &mut ended, if last_batch.is_none() => last_batch = Some(batch?),
        }
    }
}

fn print(rows: &[AnswerRow]) -> Outcome<()> {
    rows.iter().try_for_each(json)
}
