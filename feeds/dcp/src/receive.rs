//! What a node says: events of streams, answers, notices.

use bytes::Bytes;
use sluicegate_core::feed::{Datatype, MutationKind};
use sluicegate_core::{FeedEvent, Mutation, PartitionId, PartitionSeqno};
use sluicegate_mcbp::client::{ClientError, ClientResult, Fault, read_cluster_map};
use sluicegate_mcbp::collections::split_key;
use sluicegate_mcbp::dcp::{self, MarkerFlags, OsoBoundary};
use sluicegate_mcbp::errormap::Attribute;
use sluicegate_mcbp::value::decompress;
use sluicegate_mcbp::{
    Command, DEFAULT_MAX_BODY, Datatype as WireDatatype, Frame, Frames, Magic, Message, Notice, Opcode, Reply, Request, Response,
    ServerRequest, Status,
};

use crate::node::{Connection, Held, Question};
use crate::orders::Report;
use crate::parcel::BATCH;
use crate::resume::Histories;
use crate::status::VbucketState;
use crate::tally::Tally;
use crate::vbucket::{Disorder, Next};

/// What an event of a stream came with.
struct Envelope {
    vbucket: u16,
    opaque: u32,
    cas: u64,
    datatype: WireDatatype,
}

/// What happened to a document.
struct Change {
    kind: MutationKind,
    seqno: u64,
    rev_no: u64,
    flags: u32,
    expiry: u32,
    key: Bytes,
    value: Bytes,
}

impl From<dcp::Mutation> for Change {
    #[inline]
    fn from(event: dcp::Mutation) -> Self {
        let dcp::Mutation { by_seqno: seqno, rev_seqno: rev_no, flags, expiry, key, value, .. } = event;
        Change { kind: MutationKind::Mutation, seqno, rev_no, flags, expiry, key, value }
    }
}

impl Change {
    fn removal(event: dcp::Removal, kind: MutationKind) -> Self {
        let dcp::Removal { by_seqno: seqno, rev_seqno: rev_no, key, value, .. } = event;
        Change { kind, seqno, rev_no, flags: 0, expiry: 0, key, value }
    }
}

impl Connection {
    /// Takes in what has arrived, and hands it on.
    pub(crate) fn receive(&mut self, frames: Frames) -> ClientResult<()> {
        let taken = self.take_in(frames);
        self.open.received(std::mem::take(&mut self.arrived));
        taken
    }

    fn take_in(&mut self, frames: Frames) -> ClientResult<()> {
        for frame in frames {
            let frame = frame?;
            match frame.header().magic {
                Magic::Request | Magic::FlexRequest => self.on_request(frame)?,
                _ => match Message::decode(frame)? {
                    Message::Response(response) => self.on_response(response)?,
                    Message::ServerRequest(notice) => self.on_notice(notice),
                    _ => self.count_unknown("a reply to something that a client does not ask"),
                },
            }
            if self.out.len() >= BATCH {
                self.deliver();
            }
        }
        self.deliver();
        Ok(())
    }

    #[inline]
    fn on_request(&mut self, frame: Frame) -> ClientResult<()> {
        let bytes = match frame.opcode() {
            // A server that sends what is not known here most likely counts it, and too little given back would stall it for ever.
            Opcode::Other(_) => frame.wire_len() as u64,
            _ => frame.flow_control_len() as u64,
        };
        self.credit.receive(bytes);
        self.unclaimed += bytes;
        self.arrived += bytes;
        let Request { vbucket, opaque, cas, datatype, command, .. } = Request::decode(frame)?;
        let envelope = Envelope { vbucket, opaque, cas, datatype };
        self.on_command(&envelope, command)?;
        self.hold_back(vbucket);
        Ok(())
    }

    #[inline]
    fn on_command(&mut self, envelope: &Envelope, command: Command) -> ClientResult<()> {
        match command {
            Command::DcpMutation(event) => self.on_change(envelope, event.into()),
            Command::DcpDeletion(event) => self.on_change(envelope, Change::removal(event, MutationKind::Deletion)),
            Command::DcpExpiration(event) => self.on_change(envelope, Change::removal(event, MutationKind::Expiration)),
            Command::DcpSnapshotMarker(marker) => {
                if let Some(Held { vbucket, .. }) = held(&mut self.held, &self.node.tally, envelope) {
                    vbucket.on_marker(marker.start, marker.end);
                    self.node.board.has_high(envelope.vbucket, marker.end);
                    if let Some(seqno) = marker.purge_seqno() {
                        vbucket.on_purge_seqno(seqno);
                    }
                    if marker.flags.contains(MarkerFlags::ACK) {
                        self.answer(Opcode::DcpSnapshotMarker, envelope.opaque)?;
                    }
                }
                Ok(())
            }
            Command::DcpSeqnoAdvanced(event) => self.on_advanced(envelope, event.by_seqno).map(drop),
            Command::DcpSystemEvent(event) => {
                if self.on_advanced(envelope, event.by_seqno)?
                    && let Ok(Some(change)) = event.change()
                    && let Some(Held { vbucket, .. }) = held(&mut self.held, &self.node.tally, envelope)
                {
                    vbucket.on_manifest(change.manifest_uid(), &mut self.out);
                }
                Ok(())
            }
            // Durable writes are not asked for: what they have written comes as such, once it holds. One that has begun, or was given up, is
            // nothing but a position.
            Command::DcpPrepare(event) => self.on_advanced(envelope, event.by_seqno).map(drop),
            Command::DcpAbort(event) => self.on_advanced(envelope, event.abort_seqno).map(drop),
            Command::DcpCommit(_) => self.on_commit(envelope),
            Command::DcpOsoSnapshot(event) => {
                let Some(Held { vbucket, .. }) = held(&mut self.held, &self.node.tally, envelope) else { return Ok(()) };
                match event.boundary {
                    OsoBoundary::Start => vbucket.on_unordered_begin(&mut self.out),
                    _ => self.caught_up += usize::from(vbucket.on_unordered_end(&mut self.out)),
                }
                Ok(())
            }
            Command::DcpStreamEnd(end) => {
                let Some(Held { vbucket, .. }) = held(&mut self.held, &self.node.tally, envelope) else { return Ok(()) };
                let next = vbucket.on_end(end.reason, &mut self.out);
                self.hold_back(envelope.vbucket);
                self.node.tally.stream_ended(end.reason);
                tracing::debug!(vbucket = envelope.vbucket, reason = ?end.reason, node = %self.node.address, "a stream has ended");
                self.release(envelope.vbucket, next, format!("the stream has ended: {:?}", end.reason));
                Ok(())
            }
            Command::DcpNoop(_) => self.answer(Opcode::DcpNoop, envelope.opaque),
            Command::DcpFlush(_) => {
                // Only servers before 4.0. The stream is asked for again, and the server says what to go back to.
                if held(&mut self.held, &self.node.tally, envelope).is_none() {
                    return Ok(());
                }
                self.close_stream(envelope.vbucket)?;
                self.again(envelope.vbucket, "the bucket was emptied");
                Ok(())
            }
            other => {
                self.count_unknown(format_args!("{:?}", other.opcode()));
                Ok(())
            }
        }
    }

    /// A document was changed.
    #[inline]
    fn on_change(&mut self, envelope: &Envelope, change: Change) -> ClientResult<()> {
        let Some(held) = held(&mut self.held, &self.node.tally, envelope) else { return Ok(()) };
        let moved = held.vbucket.on_item(change.seqno, &mut self.out);
        let Some(is_last) = self.on_moved(envelope, change.seqno, moved)? else { return Ok(()) };
        let (collection, key) = if self.has_collections { split_key(change.key)? } else { (0, change.key) };
        let (value, datatype) = plain(change.value, envelope.datatype)?;
        self.out.push(FeedEvent::Mutation(Mutation {
            kind: change.kind,
            partition: PartitionId(envelope.vbucket),
            seqno: PartitionSeqno(change.seqno),
            key,
            value,
            cas: envelope.cas,
            datatype,
            rev_no: change.rev_no,
            flags: change.flags,
            expiry: change.expiry,
            collection,
        }));
        self.on_goal(envelope, is_last);
        Ok(())
    }

    /// Tells after an item that it was the last of what there was, if it was.
    #[inline]
    fn on_goal(&mut self, envelope: &Envelope, is_last: bool) {
        if is_last && let Some(held) = held(&mut self.held, &self.node.tally, envelope) {
            self.caught_up += usize::from(held.vbucket.on_goal(&mut self.out));
        }
    }

    /// The position moves; false if it does not, and the stream is begun again or not ours.
    fn on_advanced(&mut self, envelope: &Envelope, seqno: u64) -> ClientResult<bool> {
        let Some(held) = held(&mut self.held, &self.node.tally, envelope) else { return Ok(false) };
        let moved = held.vbucket.on_advanced(seqno, &mut self.out);
        let is_last = self.on_moved(envelope, seqno, moved)?;
        self.on_goal(envelope, is_last == Some(true));
        Ok(is_last.is_some())
    }

    /// A durable write is said to hold, without what it has written: to go past it would lose a document without a word.
    #[cold]
    fn on_commit(&mut self, envelope: &Envelope) -> ClientResult<()> {
        if held(&mut self.held, &self.node.tally, envelope).is_none() {
            return Ok(());
        }
        tracing::warn!(vbucket = envelope.vbucket, node = %self.node.address, "the node tells a durable write in a form that was not asked for; opening the stream again");
        self.close_stream(envelope.vbucket)?;
        self.again(envelope.vbucket, "a durable write was told in a form that was not asked for");
        Ok(())
    }

    /// Where the position has moved to, as the vbucket says; none if it must be begun again.
    #[inline]
    fn on_moved(&mut self, envelope: &Envelope, seqno: u64, moved: Result<bool, Disorder>) -> ClientResult<Option<bool>> {
        match moved {
            Ok(is_last) => {
                self.node.board.set_seqno(envelope.vbucket, seqno);
                Ok(Some(is_last))
            }
            Err(disorder) => self.on_disorder(envelope, disorder).map(|()| None),
        }
    }

    /// Begins the stream again from what is certain.
    #[cold]
    fn on_disorder(&mut self, envelope: &Envelope, Disorder { seqno, after }: Disorder) -> ClientResult<()> {
        tracing::warn!(vbucket = envelope.vbucket, seqno, after, node = %self.node.address, "a seqno does not grow; opening the stream again");
        self.close_stream(envelope.vbucket)?;
        self.again(envelope.vbucket, format!("seqno {seqno} came after {after}"));
        Ok(())
    }

    #[cold]
    fn count_unknown(&mut self, what: impl std::fmt::Display) {
        if self.node.tally.unknown() {
            tracing::warn!(node = %self.node.address, %what, "the node sends messages that are not known here; they are left out and counted");
        }
    }

    fn answer(&mut self, opcode: Opcode, opaque: u32) -> ClientResult<()> {
        let reply = Reply::Plain(sluicegate_mcbp::Parts::from_value(opcode, Bytes::new()));
        let (datatype, framing) = (WireDatatype::default(), Bytes::new());
        self.writer.answer(&Response { opcode, status: Status::Success, opaque, cas: 0, datatype, framing, reply })
    }

    /// A notice of the server outside DCP.
    pub(crate) fn on_notice(&mut self, notice: ServerRequest) {
        let Notice::ClusterMapChanged(changed) = notice.notice else {
            self.count_unknown("a notice");
            return;
        };
        if changed.bucket != self.node.target.connect.bucket {
            return;
        }
        let is_told = !changed.config.is_empty() && self.on_map(changed.config, notice.datatype);
        if !is_told && let Err(error) = self.ask_for_map() {
            tracing::warn!(node = %self.node.address, %error, "the cluster map cannot be asked for");
        }
    }

    /// A cluster map, if it is one.
    fn on_map(&mut self, value: Bytes, datatype: WireDatatype) -> bool {
        match read_cluster_map(value, datatype, &self.node.address.host) {
            Ok(Some(map)) => {
                let _ = self.node.reports.send(Report::Map { map, from: self.node.address.clone() });
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(node = %self.node.address, %error, "the node has sent a cluster map that is none");
                false
            }
        }
    }

    fn on_response(&mut self, response: Response) -> ClientResult<()> {
        let question = self.answered(response.opaque);
        match question {
            Some(Question::Stream(id)) => self.on_stream_answer(id, response),
            Some(Question::Log(id)) => {
                let Some(Some(held)) = self.held.get_mut(usize::from(id)) else { return Ok(()) };
                match response.reply {
                    Reply::FailoverLog(histories) => {
                        let was_resolved = !held.vbucket.wants_now();
                        held.vbucket.on_log(log_of(&histories.log), &mut self.out);
                        if !was_resolved {
                            self.resolved.push(id);
                        }
                        self.node.board.set_seqno(id, held.vbucket.seqno());
                        self.asking.push_back(id);
                        self.hold_back(id);
                        self.deliver();
                    }
                    _ => self.on_refusal(id, response),
                }
                Ok(())
            }
            Some(Question::Highs(left)) => self.on_highs(left, response),
            Some(Question::Map) => {
                if let Reply::Plain(parts) = response.reply {
                    self.on_map(parts.value(), response.datatype);
                }
                Ok(())
            }
            Some(Question::Lag) => {
                if let Reply::VbSeqnos(list) = response.reply {
                    for (id, high) in list.seqnos.0 {
                        if self.held.get(usize::from(id)).is_some_and(Option::is_some) {
                            self.node.board.set_high(id, high);
                        }
                    }
                }
                Ok(())
            }
            Some(Question::Close | Question::Alive) => Ok(()),
            // Some servers accept a stream of a dead vbucket, and refuse it with a second answer.
            None if response.opcode == Opcode::DcpStreamRequest && response.status != Status::Success => {
                let of_it = |held: &&Held| held.opaque == response.opaque;
                match self.held.iter().flatten().find(of_it).map(|held| held.vbucket.id()) {
                    Some(id) => self.on_refusal(id, response),
                    None => self.count_unknown("an answer to nothing"),
                }
                Ok(())
            }
            None => {
                self.count_unknown("an answer to nothing");
                Ok(())
            }
        }
    }

    fn on_stream_answer(&mut self, id: u16, response: Response) -> ClientResult<()> {
        let Some(Some(held)) = self.held.get_mut(usize::from(id)) else { return Ok(()) };
        if held.opaque != response.opaque {
            return Ok(());
        }
        match response.reply {
            Reply::FailoverLog(histories) => {
                let was_caught_up = held.vbucket.is_caught_up();
                held.vbucket.on_accepted(log_of(&histories.log), &mut self.out);
                self.caught_up += usize::from(!was_caught_up && held.vbucket.is_caught_up());
                if let Some(horizon) = &self.node.horizon {
                    horizon.set_history(id, held.vbucket.uuid());
                }
                self.node.board.set_state(id, VbucketState::Streaming);
                self.node.board.set_uuid(id, held.vbucket.uuid());
                self.node.board.set_seqno(id, held.vbucket.seqno());
                self.hold_back(id);
                Ok(())
            }
            Reply::Rollback(to) => {
                held.opaque = 0;
                tracing::info!(vbucket = id, to, seqno = held.vbucket.seqno(), node = %self.node.address, "the node asks to go back");
                self.node.tally.rolled_back(id);
                match held.vbucket.on_rollback(to, &mut self.out) {
                    Next::Ask => {
                        self.asking.push_back(id);
                        self.hold_back(id);
                    }
                    next => self.release(id, next, format!("the node asks to go back to {to}")),
                }
                Ok(())
            }
            _ if response.status == Status::KeyExists => {
                // A stream that we know nothing of: it goes, and ours comes.
                self.close_stream(id)?;
                self.again(id, "the connection has a stream of it already");
                Ok(())
            }
            _ => {
                self.on_refusal(id, response);
                Ok(())
            }
        }
    }

    /// A question about a vbucket was refused.
    fn on_refusal(&mut self, id: u16, response: Response) {
        let why = ClientError::refused("the stream", &response).to_string();
        if let (Status::NotMyVbucket, Reply::Failed(parts)) = (response.status, &response.reply) {
            self.on_map(parts.value(), response.datatype);
        }
        let code = response.status.code();
        let fetches_map = self.error_map.has(code, &Attribute::FetchConfig);
        let Some(Some(held)) = self.held.get_mut(usize::from(id)) else { return };
        held.opaque = 0;
        match held.vbucket.on_refused(response.status, &mut self.out) {
            Next::Ask => {
                self.asking.push_back(id);
                self.hold_back(id);
            }
            Next::Again { needs_map, is_permanent } => {
                let needs_map = needs_map || fetches_map;
                held.vbucket.on_lost();
                self.release(id, Next::Again { needs_map, is_permanent }, why);
            }
            Next::Done => self.release(id, Next::Done, why),
        }
    }

    fn on_highs(&mut self, left: usize, response: Response) -> ClientResult<()> {
        let Reply::VbSeqnos(list) = response.reply else {
            return Err(ClientError::refused("the question for seqnos", &response));
        };
        for (id, high) in list.seqnos.0 {
            let highest = self.highs.entry(id).or_default();
            *highest = high.max(*highest);
        }
        if left > 0 {
            return Ok(());
        }
        for id in std::mem::take(&mut self.asked_for_highs) {
            let Some(Some(held)) = self.held.get_mut(usize::from(id)) else { continue };
            match self.highs.get(&id) {
                Some(high) => {
                    let was_caught_up = held.vbucket.is_caught_up();
                    held.vbucket.on_high(*high, &mut self.out);
                    self.node.board.set_high(id, *high);
                    self.caught_up += usize::from(!was_caught_up && held.vbucket.is_caught_up());
                    self.asking.push_back(id);
                    self.hold_back(id);
                }
                None => self.again(id, "the node does not have its active copy"),
            }
        }
        self.deliver();
        Ok(())
    }
}

/// The vbucket whose stream an event is of; none if that stream was given up: then nothing but its bytes counts.
#[inline]
fn held<'a>(held: &'a mut [Option<Held>], tally: &Tally, envelope: &Envelope) -> Option<&'a mut Held> {
    let found = held.get_mut(usize::from(envelope.vbucket)).and_then(Option::as_mut);
    let found = found.filter(|held| held.opaque == envelope.opaque && held.opaque != 0);
    if found.is_none() {
        tally.stale();
    }
    found
}

fn log_of(log: &dcp::FailoverLog) -> Histories {
    log.0.iter().map(|entry| (entry.vbucket_uuid, entry.seqno)).collect()
}

/// The value as the consumer gets it: never compressed.
#[inline]
fn plain(value: Bytes, datatype: WireDatatype) -> ClientResult<(Bytes, Datatype)> {
    if !datatype.contains(WireDatatype::SNAPPY) {
        return Ok((value, Datatype(datatype.0)));
    }
    let (value, datatype) = decompress(value, datatype, DEFAULT_MAX_BODY).map_err(|error| {
        ClientError::new(Fault::Protocol, format!("a value cannot be decompressed: {error}")).with_source(error)
    })?;
    Ok((value, Datatype(datatype.0)))
}
