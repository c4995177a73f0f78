//! `sluicegate demo`: what it is, on recorded data, in a few seconds.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use futures::StreamExt as _;
use sluicegate::changes::{Answer, AnswerRow, ChangesOptions, Delivery};
use sluicegate::core::engine::WriterStats;
use sluicegate::core::verify::{VerifyOptions, verify};
use sluicegate::decode::GatewayDecoder;
use sluicegate::{
    CacheStore, Channel, Decoded, Error, ErrorKind, Mutation, MutationDecoder as _, ReaderNode, Result, Sequence, Sluicegate,
};
use sluicegate_memory::MemoryStore;
use sluicegate_replay::{MemoryFeed, Recording};
use tokio::task::JoinHandle;

use super::Exit;
use super::output::{Outcome, Table, grouped, text};
use super::session::Session;

/// The recording, in the repository.
const RECORDING: &str = "testdata/gateway/mutations.ndjson.gz";

/// What comes after this marker of it is played later.
const MARKER: u32 = 4;

/// Lines that the live reader prints at most.
const LIVE_LINES: usize = 5;

/// Busy channels shown.
const BUSY: usize = 4;

/// Plays a recorded gateway's feed into a cache in memory and shows what readers see of it. Takes a few seconds.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Another recording than the repository's
    #[arg(long, value_name = "FILE")]
    recording: Option<PathBuf>,
}

pub(crate) async fn run(args: DemoArgs, session: Session) -> Outcome<Exit> {
    let path = args.recording.map_or_else(find_recording, Ok)?;
    let shown = path.display().to_string();
    let recording = tokio::task::spawn_blocking(move || Recording::read(path)).await;
    let recording = recording.map_err(|e| Error::new(ErrorKind::Unexpected, "reading the recording failed").with_source(e))??;
    let (first, rest) = split(&recording)?;
    text(&format!("A gateway's recorded feed, {shown}:\n{} events.\n\n", grouped(recording.mutations.len() as u64)))?;

    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let reader = ingest(&session, &store, first).await?;
    busiest(&reader).await?;
    pages(&reader).await?;
    gap(&session, &store, &reader, rest).await?;

    let began = Instant::now();
    let report = verify(store.as_ref(), &VerifyOptions::default()).await?;
    let clean = report.is_clean();
    let verdict = if clean { "clean: nothing is wrong".to_owned() } else { format!("{} findings", report.findings.len()) };
    let (checked, took) = (super::verify::summary(&report), began.elapsed().as_millis());
    text(&format!("5. The whole cache against its own rules (`sluicegate verify`), {took} ms\n   {checked}\n   {verdict}\n"))?;
    for finding in report.findings.iter().take(5) {
        text(&format!("   {finding}\n"))?;
    }
    Ok(if clean { Exit::Done } else { Exit::Found })
}

fn find_recording() -> Result<PathBuf> {
    let here = PathBuf::from(RECORDING);
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(RECORDING);
    [here, built].into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let message = format!("the recording {RECORDING} is not there; run this in the repository, or give --recording FILE");
        Error::new(ErrorKind::NotFound, message)
    })
}

/// What is played at once, and what is played later.
fn split(recording: &Recording) -> Result<(&[Mutation], &[Mutation])> {
    let at = match recording.upto_marker(MARKER) {
        Ok(first) => first.len(),
        Err(_) => recording.mutations.len() * 9 / 10,
    };
    if at == 0 {
        return Err(Error::config("the recording holds too few events for a demonstration"));
    }
    Ok(recording.mutations.split_at(at))
}

/// Runs a writer over `events` until they end.
async fn write(session: &Session, store: &Arc<dyn CacheStore>, name: &str, events: Vec<Mutation>) -> Result<Sluicegate> {
    Sluicegate::builder()
        .with_store(store.clone())
        .with_feed(Arc::new(MemoryFeed::new(name, events)))
        .writer_config(session.settings.writer.clone())
        .reader_config(session.settings.reader.clone())
        .start()
        .await
}

async fn ingest(session: &Session, store: &Arc<dyn CacheStore>, events: &[Mutation]) -> Outcome<ReaderNode> {
    let busy = busiest_of_first(events)?;
    text(&format!("1. One writer follows the feed. A reader follows channel {busy} meanwhile:\n"))?;
    let began = Instant::now();
    let mut cache = write(session, store, "recording", events.to_vec()).await?;
    let reader = cache.reader().clone();
    let live = follow_live(reader.clone(), busy, began);
    cache.caught_up().await?;
    let took = began.elapsed();
    live.abort();
    // Cancelled or not: what it printed it has printed.
    let _ = live.await;
    let stats = cache.shutdown().await?.map(|status| status.stats).unwrap_or_default();
    let rate = stats.received as f64 / took.as_secs_f64();
    let WriterStats { received, cached, principals, unused, batches, ignored, foreign, purged, .. } = stats;
    let numbers = [received, rate as u64, cached, batches, principals, unused, ignored + foreign + purged].map(grouped);
    let [received, rate, cached, batches, principals, unused, others] = numbers;
    let (stable, high) = (reader.cut().stable, reader.cut().high);
    text(&format!(
        "   {received} events in {} ms: {rate} a second, decoded, put in order and published in {batches} batches.\n   \
         {cached} revisions cached; {principals} sequences of users and roles, {unused} unused; {others} events of no concern.\n   \
         stable {stable}, high {high}: {}\n\n",
        took.as_millis(),
        if stable == high { "no sequence is missing." } else { "some sequences are missing in between." },
    ))?;
    Ok(reader)
}

/// The channel that comes most often among the first events.
fn busiest_of_first(events: &[Mutation]) -> Result<Channel> {
    let decoder = GatewayDecoder::default();
    let mut counts: HashMap<Channel, usize> = HashMap::new();
    for event in events.iter().take(5_000) {
        if let Decoded::Document(document) = decoder.decode(event) {
            document.entry.channels().iter().for_each(|c| *counts.entry(c.channel.clone()).or_default() += 1);
        }
    }
    let busiest = counts.into_iter().max_by(|(a, n), (b, m)| n.cmp(m).then_with(|| b.cmp(a)));
    Ok(busiest.map_or_else(Channel::star, |(channel, _)| channel))
}

/// Prints what a follower of the channel gets, in the portions in which it gets it.
fn follow_live(reader: ReaderNode, channel: Channel, began: Instant) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut portions = reader.follow(vec![channel], ChangesOptions::new()).ready_chunks(10_000).take(LIVE_LINES);
        while let Some(portion) = portions.next().await {
            let rows = portion.into_iter().flatten().collect::<Vec<_>>();
            let Some(last) = rows.last() else { return };
            let (after, count) = (began.elapsed().as_millis(), rows.len());
            let line = format!("   after {after:>4} ms  {count:>4} rows, the last: {}\n", row_text(last));
            if text(&line).is_err() {
                return;
            }
        }
    })
}

/// A row in one line.
fn row_text(row: &AnswerRow) -> String {
    let revision: String = row.entry.revision().chars().take(10).collect();
    let gone = if !row.removed.is_empty() {
        "  left the channel"
    } else if row.deleted {
        "  deleted"
    } else {
        ""
    };
    format!("{} {} {revision}…{gone}", row.id, row.entry.document())
}

async fn busiest(reader: &ReaderNode) -> Outcome<()> {
    let all = reader.change_log(&Channel::star(), Sequence::ZERO).await?;
    let mut counts: HashMap<&Channel, u64> = HashMap::new();
    for change in all.iter().flat_map(|entry| entry.channels()) {
        *counts.entry(&change.channel).or_default() += 1;
    }
    let channels = counts.len() as u64;
    let mut busy: Vec<(&Channel, u64)> = counts.into_iter().collect();
    busy.sort_unstable_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
    text(&format!("2. The busiest of {} channels, and what changed there last\n", grouped(channels)))?;
    let mut table = Table::new(["channel", ">changes", ">rows", "last change"]);
    for (channel, changes) in busy.into_iter().take(BUSY) {
        let answer = reader.changes(std::slice::from_ref(channel), &ChangesOptions::new()).await?.answer();
        let last = answer.rows.last().map(row_text).unwrap_or_default();
        table.row([channel.to_string(), grouped(changes), grouped(answer.rows.len() as u64), last]);
    }
    text(&table.render(3))?;
    text("   Each document is one row of a channel, at its newest sequence, however often it changed.\n\n")
}

/// Some rows' ids and documents, in one line.
fn brief(answer: &Answer) -> String {
    let rows = answer.rows.iter().map(|row| format!("{} {}", row.id, row.entry.document()));
    let rows = rows.collect::<Vec<_>>().join(", ");
    if rows.is_empty() { "nothing".to_owned() } else { rows }
}

async fn pages(reader: &ReaderNode) -> Outcome<()> {
    text("3. Page by page: each answer's last_seq is the next request's since\n")?;
    let star = [Channel::star()];
    let mut since = sluicegate::changes::SequenceId::ZERO;
    let mut table = Table::new(["   request", "answer"]);
    for _ in 0..3 {
        let options = ChangesOptions::new().since(since).limit(3).active_only(true);
        let answer = reader.changes(&star, &options).await?.answer();
        let shown = format!("{}; last_seq {}", brief(&answer), answer.last);
        table.row([format!("   since={since}&limit=3"), shown]);
        since = answer.last;
    }
    text(&format!("{}\n", table.render(0)))
}

/// The event that is held back, by its place among `events`, and the document's name and sequence: the first one after which another document
/// with a higher sequence comes.
fn hold_back(events: &[Mutation]) -> Option<(usize, String, Sequence)> {
    let decoder = GatewayDecoder::default();
    let document = |event: &Mutation| match decoder.decode(event) {
        Decoded::Document(document) => Some(document.entry),
        _ => None,
    };
    let highest = events.iter().filter_map(document).map(|entry| entry.sequence()).max()?;
    events.iter().enumerate().find_map(|(at, event)| {
        let entry = document(event).filter(|entry| entry.sequence() < highest)?;
        Some((at, entry.key().to_owned(), entry.sequence()))
    })
}

async fn gap(session: &Session, store: &Arc<dyn CacheStore>, reader: &ReaderNode, rest: &[Mutation]) -> Outcome<()> {
    let Some((at, document, sequence)) = hold_back(rest) else {
        return text("4. The recording ends here, so no gap can be shown.\n\n");
    };
    let before = reader.cut().stable;
    text(&format!("4. The rest of the feed, but {document} with sequence {sequence} is held back\n"))?;
    let mut events = rest.to_vec();
    let held = events.remove(at);
    let star = vec![Channel::star()];
    let eager = ChangesOptions::new().since(before).delivery(Delivery::Eager);
    let mut follower = reader.follow(star.clone(), eager.clone());

    let mut cache = write(session, store, "rest", events).await?;
    let batch = cache.caught_up().await?.batch;
    cache.shutdown().await?;
    let cut = reader.wait_for_batch(batch).await?;
    let strict = reader.changes(&star, &eager.clone().delivery(Delivery::Strict)).await?.answer();
    let shown = reader.changes(&star, &eager).await?.answer();
    let first = follower.next().await.transpose()?.map(|row| row_text(&row)).unwrap_or_default();
    let table = Table::pairs([
        ("stable, high".to_owned(), format!("{}, {}: below high, {sequence} is missing", cut.stable, cut.high)),
        (format!("since={before}, strict"), format!("{}: it waits for {sequence}", brief(&strict))),
        (format!("since={before}, eager"), brief(&shown)),
        ("a follower gets".to_owned(), first),
    ]);
    text(&table.render(3))?;
    if let Some(last) = shown.rows.last().filter(|row| row.id.low > Sequence::ZERO) {
        let id = last.id;
        text(&format!(
            "   {id} reads: this row is {}, and everything up to {} was complete when it was sent.\n",
            id.sequence, id.low
        ))?;
    }

    text(&format!("   Now {document} arrives:\n"))?;
    let mut cache = write(session, store, "held back", vec![held]).await?;
    let batch = cache.caught_up().await?.batch;
    cache.shutdown().await?;
    let cut = reader.wait_for_batch(batch).await?;
    let late = follower.next().await.transpose()?.map(|row| row_text(&row)).unwrap_or_default();
    let again = reader.changes(&star, &eager.since(shown.last)).await?.answer();
    let table = Table::pairs([
        (
            "stable, high".to_owned(),
            format!("{}, {}: nothing is missing; late entry number {}", cut.stable, cut.high, cut.late.0),
        ),
        ("the follower gets".to_owned(), late),
        (format!("since={}", shown.last), format!("{}: it begins again after {before}", brief(&again))),
    ]);
    text(&format!("{}\n", table.render(3)))
}
