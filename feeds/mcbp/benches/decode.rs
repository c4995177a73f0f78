//! How fast mutations are decoded from bytes that are in memory: recorded ones, repeated.
//!
//! `cargo bench -p sluicegate-mcbp`; `-- --seconds N` for longer rounds. It needs a machine that does nothing else.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use sluicegate_mcbp::{Command, Frame, FrameDecoder, Message, Opcode};

/// What one read of a socket may bring.
const CHUNK: usize = 64 << 10;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let seconds = match (arguments.next().as_deref(), arguments.next().map(|value| value.parse::<f64>())) {
        (None, _) => 1.0,
        (Some("--seconds"), Some(Ok(seconds))) => seconds,
        _ => panic!("the only option is --seconds, with a number"),
    };
    let chunk = chunk();
    println!("{} bytes a read", chunk.len());
    for round in 1..=3 {
        measure(&format!("round {round}: headers, by chunk"), &chunk, seconds, |decoder, buffer| {
            decoder
                .frames(buffer)
                .expect("frames")
                .map(|frame| u64::from(frame.expect("a frame").header().opaque))
                .fold((0, 0), add)
        });
        measure(&format!("round {round}: messages, by chunk"), &chunk, seconds, |decoder, buffer| {
            decoder.frames(buffer).expect("frames").map(|frame| seqno(frame.expect("a frame"))).fold((0, 0), add)
        });
        measure(&format!("round {round}: messages, one by one"), &chunk, seconds, |decoder, buffer| {
            std::iter::from_fn(|| decoder.decode(buffer).expect("frames")).map(seqno).fold((0, 0), add)
        });
    }
}

/// Recorded mutations, repeated until a read is full.
fn chunk() -> Vec<u8> {
    let recording = include_str!("../testdata/wire/dcp_snapshots.txt");
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex digits")).collect()
    };
    let frames = recording.lines().filter_map(|line| line.strip_prefix("< ")).map(hex);
    let mutations: Vec<Vec<u8>> = frames.filter(|frame| frame[1] == Opcode::DcpMutation.code()).collect();
    let mut chunk = Vec::new();
    for frame in mutations.iter().cycle() {
        if chunk.len() + frame.len() > CHUNK {
            break;
        }
        chunk.extend_from_slice(frame);
    }
    chunk
}

fn seqno(frame: Frame) -> u64 {
    match Message::decode(frame).expect("a message") {
        Message::Request(request) => match black_box(request.command) {
            Command::DcpMutation(mutation) => mutation.by_seqno,
            other => panic!("{:?} is no mutation", other.opcode()),
        },
        other => panic!("{other:?} is no request"),
    }
}

fn add((count, sum): (u64, u64), number: u64) -> (u64, u64) {
    (count + 1, sum.wrapping_add(number))
}

/// Only the time of `decode` counts, not that of filling the buffer.
fn measure(name: &str, chunk: &[u8], seconds: f64, decode: impl Fn(&FrameDecoder, &mut BytesMut) -> (u64, u64)) {
    let decoder = FrameDecoder::default();
    let (mut busy, mut events, mut bytes) = (Duration::ZERO, 0, 0);
    while busy.as_secs_f64() < seconds {
        let mut buffer = BytesMut::from(chunk);
        let began = Instant::now();
        let (count, sum) = decode(&decoder, &mut buffer);
        busy += began.elapsed();
        black_box(sum);
        (events, bytes) = (events + count, bytes + chunk.len());
    }
    let (events, bytes) = (events as f64 / busy.as_secs_f64(), bytes as f64 / busy.as_secs_f64());
    println!("{name:<36} {:>6.1} million/s {:>8.0} MB/s {:>6.1} ns each", events / 1e6, bytes / 1e6, 1e9 / events);
}
