//! A request's options and its answer.

use std::sync::Arc;

use serde::ser::{SerializeMap, SerializeStruct};
use serde::{Deserialize, Serialize, Serializer};
use smallvec::SmallVec;

use super::id::SequenceId;
use crate::channel::Channel;
use crate::entry::ChangeEntry;
use crate::sequence::Sequence;

/// How far a reader goes while some sequences are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Delivery {
    /// Only up to the stable sequence: nothing is ever late, ids are plain, a gap delays everything above it.
    Strict,
    /// Everything up to the high sequence; while something is missing ids carry the low sequence.
    Eager,
    /// Strict until a gap is older than the sequencer's `max_wait`, then past it.
    #[default]
    Auto,
}

/// A number in the global order of late arrivals: everything that was late up to it has been seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LateCursor(pub u64);

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChangesOptions {
    /// Only what comes after it.
    pub since: SequenceId,
    /// At most so many rows, counted after filtering.
    pub limit: Option<usize>,
    /// Leave out deletions, and removals from all channels of the request.
    pub active_only: bool,
    /// How far to go while some sequences are missing.
    pub delivery: Delivery,
    /// Where the client stands among the late arrivals; without it, it sees those only by starting again at its low sequence.
    pub late: Option<LateCursor>,
}

impl ChangesOptions {
    /// Everything, from the beginning.
    pub fn new() -> Self {
        ChangesOptions::default()
    }

    /// Only what comes after `since`.
    #[must_use]
    pub fn since(mut self, since: impl Into<SequenceId>) -> Self {
        self.since = since.into();
        self
    }

    /// At most `limit` rows.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Whether to leave out deletions and removals.
    #[must_use]
    pub fn active_only(mut self, active_only: bool) -> Self {
        self.active_only = active_only;
        self
    }

    /// How far to go while some sequences are missing.
    #[must_use]
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// Goes on after `cursor` among the late arrivals.
    #[must_use]
    pub fn late(mut self, cursor: LateCursor) -> Self {
        self.late = Some(cursor);
        self
    }
}

/// One row of an answer. In JSON it is a line of the continuous feed, too.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AnswerRow {
    /// Its place; a client may go on from it.
    pub id: SequenceId,
    /// What happened. An entry without a revision (a user's own document) lists no changes.
    pub entry: Arc<ChangeEntry>,
    /// The row shows a deletion.
    pub deleted: bool,
    /// The channels of the request that the document left, by name.
    pub removed: SmallVec<[Channel; 1]>,
}

impl AnswerRow {
    /// A row without removals, deleted if the entry is.
    pub fn new(id: impl Into<SequenceId>, entry: Arc<ChangeEntry>) -> Self {
        AnswerRow { id: id.into(), deleted: entry.is_deleted(), entry, removed: SmallVec::new() }
    }
}

impl Serialize for AnswerRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Change<'a> {
            rev: &'a str,
        }

        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("seq", &self.id)?;
        map.serialize_entry("id", self.entry.key())?;
        if self.deleted {
            map.serialize_entry("deleted", &true)?;
        }
        if !self.removed.is_empty() {
            map.serialize_entry("removed", &self.removed)?;
        }
        match self.entry.revision() {
            "" => map.serialize_entry::<_, [Change<'_>; 0]>("changes", &[])?,
            rev => map.serialize_entry("changes", &[Change { rev }])?,
        }
        map.end()
    }
}

/// What a request gets. In JSON: `results` and `last_seq`, as a `_changes` answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The rows, ascending by id.
    pub rows: Vec<AnswerRow>,
    /// Where the next request goes on.
    pub last: SequenceId,
    /// The low sequence while something is skipped, else zero.
    pub low: Sequence,
    /// Where the next request goes on among the late arrivals.
    pub late: LateCursor,
}

impl Answer {
    /// The answer that consists of `rows`. The next request goes on at the last of them; where there is none, at `since` again.
    pub fn new(rows: Vec<AnswerRow>, since: SequenceId, low: Sequence, late: LateCursor) -> Self {
        let last = rows.last().map_or(since, |row| row.id);
        Answer { rows, last, low, late }
    }
}

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut answer = serializer.serialize_struct("Answer", 2)?;
        answer.serialize_field("results", &self.rows)?;
        answer.serialize_field("last_seq", &self.last.text())?;
        answer.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EntryFlags;

    fn entry(sequence: u64, document: &str, revision: &str, flags: EntryFlags) -> Arc<ChangeEntry> {
        Arc::new(ChangeEntry::new(Sequence(sequence), document, revision, flags).unwrap())
    }

    #[test]
    fn an_answer_is_the_json_that_clients_know() {
        let gone = AnswerRow {
            id: SequenceId::new(458),
            entry: entry(458, "d1\"", "8-a", EntryFlags(0)),
            deleted: true,
            removed: ["ch000", "é"].iter().map(|n| Channel::new(n).unwrap()).collect(),
        };
        let rows = vec![AnswerRow::new(332, entry(332, "sdk:043", "1-c", EntryFlags(0))), gone];
        let answer = Answer::new(rows, SequenceId::ZERO, Sequence(0), LateCursor(0));
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            concat!(
                r#"{"results":[{"seq":332,"id":"sdk:043","changes":[{"rev":"1-c"}]},"#,
                r#"{"seq":458,"id":"d1\"","deleted":true,"removed":["ch000","é"],"changes":[{"rev":"8-a"}]}],"last_seq":"458"}"#
            )
        );
    }

    #[test]
    fn while_something_is_skipped_every_id_is_text() {
        let rows = [10, 89].map(|s| AnswerRow::new(SequenceId::new(s).with_low(44), entry(s, "d", "1-a", EntryFlags(0))));
        let answer = Answer::new(rows.to_vec(), SequenceId::ZERO, Sequence(44), LateCursor(3));
        let json = serde_json::to_value(&answer).unwrap();
        assert_eq!(json["results"][0]["seq"], "10");
        assert_eq!(json["results"][1]["seq"], "44::89");
        assert_eq!(json["last_seq"], "44::89");
    }

    #[test]
    fn an_empty_answer_says_where_the_request_stood() {
        let answer = Answer::new(Vec::new(), "44::339".parse().unwrap(), Sequence(44), LateCursor(0));
        assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"results":[],"last_seq":"44::339"}"#);
    }

    #[test]
    fn a_users_own_document_lists_no_changes() {
        let row = AnswerRow::new(7, entry(7, "_user/a", "", EntryFlags(0)));
        assert_eq!(serde_json::to_string(&row).unwrap(), r#"{"seq":7,"id":"_user/a","changes":[]}"#);
    }

    #[test]
    fn options_are_built_step_by_step() {
        let options = ChangesOptions::new().since(7).limit(3).active_only(true).delivery(Delivery::Eager).late(LateCursor(2));
        assert_eq!(options.since, SequenceId::new(7));
        assert_eq!((options.limit, options.active_only), (Some(3), true));
        assert_eq!((options.delivery, options.late), (Delivery::Eager, Some(LateCursor(2))));
        assert_eq!(ChangesOptions::default().delivery, Delivery::Auto);
    }
}
