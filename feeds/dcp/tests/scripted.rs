//! The feed against a server that says what a script tells it to: what no well-behaved server would.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use sluicegate_core::feed::MutationKind;
use sluicegate_core::{Decoded, ErrorKind, Feed as _, FeedEvent, FeedStart, FeedStream, GatewayDecoder, MutationDecoder as _};
use sluicegate_dcp::DcpFeed;
use sluicegate_mcbp::dcp::{
    Abort, Commit, Durability, EndReason, FailoverEntry, FailoverLog, Histories, MarkerFlags, Mutation, Prepare, Removal,
    SeqnoList, SnapshotMarker, StreamEnd, VbSeqnos,
};
use sluicegate_mcbp::hello::{Feature, Features, Granted};
use sluicegate_mcbp::value::compress;
use sluicegate_mcbp::{Command, Datatype, Empty, FrameDecoder, Message, Opcode, Parts, Reply, Request, Response, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const HIGH: u64 = 10;

/// One connection that streams the only vbucket.
struct Script {
    socket: TcpStream,
    input: BytesMut,
    output: BytesMut,
    opaque: u32,
    /// Bytes sent that flow control counts.
    counted: u64,
    /// Bytes given back.
    acknowledged: u64,
    /// Answers that the client has sent: opcode and opaque.
    answers: Vec<(Opcode, u32)>,
    server: Server,
}

/// The properties of the server.
#[derive(Clone, Copy)]
struct Server {
    features: &'static [Feature],
    /// The bucket that a connection is in.
    bucket: &'static str,
}

const SERVER: Server = Server { features: &[Feature::SelectBucket, Feature::Snappy, Feature::Xattr], bucket: "b" };

impl Script {
    /// Sends what flow control counts.
    async fn event(&mut self, command: Command) {
        self.event_of(self.opaque, command, Datatype::default()).await;
    }

    async fn event_of(&mut self, opaque: u32, command: Command, datatype: Datatype) {
        let before = self.output.len();
        Request::new(command).with_opaque(opaque).with_datatype(datatype).encode(&mut self.output).unwrap();
        self.counted += (self.output.len() - before) as u64;
        self.flush().await;
    }

    async fn flush(&mut self) {
        self.socket.write_all(&self.output).await.unwrap();
        self.output.clear();
    }

    /// Reads and answers until `is_enough`.
    async fn until(&mut self, mut is_enough: impl FnMut(&Script) -> bool) {
        while !is_enough(self) {
            let read = self.socket.read_buf(&mut self.input);
            let read = tokio::time::timeout(Duration::from_secs(60), read).await.expect("the client says nothing").unwrap();
            assert!(read > 0, "the client has gone");
            while let Some(frame) = FrameDecoder::default().decode(&mut self.input).unwrap() {
                match Message::decode(frame).unwrap() {
                    Message::Request(request) => self.answer(&request),
                    Message::Response(response) => self.answers.push((response.opcode, response.opaque)),
                    other => panic!("{other:?}"),
                }
            }
            self.flush().await;
        }
    }

    fn answer(&mut self, request: &Request) {
        let text = |text: String| Reply::Plain(Parts::from_value(request.command.opcode(), text));
        let reply = match &request.command {
            Command::Hello(_) => Reply::Hello(Granted { features: Features(self.server.features.to_vec()) }),
            Command::GetClusterConfig(_) => {
                let port = self.socket.local_addr().unwrap().port();
                let bucket = self.server.bucket;
                text(format!(
                    r#"{{"rev":1,"name":"{bucket}","uuid":"u","vBucketServerMap":{{"serverList":["127.0.0.1:{port}"],"vBucketMap":[[0]]}},"nodesExt":[{{"services":{{"kv":{port}}}}}]}}"#
                ))
            }
            Command::GetAllVbSeqnos(_) => Reply::VbSeqnos(VbSeqnos { seqnos: SeqnoList(vec![(0, HIGH)]) }),
            Command::DcpStreamRequest(_) => {
                self.opaque = request.opaque;
                Reply::FailoverLog(Histories { log: FailoverLog(vec![FailoverEntry { vbucket_uuid: 7, seqno: 0 }]) })
            }
            Command::DcpBufferAck(ack) => {
                self.acknowledged += u64::from(ack.bytes);
                return;
            }
            _ => text(String::new()),
        };
        Response::to(request, Status::Success, reply).encode(&mut self.output).unwrap();
    }
}

/// A feed whose stream is open, its events, and the server's end of it.
async fn start() -> (DcpFeed, FeedStream, Script) {
    let (url, mut streaming) = listen(SERVER).await;
    let feed = DcpFeed::connect(&url).await.unwrap();
    let stream = feed.open(FeedStart::Beginning).await.unwrap();
    let script = streaming.recv().await.unwrap();
    (feed, stream, script)
}

/// The URL of a server's bucket, and its ends of connections on which a stream was opened.
async fn listen(server: Server) -> (String, mpsc::UnboundedReceiver<Script>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, streaming) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let (input, output) = (BytesMut::new(), BytesMut::new());
                let mut script =
                    Script { socket, input, output, opaque: 0, counted: 0, acknowledged: 0, answers: Vec::new(), server };
                // Connections that only ask for the map are closed by the client.
                loop {
                    let mut first = [0; 1];
                    if script.opaque != 0 || script.socket.peek(&mut first).await.unwrap_or(0) == 0 {
                        break;
                    }
                    let mut is_first = true;
                    script.until(|_| !std::mem::replace(&mut is_first, false)).await;
                }
                if script.opaque != 0 {
                    let _ = sender.send(script);
                }
            });
        }
    });
    (format!("dcp://127.0.0.1:{port}/b?buffer=65536&noop_interval=60"), streaming)
}

fn marker(end: u64) -> Command {
    Command::DcpSnapshotMarker(SnapshotMarker { start: 0, end, flags: MarkerFlags::DISK, detail: None })
}

fn mutation(seqno: u64, value: impl Into<Bytes>) -> Command {
    let key = Bytes::from(format!("key{seqno}"));
    Command::DcpMutation(Mutation { by_seqno: seqno, key, value: value.into(), nru: Some(0), ..Mutation::default() })
}

/// The mutations up to the seqno that is waited for.
async fn mutations(stream: &mut FeedStream, last: u64) -> Vec<sluicegate_core::Mutation> {
    let mut seen = Vec::new();
    loop {
        let batch = tokio::time::timeout(Duration::from_secs(60), stream.next()).await.expect("nothing comes").unwrap().unwrap();
        for event in batch.events {
            if let FeedEvent::Mutation(mutation) = event {
                seen.push(mutation);
            }
        }
        if seen.last().is_some_and(|mutation| mutation.seqno.0 == last) {
            return seen;
        }
    }
}

#[tokio::test]
async fn unknown_and_stale_messages_are_counted_and_given_back() {
    let (feed, mut stream, mut script) = start().await;
    script.event(marker(10)).await;
    script.event(mutation(1, "{}")).await;
    let opaque = script.opaque;
    script.event_of(opaque + 1000, mutation(2, "of another stream"), Datatype::default()).await;
    let unknown = Command::Unknown(Parts::from_slices(Opcode::Other(0x6f), b"extras", b"key", b"value").unwrap());
    Request::new(unknown).with_opaque(opaque).encode(&mut script.output).unwrap();
    script.event(mutation(3, "{}")).await;
    let seen = mutations(&mut stream, 3).await;
    assert_eq!(seen.iter().map(|mutation| mutation.seqno.0).collect::<Vec<_>>(), [1, 3]);
    // A server that sends it counts it.
    script.counted += 24 + 6 + 3 + 5;
    script.until(|script| script.acknowledged == script.counted).await;
    let counters = feed.status().counters;
    assert_eq!((counters.stale_messages, counters.unknown_messages, counters.events), (1, 1, 4), "{counters:?}");
}

#[tokio::test]
async fn the_server_is_answered_while_nobody_takes_anything() {
    let (_feed, mut stream, mut script) = start().await;
    script.event(marker(10)).await;
    for seqno in 1..=10 {
        script.event(mutation(seqno, vec![b'x'; 10_000])).await;
    }
    Request::new(Command::DcpNoop(Empty {})).with_opaque(0xff00_0001).encode(&mut script.output).unwrap();
    script.flush().await;
    script.until(|script| !script.answers.is_empty()).await;
    assert_eq!(script.answers, [(Opcode::DcpNoop, 0xff00_0001)]);
    assert_eq!(script.acknowledged, 0, "nothing was taken");
    assert_eq!(mutations(&mut stream, 10).await.len(), 10);
    script.until(|script| script.acknowledged == script.counted).await;
}

#[tokio::test]
async fn values_arrive_uncompressed_and_markers_are_acknowledged_if_that_is_asked_for() {
    let (_feed, mut stream, mut script) = start().await;
    let flags = MarkerFlags::DISK | MarkerFlags::ACK;
    script.event(Command::DcpSnapshotMarker(SnapshotMarker { start: 0, end: 10, flags, detail: None })).await;
    let text = "a value that repeats itself, ".repeat(100);
    let compressed = Datatype::SNAPPY | Datatype::JSON;
    script.event_of(script.opaque, mutation(1, compress(text.as_bytes()).unwrap()), compressed).await;
    // Without a value the datatype may still say that it is compressed.
    let removal = Removal { by_seqno: 2, key: "key".into(), delete_time: Some(5), ..Removal::default() };
    script.event_of(script.opaque, Command::DcpDeletion(removal.clone()), Datatype::SNAPPY).await;
    script.event(Command::DcpExpiration(Removal { by_seqno: 3, ..removal })).await;
    let seen = mutations(&mut stream, 3).await;
    assert_eq!((&seen[0].value[..], seen[0].datatype.0), (text.as_bytes(), 1));
    assert_eq!((seen[1].kind, seen[1].datatype.0, seen[2].kind), (MutationKind::Deletion, 0, MutationKind::Expiration));
    script.until(|script| !script.answers.is_empty()).await;
    assert_eq!(script.answers, [(Opcode::DcpSnapshotMarker, script.opaque)]);
}

#[tokio::test]
async fn values_that_cannot_be_decompressed_are_delivered_as_they_came() {
    let (feed, mut stream, mut script) = start().await;
    script.event(marker(10)).await;
    let compressed = Datatype::SNAPPY | Datatype::JSON;
    // No Snappy; one that ends early; one that claims 4 GiB; one that inflates to more than any
    // document has.
    let cut = compress(b"a value that repeats itself, a value that repeats itself").unwrap().slice(..20);
    let bomb = compress(&vec![0; 30 << 20]).unwrap();
    let values = [Bytes::from_static(b"{}"), cut, Bytes::from_static(b"\xff\xff\xff\xff\x0f{"), bomb];
    for (value, seqno) in values.iter().zip(1..) {
        script.event_of(script.opaque, mutation(seqno, value.clone()), compressed).await;
    }
    script.event_of(script.opaque, mutation(5, compress(b"{}").unwrap()), compressed).await;
    let seen = mutations(&mut stream, 5).await;
    for (seen, value) in seen.iter().zip(&values) {
        assert!(seen.value == *value && seen.datatype.is_compressed(), "{}", seen.seqno.0);
        let decoded = GatewayDecoder::default().decode(seen);
        assert!(matches!(&decoded, Decoded::Invalid(invalid) if invalid.reason.contains("compressed")), "{decoded:?}");
    }
    assert_eq!((&seen[4].value[..], seen[4].datatype.0), (&b"{}"[..], 1));
    assert_eq!(feed.status().counters.undecoded_values, 4);
    script.until(|script| script.acknowledged == script.counted).await;
}

#[tokio::test]
async fn a_connection_in_another_bucket_is_refused_where_none_can_be_selected() {
    let old = Server { features: &[Feature::Snappy], bucket: "other" };
    let (url, _streaming) = listen(old).await;
    let error = DcpFeed::connect(&url).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("`other`") && text.contains("`b`") && text.contains("option user"), "{text}");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::ConfigInvalid, false));
    // The right bucket is accepted.
    let (url, mut streaming) = listen(Server { bucket: "b", ..old }).await;
    let feed = DcpFeed::connect(&url).await.unwrap();
    let _stream = feed.open(FeedStart::Beginning).await.unwrap();
    streaming.recv().await.unwrap();
}

#[tokio::test]
async fn a_seqno_that_does_not_grow_opens_the_stream_again() {
    let (feed, mut stream, mut script) = start().await;
    script.event(marker(10)).await;
    script.event(mutation(5, "{}")).await;
    let first = script.opaque;
    script.event(mutation(4, "{}")).await;
    script.until(|script| script.opaque != first).await;
    script.event_of(first, mutation(6, "of the first stream"), Datatype::default()).await;
    script.event(marker(10)).await;
    script.event(mutation(7, "{}")).await;
    let seen = mutations(&mut stream, 7).await;
    assert_eq!(seen.iter().map(|mutation| mutation.seqno.0).collect::<Vec<_>>(), [5, 7]);
    let vbucket = &feed.status().vbuckets[0];
    assert_eq!((vbucket.reopens, vbucket.last_error.as_deref()), (1, Some("seqno 4 came after 5")));
    script.event(Command::DcpStreamEnd(StreamEnd { reason: EndReason::Other(77) })).await;
    let second = script.opaque;
    script.until(|script| script.opaque != second).await;
}

#[tokio::test]
async fn durable_writes_that_nobody_asked_for_hide_no_document() {
    let (feed, mut stream, mut script) = start().await;
    script.event(marker(10)).await;
    let prepare = |seqno| {
        Command::DcpPrepare(Prepare {
            by_seqno: seqno,
            rev_seqno: 1,
            flags: 0,
            expiry: 0,
            lock_time: 0,
            nru: 0,
            deleted: 0,
            durability: Durability::Majority,
            key: "durable".into(),
            value: "{}".into(),
        })
    };
    script.event(prepare(1)).await;
    let abort = Abort { prepared_seqno: 1, abort_seqno: 2, key: "durable".into() };
    script.event(Command::DcpAbort(abort)).await;
    script.event(prepare(3)).await;
    script.event(mutation(4, "{}")).await;
    let seen = mutations(&mut stream, 4).await;
    assert_eq!(seen.len(), 1, "neither what was given up nor what does not hold");
    let first = script.opaque;
    let commit = Commit { prepared_seqno: 3, commit_seqno: 5, key: "durable".into() };
    script.event(Command::DcpCommit(commit)).await;
    // Past it the document would be lost: it must come in another form.
    script.until(|script| script.opaque != first).await;
    let vbucket = &feed.status().vbuckets[0];
    assert_eq!(vbucket.seqno, 4);
    assert!(vbucket.last_error.as_ref().is_some_and(|why| why.contains("durable write")), "{vbucket:?}");
    // Servers count two bytes more of each beginning.
    script.counted += 4;
    script.event(marker(10)).await;
    script.event(mutation(5, "{}")).await;
    assert_eq!(mutations(&mut stream, 5).await.len(), 1);
    script.until(|script| script.acknowledged == script.counted).await;
}
