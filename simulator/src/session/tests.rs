//! No-ops and silence, with a clock of the test's own.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sluicegate_mcbp::dcp::{Control, Open, OpenFlags, StreamFlags, StreamRequest};
use sluicegate_mcbp::sasl::{self, Exchange, Password};
use sluicegate_mcbp::{Command, FrameDecoder, Message, Opcode, Request, Response, Status, kv};
use tokio::time::Instant;

use super::Session;
use crate::config::{ClusterConfig, Liveness};
use crate::state::State;

const INTERVAL: Duration = Duration::from_secs(10);

struct Case {
    state: State,
    session: Session,
    now: Instant,
}

impl Case {
    /// A DCP connection with no-ops and one stream.
    fn new(liveness: Liveness) -> Case {
        let config = ClusterConfig { vbuckets: 1, liveness, ..ClusterConfig::default() };
        let mut state = State::new(config, &[(1, None)]).unwrap();
        let session = Session::new(&mut state, 0);
        let mut case = Case { state, session, now: Instant::now() };
        let data = sasl::plain("Administrator", &Password::new("password")).unwrap();
        let control =
            |name: &'static str, value: &'static str| Command::DcpControl(Control { name: name.into(), value: value.into() });
        let stream = StreamRequest {
            flags: StreamFlags::default(),
            reserved: 0,
            start: 0,
            end: u64::MAX,
            vbucket_uuid: 0,
            snapshot_start: 0,
            snapshot_end: 0,
            filter: Bytes::new(),
        };
        for command in [
            Command::SaslAuth(Exchange { mechanism: "PLAIN".into(), data }),
            Command::SelectBucket(kv::Key { key: "default".into() }),
            Command::DcpOpen(Open { reserved: 0, flags: OpenFlags::PRODUCER, name: "x".into(), value: Bytes::new() }),
            control("enable_noop", "true"),
            control("set_noop_interval", "10"),
            Command::DcpStreamRequest(stream),
        ] {
            let answers = case.hear(&Message::Request(Request::new(command)));
            assert!(matches!(&answers[..], [Message::Response(response)] if response.status == Status::Success));
        }
        case
    }

    /// What is said to a message.
    fn hear(&mut self, message: &Message) -> Vec<Message> {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes).unwrap();
        let frame = FrameDecoder::default().decode(&mut bytes).unwrap().unwrap();
        let mut out = BytesMut::new();
        self.session.receive(frame, &mut self.state, self.now, &mut out);
        messages(&mut out)
    }

    /// What is said when so much time has passed.
    fn wait(&mut self, time: Duration) -> Vec<Message> {
        self.now += time;
        let mut out = BytesMut::new();
        self.session.advance(&mut self.state, self.now, &mut out);
        messages(&mut out)
    }

    /// Waits for a no-op.
    fn noop(&mut self) -> Request {
        assert_eq!(self.session.deadline(), Some(self.now + INTERVAL));
        assert_eq!(self.wait(INTERVAL - Duration::from_millis(1)), []);
        match &self.wait(Duration::from_millis(1))[..] {
            [Message::Request(noop)] if noop.command.opcode() == Opcode::DcpNoop => noop.clone(),
            other => panic!("{other:?}"),
        }
    }
}

fn messages(out: &mut BytesMut) -> Vec<Message> {
    let frames = FrameDecoder::default().frames(out).unwrap();
    frames.map(|frame| Message::decode(frame.unwrap()).unwrap()).collect()
}

#[test]
fn answered_no_ops_keep_a_connection_and_an_unanswered_one_ends_it() {
    let mut case = Case::new(Liveness::NextNoop);
    for _ in 0..3 {
        let noop = case.noop();
        case.hear(&Message::Response(Response::bare(&noop, Status::Success)));
        assert!(!case.session.is_closing);
    }
    case.noop();
    case.wait(INTERVAL);
    assert!(case.session.is_closing);
}

#[test]
fn a_no_op_that_is_answered_with_another_opaque_ends_the_connection() {
    let mut case = Case::new(Liveness::NextNoop);
    let noop = case.noop();
    case.hear(&Message::Response(Response::bare(&noop.clone().with_opaque(noop.opaque + 1), Status::Success)));
    assert!(case.session.is_closing);
}

#[test]
fn anything_heard_ends_a_silence() {
    let mut case = Case::new(Liveness::Idle(INTERVAL * 3));
    case.noop();
    case.wait(INTERVAL);
    assert!(!case.session.is_closing, "an unanswered no-op is no reason");
    case.hear(&Message::Request(Request::new(Command::Noop(sluicegate_mcbp::Empty {}))));
    case.wait(INTERVAL * 3 - Duration::from_millis(1));
    assert!(!case.session.is_closing);
    case.wait(Duration::from_millis(1));
    assert!(case.session.is_closing);
}
