//! `sluicegate follow`: changes as they come.

use clap::Args;
use futures::future::try_join_all;
use sluicegate::changes::ChangesOptions;
use sluicegate::{Channel, ReaderNode, Sluicegate};

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
        tell_waiting(&reader);
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

/// Logs that the cache is being built, if it is.
fn tell_waiting(reader: &ReaderNode) {
    let refused = reader.cached_changes(&Channel::star(), &ChangesOptions::new()).err();
    if let Some(percent) = refused.as_ref().and_then(|error| error.context("percent")) {
        tracing::warn!(percent, "the cache is being built: no changes are printed until it is complete");
    }
}

/// Prints until the limit is reached, or everything up to the batch that `ended` gives.
async fn follow(args: &FollowArgs, reader: &ReaderNode, ended: impl Future<Output = sluicegate::Result<u64>>) -> Outcome<()> {
    let mut asked = args.request.channels(reader).await?;
    let mut options = args.request.options();
    options.limit = args.limit;
    options.late = Some(reader.cut().late);
    let mut ended = std::pin::pin!(ended);
    let mut last_batch = None;
    while options.limit != Some(0) {
        let changes = reader.changes_when_ready(&asked.channels, &options).await?;
        // A collection may have got its first documents after the channels were listed. An answer
        // that leaves it out would move `since` past them.
        let now = args.request.channels(reader).await?;
        if now.channels != asked.channels {
            asked = now;
            continue;
        }
        let answer = changes.answer();
        asked.rows(&answer.rows).iter().try_for_each(json)?;
        // Everything below the last row was sent; what is missing there comes by way of the late cursor.
        options.since = answer.last.sequence.into();
        options.late = Some(answer.late);
        // Documents that share a sequence come together, so there may be more rows than the limit.
        options.limit = options.limit.map(|left| left.saturating_sub(answer.rows.len()));
        let seen = *changes.cut();
        if options.limit == Some(0) || last_batch.is_some_and(|last| seen.batch >= last) {
            break;
        }
        tokio::select! {
            changed = reader.wait_for_change(&asked.channels, &seen) => { changed?; }
            // Any batch may have the first documents of a collection, in whose channels nobody
            // waits yet.
            batch = reader.wait_for_batch(seen.batch + 1), if !args.request.which.is_one_collection() => { batch?; }
            batch = &mut ended, if last_batch.is_none() => last_batch = Some(batch?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use clap::Parser as _;
    use sluicegate::{
        ChangeEntry, CollectionId, Decoded, EntryFlags, GatewayDecoder, Membership, ReaderConfig, Sequence, Writer, WriterConfig,
    };

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: FollowArgs,
    }

    async fn cache() -> (Writer, ReaderNode) {
        let store = sluicegate::open_store("memory:").await.unwrap();
        let decoder = Arc::new(GatewayDecoder::default());
        let writer = Writer::alone(store.clone(), decoder, "feed", WriterConfig::default()).await.unwrap();
        (writer, ReaderNode::open(store, ReaderConfig::default()).await.unwrap())
    }

    async fn write(writer: &mut Writer, key: &str, collection: CollectionId) {
        let entry = ChangeEntry::new(Sequence(1), key, "1-a", EntryFlags::default()).unwrap().with_collection(collection);
        let entry = entry.with_channel(Channel::of(collection, "A").unwrap(), Membership::Present);
        writer.process_decoded(vec![Decoded::Document(entry.into())]).await.unwrap();
        writer.flush().await.unwrap();
    }

    /// Follows until one row is printed; whether it ended without an error.
    async fn follow_one(reader: ReaderNode) -> bool {
        let args = Line::parse_from(["follow", "--limit", "1"]).args;
        follow(&args, &reader, std::future::pending()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_document_of_a_collection_is_printed_when_it_comes() {
        let (mut writer, reader) = cache().await;
        let following = tokio::spawn(follow_one(reader));
        // It waits, in the channels of the default collection.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!following.is_finished());
        write(&mut writer, "a", CollectionId(8)).await;
        let ended = tokio::time::timeout(Duration::from_secs(3600), following).await;
        assert!(ended.expect("the row is printed, and the limit reached").unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_at_the_limit_though_documents_that_share_a_sequence_are_more() {
        let (mut writer, reader) = cache().await;
        write(&mut writer, "a", CollectionId::DEFAULT).await;
        write(&mut writer, "b", CollectionId::DEFAULT).await;
        reader.refresh().await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(3600), follow_one(reader)).await;
        assert!(ended.expect("it does not wait for more"));
    }
}
