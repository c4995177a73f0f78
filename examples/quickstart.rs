//! The whole thing in one process: a writer takes a gateway's recorded feed into a cache, and a reader answers what changed.
//!
//! ```text
//! cargo run --example quickstart [-- --store URL]
//! ```

use sluicegate::changes::ChangesOptions;
use sluicegate::{Channel, Error, ErrorKind, Result, Sluicegate};

#[tokio::main]
async fn main() -> Result<()> {
    let store = std::env::args().skip_while(|arg| arg != "--store").nth(1).unwrap_or("memory:".to_owned());
    let recording = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/gateway/mutations-inline.ndjson.gz");
    let mut cache = Sluicegate::builder().store(store).feed(format!("replay:{recording}")).start().await?;
    let cut = cache.caught_up().await?;
    println!("The feed has ended. Everything up to sequence {} is in the cache.", cut.stable);

    // What changed in the star channel, which has everything? Two pages of three rows.
    let mut since = sluicegate::changes::SequenceId::ZERO;
    let mut pages = 0;
    for _ in 0..2 {
        let answer = cache.changes(&[Channel::star()], &ChangesOptions::new().since(since).limit(3)).await?;
        println!("since={since}&limit=3");
        for row in &answer.rows {
            println!("  {:>6}  {}  {}", row.id.to_string(), row.entry.document(), row.entry.revision());
        }
        // Where an answer ends, the next request goes on.
        pages += usize::from(answer.rows.len() == 3 && answer.rows.iter().all(|row| row.id.sequence > since.sequence));
        since = answer.last;
    }
    cache.shutdown().await?;
    if pages == 2 { Ok(()) } else { Err(Error::new(ErrorKind::Unexpected, "the pages are not as they should be")) }
}
