//! A session of `sluicegate_mcbp::client`, taken apart: it sends what it is told and shows what arrives.
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod program;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use sluicegate_mcbp::client::{ClientResult, ConnectOptions, FrameReader, FrameWriter, Link, Login, Session};
use sluicegate_mcbp::config::Address;
use sluicegate_mcbp::dcp::{BufferAck, Control, FailoverLog, Open, OpenFlags, StreamFlags, StreamRequest};
use sluicegate_mcbp::hello::Feature;
use sluicegate_mcbp::sasl::Password;
use sluicegate_mcbp::{Command, Empty, Frame, Message, Notice, Opcode, Reply, Request, Response, ServerRequest, Status};
use sluicegate_simulator::{Cluster, ClusterConfig};
use tokio::time::timeout;

/// How long anything may take before a test fails. Nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client's connection.
pub(crate) struct Client {
    reader: FrameReader,
    pub(crate) writer: FrameWriter,
    /// What was read and not looked at.
    frames: VecDeque<Frame>,
    /// What arrived while an answer was awaited.
    pub(crate) pending: VecDeque<(Request, usize)>,
    pub(crate) notices: VecDeque<ServerRequest>,
    opaque: u32,
}

/// The login that the cluster knows.
pub(crate) fn login(password: &str) -> Login {
    Login::Password { user: "Administrator".to_owned(), password: Password::new(password), allow_plain: true }
}

/// A session with a node; the bucket is selected if that feature is among those asked for.
pub(crate) async fn session(cluster: &Cluster, node: usize, login: Login, features: &[Feature]) -> ClientResult<Session> {
    let at = cluster.addresses()[node];
    let options = ConnectOptions {
        agent: "test".to_owned(),
        bucket: "default".to_owned(),
        login,
        tls: None,
        features: features.to_vec(),
        connect_timeout: PATIENCE,
        answer_timeout: PATIENCE,
    };
    Session::open(&Address { host: at.ip().to_string(), port: at.port() }, &options).await
}

/// A small cluster of one node.
pub(crate) async fn small(change: impl FnOnce(&mut ClusterConfig)) -> Cluster {
    let mut config = ClusterConfig::default();
    config.vbuckets = 4;
    change(&mut config);
    Cluster::start(config).await.unwrap()
}

/// What a DCP connection asks for.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) features: Vec<Feature>,
    pub(crate) flags: OpenFlags,
    pub(crate) controls: Vec<(&'static str, &'static str)>,
    pub(crate) name: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            features: vec![Feature::Xerror, Feature::SelectBucket, Feature::Json],
            flags: OpenFlags::PRODUCER,
            controls: Vec::new(),
            name: "test",
        }
    }
}

impl Options {
    /// With collections, and the no-ops they need.
    pub(crate) fn with_collections() -> Self {
        let mut options = Options::default();
        options.features.push(Feature::Collections);
        options.controls.push(("enable_noop", "true"));
        options
    }

    pub(crate) fn control(mut self, name: &'static str, value: &'static str) -> Self {
        self.controls.push((name, value));
        self
    }
}

impl Client {
    /// Connected, and not authenticated.
    pub(crate) async fn connect(cluster: &Cluster, node: usize) -> Client {
        session(cluster, node, Login::Anonymous, &[]).await.unwrap().split().into()
    }

    /// Connected and authenticated, with the bucket selected if that feature is among those asked for.
    pub(crate) async fn ready(cluster: &Cluster, node: usize, features: &[Feature]) -> Client {
        session(cluster, node, login("password"), features).await.unwrap().split().into()
    }

    /// A DCP connection.
    pub(crate) async fn dcp(cluster: &Cluster, node: usize, options: &Options) -> Client {
        let mut client = Client::ready(cluster, node, &options.features).await;
        assert_eq!(client.open(options.name, options.flags).await, Status::Success);
        for (name, value) in &options.controls {
            assert_eq!(client.control(name, value).await, Status::Success, "{name}={value}");
        }
        client
    }

    pub(crate) async fn open(&mut self, name: &'static str, flags: OpenFlags) -> Status {
        let open = Open { reserved: 0, flags, name: name.into(), value: Bytes::new() };
        self.ask(Command::DcpOpen(open)).await.status
    }

    pub(crate) async fn control(&mut self, name: &'static str, value: &'static str) -> Status {
        self.ask(Command::DcpControl(Control { name: name.into(), value: value.into() })).await.status
    }

    /// Sends a request and waits for the answer.
    pub(crate) async fn ask(&mut self, command: Command) -> Response {
        self.ask_vbucket(0, command).await
    }

    pub(crate) async fn ask_vbucket(&mut self, vbucket: u16, command: Command) -> Response {
        self.request(Request::new(command).with_vbucket(vbucket)).await
    }

    pub(crate) async fn request(&mut self, request: Request) -> Response {
        self.opaque += 1;
        let opaque = self.opaque;
        self.send(&request.with_opaque(opaque)).await;
        loop {
            let frame = self.frame().await.expect("an answer, not the end");
            match self.sort(frame) {
                Some(response) => {
                    assert_eq!(response.opaque, opaque);
                    return response;
                }
                None => continue,
            }
        }
    }

    pub(crate) async fn send(&mut self, request: &Request) {
        self.writer.push(request).unwrap();
        self.writer.flush().await.unwrap();
    }

    /// Asks for a stream with everything said.
    pub(crate) async fn stream_request(&mut self, vbucket: u16, request: StreamRequest) -> Result<FailoverLog, (Status, Reply)> {
        let response = self.ask_vbucket(vbucket, Command::DcpStreamRequest(request)).await;
        match response.reply {
            Reply::FailoverLog(histories) => Ok(histories.log),
            reply => Err((response.status, reply)),
        }
    }

    /// Asks for a stream up to `end`.
    pub(crate) async fn stream(&mut self, vbucket: u16, end: u64) -> FailoverLog {
        self.stream_request(vbucket, from(0, 0, end)).await.unwrap()
    }

    /// The next DCP message, and the bytes that flow control counts for it.
    pub(crate) async fn next(&mut self) -> Option<(Request, usize)> {
        loop {
            if let Some(message) = self.pending.pop_front() {
                return Some(message);
            }
            let frame = self.frame().await?;
            assert!(self.sort(frame).is_none(), "an answer that nobody waits for");
        }
    }

    /// The next DCP command.
    pub(crate) async fn event(&mut self) -> Command {
        self.next().await.expect("a message, not the end").0.command
    }

    /// The commands up to the end of a stream, that end included.
    pub(crate) async fn until_end(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        while !matches!(commands.last(), Some(Command::DcpStreamEnd(_))) {
            commands.push(self.event().await);
        }
        commands
    }

    pub(crate) async fn acknowledge(&mut self, bytes: usize) {
        self.send(&Request::new(Command::DcpBufferAck(BufferAck { bytes: bytes as u32 }))).await;
    }

    /// Asks something whose answer shows that nothing of a stream was before it.
    pub(crate) async fn round_trip(&mut self) {
        assert_eq!(self.ask(Command::Noop(Empty {})).await.status, Status::Success);
    }

    /// Whether the server has closed the connection.
    pub(crate) async fn is_closed(&mut self) -> bool {
        while let Some(frame) = self.frame().await {
            drop(frame);
        }
        true
    }

    fn sort(&mut self, frame: Frame) -> Option<Response> {
        let counted = frame.flow_control_len();
        match Message::decode(frame).unwrap() {
            Message::Response(response) => return Some(response),
            Message::Request(request) => self.pending.push_back((request, counted)),
            Message::ServerRequest(notice) => self.notices.push_back(notice),
            Message::ServerReply(_) => panic!("a server does not reply to itself"),
        }
        None
    }

    /// The next frame; none at the end.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        while self.frames.is_empty() {
            let read = timeout(PATIENCE, self.reader.read()).await.expect("the server is silent");
            self.frames.extend(read.ok()?.map(Result::unwrap));
        }
        self.frames.pop_front()
    }

    /// The next cluster map that the server pushes.
    pub(crate) async fn pushed_map(&mut self) -> Bytes {
        loop {
            match self.notices.pop_front().map(|notice| notice.notice) {
                Some(Notice::ClusterMapChanged(changed)) => return changed.config,
                Some(other) => panic!("{other:?}"),
                None => {
                    let frame = self.frame().await.expect("a notice, not the end");
                    assert!(self.sort(frame).is_none());
                }
            }
        }
    }
}

impl From<Link> for Client {
    fn from(link: Link) -> Client {
        let Link { reader, writer, notices, next_opaque: opaque, .. } = link;
        Client { reader, writer, frames: VecDeque::new(), pending: VecDeque::new(), notices, opaque }
    }
}

/// A request that resumes at the end of a snapshot.
pub(crate) fn from(start: u64, vbucket_uuid: u64, end: u64) -> StreamRequest {
    StreamRequest {
        flags: StreamFlags::ACTIVE_VB_ONLY,
        reserved: 0,
        start,
        end,
        vbucket_uuid,
        snapshot_start: start,
        snapshot_end: start,
        filter: Bytes::new(),
    }
}

/// The value of an answer without a type of its own.
pub(crate) fn plain_value(response: Response) -> Bytes {
    match response.reply {
        Reply::Plain(parts) | Reply::Failed(parts) => parts.value(),
        other => panic!("{other:?}"),
    }
}

/// A command in few words.
pub(crate) fn brief(command: &Command) -> String {
    let text = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
    match command {
        Command::DcpSnapshotMarker(marker) => format!("[{}..{} {:x}]", marker.start, marker.end, marker.flags.0),
        Command::DcpMutation(mutation) => format!("{}={}@{}", text(&mutation.key), text(&mutation.value), mutation.by_seqno),
        Command::DcpDeletion(removal) => format!("-{}@{}", text(&removal.key), removal.by_seqno),
        Command::DcpExpiration(removal) => format!("~{}@{}", text(&removal.key), removal.by_seqno),
        Command::DcpSeqnoAdvanced(advanced) => format!(">{}", advanced.by_seqno),
        Command::DcpOsoSnapshot(snapshot) => format!("oso {:?}", snapshot.boundary),
        Command::DcpStreamEnd(end) => format!("end {:?}", end.reason),
        Command::DcpPrepare(prepare) => format!("?{}={}@{}", text(&prepare.key), text(&prepare.value), prepare.by_seqno),
        Command::DcpCommit(commit) => format!("!{}@{} of {}", text(&commit.key), commit.commit_seqno, commit.prepared_seqno),
        Command::DcpAbort(abort) => format!("x{}@{} of {}", text(&abort.key), abort.abort_seqno, abort.prepared_seqno),
        Command::DcpSystemEvent(event) => format!("{:?} {}@{}", event.event, text(&event.name), event.by_seqno),
        other => format!("{:?}", other.opcode()),
    }
}

pub(crate) fn briefs(commands: &[Command]) -> Vec<String> {
    commands.iter().map(brief).collect()
}

/// Whether a message is a no-op.
pub(crate) fn is_noop(request: &Request) -> bool {
    request.command.opcode() == Opcode::DcpNoop
}
