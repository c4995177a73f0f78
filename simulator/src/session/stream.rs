//! One stream: what of a vbucket's history it sends, and in which snapshots.

use bytes::BytesMut;
use sluicegate_mcbp::dcp::{
    EndReason, MarkerDetail, MarkerFlags, OsoBoundary, OsoSnapshot, SeqnoAdvanced, SnapshotMarker, StreamEnd, SystemEventKind,
};
use sluicegate_mcbp::{Command, Datatype, Request};

use super::form::Form;
use crate::bucket::{Item, Kind, Manifest, NodeCopy, Vbucket};

/// Where messages go: a buffer with a limit, and a window (protocol, section 6).
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    pub(crate) out: &'a mut BytesMut,
    /// Bytes up to which the buffer is filled; one message may go over it.
    pub(crate) limit: usize,
    /// Bytes sent and not acknowledged.
    pub(crate) outstanding: &'a mut u64,
    /// How many of those there may be before sending stops; one message may go over it.
    pub(crate) window: u64,
}

impl Sink<'_> {
    pub(crate) fn is_open(&self) -> bool {
        self.out.len() < self.limit && *self.outstanding < self.window
    }

    fn send(&mut self, request: &Request) {
        let before = self.out.len();
        if let Err(error) = request.encode(self.out) {
            tracing::error!(%error, "a message has no encoding");
        }
        // Servers count two bytes too many of these (protocol, section 6).
        let more = if matches!(request.command, Command::DcpPrepare(_)) { 2 } else { 0 };
        *self.outstanding += (self.out.len() - before) as u64 + more;
    }
}

/// What a stream lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    /// A connection without collections gets documents of the default one, and nothing else.
    DefaultOnly,
    /// Everything.
    All,
    /// One scope, with the collections that have been in it.
    Scope(u32, Vec<u32>),
    /// Some collections.
    Collections(Vec<u32>),
}

impl Filter {
    pub(crate) fn lets_through(&self, item: &Item) -> bool {
        match (self, &item.kind) {
            (Filter::DefaultOnly, kind) => item.collection == 0 && !matches!(kind, Kind::System(_)),
            (Filter::All, _) => true,
            (Filter::Scope(scope, _), Kind::System(change)) => change.scope == *scope,
            (Filter::Scope(_, collections), _) => collections.contains(&item.collection),
            (Filter::Collections(_), Kind::System(change))
                if matches!(change.event, SystemEventKind::CreateScope | SystemEventKind::DropScope) =>
            {
                false
            }
            (Filter::Collections(collections), _) => collections.contains(&item.collection),
        }
    }

    /// Whether nothing it lets through exists any more.
    fn is_empty(&self, manifest: &Manifest) -> bool {
        match self {
            Filter::DefaultOnly | Filter::All => false,
            Filter::Scope(scope, _) => !manifest.has_scope(*scope),
            Filter::Collections(collections) => collections.iter().all(|id| manifest.collection(*id).is_none()),
        }
    }
}

/// Which layout snapshot markers have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum MarkerVersion {
    #[default]
    V1,
    V2_0,
    V2_2,
}

/// What a connection has agreed on, as far as streams are concerned.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Style {
    pub(crate) form: Form,
    pub(crate) marker: MarkerVersion,
    /// Whether snapshots in the order of keys are wanted, and whether their end is preceded by a position.
    pub(crate) oso: Option<bool>,
    pub(crate) skips_deletes: bool,
    /// Whether durable writes are told as such, from their beginning.
    pub(crate) has_sync_writes: bool,
    /// Whether changes that were replaced are sent too.
    pub(crate) has_history: bool,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) number: u64,
    pub(crate) vbucket: u16,
    pub(crate) opaque: u32,
    pub(crate) id: Option<u16>,
    pub(crate) filter: Filter,
    pub(crate) end: u64,
    /// The last position that was sent or passed over.
    pub(crate) position: u64,
    pub(crate) is_initial: bool,
    /// Whether it gets only what is on disk.
    pub(crate) is_disk_only: bool,
    pub(crate) incarnation: u64,
    pub(crate) branch: u64,
    /// State of the vbucket at which nothing was left to send.
    pub(crate) idle_at: Option<u64>,
    pub(crate) is_queued: bool,
    pub(crate) snapshot: Snapshot,
}

/// What is being sent.
#[derive(Debug, Default)]
pub(crate) enum Snapshot {
    /// Nothing.
    #[default]
    None,
    /// A snapshot in the order of positions.
    Ordered { end: u64, from_disk: bool },
    /// A snapshot in the order of keys: the positions left, the next one last.
    ByKey { end: u64, left: Vec<u64> },
}

/// Whether a stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The sink is full.
    Blocked,
    /// There is nothing to send now.
    Idle,
    /// It is over.
    Ended,
}

impl Stream {
    /// Sends what there is, as long as the sink takes it.
    pub(crate) fn produce(
        &mut self,
        vbucket: &Vbucket,
        copy: Option<&NodeCopy>,
        manifest: &Manifest,
        style: &Style,
        config: &crate::ClusterConfig,
        sink: &mut Sink<'_>,
    ) -> Progress {
        let Some(copy) = copy.filter(|copy| copy.incarnation == self.incarnation) else {
            return self.finish(EndReason::StateChanged, sink);
        };
        if self.branch != vbucket.branch() {
            return self.finish(EndReason::Rollback, sink);
        }
        while sink.is_open() {
            match self.snapshot {
                Snapshot::None => {
                    if self.position >= self.end {
                        return self.finish(EndReason::Ok, sink);
                    }
                    if !self.begin(vbucket, copy, style, config, sink) {
                        if self.filter.is_empty(manifest) && self.position >= copy.high_seqno {
                            return self.finish(EndReason::FilterEmpty, sink);
                        }
                        if self.snapshot_is_none() && self.position < self.end && self.position >= copy.high_seqno {
                            self.idle_at = Some(vbucket.changes());
                            return Progress::Idle;
                        }
                    }
                }
                Snapshot::Ordered { end, from_disk } => self.send_ordered(vbucket, end, from_disk, style, sink),
                Snapshot::ByKey { .. } => self.send_by_key(vbucket, style, sink),
            }
        }
        Progress::Blocked
    }

    /// Sends the message that the stream is over.
    pub(crate) fn finish(&self, reason: EndReason, sink: &mut Sink<'_>) -> Progress {
        let is_told = self.filter != Filter::DefaultOnly;
        let reason = match reason {
            EndReason::FilterEmpty | EndReason::LostPrivileges if !is_told => EndReason::Ok,
            reason => reason,
        };
        self.send(Command::DcpStreamEnd(StreamEnd { reason }), 0, Datatype::default(), sink);
        Progress::Ended
    }

    fn snapshot_is_none(&self) -> bool {
        matches!(self.snapshot, Snapshot::None)
    }

    fn wants(&self, item: &Item, style: &Style, from_disk: bool) -> bool {
        let is_skipped = from_disk && self.is_initial && style.skips_deletes && item.is_removal();
        let is_hidden = item.is_hidden() && !style.has_sync_writes || !style.form.can_tell(item);
        !is_skipped && !is_hidden && self.filter.lets_through(item)
    }

    /// Whether a change is sent in a snapshot that ends at `end`: the last one of a document, or all if the history is; and all that durable writes
    /// consist of.
    fn sends(&self, vbucket: &Vbucket, item: &Item, end: u64, style: &Style, from_disk: bool) -> bool {
        let is_told_whole = style.has_sync_writes && !from_disk;
        let is_of_durable = || item.is_hidden() || vbucket.prepared_of(item.seqno).is_some();
        let is_kept = item.superseded_by > end || style.has_history;
        (is_kept || is_told_whole && is_of_durable()) && self.wants(item, style, from_disk)
    }

    /// Begins the next snapshot; false if there is none.
    fn begin(
        &mut self,
        vbucket: &Vbucket,
        copy: &NodeCopy,
        style: &Style,
        config: &crate::ClusterConfig,
        sink: &mut Sink<'_>,
    ) -> bool {
        let has_left_memory = self.is_disk_only || self.position + 1 < vbucket.memory_from();
        let from_disk = has_left_memory && copy.persisted_seqno > self.position;
        let end = match from_disk {
            true => copy.persisted_seqno,
            false => copy.high_seqno.min(self.position.saturating_add(config.snapshot_items.max(1))),
        };
        if end <= self.position {
            return false;
        }
        let is_one_collection = matches!(&self.filter, Filter::Collections(collections) if collections.len() == 1);
        if from_disk && self.position == 0 && self.is_initial && config.allows_oso && is_one_collection && style.oso.is_some() {
            self.send_oso(OsoBoundary::Start, sink);
            let items = vbucket.after(0).iter().take_while(|item| item.seqno <= end);
            let mut items: Vec<&Item> = items.filter(|item| item.superseded_by > end && self.wants(item, style, true)).collect();
            items.sort_by(|a, b| (&b.key, b.seqno).cmp(&(&a.key, a.seqno)));
            self.snapshot = Snapshot::ByKey { end, left: items.iter().map(|item| item.seqno).collect() };
            return true;
        }
        let mut items = vbucket.between(self.position, end).iter().rev();
        let last = items.find(|item| self.sends(vbucket, item, end, style, from_disk)).map(|item| item.seqno);
        let marked_end = match (last, style.form.has_collections) {
            (_, true) => end,
            (Some(last), false) => last,
            (None, false) => {
                // Nothing of it concerns the client, which could not be told a position without an item.
                (self.position, self.is_initial) = (end, self.is_initial && !from_disk);
                return false;
            }
        };
        let mut flags = if from_disk { MarkerFlags::DISK } else { MarkerFlags::MEMORY } | MarkerFlags::CHECKPOINT;
        if style.has_history {
            flags = flags | MarkerFlags::HISTORY | MarkerFlags::DUPLICATE_KEYS;
        }
        let start = match from_disk {
            true => self.position,
            false => vbucket.after(self.position).first().map_or(end, |item| item.seqno),
        };
        let visible = vbucket.visible_seqno(marked_end);
        let (completed, prepared) = vbucket.durable_seqnos();
        let detail = match style.marker {
            MarkerVersion::V1 => None,
            MarkerVersion::V2_0 => Some(MarkerDetail::v2_0(visible, completed)),
            MarkerVersion::V2_2 => Some(MarkerDetail::v2_2(visible, completed, vbucket.purge_seqno(), prepared)),
        };
        let marker = SnapshotMarker { start, end: marked_end, flags, detail };
        self.send(Command::DcpSnapshotMarker(marker), 0, Datatype::default(), sink);
        self.snapshot = Snapshot::Ordered { end: marked_end, from_disk };
        true
    }

    fn send_ordered(&mut self, vbucket: &Vbucket, end: u64, from_disk: bool, style: &Style, sink: &mut Sink<'_>) {
        let mut sent = None;
        for item in vbucket.after(self.position) {
            if item.seqno > end || !sink.is_open() {
                break;
            }
            self.position = item.seqno;
            if self.sends(vbucket, item, end, style, from_disk) {
                self.send_item(vbucket, item, style, from_disk, sink);
                sent = Some(item.seqno);
            }
        }
        if !sink.is_open() && self.position < end {
            return;
        }
        if sent != Some(end) && style.form.has_collections && !self.last_was_sent(vbucket, end, style, from_disk) {
            self.send(Command::DcpSeqnoAdvanced(SeqnoAdvanced { by_seqno: end }), 0, Datatype::default(), sink);
        }
        self.position = end;
        self.is_initial &= !from_disk;
        self.snapshot = Snapshot::None;
    }

    fn last_was_sent(&self, vbucket: &Vbucket, end: u64, style: &Style, from_disk: bool) -> bool {
        vbucket.item(end).is_some_and(|item| self.sends(vbucket, item, end, style, from_disk))
    }

    fn send_by_key(&mut self, vbucket: &Vbucket, style: &Style, sink: &mut Sink<'_>) {
        let Snapshot::ByKey { end, left } = &mut self.snapshot else { return };
        let (end, mut left) = (*end, std::mem::take(left));
        while sink.is_open()
            && let Some(seqno) = left.pop()
        {
            if let Some(item) = vbucket.item(seqno) {
                self.send_item(vbucket, item, style, true, sink);
            }
        }
        if !left.is_empty() || !sink.is_open() {
            self.snapshot = Snapshot::ByKey { end, left };
            return;
        }
        if style.oso == Some(true) {
            self.send(Command::DcpSeqnoAdvanced(SeqnoAdvanced { by_seqno: end }), 0, Datatype::default(), sink);
        }
        self.send_oso(OsoBoundary::End, sink);
        (self.position, self.is_initial, self.snapshot) = (end, false, Snapshot::None);
    }

    fn send_oso(&self, mark: OsoBoundary, sink: &mut Sink<'_>) {
        self.send(Command::DcpOsoSnapshot(OsoSnapshot { boundary: mark }), 0, Datatype::default(), sink);
    }

    fn send_item(&self, vbucket: &Vbucket, item: &Item, style: &Style, from_disk: bool, sink: &mut Sink<'_>) {
        if style.has_sync_writes
            && let Some(prepared_seqno) = vbucket.prepared_of(item.seqno)
            && let Some(command) = style.form.completion(item, prepared_seqno, from_disk)
        {
            return self.send(command, item.cas, Datatype::default(), sink);
        }
        let before = sink.out.len();
        if self.id.is_none() && style.form.put_as_stored(item, self.vbucket, self.opaque, sink.out) {
            *sink.outstanding += (sink.out.len() - before) as u64;
            return;
        }
        let (command, datatype) = style.form.command(item, from_disk);
        self.send(command, item.cas, datatype, sink);
    }

    fn send(&self, command: Command, cas: u64, datatype: Datatype, sink: &mut Sink<'_>) {
        let request = Request::new(command).with_vbucket(self.vbucket).with_opaque(self.opaque);
        let request = request.with_cas(cas).with_datatype(datatype);
        match self.id {
            Some(id) => sink.send(&request.with_stream_id(id)),
            None => sink.send(&request),
        }
    }
}
