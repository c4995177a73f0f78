//! Opening and closing streams (protocol, sections 3.4 and 3.5).

use sluicegate_mcbp::dcp::{Histories, OpenFlags, StreamFilter, StreamFlags, StreamRequest};
use sluicegate_mcbp::{Datatype, Opcode, Reply, Request, Status};

use super::super::stream::{Filter, Snapshot, Stream};
use super::super::{Session, done};
use crate::bucket::Bucket;
use crate::bucket::rollback::{self, Resume};
use crate::state::State;

/// What a stream may be asked to be.
const ALLOWED: StreamFlags = StreamFlags(
    StreamFlags::DISK_ONLY.0
        | StreamFlags::TO_LATEST.0
        | StreamFlags::ACTIVE_VB_ONLY.0
        | StreamFlags::STRICT_VBUUID.0
        | StreamFlags::FROM_LATEST.0
        | StreamFlags::IGNORE_PURGED_TOMBSTONES.0,
);

const OPCODE: Opcode = Opcode::DcpStreamRequest;

impl Session {
    /// Opens a stream. The checks are in the order of the server's (protocol, section 3.5).
    pub(super) fn open_stream(&mut self, request: &Request, asked: &StreamRequest, state: &mut State) -> (Status, Reply) {
        if let Some(status) = state.faults.take_stream_answer(request.vbucket) {
            return match status {
                Status::NotMyVbucket => self.not_my_vbucket(OPCODE, state),
                Status::Rollback => (Status::Rollback, Reply::Rollback(0)),
                status => self.refuse(OPCODE, status, "planned by the test"),
            };
        }
        match self.try_open_stream(request, asked, state) {
            Ok(histories) => (Status::Success, Reply::FailoverLog(histories)),
            Err(Refusal::NotMyVbucket) => self.not_my_vbucket(OPCODE, state),
            Err(Refusal::Unknown(status)) => self.unknown(OPCODE, status, state),
            Err(Refusal::Rollback(seqno)) => (Status::Rollback, Reply::Rollback(seqno)),
            Err(Refusal::Other(status, why)) => self.refuse(OPCODE, status, why),
        }
    }

    fn try_open_stream(&mut self, request: &Request, asked: &StreamRequest, state: &mut State) -> Result<Histories, Refusal> {
        let Some(dcp) = &mut self.dcp else { return Err(Refusal::Other(Status::InvalidArguments, "open first")) };
        let has_collections = dcp.style.form.has_collections;
        let flags = asked.flags;
        let is_malformed =
            flags.0 & !ALLOWED.0 != 0 || request.datatype != Datatype::default() || !has_collections && !asked.filter.is_empty();
        if is_malformed {
            return Err(Refusal::Other(Status::InvalidArguments, "the flags, the datatype or the value are not allowed"));
        }
        let (Some(vbucket), Some(copy)) =
            (state.bucket.vbucket(request.vbucket), state.copy(request.vbucket, self.node).copied())
        else {
            return Err(Refusal::NotMyVbucket);
        };
        if flags.contains(StreamFlags::ACTIVE_VB_ONLY) && !state.is_active(request.vbucket, self.node) {
            return Err(Refusal::NotMyVbucket);
        }
        if (dcp.flags.contains(OpenFlags::INCLUDE_XATTRS) || has_collections) && !dcp.noop.is_on {
            return Err(Refusal::Other(Status::NotSupported, "attributes and collections need no-ops"));
        }
        let mut asked = asked.clone();
        if flags.contains(StreamFlags::FROM_LATEST) {
            (asked.start, asked.snapshot_start, asked.snapshot_end) = (copy.high_seqno, copy.high_seqno, copy.high_seqno);
            if asked.vbucket_uuid == 0 {
                asked.vbucket_uuid = vbucket.vbucket_uuid();
            }
        }
        let is_in_snapshot = asked.snapshot_start <= asked.start && asked.start <= asked.snapshot_end;
        if asked.start > asked.end || !is_in_snapshot {
            return Err(Refusal::Other(Status::Range, "the start is not in its snapshot, or above the end"));
        }
        let wanted =
            StreamFilter::parse(&asked.filter).map_err(|_| Refusal::Other(Status::InvalidArguments, "the filter is not one"))?;
        let filter = if has_collections { filter(&wanted, &state.bucket)? } else { Filter::DefaultOnly };
        if wanted.manifest_uid.is_some_and(|uid| uid > state.bucket.manifest().uid) {
            return Err(Refusal::Unknown(Status::ManifestAhead));
        }
        if dcp.style.has_sync_writes && !matches!(filter, Filter::All | Filter::DefaultOnly) {
            return Err(Refusal::Other(Status::NotSupported, "durable writes are told only where everything is"));
        }
        if wanted.stream_id.is_some() != dcp.has_stream_ids {
            return Err(Refusal::Other(Status::DcpStreamIdInvalid, "a stream id is missing, or not agreed on"));
        }
        let key = (request.vbucket, wanted.stream_id);
        if dcp.streams.contains_key(&key) {
            return Err(Refusal::Other(Status::KeyExists, "there is a stream of this vbucket"));
        }
        let high = copy.high_seqno;
        let last = vbucket.last_seqno(0, high, |item| filter.lets_through(item)).unwrap_or(0);
        let is_filtered = !matches!(filter, Filter::All | Filter::DefaultOnly);
        let resume = Resume {
            start: asked.start,
            snapshot_start: asked.snapshot_start,
            snapshot_end: asked.snapshot_end,
            vbucket_uuid: asked.vbucket_uuid,
            is_strict: flags.contains(StreamFlags::STRICT_VBUUID),
            ignores_purge: flags.contains(StreamFlags::IGNORE_PURGED_TOMBSTONES),
            purge_seqno: wanted.purge_seqno.unwrap_or(0),
            filtered_high: is_filtered.then_some(last),
        };
        if let Some(seqno) = rollback::decide(vbucket.failover_log(), high, vbucket.purge_seqno(), &resume) {
            return Err(Refusal::Rollback(seqno));
        }
        if asked.start > high {
            return Err(Refusal::Other(Status::Range, "the start is above the last position"));
        }
        let end = match flags {
            _ if flags.contains(StreamFlags::DISK_ONLY) => copy.persisted_seqno,
            _ if flags.contains(StreamFlags::TO_LATEST) && is_filtered => last,
            _ if flags.contains(StreamFlags::TO_LATEST) => high,
            _ => asked.end,
        };
        state.next_stream += 1;
        let lowest = state.lowest_starts.entry(request.vbucket).or_insert(asked.start);
        *lowest = asked.start.min(*lowest);
        dcp.streams.insert(
            key,
            Stream {
                number: state.next_stream,
                vbucket: request.vbucket,
                opaque: request.opaque,
                id: wanted.stream_id,
                filter,
                end,
                position: asked.start,
                is_initial: asked.start == 0,
                is_disk_only: flags.contains(StreamFlags::DISK_ONLY),
                incarnation: copy.incarnation,
                branch: vbucket.branch(),
                idle_at: None,
                is_queued: false,
                snapshot: Snapshot::None,
            },
        );
        dcp.noop.has_streamed = true;
        Ok(Histories { log: vbucket.failover_log().clone() })
    }

    pub(super) fn close_stream(&mut self, request: &Request) -> (Status, Reply) {
        let opcode = Opcode::DcpCloseStream;
        let Some(dcp) = &mut self.dcp else { return self.refuse(opcode, Status::InvalidArguments, "open first") };
        let Ok(id) = request.stream_id() else {
            return self.refuse(opcode, Status::InvalidArguments, "the framing extras are malformed");
        };
        if id.is_some() != dcp.has_stream_ids {
            return self.refuse(opcode, Status::DcpStreamIdInvalid, "a stream id is missing, or not agreed on");
        }
        match dcp.streams.remove(&(request.vbucket, id)) {
            Some(stream) => {
                if dcp.sends_end_on_close {
                    dcp.closed.push(stream);
                }
                done(opcode)
            }
            None => {
                let status = if dcp.has_v7_status { Status::DcpStreamNotFound } else { Status::KeyNotFound };
                self.refuse(opcode, status, "there is no such stream")
            }
        }
    }
}

/// Why a stream is not opened.
enum Refusal {
    NotMyVbucket,
    Unknown(Status),
    Rollback(u64),
    Other(Status, &'static str),
}

fn filter(wanted: &StreamFilter, bucket: &Bucket) -> Result<Filter, Refusal> {
    let manifest = bucket.manifest();
    if let Some(id) = wanted.scope {
        let Some(scope) = manifest.scopes.iter().find(|scope| scope.id == id) else {
            return Err(Refusal::Unknown(Status::UnknownScope));
        };
        return Ok(Filter::Scope(id, scope.collections.iter().map(|collection| collection.id).collect()));
    }
    if wanted.collections.is_empty() {
        return Ok(Filter::All);
    }
    if wanted.collections.iter().any(|id| manifest.collection(*id).is_none()) {
        return Err(Refusal::Unknown(Status::UnknownCollection));
    }
    Ok(Filter::Collections(wanted.collections.clone()))
}
