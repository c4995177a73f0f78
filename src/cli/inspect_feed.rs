//! `sluicegate inspect feed`: a bucket as the feed sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use clap::Args;
use futures::StreamExt as _;
use serde::Serialize;
use sluicegate::core::batch::Checkpoint;
use sluicegate::core::registry::Location;
use sluicegate::{CacheKey, Error, Feed as _, FeedStart, PartitionId, Result};
use sluicegate_dcp::{DcpFeed, DcpStatus, VbucketState, VbucketStatus};
use tokio::time::{Instant, timeout_at};

use super::inspect::{Shown, View};
use super::output::{Outcome, Table, grouped};
use super::session::Session;
use super::settings::Redacted;
use super::{Exit, Format};

/// Which bucket, and how long to wait for it.
#[derive(Args)]
pub(super) struct FeedArgs {
    /// The bucket, for example dcp://host/bucket?user=NAME&password_env=VARIABLE; the one of the settings if none is given
    url: Option<String>,
    /// Longest wait for all vbuckets to have a stream, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    wait: u64,
}

impl fmt::Debug for FeedArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.as_deref().map(Redacted);
        f.debug_struct("FeedArgs").field("url", &url).field("wait", &self.wait).finish()
    }
}

/// What is shown.
#[derive(Serialize)]
struct FeedView {
    /// The name of the feed, under which a writer keeps its checkpoint.
    feed: String,
    vbuckets: Vec<VbucketView>,
    totals: Totals,
}

#[derive(Serialize)]
struct VbucketView {
    vbucket: u16,
    #[serde(flatten)]
    status: VbucketStatus,
    /// The last seqno that the cache has, by its checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    cached: Option<u64>,
    /// How many seqnos it lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    behind: Option<u64>,
}

#[derive(Serialize)]
struct Totals {
    vbuckets: usize,
    states: BTreeMap<String, usize>,
    /// For each node, how many vbuckets it has.
    nodes: BTreeMap<String, usize>,
    high_seqnos: u64,
    lag: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    behind: Option<u64>,
    #[serde(flatten)]
    counters: sluicegate_dcp::Counters,
}

pub(super) async fn run(args: FeedArgs, format: Format, session: Session) -> Outcome<Exit> {
    let url = args.url.as_ref().or(session.settings.feed.as_ref());
    let url = url.ok_or_else(|| Error::config("no bucket is given; name it: sluicegate inspect feed dcp://host/bucket"))?;
    let location = Location::parse(url)?;
    if !matches!(location.scheme(), "dcp" | "dcps") {
        let message = format!("the feed `{}:` has no state to look at; only buckets have, by dcp: or dcps:", location.scheme());
        return Err(Error::config(message).into());
    }
    let feed = DcpFeed::connect(url).await?;
    let name = feed.info().checkpoint_name();
    let cached = match session.settings.store {
        Some(_) => checkpoint(&session, &name).await?,
        None => None,
    };
    let status = settle(&feed, Duration::from_secs(args.wait)).await?;
    let view = FeedView::new(name, status, cached.as_ref());
    let is_whole = view.vbuckets.iter().all(|vbucket| is_good(vbucket.status.state));
    Shown::of(view)?.print(format)?;
    Ok(if is_whole { Exit::Done } else { Exit::Found })
}

fn is_good(state: VbucketState) -> bool {
    matches!(state, VbucketState::Streaming | VbucketState::Done)
}

/// What the feed's status is when all vbuckets have a stream, or the wait is over.
async fn settle(feed: &DcpFeed, wait: Duration) -> Result<DcpStatus> {
    let deadline = Instant::now() + wait;
    let Ok(opened) = timeout_at(deadline, feed.open(FeedStart::Now)).await else { return Ok(feed.status()) };
    let mut events = opened?;
    let mut look = tokio::time::interval(Duration::from_millis(50));
    loop {
        let status = feed.status();
        if status.vbuckets.iter().all(|vbucket| is_good(vbucket.state)) || Instant::now() >= deadline {
            return Ok(status);
        }
        tokio::select! {
            event = events.next() => match event {
                Some(batch) => drop(batch?),
                None => return Ok(feed.status()),
            },
            _ = look.tick() => {}
        }
    }
}

/// The last checkpoint of the feed's writer, if the store has one.
async fn checkpoint(session: &Session, name: &str) -> Outcome<Option<Checkpoint>> {
    let store = session.store().await?;
    let key = CacheKey::Checkpoint(name.to_owned());
    let Some(stored) = store.get(&key).await? else { return Ok(None) };
    Ok(Some(Checkpoint::from_bytes(&stored.value).map_err(|e| e.with_context("key", key))?))
}

impl FeedView {
    fn new(feed: String, status: DcpStatus, checkpoint: Option<&Checkpoint>) -> Self {
        let (mut states, mut nodes) = (BTreeMap::new(), BTreeMap::new());
        for vbucket in &status.vbuckets {
            *states.entry(name_of(vbucket.state).to_owned()).or_default() += 1;
            *nodes.entry(vbucket.node.clone().unwrap_or_else(|| "none".to_owned())).or_default() += 1;
        }
        let seqno_of = |id| checkpoint.map(|there| there.position.partitions.get(&PartitionId(id)).map_or(0, |at| at.seqno));
        let (high_seqnos, lag) = (
            status.vbuckets.iter().map(|vbucket| vbucket.high_seqno).sum(),
            status.vbuckets.iter().map(|vbucket| vbucket.lag).sum(),
        );
        let view = |(vbucket, status): (u16, VbucketStatus)| {
            let cached = seqno_of(vbucket);
            VbucketView { vbucket, behind: cached.map(|cached| status.high_seqno.saturating_sub(cached)), cached, status }
        };
        let vbuckets: Vec<VbucketView> = (0..).zip(status.vbuckets).map(view).collect();
        let behind = checkpoint.map(|_| vbuckets.iter().filter_map(|vbucket| vbucket.behind).sum());
        let totals = Totals { vbuckets: vbuckets.len(), states, nodes, high_seqnos, lag, behind, counters: status.counters };
        FeedView { feed, vbuckets, totals }
    }
}

fn name_of(state: VbucketState) -> &'static str {
    match state {
        VbucketState::Waiting => "waiting",
        VbucketState::Opening => "opening",
        VbucketState::Streaming => "streaming",
        VbucketState::Done => "done",
        _ => "unknown",
    }
}

fn list<'a>(counts: impl IntoIterator<Item = (&'a String, impl ToString)>) -> String {
    let counts: Vec<String> = counts.into_iter().map(|(name, count)| format!("{} {name}", count.to_string())).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

impl View for FeedView {
    fn table(&self) -> String {
        let Totals { vbuckets, states, nodes, high_seqnos, lag, behind, counters } = &self.totals;
        let mut out = Table::pairs([
            ("feed", self.feed.clone()),
            ("vbuckets", format!("{}: {}", grouped(*vbuckets as u64), list(states))),
            ("nodes", list(nodes)),
            ("seqnos", format!("{}, {} still to come", grouped(*high_seqnos), grouped(*lag))),
            (
                "cache",
                behind.map_or("no checkpoint of this feed was looked for, or found".to_owned(), |behind| {
                    format!("{} seqnos behind", grouped(behind))
                }),
            ),
            ("connections", format!("{}, {} failed", counters.connections, counters.connection_errors)),
            ("streams", format!("{} asked for again; ended: {}", grouped(counters.reopens), list(&counters.stream_ends))),
        ])
        .render(0);
        let headings =
            [">vbucket", "state", "node", ">seqno", ">high", ">lag", ">cached", ">behind", "history", ">again", "last end"];
        let mut table = Table::new(headings);
        let number = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
        for VbucketView { vbucket, status, cached, behind } in &self.vbuckets {
            table.row([
                vbucket.to_string(),
                name_of(status.state).to_owned(),
                status.node.clone().unwrap_or_default(),
                status.seqno.to_string(),
                status.high_seqno.to_string(),
                status.lag.to_string(),
                number(*cached),
                number(*behind),
                format!("{:012x}", status.uuid),
                status.reopens.to_string(),
                status.last_error.clone().unwrap_or_default(),
            ]);
        }
        out.push('\n');
        out.push_str(&table.render(0));
        out
    }
}
