//! What a node says in streams.

use bytes::Bytes;
use sluicegate_core::feed::{Datatype, MutationKind};
use sluicegate_core::{FeedEvent, Mutation, PartitionId, PartitionSeqno};
use sluicegate_mcbp::client::ClientResult;
use sluicegate_mcbp::collections::split_key;
use sluicegate_mcbp::dcp::{self, MarkerFlags, OsoBoundary};
use sluicegate_mcbp::value::decompress;
use sluicegate_mcbp::{
    Command, DEFAULT_MAX_BODY, Datatype as WireDatatype, Frame, Frames, Magic, Message, Opcode, Reply, Request, Response, Status,
};

use crate::node::{Connection, Held};
use crate::parcel::BATCH;
use crate::parcel::Parcel;
use crate::tally::Tally;
use crate::vbucket::Disorder;

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
                    // Before the events that are collected in `out`: names come before documents.
                    let outlet = &self.node.outlet;
                    self.node.names.on_change(&event, &change, |told| outlet.send(Parcel::own(vec![told])));
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
        // Before the position moves: an event that cannot be delivered must come again.
        let (collection, key) = if self.has_collections { split_key(change.key)? } else { (0, change.key) };
        let moved = held.vbucket.on_item(change.seqno, &mut self.out);
        let Some(is_last) = self.on_moved(envelope, change.seqno, moved)? else { return Ok(()) };
        let (value, datatype) = self.plain(change.value, envelope, change.seqno);
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

    /// The value for the consumer: decompressed, if that is possible. Servers before 5.0 do not
    /// check what clients write. A value that cannot be decompressed is delivered as it came, so
    /// that the consumer can name the document; an error would come again with every connection.
    #[inline]
    fn plain(&self, value: Bytes, envelope: &Envelope, seqno: u64) -> (Bytes, Datatype) {
        let datatype = envelope.datatype;
        if !datatype.contains(WireDatatype::SNAPPY) {
            return (value, Datatype(datatype.0));
        }
        match decompress(value.clone(), datatype, DEFAULT_MAX_BODY) {
            Ok((value, datatype)) => (value, Datatype(datatype.0)),
            Err(error) => {
                self.node.tally.undecoded();
                let (node, vbucket) = (&self.node.address, envelope.vbucket);
                tracing::debug!(%node, vbucket, seqno, %error, "a value cannot be decompressed; it is delivered as it came");
                (value, Datatype(datatype.0))
            }
        }
    }

    #[cold]
    pub(crate) fn count_unknown(&mut self, what: impl std::fmt::Display) {
        if self.node.tally.unknown() {
            tracing::warn!(node = %self.node.address, %what, "the node sends messages that are not known here; they are left out and counted");
        }
    }

    fn answer(&mut self, opcode: Opcode, opaque: u32) -> ClientResult<()> {
        let reply = Reply::Plain(sluicegate_mcbp::Parts::from_value(opcode, Bytes::new()));
        let (datatype, framing) = (WireDatatype::default(), Bytes::new());
        self.writer.answer(&Response { opcode, status: Status::Success, opaque, cas: 0, datatype, framing, reply })
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
