//! Where sequence documents lie in Redis: what each way costs in memory, and in CPU of the server, on a server of its own.
//!
//! `cargo bench -p sluicegate-redis --bench layout`; `-- --documents N` changes it. It needs `redis-server` and `redis-cli`.

use redis::{Client, Cmd, Pipeline, RedisResult, cmd};
use sluicegate_test_servers::RedisServer;

/// Documents sent together, as in a writer's batch.
const BATCH: usize = 500;

/// A way to store documents.
struct Layout {
    name: &'static str,
    kind: Kind,
    /// Documents a key.
    together: u64,
    /// Values up to so many bytes are kept in the compact form of a hash; Redis's own default is 64.
    compact: u32,
}

enum Kind {
    /// A string each.
    Strings,
    /// Fields of a hash, by a command each.
    Fields,
    /// Fields of a hash, by one script.
    Script,
    /// One after the other in one string, by one `APPEND`.
    Appended,
}

const fn layout(name: &'static str, kind: Kind, together: u64) -> Layout {
    Layout { name, kind, together, compact: 64 }
}

const LAYOUTS: [Layout; 9] = [
    layout("a key each", Kind::Strings, 1),
    layout("hashes of 32", Kind::Fields, 32),
    layout("hashes of 128", Kind::Fields, 128),
    Layout { compact: 512, ..layout("hashes of 128, compact to 512 bytes", Kind::Fields, 128) },
    layout("hashes of 128, by a script", Kind::Script, 128),
    layout("strings of 4, appended to", Kind::Appended, 4),
    layout("strings of 8, appended to", Kind::Appended, 8),
    layout("strings of 16, appended to", Kind::Appended, 16),
    layout("strings of 32, appended to", Kind::Appended, 32),
];

/// Writes fields that are not there.
const SCRIPT: &str = "for i = 1, #ARGV, 2 do redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) end";

fn document(n: u64) -> String {
    let (doc, rev, partition) = (n.wrapping_mul(0x9E37_79B9) % 100_000, n.wrapping_mul(0x9E37_79B9_7F4A_7C15), n % 1024);
    format!(
        r#"{{"seq":{n},"doc":"doc-{doc}","rev":"3-{rev:032x}","ch":[["channel-{}",0,0]],"sup":[{}],"vb":{partition},"sq":{n}}}"#,
        n % 20,
        n / 2
    )
}

impl Layout {
    fn commands(&self, numbers: std::ops::Range<u64>) -> Vec<Cmd> {
        let value = |n| [&[1; 8], document(n).as_bytes()].concat();
        let key = |n: u64| format!("{{1f3a}}_cache:_seq:[{}]", n / self.together);
        let numbers: Vec<u64> = numbers.collect();
        let together = numbers.chunk_by(|a, b| a / self.together == b / self.together);
        let each = numbers.iter();
        match self.kind {
            Kind::Strings => each.map(|n| cmd("SET").arg(key(*n)).arg(value(*n)).arg("NX").take()).collect(),
            Kind::Fields => each.map(|n| cmd("HSETNX").arg(key(*n)).arg(n % self.together).arg(value(*n)).take()).collect(),
            Kind::Script => together
                .map(|some| {
                    let mut command = cmd("EVAL").arg(SCRIPT).arg(1).arg(key(some[0])).take();
                    for n in some {
                        command.arg(n % self.together).arg(value(*n));
                    }
                    command
                })
                .collect(),
            Kind::Appended => together
                .map(|some| {
                    let record = |n: &u64| [&[0; 5][..], &value(*n)].concat();
                    cmd("APPEND").arg(key(some[0])).arg(some.iter().flat_map(record).collect::<Vec<u8>>()).take()
                })
                .collect(),
        }
    }
}

fn main() -> RedisResult<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let documents: u64 = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => 400_000,
        (Some("--documents"), Some(number)) => number.parse().expect("--documents needs a number"),
        _ => panic!("the only option is --documents N"),
    };
    let server = RedisServer::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    println!("{documents} documents of {} bytes, {BATCH} at a time", document(documents / 2).len());
    println!("{:<40} {:>16} {:>32}", "layout", "bytes a document", "CPU of the server, us a document");
    for layout in LAYOUTS {
        server.cli(&["FLUSHALL"]);
        server.cli(&["CONFIG", "SET", "hash-max-listpack-value", &layout.compact.to_string()]);
        let (memory, busy) = (server.used_memory(), server.cpu_seconds());
        runtime.block_on(async {
            let mut connection = Client::open(server.url())?.get_multiplexed_async_connection().await?;
            for first in (0..documents).step_by(BATCH) {
                let mut pipeline = Pipeline::new();
                for command in layout.commands(first..documents.min(first + BATCH as u64)) {
                    pipeline.add_command(command).ignore();
                }
                pipeline.query_async::<()>(&mut connection).await?;
            }
            RedisResult::Ok(())
        })?;
        let each = |total: f64| total / documents as f64;
        let (memory, busy) = (each(server.used_memory() - memory), each(1e6 * (server.cpu_seconds() - busy)));
        println!("{:<40} {memory:>16.0} {busy:>32.2}", layout.name);
    }
    Ok(())
}
