//! Our side, in a process of its own.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use cpu_time::ProcessTime;
use futures::StreamExt as _;
use serde_json::json;
use sluicegate_core::{Feed as _, FeedEvent, FeedStart};
use sluicegate_dcp::DcpFeed;
use sluicegate_mcbp::{Command, FrameDecoder, Message, Opcode};
use tempfile::NamedTempFile;

use crate::Outcome;

/// What one read of a socket may bring.
const CHUNK: usize = 64 << 10;

/// Bytes that the server may send ahead of the slow consumer.
const SLOW_BUFFER: usize = 4 << 20;

/// How much of the slow consumer's run is not looked at: until buffers have their size.
const WARM_UP: f64 = 0.2;

pub(crate) fn run(arguments: &[String]) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["decode", file, seconds] => decode(&std::fs::read(file)?, Duration::from_secs_f64(seconds.parse()?)),
        ["follow", url] => runtime.block_on(follow(url)),
        ["slow", url, rate] => runtime.block_on(slow(url, rate.parse()?)),
        _ => Err("client: decode FILE SECONDS, follow URL, or slow URL EVENTS_A_SECOND".into()),
    }
}

/// Mutations of a real server, recorded; repeated until a read is full.
pub(crate) fn recorded_frames() -> Outcome<NamedTempFile> {
    let recording = include_str!("../../../mcbp/testdata/wire/dcp_snapshots.txt");
    let hex = |text: &str| -> Result<Vec<u8>, _> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16)).collect()
    };
    let mut mutations = Vec::new();
    for frame in recording.lines().filter_map(|line| line.strip_prefix("< ")).map(hex) {
        let frame = frame?;
        if frame[1] == Opcode::DcpMutation.code() {
            mutations.push(frame);
        }
    }
    let mut chunk = Vec::new();
    for frame in mutations.iter().cycle() {
        if chunk.len() + frame.len() > CHUNK {
            break;
        }
        chunk.extend_from_slice(frame);
    }
    let file = NamedTempFile::new()?;
    std::fs::write(file.path(), chunk)?;
    Ok(file)
}

/// Each pass begins as a read does: the bytes are copied into a buffer.
fn decode(chunk: &[u8], time: Duration) -> Outcome<()> {
    let decoder = FrameDecoder::default();
    let (mut events, mut bytes, mut seqnos) = (0_u64, 0, 0_u64);
    let (began, busy) = (Instant::now(), ProcessTime::now());
    while began.elapsed() < time {
        let mut buffer = BytesMut::from(chunk);
        for frame in decoder.frames(&mut buffer)? {
            let Message::Request(request) = Message::decode(frame?)? else { return Err("no request".into()) };
            let Command::DcpMutation(mutation) = black_box(&request.command) else { return Err("no mutation".into()) };
            (events, bytes) = (events + 1, bytes + mutation.key.len() + mutation.value.len());
            seqnos = seqnos.wrapping_add(mutation.by_seqno);
        }
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), busy.elapsed().as_secs_f64());
    println!("{}", json!({"mutations": events, "bytes": bytes, "seqnos": seqnos, "seconds": seconds, "cpu_seconds": cpu}));
    Ok(())
}

async fn follow(url: &str) -> Outcome<()> {
    let feed = DcpFeed::connect(url).await?;
    let (began, busy) = (Instant::now(), ProcessTime::now());
    let mut stream = feed.open(FeedStart::Beginning).await?;
    let (mut events, mut bytes) = (0_u64, 0);
    while let Some(batch) = stream.next().await {
        for event in batch?.events {
            if let FeedEvent::Mutation(mutation) = event {
                (events, bytes) = (events + 1, bytes + mutation.key.len() + mutation.value.len());
            }
        }
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), busy.elapsed().as_secs_f64());
    println!(
        "{}",
        json!({"mutations": events, "bytes": bytes, "seconds": seconds, "cpu_seconds": cpu, "max_rss": most_memory()})
    );
    Ok(())
}

/// Takes so many events a second, and watches its memory.
async fn slow(url: &str, rate: u64) -> Outcome<()> {
    let feed = DcpFeed::connect(&format!("{url}&buffer={SLOW_BUFFER}")).await?;
    let began = Instant::now();
    let mut stream = feed.open(FeedStart::Beginning).await?;
    let (mut events, mut bytes) = (0_u64, 0);
    let mut samples: Vec<(f64, usize)> = Vec::new();
    while let Some(batch) = stream.next().await {
        for event in batch?.events {
            if let FeedEvent::Mutation(mutation) = event {
                (events, bytes) = (events + 1, bytes + mutation.key.len() + mutation.value.len());
            }
        }
        let due = Duration::from_secs_f64(events as f64 / rate as f64);
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        samples.push((began.elapsed().as_secs_f64(), physical_memory()?));
    }
    let end = samples.last().map_or(0.0, |(at, _)| *at);
    let warm: Vec<usize> = samples.iter().filter(|(at, _)| *at >= WARM_UP * end).map(|(_, memory)| *memory).collect();
    let first = *warm.first().ok_or("no events came")?;
    let most = warm.iter().max().copied().unwrap_or(first);
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!(
        "{events} events, {:.0} MiB of keys and values in {end:.1} s, with a buffer of {:.0} MiB: {:.1} MiB of memory after {:.0} % of the time, {:.1} MiB at most later (growth {:.1} MiB)",
        mib(bytes),
        mib(SLOW_BUFFER),
        mib(first),
        100.0 * WARM_UP,
        mib(most),
        mib(most) - mib(first),
    );
    for tenth in 1..=10 {
        let until = end * f64::from(tenth) / 10.0;
        let memory = samples.iter().rfind(|(at, _)| *at <= until).map_or(0, |(_, memory)| *memory);
        println!("  {until:>6.1} s {:>8.1} MiB", mib(memory));
    }
    Ok(())
}

/// The most memory this process has had, in bytes, where the system says so.
fn most_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(most.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn physical_memory() -> Outcome<usize> {
    Ok(memory_stats::memory_stats().ok_or("the system does not say how much memory a process has")?.physical_mem)
}
