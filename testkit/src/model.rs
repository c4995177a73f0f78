//! What a cache must answer, written down as plainly as possible.

use std::collections::{BTreeMap, HashMap};

use sluicegate_core::decode::DecodedDocument;
use sluicegate_core::{Channel, Decoded, DocumentId, Membership, Sequence};

/// A row of an answer: sequence, document, revision, deleted, and the channels of the request it was removed from, sorted.
pub type AnswerRow = (Sequence, String, String, bool, Vec<String>);

/// The whole cache as one list of rows a channel, by sequence. Slow, and meant to be obviously right: it knows no order of arrival, no gaps, no blocks.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// By channel. Documents may have a sequence in common, where a gateway gave it out twice.
    rows: HashMap<Channel, BTreeMap<(Sequence, DocumentId), Row>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    sequence: Sequence,
    document: DocumentId,
    revision: String,
    deleted: bool,
    removed: bool,
}

/// Rows of one revision over the channels of a request.
struct Merged {
    row: Row,
    removed_from: Vec<String>,
    /// Whether some channel has the document live.
    live: bool,
}

impl Model {
    /// One to which nothing has happened.
    pub fn new() -> Self {
        Model::default()
    }

    /// Takes one decoded mutation. Only documents have rows. A document that another program wrote
    /// last has only those for channels that it left.
    pub fn apply(&mut self, decoded: &Decoded) {
        match decoded {
            Decoded::Document(document) => self.document(document, true),
            Decoded::Foreign(document) => self.document(document, false),
            _ => {}
        }
    }

    fn document(&mut self, document: &DecodedDocument, is_shown: bool) {
        let entry = &document.entry;
        let row = |membership: Membership| Row {
            sequence: entry.sequence(),
            document: entry.document().into(),
            revision: entry.revision().to_owned(),
            deleted: match membership {
                Membership::Present => entry.is_deleted(),
                by => by == Membership::RemovedByDeletion,
            },
            removed: membership.is_removal(),
        };
        if entry.in_star() && is_shown {
            self.add(entry.star(), row(Membership::Present));
        }
        for change in entry.channels().iter().filter(|_| is_shown) {
            self.add(&change.channel, row(change.membership));
        }
        for departure in &document.departures {
            let revision = departure.revision.to_string();
            let row = Row { sequence: departure.sequence, revision, ..row(departure.membership) };
            self.add(&departure.channel, row);
        }
    }

    /// A document has one revision of a sequence: what is known of it already stays.
    fn add(&mut self, channel: &Channel, row: Row) {
        let at = (row.sequence, row.document.clone());
        self.rows.entry(channel.clone()).or_default().entry(at).or_insert(row);
    }

    /// The rows that a request for `channels` gets: after `since`, at most `limit`. Those of one
    /// sequence are in the order of documents.
    pub fn changes(&self, channels: &[Channel], since: Sequence, limit: Option<usize>, active_only: bool) -> Vec<AnswerRow> {
        let mut merged: BTreeMap<(Sequence, DocumentId), Merged> = BTreeMap::new();
        for channel in channels {
            for row in self.newest(channel) {
                let at = merged.entry((row.sequence, row.document.clone()));
                let at = at.or_insert_with(|| Merged { row: row.clone(), removed_from: Vec::new(), live: false });
                at.row.deleted |= row.deleted;
                if row.removed {
                    at.removed_from.push(channel.name().to_owned());
                } else {
                    at.live = true;
                }
            }
        }
        let after = merged.into_values().filter(|m| m.row.sequence > since);
        let wanted = after.filter(|m| !active_only || (m.live && !m.row.deleted));
        wanted.take(limit.unwrap_or(usize::MAX)).map(answer).collect()
    }

    /// Each document of a channel once, at its newest sequence there: rows come in order, so the last one wins.
    fn newest(&self, channel: &Channel) -> Vec<Row> {
        let mut newest: HashMap<&DocumentId, &Row> = HashMap::new();
        for row in self.rows.get(channel).into_iter().flat_map(BTreeMap::values) {
            newest.insert(&row.document, row);
        }
        newest.into_values().cloned().collect()
    }
}

fn answer(merged: Merged) -> AnswerRow {
    let Merged { row, mut removed_from, .. } = merged;
    removed_from.sort_unstable();
    removed_from.dedup();
    (row.sequence, row.document.key.into(), row.revision, row.deleted, removed_from)
}
