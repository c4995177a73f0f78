//! A decoder of one's own: for documents that are not a Sync Gateway's. One method, from a feed's event to what it means for the cache.
//!
//! The values here are lines such as `7/4 red,blue -green`: the sequence, the document's sequence before that if it had one, the
//! channels it is in, and those it has left.
//!
//! ```text
//! cargo run --example custom_decoder [-- --store URL]
//! ```

use std::sync::Arc;

use sluicegate::changes::{AnswerRow, ChangesOptions};
use sluicegate::decode::{Ignored, Invalid};
use sluicegate::{
    ChangeEntry, Channel, Decoded, EntryFlags, Error, ErrorKind, Membership, Mutation, MutationDecoder, Result, Sequence,
    Sluicegate,
};
use sluicegate_replay::MemoryFeed;

#[derive(Debug)]
struct Lines;

impl Lines {
    fn parse(mutation: &Mutation) -> Result<ChangeEntry, String> {
        let text = |bytes| std::str::from_utf8(bytes).map_err(|e| e.to_string());
        let (key, line) = (text(&mutation.key)?, text(&mutation.value)?);
        let mut words = line.split_whitespace();
        let mut numbers = words.next().unwrap_or_default().split('/').map(|number| number.parse().map(Sequence));
        let sequence = numbers.next().and_then(Result::ok).ok_or("it does not begin with a sequence")?;
        // What it names as superseded is not shown any more, and need not arrive any more.
        let previous: Vec<Sequence> = numbers.collect::<Result<_, _>>().map_err(|_| "the sequence before is no number")?;
        let entry = ChangeEntry::new(sequence, key, &format!("r{sequence}"), EntryFlags::default());
        let entry = entry.map_err(|e| e.to_string())?.with_origin(mutation.partition, mutation.seqno);
        let mut entry = entry.with_supersedes(previous);
        for name in words.flat_map(|word| word.split(',')) {
            let (name, membership) = match name.strip_prefix('-') {
                Some(name) => (name, Membership::Removed),
                None => (name, Membership::Present),
            };
            entry = entry.with_channel(Channel::new(name).map_err(|e| e.to_string())?, membership);
        }
        Ok(entry)
    }
}

impl MutationDecoder for Lines {
    fn decode(&self, mutation: &Mutation) -> Decoded {
        if mutation.key.starts_with(b"internal:") {
            return Decoded::Ignored(Ignored::Internal);
        }
        match Lines::parse(mutation) {
            Ok(entry) => Decoded::Document(entry.into()),
            // Never fail and never panic: what cannot be understood is counted, logged with its key, and left out.
            Err(reason) => Decoded::Invalid(Invalid { reason }),
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let store = std::env::args().skip_while(|arg| arg != "--store").nth(1).unwrap_or("memory:".to_owned());
    let events = [
        ("apple", "2 red,green"),
        ("sky", "1 blue"),
        ("internal:counter", "5"),
        ("leaf", "green, but no sequence"),
        ("plum", "3 blue"),
        ("cherry", "4 blue"),
        ("cherry", "5/4 red -blue"),
    ];
    let events = events.map(|(key, value)| Mutation::new(key, value)).to_vec();
    let mut cache = Sluicegate::builder()
        .store(store)
        .with_feed(Arc::new(MemoryFeed::new("lines", events)))
        .decoder(Arc::new(Lines))
        .start()
        .await?;
    cache.caught_up().await?;
    let mut found = Vec::new();
    for name in ["blue", "green", "red"] {
        let answer = cache.changes(&[Channel::new(name)?], &ChangesOptions::new()).await?;
        let row = |row: &AnswerRow| {
            let left = if row.removed.is_empty() { "" } else { " (left)" };
            format!("{} {}{left}", row.id, row.entry.document())
        };
        let rows = answer.rows.iter().map(row).collect::<Vec<_>>().join(", ");
        println!("{name:6} {rows}");
        found.push(rows);
    }
    let stats = cache.shutdown().await?.map(|status| status.stats).unwrap_or_default();
    println!("{} cached, {} ignored, {} not understood", stats.cached, stats.ignored, stats.invalid);
    let expected = ["1 sky, 3 plum, 5 cherry (left)", "2 apple", "2 apple, 5 cherry"];
    if found != expected || (stats.cached, stats.ignored, stats.invalid) != (5, 1, 1) {
        return Err(Error::new(ErrorKind::Unexpected, "the channels do not have what the lines say"));
    }
    Ok(())
}
