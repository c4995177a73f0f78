//! Compares what this cache answers with what a gateway answered: recorded mutations in, recorded answers against ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluicegate_core::changes::{ChangesOptions, SequenceId};
use sluicegate_core::decode::GatewayOptions;
use sluicegate_core::{
    CacheStore, Channel, CollectionId, Error, ErrorKind, FeedEvent, GatewayDecoder, Mutation, ReaderConfig, ReaderNode, Result,
    Writer, WriterConfig,
};

use crate::databases::{Keyspace, number_of};

/// One recorded request and what the gateway answered.
#[derive(Clone, Debug)]
pub struct RecordedAnswer {
    /// The marker at which it was asked.
    pub marker: u32,
    /// The keyspace that was asked, if the recording has it.
    pub keyspace: Option<Keyspace>,
    /// What was asked.
    pub question: Question,
    /// The request as recorded, for messages.
    pub request: String,
    status: u16,
    response: Value,
}

/// A recorded request, as far as it concerns a cache.
#[derive(Clone, Debug)]
pub enum Question {
    /// Channels and options, as an administrator.
    Changes(Vec<Channel>, ChangesOptions),
    /// A `since` that is none: it must be refused.
    Malformed(String),
    /// Not for a cache to answer, and why.
    Other(&'static str),
}

#[derive(Deserialize)]
struct Line {
    kind: String,
    marker: Option<u32>,
    keyspace: Option<String>,
    db: Option<String>,
    request: Option<Value>,
    status: Option<u16>,
    response: Option<Value>,
    stats: Option<Value>,
}

/// The recorded answers of one gateway.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// In the order in which they were asked.
    pub answers: Vec<RecordedAnswer>,
    /// The gateway's stable sequence at each marker.
    pub stable: BTreeMap<u32, u64>,
}

impl Truth {
    /// Reads recorded answers, plain or gzip. Blocks.
    ///
    /// # Errors
    /// `NotFound` if the file cannot be opened; `Corrupt`, naming file and line.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let unreadable = |e: std::io::Error| {
            Error::new(ErrorKind::NotFound, format!("cannot read {}; check the path", path.display())).with_source(e)
        };
        let mut file = BufReader::new(File::open(path).map_err(unreadable)?);
        let gzip = file.fill_buf().map_err(unreadable)?.starts_with(&[0x1f, 0x8b]);
        let text: Box<dyn Read> = if gzip { Box::new(flate2::bufread::MultiGzDecoder::new(file)) } else { Box::new(file) };
        let mut truth = Truth::default();
        for (number, line) in BufReader::new(text).lines().enumerate() {
            let line = line.map_err(unreadable)?;
            let at = |e| Error::corrupt(format!("{}, line {}", path.display(), number + 1)).with_source(e);
            let line: Line = serde_json::from_str(&line).map_err(at)?;
            let marker = line.marker.unwrap_or_default();
            // Each of several databases has its own.
            if line.db.is_none()
                && let Some(stable) = line.stats.as_ref().and_then(|stats| stats["high_seq_stable"].as_u64())
            {
                truth.stable.insert(marker, stable);
            }
            if let ("changes", Some(request)) = (line.kind.as_str(), line.request) {
                truth.answers.push(RecordedAnswer {
                    marker,
                    keyspace: line.keyspace.as_deref().map(str::parse).transpose()?,
                    question: Question::of(&request),
                    request: request.to_string(),
                    status: line.status.unwrap_or_default(),
                    response: line.response.unwrap_or_default(),
                });
            }
        }
        Ok(truth)
    }
}

impl Truth {
    /// Whether the answers are of keyspaces of databases, rather than of one cache.
    pub fn has_keyspaces(&self) -> bool {
        self.answers.iter().any(|answer| answer.keyspace.is_some())
    }
}

impl Question {
    /// The reason, if it is not for a cache to answer.
    fn not_asked(&self) -> Option<&'static str> {
        match self {
            Question::Other(reason) => Some(reason),
            _ => None,
        }
    }

    fn of(request: &Value) -> Question {
        if request["as"] != "admin" {
            return Question::Other("asked as a user: the service's part");
        }
        let parameters = match (request.get("query"), request.get("body")) {
            (Some(Value::Object(query)), _) if !query.is_empty() => query.clone(),
            (_, Some(Value::Object(body))) => body.clone(),
            _ => serde_json::Map::new(),
        };
        let text = |name: &str| match parameters.get(name) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Array(list)) => Some(list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")),
            Some(other) => Some(other.to_string()),
            None => None,
        };
        if parameters.contains_key("feed") {
            return Question::Other("longpoll or continuous: the service's part");
        }
        if parameters.contains_key("doc_ids") {
            return Question::Other("by document id: the service's part");
        }
        let since = text("since").unwrap_or_default();
        let Ok(since) = since.parse::<SequenceId>() else { return Question::Malformed(since) };
        let channels = match (text("filter"), text("channels")) {
            (Some(_), None) => return Question::Other("a filter without channels: the service's part"),
            (_, Some(names)) => names.split(',').filter_map(|name| Channel::new(name).ok()).collect(),
            (None, None) => vec![Channel::star()],
        };
        let mut options = ChangesOptions::new().since(since).active_only(text("active_only").is_some_and(|t| t == "true"));
        options.limit = text("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
        Question::Changes(channels, options)
    }
}

/// What is compared of the ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Exactly as recorded.
    Exact,
    /// The sequence alone, whatever low sequence goes with it: for a gateway that lost sequences which the feed still has.
    Sequences,
}

/// How a comparison ended.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Answers that agreed.
    pub answers: usize,
    /// Rows in them.
    pub rows: usize,
    /// Malformed requests that were refused as they should be.
    pub refused: usize,
    /// Differences, each with the request.
    pub differences: Vec<String>,
    /// Recorded answers that are not a cache's to give, by reason.
    pub not_asked: BTreeMap<&'static str, usize>,
    /// Answers that were recorded at markers which the mutations do not have: these are not
    /// compared. By marker.
    pub not_reached: BTreeMap<u32, usize>,
}

impl Report {
    /// Whether every recorded answer that is a cache's to give was compared, and agrees. False if
    /// there is no such answer.
    pub fn is_agreed(&self) -> bool {
        self.differences.is_empty() && self.not_reached.is_empty() && self.has_compared()
    }

    fn has_compared(&self) -> bool {
        self.answers + self.refused + self.differences.len() > 0
    }

    /// Notes the answers of `truth` at markers other than those `reached`. `left_out` gives the
    /// reason for an answer that is not compared at any marker.
    fn note_not_reached(
        &mut self,
        truth: &Truth,
        reached: &BTreeSet<u32>,
        left_out: impl Fn(&RecordedAnswer) -> Option<&'static str>,
    ) {
        for answer in truth.answers.iter().filter(|answer| !reached.contains(&answer.marker)) {
            match left_out(answer) {
                Some(reason) => *self.not_asked.entry(reason).or_default() += 1,
                None => *self.not_reached.entry(answer.marker).or_default() += 1,
            }
        }
    }

    /// Adds another's figures.
    pub fn add(&mut self, other: Report) {
        self.answers += other.answers;
        self.rows += other.rows;
        self.refused += other.refused;
        self.differences.extend(other.differences);
        for (reason, count) in other.not_asked {
            *self.not_asked.entry(reason).or_default() += count;
        }
        for (marker, count) in other.not_reached {
            *self.not_reached.entry(marker).or_default() += count;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} answers agree, {} rows; {} malformed requests refused", self.answers, self.rows, self.refused)?;
        for (reason, count) in &self.not_asked {
            writeln!(f, "{count} not asked: {reason}")?;
        }
        for (marker, count) in &self.not_reached {
            writeln!(f, "{count} not compared: the mutations do not have marker {marker}")?;
        }
        if !self.has_compared() {
            writeln!(f, "nothing was compared")?;
        }
        writeln!(f, "{} differences", self.differences.len())?;
        for difference in self.differences.iter().take(20) {
            writeln!(f, "  {difference}")?;
        }
        Ok(())
    }
}

/// Ingests each part into `store`, and after it asks everything that was recorded at its marker.
///
/// # Errors
/// What writer and reader say; a difference is no error but goes into the report.
pub async fn compare(
    store: Arc<dyn CacheStore>,
    parts: impl IntoIterator<Item = (u32, Vec<Mutation>)>,
    truth: &Truth,
    ids: Ids,
    config: WriterConfig,
) -> Result<Report> {
    let mut writer = Writer::alone(store.clone(), Arc::new(GatewayDecoder::default()), "recording", config).await?;
    let reader = ReaderNode::open(store, ReaderConfig::default()).await?;
    let (mut report, mut reached) = (Report::default(), BTreeSet::new());
    for (marker, mutations) in parts {
        ingest(&mut writer, &reader, &mutations).await?;
        report.add(compare_marker(&reader, truth, marker, ids).await?);
        reached.insert(marker);
    }
    report.note_not_reached(truth, &reached, |answer| answer.question.not_asked());
    Ok(report)
}

/// A database whose answers are compared.
#[derive(Clone, Debug)]
pub struct ComparedDatabase {
    /// Its name in keyspaces.
    pub name: String,
    /// Selects its mutations.
    pub decoder: GatewayOptions,
    /// The store for its cache.
    pub store: Arc<dyn CacheStore>,
}

/// The result of a comparison of several databases, in total and by keyspace.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KeyspacesReport {
    /// The total.
    #[serde(flatten)]
    pub total: Report,
    /// By keyspace.
    pub keyspaces: BTreeMap<String, Counts>,
}

/// The result for one keyspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Answers that agreed.
    pub answers: usize,
    /// Rows in them.
    pub rows: usize,
    /// Answers that differed.
    pub differences: usize,
}

impl fmt::Display for KeyspacesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (keyspace, Counts { answers, rows, differences }) in &self.keyspaces {
            writeln!(f, "{keyspace}: {answers} answers agree, {rows} rows; {differences} differences")?;
        }
        self.total.fmt(f)
    }
}

/// As [`compare`], for several databases at once: each has its own cache, and is asked the recorded
/// requests of its keyspaces. `collections` are the names of collections, by number.
///
/// # Errors
/// As [`compare`].
pub async fn compare_keyspaces(
    databases: &[ComparedDatabase],
    collections: &BTreeMap<u32, Box<str>>,
    parts: impl IntoIterator<Item = (u32, Vec<Mutation>)>,
    truth: &Truth,
    ids: Ids,
    config: WriterConfig,
) -> Result<KeyspacesReport> {
    let mut caches = Vec::new();
    for database in databases {
        let decoder = Arc::new(GatewayDecoder::new(&database.decoder));
        let writer = Writer::alone(database.store.clone(), decoder, "recording", config.clone()).await?;
        let reader = ReaderNode::open(database.store.clone(), ReaderConfig::default()).await?;
        caches.push((writer, reader));
    }
    let (mut report, mut reached) = (KeyspacesReport::default(), BTreeSet::new());
    for (marker, mutations) in parts {
        reached.insert(marker);
        for (writer, reader) in &mut caches {
            ingest(writer, reader, &mutations).await?;
        }
        for recorded in truth.answers.iter().filter(|answer| answer.marker == marker) {
            let (at, keyspace) = match database_of(recorded, databases) {
                Ok(found) => found,
                Err(reason) => {
                    *report.total.not_asked.entry(reason).or_default() += 1;
                    continue;
                }
            };
            let (_, reader) = &caches[at];
            let named =
                |name: &str| collections.iter().rev().find(|(_, known)| ***known == *name).map(|(id, _)| CollectionId(*id));
            let mut one = Report::default();
            match number_of(&keyspace.collection, named) {
                Some(collection) => compare_one(reader, recorded, collection, ids, &mut one).await?,
                None => one.differences.push(format!("{keyspace}: the recording has no collection of that name")),
            }
            let counts = report.keyspaces.entry(keyspace.to_string()).or_default();
            counts.answers += one.answers;
            counts.rows += one.rows;
            counts.differences += one.differences.len();
            one.differences.iter_mut().for_each(|difference| *difference = format!("{keyspace}: {difference}"));
            report.total.add(one);
        }
    }
    let left_out = |answer: &RecordedAnswer| database_of(answer, databases).err().or(answer.question.not_asked());
    report.total.note_not_reached(truth, &reached, left_out);
    Ok(report)
}

/// The index of the database of an answer, and its keyspace; or the reason why it is not compared.
fn database_of<'a>(answer: &'a RecordedAnswer, databases: &[ComparedDatabase]) -> Result<(usize, &'a Keyspace), &'static str> {
    let keyspace = answer.keyspace.as_ref().ok_or("not of a keyspace")?;
    let at = databases.iter().position(|database| Some(database.name.as_str()) == keyspace.database.as_deref());
    Ok((at.ok_or("of a database that is not compared")?, keyspace))
}

async fn ingest(writer: &mut Writer, reader: &ReaderNode, mutations: &[Mutation]) -> Result<()> {
    for batch in mutations.chunks(512) {
        let events: Vec<FeedEvent> = batch.iter().cloned().map(FeedEvent::Mutation).collect();
        writer.process(events.into()).await?;
    }
    writer.finish().await?;
    reader.wait_for_batch(writer.clock().batch).await.map(drop)
}

/// Asks `reader` everything that was recorded at `marker`.
///
/// # Errors
/// What the reader says; a difference is no error but goes into the report.
pub async fn compare_marker(reader: &ReaderNode, truth: &Truth, marker: u32, ids: Ids) -> Result<Report> {
    let mut report = Report::default();
    for recorded in truth.answers.iter().filter(|answer| answer.marker == marker) {
        compare_one(reader, recorded, CollectionId::DEFAULT, ids, &mut report).await?;
    }
    Ok(report)
}

async fn compare_one(
    reader: &ReaderNode,
    recorded: &RecordedAnswer,
    collection: CollectionId,
    ids: Ids,
    report: &mut Report,
) -> Result<()> {
    match &recorded.question {
        Question::Other(reason) => *report.not_asked.entry(reason).or_default() += 1,
        Question::Malformed(_) if recorded.status == 400 => report.refused += 1,
        Question::Malformed(since) => {
            report.differences.push(format!("{}: the gateway took since={since:?}, we do not", recorded.request));
        }
        Question::Changes(..) if recorded.status != 200 => {
            report.differences.push(format!("{}: the gateway said {}, we answer", recorded.request, recorded.status));
        }
        Question::Changes(channels, options) => {
            let channels: Vec<Channel> = channels.iter().map(|channel| channel.clone().in_collection(collection)).collect();
            let answer = reader.changes(&channels, options).await?.answer();
            let ours = serde_json::to_value(&answer)
                .map_err(|e| Error::new(ErrorKind::Unexpected, "an answer is no JSON").with_source(e))?;
            match difference(&recorded.response, &ours, ids) {
                None => {
                    report.answers += 1;
                    report.rows += answer.rows.len();
                }
                Some(what) => report.differences.push(format!("marker {}: {}: {what}", recorded.marker, recorded.request)),
            }
        }
    }
    Ok(())
}

fn difference(theirs: &Value, ours: &Value, ids: Ids) -> Option<String> {
    let none = Vec::new();
    let rows = |answer: &Value| -> Vec<Value> {
        let rows = answer["results"].as_array().unwrap_or(&none);
        rows.iter().map(|row| comparable_row(row, ids)).collect()
    };
    let (their_rows, our_rows) = (rows(theirs), rows(ours));
    let differing = their_rows.iter().zip(&our_rows).position(|(a, b)| a != b);
    match differing {
        Some(at) => return Some(format!("row {at}: theirs {}, ours {}", their_rows[at], our_rows[at])),
        None if their_rows.len() != our_rows.len() => {
            let at = their_rows.len().min(our_rows.len());
            let next = |rows: &[Value]| rows.get(at).map_or("end".to_owned(), Value::to_string);
            return Some(format!(
                "theirs {} rows, ours {}; then theirs {}, ours {}",
                their_rows.len(),
                our_rows.len(),
                next(&their_rows),
                next(&our_rows)
            ));
        }
        None => {}
    }
    let (theirs, ours) = (comparable_id(&theirs["last_seq"], ids), comparable_id(&ours["last_seq"], ids));
    (theirs != ours).then(|| format!("last_seq: theirs {theirs}, ours {ours}"))
}

/// A row without what is not a cache's (the document's body; other leaf revisions than the winning one), and with its sets in order.
fn comparable_row(row: &Value, ids: Ids) -> Value {
    let mut row = row.clone();
    if let Value::Object(fields) = &mut row {
        fields.remove("doc");
        if let Some(Value::Array(revisions)) = fields.get_mut("changes") {
            revisions.truncate(1);
        }
        if let Some(Value::Array(removed)) = fields.get_mut("removed") {
            removed.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
        if let Some(id) = fields.get_mut("seq") {
            *id = comparable_id(id, ids);
        }
    }
    row
}

fn comparable_id(id: &Value, ids: Ids) -> Value {
    match ids {
        Ids::Exact => id.clone(),
        Ids::Sequences => serde_json::from_value::<SequenceId>(id.clone()).map_or(id.clone(), |id| id.sequence.0.into()),
    }
}
