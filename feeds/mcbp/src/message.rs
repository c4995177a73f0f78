//! Messages: what a frame says, as types, in both directions.
//!
//! A client sends [`Request`]s and gets [`Response`]s; a server's DCP messages are requests as well. What has no type here is kept
//! as [`Parts`]: it is no error, and encodes to the bytes it was read from.

use bytes::{Bytes, BytesMut};

use crate::body::{Body, Empty, Parts, Writer, unfinished};
use crate::dcp::{self, Durability, query, stream};
use crate::error::Result;
use crate::frame::{Frame, Magic};
use crate::framing::{FrameInfo, Kind, frame_infos, put_frame_info};
use crate::opcode::Opcode;
use crate::status::Status;
use crate::value::Datatype;
use crate::{hello, kv, sasl, tap};

/// Any message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A request of either side, DCP messages of a server among them.
    Request(Request),
    /// An answer.
    Response(Response),
    /// A request of the server outside DCP. It is not answered.
    ServerRequest(ServerRequest),
    /// A client's reply to such a request.
    ServerReply(Frame),
}

/// A request, or a DCP message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The vbucket it concerns; 0 if none.
    pub vbucket: u16,
    /// The answer has the same; DCP messages have that of the stream request.
    pub opaque: u32,
    /// Compare-and-swap value.
    pub cas: u64,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// Framing extras, encoded; usually empty.
    pub framing: Bytes,
    /// What is asked or told.
    pub command: Command,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// What was asked.
    pub opcode: Opcode,
    /// How it went.
    pub status: Status,
    /// That of the request.
    pub opaque: u32,
    /// Compare-and-swap value.
    pub cas: u64,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// Framing extras, encoded; usually empty.
    pub framing: Bytes,
    /// What was answered.
    pub reply: Reply,
}

/// A request of the server outside DCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRequest {
    /// Chosen by the server.
    pub opaque: u32,
    /// How the value is encoded.
    pub datatype: Datatype,
    /// What is told.
    pub notice: Notice,
}

/// What a server tells outside DCP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// There is another cluster map (protocol, section 2.6).
    ClusterMapChanged(hello::ClusterMapChanged),
    /// Anything else.
    Unknown(Parts),
}

/// The opcode of [`Notice::ClusterMapChanged`], in the numbers of a server's requests.
const CLUSTER_MAP_CHANGED: u8 = 0x01;

macro_rules! commands {
    ($($(#[$doc:meta])* $variant:ident($body:ty),)*) => {
        /// What is asked or told, by opcode.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Command {
            $($(#[$doc])* $variant($body),)*
            /// Anything else.
            Unknown(Parts),
        }

        impl Command {
            /// Reads the body of a request.
            ///
            /// # Errors
            /// `Malformed` if it is not what the opcode asks for.
            #[inline]
            pub fn decode(parts: Parts) -> Result<Command> {
                match parts.opcode() {
                    $(Opcode::$variant => Ok(Command::$variant(Body::decode(parts)?)),)*
                    _ => Ok(Command::Unknown(parts)),
                }
            }

            /// Its opcode.
            pub fn opcode(&self) -> Opcode {
                match self {
                    $(Command::$variant(_) => Opcode::$variant,)*
                    Command::Unknown(parts) => parts.opcode(),
                }
            }

            fn encode(&self, to: &mut Writer<'_>) {
                match self {
                    $(Command::$variant(body) => body.encode(to),)*
                    Command::Unknown(parts) => parts.encode(to),
                }
            }
        }
    };
}

commands! {
    /// Reads a document.
    Get(kv::Key),
    /// Writes a document.
    Set(kv::Store),
    /// Writes a document that must not exist.
    Add(kv::Store),
    /// Writes a document that must exist.
    Replace(kv::Store),
    /// Deletes a document.
    Delete(kv::Key),
    /// Adds to a counter.
    Increment(kv::Count),
    /// Subtracts from a counter.
    Decrement(kv::Count),
    /// Nothing.
    Noop(Empty),
    /// Asks for the server's version.
    Version(Empty),
    /// Appends to a document.
    Append(kv::Extend),
    /// Prepends to a document.
    Prepend(kv::Extend),
    /// Asks for statistics.
    Stat(kv::Stat),
    /// Changes when a document expires.
    Touch(kv::Touch),
    /// Agrees on features.
    Hello(hello::Hello),
    /// Asks for the mechanisms of authentication.
    SaslListMechs(Empty),
    /// Begins authentication.
    SaslAuth(sasl::Exchange),
    /// Goes on with authentication.
    SaslStep(sasl::Exchange),
    /// Selects a bucket.
    SelectBucket(kv::Key),
    /// Asks for the cluster map.
    GetClusterConfig(hello::GetClusterConfig),
    /// Asks for the meaning of status codes.
    GetErrorMap(hello::GetErrorMap),
    /// Asks for the collections of the bucket.
    GetCollectionsManifest(Empty),
    /// Asks for a collection's number.
    GetCollectionId(kv::Path),
    /// Asks for a scope's number.
    GetScopeId(kv::Path),
    /// Asks for the sequence numbers of all vbuckets.
    GetAllVbSeqnos(query::GetAllVbSeqnos),
    /// Asks how far a vbucket is persisted.
    ObserveSeqno(query::ObserveSeqno),
    /// Asks for a failover log, outside DCP.
    GetFailoverLog(Empty),
    /// Begins a TAP stream.
    TapConnect(tap::Connect),
    /// TAP: a document was written.
    TapMutation(tap::Mutation),
    /// TAP: a document was deleted.
    TapDelete(tap::Item),
    /// TAP: the bucket was emptied.
    TapFlush(tap::Item),
    /// TAP: a command to the receiver.
    TapOpaque(tap::Item),
    /// TAP: the state of a vbucket.
    TapVbucketSet(tap::Item),
    /// TAP: a checkpoint begins.
    TapCheckpointStart(tap::Mutation),
    /// TAP: a checkpoint is over.
    TapCheckpointEnd(tap::Mutation),
    /// Makes a connection a DCP one.
    DcpOpen(stream::Open),
    /// Asks a consumer to open a stream.
    DcpAddStream(stream::AddStream),
    /// Closes a stream.
    DcpCloseStream(Empty),
    /// Opens a stream.
    DcpStreamRequest(stream::StreamRequest),
    /// Asks for a failover log, on a DCP connection.
    DcpGetFailoverLog(Empty),
    /// A stream is over.
    DcpStreamEnd(stream::StreamEnd),
    /// A snapshot begins.
    DcpSnapshotMarker(dcp::SnapshotMarker),
    /// A document was written.
    DcpMutation(dcp::Mutation),
    /// A document was deleted.
    DcpDeletion(dcp::Removal),
    /// A document has expired.
    DcpExpiration(dcp::Removal),
    /// The bucket was emptied.
    DcpFlush(Empty),
    /// The state of a vbucket.
    DcpSetVbucketState(stream::SetVbucketState),
    /// Is the other side alive? Answer with the same opaque.
    DcpNoop(Empty),
    /// Bytes were consumed. Never answered.
    DcpBufferAck(stream::BufferAck),
    /// Sets an option of the connection.
    DcpControl(stream::Control),
    /// Collections or scopes have changed.
    DcpSystemEvent(dcp::SystemEvent),
    /// A durable write has begun.
    DcpPrepare(dcp::Prepare),
    /// A replica has durable writes up to a number.
    DcpSeqnoAcknowledged(dcp::SeqnoAcknowledged),
    /// A durable write holds.
    DcpCommit(dcp::Commit),
    /// A durable write was given up.
    DcpAbort(dcp::Abort),
    /// The position moves without an event.
    DcpSeqnoAdvanced(dcp::SeqnoAdvanced),
    /// A snapshot in the order of keys begins or ends.
    DcpOsoSnapshot(dcp::OsoSnapshot),
    /// Documents from the cache of the other side.
    DcpCacheTransfer(dcp::CacheTransfer),
    /// There are no more of them.
    DcpCacheTransferEnd(Empty),
}

macro_rules! replies {
    ($($(#[$doc:meta])* $variant:ident($body:ty) = $($opcode:ident)|+,)*) => {
        /// What was answered. Its type follows from opcode and status.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Reply {
            $($(#[$doc])* $variant($body),)*
            /// Take back what is above this sequence number (protocol, section 5.4).
            Rollback(u64),
            /// It went wrong; the value may explain it, see [`Failure`](crate::status::Failure). With
            /// [`NotMyVbucket`](Status::NotMyVbucket) it is a cluster map, or empty.
            Failed(Parts),
            /// Done, with whatever parts the answer has.
            Plain(Parts),
        }

        impl Reply {
            /// Reads the body of a response.
            ///
            /// # Errors
            /// `Malformed` if it is not what opcode and status ask for.
            pub fn decode(status: Status, parts: Parts) -> Result<Reply> {
                match (status, parts.opcode()) {
                    $((Status::Success, $(Opcode::$opcode)|+) => Ok(Reply::$variant(Body::decode(parts)?)),)*
                    (Status::Success | Status::AuthContinue, _) => Ok(Reply::Plain(parts)),
                    (Status::Rollback, Opcode::DcpStreamRequest) => Ok(Reply::Rollback(stream::Rollback::decode(parts)?.seqno)),
                    _ => Ok(Reply::Failed(parts)),
                }
            }

            fn encode(&self, to: &mut Writer<'_>) {
                match self {
                    $(Reply::$variant(body) => body.encode(to),)*
                    Reply::Rollback(seqno) => stream::Rollback { seqno: *seqno }.encode(to),
                    Reply::Failed(parts) | Reply::Plain(parts) => parts.encode(to),
                }
            }
        }
    };
}

replies! {
    /// A document.
    Document(kv::Document) = Get,
    /// It was written, or deleted.
    Stored(kv::Stored) = Set | Add | Replace | Delete | Append | Prepend,
    /// What a counter is now.
    Counter(kv::Counter) = Increment | Decrement,
    /// One of the statistics; without a key, their end.
    Statistic(kv::Statistic) = Stat,
    /// The features granted.
    Hello(hello::Granted) = Hello,
    /// The stream is open, or the log is this.
    FailoverLog(stream::Histories) = DcpStreamRequest | DcpGetFailoverLog | GetFailoverLog,
    /// Where the vbuckets are.
    VbSeqnos(query::VbSeqnos) = GetAllVbSeqnos,
    /// How far a vbucket is persisted.
    ObservedSeqno(query::ObservedSeqno) = ObserveSeqno,
    /// A collection's or scope's number.
    Id(kv::Id) = GetCollectionId | GetScopeId,
}

impl Message {
    /// Reads a frame.
    ///
    /// # Errors
    /// `Malformed` if the content is not what the opcode asks for; the frames after it are intact.
    #[inline]
    pub fn decode(frame: Frame) -> Result<Message> {
        match frame.header().magic {
            Magic::Request | Magic::FlexRequest => Request::decode(frame).map(Message::Request),
            Magic::Response | Magic::FlexResponse => Response::decode(frame).map(Message::Response),
            Magic::ServerRequest => ServerRequest::decode(frame).map(Message::ServerRequest),
            Magic::ServerReply => Ok(Message::ServerReply(frame)),
        }
    }

    /// Appends the message.
    ///
    /// # Errors
    /// `Invalid` if a part is too long for a frame; nothing is appended then.
    pub fn encode(&self, out: &mut BytesMut) -> Result<()> {
        match self {
            Message::Request(request) => request.encode(out),
            Message::Response(response) => response.encode(out),
            Message::ServerRequest(request) => request.encode(out),
            Message::ServerReply(frame) => {
                frame.encode(out);
                Ok(())
            }
        }
    }
}

impl Request {
    /// A request with everything else at zero.
    pub fn new(command: Command) -> Self {
        Request { vbucket: 0, opaque: 0, cas: 0, datatype: Datatype::default(), framing: Bytes::new(), command }
    }

    /// The same, for a vbucket.
    #[must_use]
    pub fn with_vbucket(self, vbucket: u16) -> Self {
        Request { vbucket, ..self }
    }

    /// The same, with an opaque.
    #[must_use]
    pub fn with_opaque(self, opaque: u32) -> Self {
        Request { opaque, ..self }
    }

    /// The same, with a compare-and-swap value.
    #[must_use]
    pub fn with_cas(self, cas: u64) -> Self {
        Request { cas, ..self }
    }

    /// The same, with another encoding of the value.
    #[must_use]
    pub fn with_datatype(self, datatype: Datatype) -> Self {
        Request { datatype, ..self }
    }

    /// The same, with a stream id, where a vbucket may have several streams (protocol, section 1.3).
    #[must_use]
    pub fn with_stream_id(self, id: u16) -> Self {
        let mut framing = BytesMut::from(&self.framing[..]);
        put_frame_info(&mut framing, FrameInfo::StreamId(id)).expect("its number and length are small");
        Request { framing: framing.freeze(), ..self }
    }

    /// The stream id, if there is one.
    ///
    /// # Errors
    /// `Malformed` if the framing extras are.
    pub fn stream_id(&self) -> Result<Option<u16>> {
        frame_infos(Kind::Request, &self.framing).stream_id()
    }

    /// The same, as a durable write: answered once this holds.
    #[must_use]
    pub fn with_durability(self, level: Durability) -> Self {
        let mut framing = BytesMut::from(&self.framing[..]);
        put_frame_info(&mut framing, FrameInfo::Durability { level, timeout_ms: None }).expect("its number and length are small");
        Request { framing: framing.freeze(), ..self }
    }

    /// What must hold before the write is answered, if it is a durable one.
    ///
    /// # Errors
    /// `Malformed` if the framing extras are.
    pub fn durability(&self) -> Result<Option<Durability>> {
        frame_infos(Kind::Request, &self.framing).durability()
    }

    /// Reads a request. The frame's magic is not looked at.
    ///
    /// # Errors
    /// `Malformed` if the content is not what the opcode asks for.
    #[inline]
    pub fn decode(frame: Frame) -> Result<Request> {
        let (header, framing, parts) = frame.into_parts();
        let command = Command::decode(parts)?;
        let (vbucket, opaque, cas, datatype) = (header.vbucket_or_status, header.opaque, header.cas, header.datatype);
        Ok(Request { vbucket, opaque, cas, datatype, framing, command })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// `Invalid` if a part is too long for a frame; nothing is appended then.
    pub fn encode(&self, out: &mut BytesMut) -> Result<()> {
        let magic = if self.framing.is_empty() { Magic::Request } else { Magic::FlexRequest };
        let opcode = self.command.opcode().code();
        let header = unfinished(magic, opcode, self.vbucket, self.opaque, self.cas, self.datatype);
        let mut writer = Writer::begin(out, header, &self.framing);
        self.command.encode(&mut writer);
        writer.finish()
    }
}

impl Response {
    /// The answer to a request.
    pub fn to(request: &Request, status: Status, reply: Reply) -> Self {
        Response {
            opcode: request.command.opcode(),
            status,
            opaque: request.opaque,
            cas: 0,
            datatype: Datatype::default(),
            framing: Bytes::new(),
            reply,
        }
    }

    /// The answer to a request that says no more than how it went.
    pub fn bare(request: &Request, status: Status) -> Self {
        let parts = Parts::from_value(request.command.opcode(), Bytes::new());
        let reply = if status.is_success_class() { Reply::Plain(parts) } else { Reply::Failed(parts) };
        Response::to(request, status, reply)
    }

    /// Reads a response. The frame's magic is not looked at.
    ///
    /// # Errors
    /// `Malformed` if the content is not what opcode and status ask for.
    pub fn decode(frame: Frame) -> Result<Response> {
        let (header, framing, parts) = frame.into_parts();
        let status = Status::from(header.vbucket_or_status);
        let (opcode, opaque, cas, datatype) = (parts.opcode(), header.opaque, header.cas, header.datatype);
        Ok(Response { opcode, status, opaque, cas, datatype, framing, reply: Reply::decode(status, parts)? })
    }

    /// Appends the response.
    ///
    /// # Errors
    /// `Invalid` if a part is too long for a frame; nothing is appended then.
    pub fn encode(&self, out: &mut BytesMut) -> Result<()> {
        let magic = if self.framing.is_empty() { Magic::Response } else { Magic::FlexResponse };
        let header = unfinished(magic, self.opcode.code(), self.status.code(), self.opaque, self.cas, self.datatype);
        let mut writer = Writer::begin(out, header, &self.framing);
        self.reply.encode(&mut writer);
        writer.finish()
    }
}

impl ServerRequest {
    /// Reads a request of a server. The frame's magic is not looked at.
    ///
    /// # Errors
    /// `Malformed` if the content is not what the opcode asks for.
    pub fn decode(frame: Frame) -> Result<ServerRequest> {
        let (header, _, parts) = frame.into_parts();
        let notice = match header.opcode {
            CLUSTER_MAP_CHANGED => Notice::ClusterMapChanged(Body::decode(parts)?),
            _ => Notice::Unknown(parts),
        };
        Ok(ServerRequest { opaque: header.opaque, datatype: header.datatype, notice })
    }

    /// Appends the request.
    ///
    /// # Errors
    /// `Invalid` if a part is too long for a frame; nothing is appended then.
    pub fn encode(&self, out: &mut BytesMut) -> Result<()> {
        let opcode = match &self.notice {
            Notice::ClusterMapChanged(_) => CLUSTER_MAP_CHANGED,
            Notice::Unknown(parts) => parts.opcode().code(),
        };
        let header = unfinished(Magic::ServerRequest, opcode, 0, self.opaque, 0, self.datatype);
        let mut writer = Writer::begin(out, header, &[]);
        match &self.notice {
            Notice::ClusterMapChanged(changed) => changed.encode(&mut writer),
            Notice::Unknown(parts) => parts.encode(&mut writer),
        }
        writer.finish()
    }
}
