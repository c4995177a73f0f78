//! One document as the gateway keeps it, and its events.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;

use bytes::Bytes;
use sluicegate_core::decode::attributes;
use sluicegate_core::feed::{Datatype, MutationKind};
use sluicegate_core::{Mutation, Sequence};

use super::{ExpectedRow, partition_of};
use crate::text::{self, put_list};

/// Over this many recent sequences the list is trimmed …
const MAX_RECENT: usize = 20;
/// … to this many.
const KEPT_RECENT: usize = 5;
/// Revisions kept in the history.
const REVISIONS: usize = 6;
/// Former stays in one channel that are remembered one by one.
const MAX_STAYS: usize = 5;
/// The writer that versions name.
const SOURCE: &str = "c3ludGhldGljIHNvdXJjZQ";

/// How the document stands to a channel it is or has been in.
#[derive(Clone, Debug)]
enum Standing {
    Member,
    Left { sequence: u64, revision: Revision, deletion: bool },
}

/// A revision, and the moment of its write.
#[derive(Clone, Debug, Default)]
struct Revision {
    id: String,
    cas: u64,
}

impl Revision {
    fn put(&self, out: &mut Vec<u8>) {
        // Writing into memory cannot fail.
        let _ = write!(out, r#"{{"rev":"{}","src":"{SOURCE}","ver":""#, self.id);
        text::put_cas(out, self.cas);
        out.extend_from_slice(br#""}"#);
    }
}

/// A stay in a channel.
#[derive(Clone, Debug)]
struct Stay {
    channel: u32,
    start: u64,
    end: Option<u64>,
}

/// What a write does.
pub(super) struct Write {
    pub(super) sequence: u64,
    /// Sequences it allocated in vain.
    pub(super) unused: Vec<u64>,
    pub(super) digest: u128,
    pub(super) cas: u64,
    pub(super) deleted: bool,
    /// The channels it is in from now on.
    pub(super) members: Vec<u32>,
    /// Bytes of the body.
    pub(super) body: usize,
}

/// A document.
#[derive(Clone, Debug)]
pub(super) struct Document {
    id: String,
    /// The channels it moves among.
    home: Vec<u32>,
    generation: u64,
    revision: Revision,
    sequence: u64,
    unused: Vec<u64>,
    recent: Vec<u64>,
    channels: BTreeMap<u32, Standing>,
    /// The last stay in each channel.
    stays: Vec<Stay>,
    /// Those before it.
    former: Vec<Stay>,
    /// Revisions and whether they are tombstones, the newest last.
    history: VecDeque<(String, bool)>,
    deleted: bool,
    body: Vec<u8>,
    checksum: u32,
    rev_no: u64,
}

impl Document {
    /// One that has not been written yet.
    pub(super) fn new(number: usize, home: Vec<u32>) -> Self {
        Document {
            id: format!("doc-{number}"),
            home,
            generation: 0,
            revision: Revision::default(),
            sequence: 0,
            unused: Vec::new(),
            recent: Vec::new(),
            channels: BTreeMap::new(),
            stays: Vec::new(),
            former: Vec::new(),
            history: VecDeque::new(),
            deleted: false,
            body: Vec::new(),
            checksum: 0,
            rev_no: 0,
        }
    }

    /// Whether it has been written, be it as a tombstone.
    pub(super) fn exists(&self) -> bool {
        self.generation > 0
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.deleted
    }

    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The channels it moves among.
    pub(super) fn home(&self) -> &[u32] {
        &self.home
    }

    /// The channels it is in.
    pub(super) fn members(&self) -> Vec<u32> {
        self.channels.iter().filter(|(_, standing)| matches!(standing, Standing::Member)).map(|(channel, _)| *channel).collect()
    }

    /// The key under which the gateway keeps the body of the present revision when there is another one.
    pub(super) fn old_revision_key(&self) -> String {
        format!("_sync:rev:{}:{}:{}", self.id, self.revision.id.len(), self.revision.id)
    }

    /// What each channel has of it.
    pub(super) fn rows(&self) -> impl Iterator<Item = (String, ExpectedRow)> {
        let row = |sequence, revision: &str, removed, deleted| ExpectedRow {
            sequence: Sequence(sequence),
            document: self.id.clone(),
            revision: revision.to_owned(),
            removed,
            deleted,
        };
        let star = ("*".to_owned(), row(self.sequence, &self.revision.id, false, self.deleted));
        let channels = self.channels.iter().map(move |(channel, standing)| {
            let row = match standing {
                Standing::Member => row(self.sequence, &self.revision.id, false, self.deleted),
                Standing::Left { sequence, revision, deletion } => row(*sequence, &revision.id, true, *deletion),
            };
            (format!("ch{channel}"), row)
        });
        std::iter::once(star).chain(channels)
    }

    /// Applies a write of the gateway's.
    pub(super) fn write(&mut self, write: Write) {
        self.generation += 1;
        self.revision = Revision { id: format!("{}-{:032x}", self.generation, write.digest), cas: write.cas };
        self.sequence = write.sequence;
        self.deleted = write.deleted;
        self.move_to(&write.members);
        if self.recent.len() >= MAX_RECENT {
            self.recent.drain(..self.recent.len() - KEPT_RECENT);
        }
        self.recent.extend_from_slice(&write.unused);
        self.recent.push(write.sequence);
        self.recent.sort_unstable();
        self.unused = write.unused;
        if self.history.len() == REVISIONS {
            self.history.pop_front();
        }
        self.history.push_back((self.revision.id.clone(), write.deleted));
        self.body.clear();
        if !write.deleted {
            self.put_body(&write.members, write.body);
        }
        self.checksum = if write.deleted { 0 } else { text::crc32c(&self.body) };
    }

    fn move_to(&mut self, members: &[u32]) {
        for (channel, standing) in &mut self.channels {
            if matches!(standing, Standing::Member) && !members.contains(channel) {
                let (sequence, revision) = (self.sequence, self.revision.clone());
                *standing = Standing::Left { sequence, revision, deletion: self.deleted };
                for stay in self.stays.iter_mut().filter(|stay| stay.channel == *channel) {
                    stay.end = Some(self.sequence);
                }
            }
        }
        for &channel in members {
            if matches!(self.channels.insert(channel, Standing::Member), Some(Standing::Member)) {
                continue;
            }
            let stay = Stay { channel, start: self.sequence, end: None };
            match self.stays.iter_mut().find(|stay| stay.channel == channel) {
                Some(last) => self.former.push(std::mem::replace(last, stay)),
                None => self.stays.push(stay),
            }
            self.merge_former(channel);
        }
    }

    /// Keeps the list of former stays short: the two oldest become one.
    fn merge_former(&mut self, channel: u32) {
        let mut of_channel = (0..self.former.len()).filter(|at| self.former[*at].channel == channel);
        let (oldest, second) = (of_channel.next(), of_channel.next());
        if let (Some(oldest), Some(second)) = (oldest, second)
            && of_channel.count() + 2 > MAX_STAYS
        {
            self.former[second].start = self.former[oldest].start;
            self.former.remove(oldest);
        }
    }

    fn put_body(&mut self, members: &[u32], size: usize) {
        let out = &mut self.body;
        // Writing into memory cannot fail.
        out.extend_from_slice(br#"{"channels":["#);
        put_list(out, members, |out, channel| write!(out, r#""ch{channel}""#));
        let _ = write!(out, r#"],"n":{},"v":""#, self.generation);
        out.resize(size.saturating_sub(2).max(out.len()), b'x');
        out.extend_from_slice(br#""}"#);
    }

    /// The event of the last write; or, `by_another`, of a write by another program, which the metadata know nothing of.
    pub(super) fn event(&mut self, cas: u64, by_another: bool) -> Mutation {
        self.rev_no += 1;
        let metadata = self.attributes();
        let mut version = Vec::with_capacity(100);
        version.extend_from_slice(br#"{"cvCas":""#);
        text::put_cas(&mut version, self.revision.cas);
        let _ = write!(version, r#"","src":"{SOURCE}","ver":""#);
        text::put_cas(&mut version, self.revision.cas);
        version.extend_from_slice(br#""}"#);
        let body: &[u8] = if by_another { br#"{"by":"another"}"# } else { &self.body };
        // A section of some kilobytes fits.
        let value = attributes::encode([("_sync", &metadata[..]), ("_vv", &version[..])], body).unwrap_or_default();
        let mut mutation = Mutation::new(Bytes::copy_from_slice(self.id.as_bytes()), value);
        mutation.partition = partition_of(&mutation.key);
        (mutation.kind, mutation.datatype) = if self.deleted {
            (MutationKind::Deletion, Datatype(Datatype::XATTR))
        } else {
            (MutationKind::Mutation, Datatype(Datatype::JSON | Datatype::XATTR))
        };
        (mutation.cas, mutation.rev_no) = (cas, self.rev_no);
        mutation
    }

    fn attributes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(700);
        let number = |out: &mut Vec<u8>, n: &u64| write!(out, "{n}");
        out.extend_from_slice(br#"{"rev":"#);
        self.revision.put(&mut out);
        // Writing into memory cannot fail.
        if self.deleted {
            out.extend_from_slice(br#","flags":1"#);
        }
        let _ = write!(out, r#","sequence":{}"#, self.sequence);
        if !self.unused.is_empty() {
            out.extend_from_slice(br#","unused_sequences":["#);
            put_list(&mut out, &self.unused, number);
            out.push(b']');
        }
        out.extend_from_slice(br#","recent_sequences":["#);
        put_list(&mut out, &self.recent, number);
        out.extend_from_slice(br#"],"channels":{"#);
        put_list(&mut out, &self.channels, |out, (channel, standing)| {
            write!(out, r#""ch{channel}":"#)?;
            match standing {
                Standing::Member => out.extend_from_slice(b"null"),
                Standing::Left { sequence, revision, deletion } => {
                    write!(out, r#"{{"seq":{sequence},"rev":"#)?;
                    revision.put(out);
                    out.extend_from_slice(if *deletion { br#","del":true}"# } else { b"}" });
                }
            }
            Ok(())
        });
        out.extend_from_slice(br#"},"cas":""#);
        text::put_cas(&mut out, self.revision.cas);
        out.extend_from_slice(br#"","value_crc32c":""#);
        text::put_checksum(&mut out, self.checksum);
        out.extend_from_slice(br#"","channel_set":"#);
        put_stays(&mut out, &self.stays);
        out.extend_from_slice(br#","channel_set_history":"#);
        put_stays(&mut out, &self.former);
        out.extend_from_slice(br#","time_saved":""#);
        text::put_time(&mut out, self.revision.cas);
        out.extend_from_slice(br#"","history":{"revs":["#);
        put_list(&mut out, &self.history, |out, (id, _)| write!(out, r#""{id}""#));
        out.extend_from_slice(br#"],"parents":["#);
        put_list(&mut out, 0..self.history.len(), |out, at| write!(out, "{}", at as i64 - 1));
        out.push(b']');
        if self.history.iter().any(|(_, deleted)| *deleted) {
            out.extend_from_slice(br#","deleted":["#);
            let tombstones = self.history.iter().enumerate().filter(|(_, (_, deleted))| *deleted);
            put_list(&mut out, tombstones, |out, (at, _)| write!(out, "{at}"));
            out.push(b']');
        }
        out.push(b'}');
        if self.deleted {
            let _ = write!(out, r#","tombstoned_at":{}"#, self.revision.cas / 1_000_000_000);
        }
        out.push(b'}');
        out
    }
}

fn put_stays(out: &mut Vec<u8>, stays: &[Stay]) {
    if stays.is_empty() {
        out.extend_from_slice(b"null");
        return;
    }
    out.push(b'[');
    put_list(out, stays, |out, Stay { channel, start, end }| {
        write!(out, r#"{{"name":"ch{channel}","start":{start}"#)?;
        if let Some(end) = end {
            write!(out, r#","end":{end}"#)?;
        }
        out.push(b'}');
        Ok(())
    });
    out.push(b']');
}
