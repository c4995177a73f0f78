//! Waiting for changes: a reader follows one channel while the writer is still at work, and gets each change once, as it comes.
//!
//! The feed is made up from a seed: 5,000 writes of a gateway that delivers some sequences long after later ones. Such late
//! entries come to the follower too, only out of order.
//!
//! ```text
//! cargo run --example follow_channel [-- --store URL --channel NAME]
//! ```

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt as _;
use sluicegate::changes::{AnswerRow, ChangesOptions, Delivery};
use sluicegate::{Channel, DocumentId, Error, ErrorKind, Result, Sequence, Sluicegate, WriterConfig};

/// What the follower got.
#[derive(Default)]
struct Got {
    newest: HashMap<DocumentId, Sequence>,
    highest: Sequence,
    rows: u64,
    /// Rows that came after one of a higher sequence.
    late: u64,
}

impl Got {
    fn take(&mut self, row: &AnswerRow) {
        let sequence = row.entry.sequence();
        let last = self.newest.entry(row.entry.document().into()).or_default();
        *last = sequence.max(*last);
        if sequence < self.highest {
            self.late += 1;
            println!("  late: {} {}", row.id, row.entry.document());
        } else if self.rows.is_multiple_of(250) {
            println!("{:>7} {} is row {}", row.id.to_string(), row.entry.document(), self.rows + 1);
        }
        self.highest = sequence.max(self.highest);
        self.rows += 1;
    }

    fn has(&self, row: &AnswerRow) -> bool {
        self.newest.get(&row.entry.document().into()).is_some_and(|last| *last >= row.entry.sequence())
    }
}

fn argument(name: &str, default: &str) -> String {
    std::env::args().skip_while(|arg| arg != name).nth(1).unwrap_or_else(|| default.to_owned())
}

#[tokio::main]
async fn main() -> Result<()> {
    let channel = Channel::new(&argument("--channel", "ch0"))?;
    // When so many have arrived after a missing sequence, they are published without it, and it comes late.
    let mut config = WriterConfig::default();
    config.max_pending = 200;
    // Otherwise nothing is late before the feed has delivered what is there.
    config.hold_first_read = false;
    let mut cache = Sluicegate::builder()
        .writer_config(config)
        .store(argument("--store", "memory:"))
        .feed("synthetic:?events=5000&channels=20&documents=3000&late=0.02&late_by=400&rate=5000")
        .start()
        .await?;
    let reader = cache.reader().clone();
    // Eager: show everything there is, even while a lower sequence is missing.
    let options = ChangesOptions::new().delivery(Delivery::Eager);
    let mut rows = reader.follow(vec![channel.clone()], options.clone());

    println!("Following {channel}. An id L::S says: this row is S, and everything up to L was complete when it was sent.");

    let mut got = Got::default();
    loop {
        tokio::select! {
            row = rows.next() => match row {
                Some(row) => got.take(&row?),
                None => break,
            },
            end = cache.caught_up() => {
                end?;
                break;
            }
        }
    }
    // What was published last may not have been taken yet.
    let answer = cache.changes(std::slice::from_ref(&channel), &options).await?;
    while !answer.rows.iter().all(|row| got.has(row)) {
        let row = tokio::time::timeout(Duration::from_secs(5), rows.next()).await;
        let missing = || Error::new(ErrorKind::Unexpected, "the follower did not get what a request gets");
        got.take(&row.map_err(|_| missing())?.ok_or_else(missing)??);
    }
    let Got { rows: count, late, .. } = got;
    println!("The feed has ended. The follower of {channel} got {count} rows, {late} of them after a higher sequence.");
    println!(
        "A request made now gets {} rows: each document once, at its newest sequence. The follower has them all.",
        answer.rows.len()
    );
    cache.shutdown().await?;
    Ok(())
}
