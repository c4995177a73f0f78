//! How fast events get from a socket to the consumer: a server of one thread that sends prepared mutations as fast as they are taken.
//!
//! `cargo bench -p sluicegate-dcp`; `-- --events N --value BYTES` for other loads. It needs a machine that does nothing else: the server
//! takes a core of its own.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use sluicegate_core::{Feed as _, FeedEvent, FeedStart};
use sluicegate_dcp::DcpFeed;
use sluicegate_mcbp::dcp::{FailoverEntry, FailoverLog, Histories, Mutation, SeqnoList, SnapshotMarker, StreamEnd, VbSeqnos};
use sluicegate_mcbp::hello::Granted;
use sluicegate_mcbp::{Command, Datatype, FrameDecoder, HEADER_LEN, Message, Opcode, Parts, Reply, Request, Response, Status};

const VBUCKETS: u16 = 64;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let option = |name: &str, usual: u64| match arguments.iter().position(|argument| argument == name) {
        Some(place) => {
            arguments.get(place + 1).and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} takes a number"))
        }
        None => usual,
    };
    let (events, value) = (option("--events", 4_000_000), option("--value", 200) as usize);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || Server::new(socket, port, events / u64::from(VBUCKETS), value).serve());
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for round in 1..=3 {
        let (seconds, seen, bytes) = runtime.block_on(follow(port));
        let (rate, volume) = (seen as f64 / seconds / 1e6, bytes as f64 / seconds / 1e6);
        println!(
            "round {round}: {seen} events of {value} bytes of value in {seconds:.2} s: {rate:.2} million/s, {volume:.0} MB/s of keys and values"
        );
    }
}

async fn follow(port: u16) -> (f64, u64, usize) {
    let feed = DcpFeed::connect(&format!("dcp://127.0.0.1:{port}/bench?until=now")).await.expect("a feed");
    let began = Instant::now();
    let mut stream = feed.open(FeedStart::Beginning).await.expect("a stream");
    let (mut seen, mut bytes) = (0, 0);
    while let Some(batch) = stream.next().await {
        for event in batch.expect("a batch").events {
            if let FeedEvent::Mutation(mutation) = event {
                (seen, bytes) = (seen + 1, bytes + mutation.key.len() + mutation.value.len());
            }
        }
    }
    (began.elapsed().as_secs_f64(), seen, bytes)
}

struct Server {
    socket: TcpStream,
    port: u16,
    /// Mutations of each vbucket.
    count: u64,
    window: u64,
    outstanding: u64,
    /// Opaque and last seqno sent of each stream that is open.
    streams: Vec<(u16, u32, u64)>,
    frame: Vec<u8>,
    input: BytesMut,
    output: BytesMut,
}

impl Server {
    fn new(socket: TcpStream, port: u16, count: u64, value: usize) -> Self {
        let mutation = Mutation {
            key: Bytes::from_static(b"\0document-0000000"),
            value: vec![b'v'; value].into(),
            nru: Some(0),
            ..Mutation::default()
        };
        let mut frame = BytesMut::new();
        Request::new(Command::DcpMutation(mutation)).with_datatype(Datatype::JSON).encode(&mut frame).expect("a frame");
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Server { socket, port, count, window: 0, outstanding: 0, streams: Vec::new(), frame: frame.to_vec(), input, output }
    }

    fn serve(mut self) {
        let mut chunk = vec![0; 64 << 10];
        loop {
            let can_send = !self.streams.is_empty() && self.outstanding < self.window;
            self.socket.set_nonblocking(can_send).expect("a socket");
            match self.socket.read(&mut chunk) {
                Ok(0) => return,
                Ok(read) => self.input.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            while let Some(frame) = FrameDecoder::default().decode(&mut self.input).expect("frames") {
                if let Message::Request(request) = Message::decode(frame).expect("a message") {
                    self.answer(&request);
                }
            }
            if can_send {
                self.produce();
            }
            self.socket.set_nonblocking(false).expect("a socket");
            if self.socket.write_all(&self.output).is_err() {
                return;
            }
            self.output.clear();
        }
    }

    fn answer(&mut self, request: &Request) {
        let text = |text: String| Reply::Plain(Parts::from_value(request.command.opcode(), text));
        let reply = match &request.command {
            Command::Hello(hello) => Reply::Hello(Granted { features: hello.features.clone() }),
            Command::GetErrorMap(_) => text(r#"{"version":2,"revision":1,"errors":{}}"#.to_owned()),
            Command::GetClusterConfig(_) => {
                let map = vec!["[0]"; usize::from(VBUCKETS)].join(",");
                text(format!(
                    r#"{{"rev":1,"name":"bench","uuid":"u","nodeLocator":"vbucket","vBucketServerMap":{{"serverList":["127.0.0.1:{port}"],"vBucketMap":[{map}]}},"nodesExt":[{{"services":{{"kv":{port}}},"hostname":"127.0.0.1"}}]}}"#,
                    port = self.port
                ))
            }
            Command::DcpControl(control) => {
                if control.name == "connection_buffer_size" {
                    self.window = String::from_utf8_lossy(&control.value).parse().expect("a number");
                }
                text(String::new())
            }
            Command::GetAllVbSeqnos(_) => {
                Reply::VbSeqnos(VbSeqnos { seqnos: SeqnoList((0..VBUCKETS).map(|id| (id, self.count)).collect()) })
            }
            Command::DcpStreamRequest(_) => {
                self.streams.push((request.vbucket, request.opaque, 0));
                Reply::FailoverLog(Histories { log: FailoverLog(vec![FailoverEntry { vbucket_uuid: 7, seqno: 0 }]) })
            }
            Command::DcpBufferAck(ack) => {
                self.outstanding -= u64::from(ack.bytes);
                return;
            }
            _ => text(String::new()),
        };
        Response::to(request, Status::Success, reply).encode(&mut self.output).expect("a frame");
        if request.command.opcode() == Opcode::DcpStreamRequest {
            let marker = SnapshotMarker { start: 0, end: self.count, ..SnapshotMarker::default() };
            self.push(
                &Request::new(Command::DcpSnapshotMarker(marker)).with_vbucket(request.vbucket).with_opaque(request.opaque),
            );
        }
    }

    fn push(&mut self, request: &Request) {
        let before = self.output.len();
        request.encode(&mut self.output).expect("a frame");
        self.outstanding += (self.output.len() - before) as u64;
    }

    /// Some mutations of each stream that is open.
    fn produce(&mut self) {
        for place in (0..self.streams.len()).rev() {
            let (vbucket, opaque, mut seqno) = self.streams[place];
            for _ in 0..16 {
                if seqno == self.count || self.outstanding >= self.window {
                    break;
                }
                seqno += 1;
                self.frame[6..8].copy_from_slice(&vbucket.to_be_bytes());
                self.frame[12..16].copy_from_slice(&opaque.to_be_bytes());
                self.frame[HEADER_LEN..HEADER_LEN + 8].copy_from_slice(&seqno.to_be_bytes());
                self.output.extend_from_slice(&self.frame);
                self.outstanding += self.frame.len() as u64;
            }
            self.streams[place].2 = seqno;
            if seqno == self.count {
                self.streams.swap_remove(place);
                let end = StreamEnd { reason: sluicegate_mcbp::dcp::EndReason::Ok };
                self.push(&Request::new(Command::DcpStreamEnd(end)).with_vbucket(vbucket).with_opaque(opaque));
            }
        }
    }
}
