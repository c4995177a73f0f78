//! The store on a Redis server of its own, beside `redis-benchmark` on the same server: rates (of documents that are new, and of updates that
//! supersede earlier rows in many blocks), round trips, bytes, reads and wakes.
//!
//! `cargo bench -p sluicegate-redis --bench store`; `-- --documents N --channels N --rounds N` change it, and `-- --codec NAME` leaves out
//! the other codecs and all but the rates. It needs `redis-server`,
//! `redis-cli` and `redis-benchmark`, and a machine that does nothing else.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use sluicegate_core::changes::ChangesOptions;
use sluicegate_core::{
    CacheStore as _, Channel, Decoded, FeedEvent, GatewayDecoder, Mutation, MutationDecoder as _, ReaderConfig, ReaderNode,
    Result, Sequence, Writer, WriterConfig,
};
use sluicegate_redis::{RedisStore, Traffic};
use sluicegate_replay::peer::{self, PeerLoad};
use sluicegate_replay::{MemoryFeed, Synthetic, SyntheticConfig};
use sluicegate_test_servers::{RedisServer, engine_program};

struct Settings {
    documents: usize,
    channels: usize,
    rounds: usize,
    codec: Option<String>,
}

impl Settings {
    /// From the arguments; what `cargo bench` adds is left alone.
    fn new() -> Self {
        let mut settings = Settings { documents: 300_000, channels: 1_000, rounds: 3, codec: None };
        let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
        while let Some(name) = arguments.next() {
            let value = arguments.next().unwrap_or_default();
            let number = || value.parse().unwrap_or_else(|_| panic!("{name} needs a number"));
            match name.as_str() {
                "--documents" => settings.documents = number(),
                "--channels" => settings.channels = number(),
                "--rounds" => settings.rounds = number(),
                "--codec" if CODECS.contains(&value.as_str()) => settings.codec = Some(value),
                "--codec" => panic!("--codec needs one of {CODECS:?}"),
                _ => panic!("there is no option {name}; use --documents, --channels, --rounds or --codec"),
            }
        }
        settings
    }

    fn load(&self) -> PeerLoad {
        PeerLoad { documents: self.documents, channels: self.channels, ..PeerLoad::default() }
    }
}

/// As the `sluicegate` command.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let settings = Settings::new();
    let server = RedisServer::start();
    println!("{}", server.cli(&["INFO", "server"]).lines().find(|line| line.starts_with("redis_version")).unwrap_or("?").trim());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let size = document_size(&settings);
    println!("{} documents of {size} bytes, {} channels, {} rounds\n", settings.documents, settings.channels, settings.rounds);
    let codecs = || CODECS.into_iter().filter(|codec| settings.codec.as_ref().is_none_or(|only| only == codec));
    let series = |load| codecs().map(move |codec| (load, codec, Vec::new()));
    let mut ratios: Vec<(Load, &str, Vec<f64>)> = series(Load::New).chain(series(Load::Updates)).collect();
    for round in 1..=settings.rounds {
        let began = server.cpu_seconds();
        let sets = redis_benchmark(&server, settings.documents, size);
        let busy = 1e6 * (server.cpu_seconds() - began) / settings.documents as f64;
        println!("round {round}: redis-benchmark -P 32 SET   {sets:>9.0} /s; CPU of the server {busy:.2} us a document");
        for (load, codec, ratios) in &mut ratios {
            server.cli(&["FLUSHALL"]);
            let Written { rate, server, client } = runtime.block_on(write(&server, load.mutations(&settings), codec))?;
            println!(
                "round {round}: {load:<14} codec {codec:<12} {rate:>9.0} /s, ratio {:.2}; CPU of the server {server:.2}, of the writer {client:.2} us a document",
                rate / sets
            );
            ratios.push(rate / sets);
        }
    }
    println!();
    for (load, codec, mut ratios) in ratios {
        ratios.sort_by(f64::total_cmp);
        println!("median ratio of {load}, codec {codec}: {:.2}", ratios[ratios.len() / 2]);
    }
    if settings.codec.is_some() {
        return Ok(());
    }
    runtime.block_on(details(&server, &settings))?;
    runtime.block_on(reads(&server, &settings))?;
    runtime.block_on(wakes(&server))
}

const CODECS: [&str; 4] = ["bytes", "two-bit", "adaptive", "log"];

fn config(codec: &str) -> WriterConfig {
    let mut config = WriterConfig::default();
    codec.clone_into(&mut config.codec);
    if codec == "bytes" {
        config.block_capacity = 10_000;
    }
    // The load's counter stands at 1 when it begins.
    config.with_initial(Sequence(1))
}

/// Mean size of a sequence document of the load.
fn document_size(settings: &Settings) -> usize {
    let decoder = GatewayDecoder::default();
    let (mut bytes, mut count) = (0, 0);
    let load = PeerLoad { documents: 2_000, ..settings.load() };
    for event in peer::dcp(load).flat_map(|batch| batch.events) {
        if let FeedEvent::Mutation(mutation) = event
            && let Decoded::Document(document) = decoder.decode(&mutation)
        {
            bytes += document.entry.to_bytes().len();
            count += 1;
        }
    }
    bytes / count.max(1)
}

fn redis_benchmark(server: &RedisServer, count: usize, size: usize) -> f64 {
    server.cli(&["FLUSHALL"]);
    let (port, count, size) = (server.port().to_string(), count.to_string(), size.to_string());
    let arguments = ["-p", &port, "-t", "set", "-P", "32", "-n", &count, "-r", &count, "-d", &size, "--csv"];
    let output = Command::new(engine_program("benchmark")).args(arguments).output().expect("redis-benchmark is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("\"SET\"")).unwrap_or_else(|| panic!("redis-benchmark said {text}"));
    line.split(',').nth(1).and_then(|rate| rate.trim_matches('"').parse().ok()).expect("a rate")
}

async fn open(server: &RedisServer) -> Result<RedisStore> {
    RedisStore::connect(&server.url()).await
}

/// How fast documents were written, and what each cost.
struct Written {
    /// Documents a second.
    rate: f64,
    /// CPU of the server and of this process, in microseconds a document.
    server: f64,
    client: f64,
}

/// What is written.
#[derive(Clone, Copy, PartialEq)]
enum Load {
    /// Each document once.
    New,
    /// A quarter as many documents, in one to four channels each, which change again and again.
    Updates,
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(if *self == Load::New { "new documents" } else { "updates" })
    }
}

impl Load {
    fn mutations(self, settings: &Settings) -> Vec<Mutation> {
        if self == Load::Updates {
            let (documents, channels) = (settings.documents as u32 / 4, settings.channels as u32);
            let config = SyntheticConfig { documents, channels, out_of_order: 50, ..SyntheticConfig::default() };
            return Synthetic::new(config, 7).expect("a valid load").generate(settings.documents).mutations;
        }
        let events = peer::dcp(settings.load()).flat_map(|batch| batch.events);
        let mutations = events.filter_map(|event| match event {
            FeedEvent::Mutation(mutation) => Some(mutation),
            _ => None,
        });
        mutations.collect()
    }
}

/// The whole writer: raw mutations out of order → decode → sequence → commit → publish.
async fn write(server: &RedisServer, mutations: Vec<Mutation>, codec: &str) -> Result<Written> {
    let feed = MemoryFeed::new("bench", mutations).with_batch(512)?;
    let store = Arc::new(open(server).await?);
    let mut writer = Writer::alone(store, Arc::new(GatewayDecoder::default()), "bench", config(codec)).await?;
    let (start, client, busy) = (Instant::now(), ProcessTime::now(), server.cpu_seconds());
    writer.run(&feed, std::future::pending()).await?;
    let (took, client, busy) = (start.elapsed(), client.elapsed(), server.cpu_seconds() - busy);
    let documents = writer.stats().cached as f64;
    let micros = |seconds: f64| 1e6 * seconds / documents;
    Ok(Written { rate: documents / took.as_secs_f64(), server: micros(busy), client: micros(client.as_secs_f64()) })
}

/// What a batch costs, once each codec.
async fn details(server: &RedisServer, settings: &Settings) -> Result<()> {
    println!("\n{:<10} {:>14} {:>14} {:>14} {:>14}", "codec", "batches", "commands/entry", "trips/batch", "bytes/entry");
    for codec in CODECS {
        server.cli(&["FLUSHALL"]);
        let before = server.used_memory();
        let store = Arc::new(open(server).await?);
        let mut writer = Writer::alone(store.clone(), Arc::new(GatewayDecoder::default()), "bench", config(codec)).await?;
        let began = store.traffic();
        for batch in peer::dcp(settings.load()) {
            writer.process(batch).await?;
        }
        writer.finish().await?;
        let Traffic { commands, round_trips, .. } = store.traffic();
        let (entries, batches) = (settings.documents as f64, writer.stats().batches as f64);
        println!(
            "{codec:<10} {batches:>14} {:>14.2} {:>14.2} {:>14.0}",
            (commands - began.commands) as f64 / entries,
            (round_trips - began.round_trips) as f64 / batches,
            (server.used_memory() - before) / entries,
        );
    }
    Ok(())
}

fn quantiles(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    println!("{what:<56} p50 {:>8.1} us   p99 {:>8.1} us", at(0.5), at(0.99));
}

/// The 100 latest rows of a channel, over the cache that is there.
async fn reads(server: &RedisServer, settings: &Settings) -> Result<()> {
    println!();
    let store = Arc::new(open(server).await?);
    let whole = ReaderNode::open(store.clone(), ReaderConfig::default()).await?;
    let node = ReaderNode::open(store.clone(), ReaderConfig::default()).await?;
    let (mut cold, mut hot) = (Vec::new(), Vec::new());
    // Each partition's documents take the channels in turn, so that not all channels have some.
    for n in 0..settings.channels.min(settings.documents / 1_100) {
        let channel = [Channel::new(&format!("test-{n}"))?];
        let rows = whole.changes(&channel, &ChangesOptions::new()).await?.answer().rows;
        let options = ChangesOptions::new().since(rows[rows.len() - 101].id.sequence);
        for times in [&mut cold, &mut hot] {
            let start = Instant::now();
            let rows = node.changes(&channel, &options).await?.answer().rows.len();
            times.push(start.elapsed());
            assert_eq!(rows, 100);
        }
    }
    quantiles("100 latest rows of a channel, cold", cold);
    quantiles("100 latest rows of a channel, from the tail", hot);
    let mut pings = Vec::new();
    for _ in 0..2_000 {
        pings.push(store.ping().await?);
    }
    quantiles("a round trip, for comparison", pings);
    Ok(())
}

/// From a mutation's arrival at the writer to a waiting reader that is told, each on connections of its own.
async fn wakes(server: &RedisServer) -> Result<()> {
    server.cli(&["FLUSHALL"]);
    let mut writer = Writer::alone(
        Arc::new(open(server).await?),
        Arc::new(GatewayDecoder::default()),
        "bench",
        config(&WriterConfig::default().codec),
    )
    .await?;
    // Polling alone would take a second.
    let config: ReaderConfig =
        serde_json::from_str(r#"{"poll_min_ms": 1000, "poll_max_ms": 1000}"#).expect("a valid configuration");
    let node = ReaderNode::open(Arc::new(open(server).await?), config).await?;
    let star = [Channel::star()];
    let load = PeerLoad { documents: 2_000, hold: 0, batch: 1, nodes: 1, ..PeerLoad::default() };
    let mut times = Vec::new();
    for batch in peer::entries(load) {
        let seen = node.cut();
        let waiting = tokio::spawn({
            let (node, star) = (node.clone(), star.clone());
            async move { node.wait_for_change(&star, &seen).await.map(|_| Instant::now()) }
        });
        tokio::task::yield_now().await;
        let start = Instant::now();
        writer.process_decoded(batch).await?;
        writer.flush().await?;
        let told = waiting.await.expect("the reader waits")?;
        times.push(told.duration_since(start));
    }
    quantiles("from the writer to a waiting reader (commit to wake)", times.split_off(100));
    Ok(())
}
