//! Lines with events.

use sluicegate_core::decode::PrincipalKind;

use super::words::{Parsed, Words, expanded, names, number, numbers, range, size, unknown};
use crate::scenario::step::{Document, Event, Left, Put, Settings, Step};

/// The default revision.
const FIRST_REVISION: &str = "1-a";

pub(super) fn settings(words: &mut Words<'_>) -> Parsed<Step> {
    const KNOWN: &str = "max_wait=, max_pending=, skip_wait=, initial=, tail_min=, tail_max=, max_channels=, late_kept=, verify=";
    let mut settings = Settings::default();
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| unknown(word, KNOWN))?;
        match key {
            "max_wait" => settings.max_wait = Some(number(value)?),
            "max_pending" => settings.max_pending = Some(size(value)?),
            "skip_wait" => settings.skip_wait = Some(number(value)?),
            "initial" => settings.initial = Some(number(value)?),
            "tail_min" => settings.tail_min = Some(size(value)?),
            "tail_max" => settings.tail_max = Some(size(value)?),
            "max_channels" => settings.max_channels = Some(size(value)?),
            "late_kept" => settings.late_kept = Some(size(value)?),
            "verify" => {
                settings.verify = match value {
                    "true" => true,
                    "false" => false,
                    other => return Err(format!("verify={other}: expected true or false")),
                }
            }
            _ => return Err(unknown(word, KNOWN)),
        }
    }
    Ok(Step::New(Box::new(settings)))
}

fn collection(value: &str) -> Parsed<u32> {
    u32::try_from(number(value)?).map_err(|_| format!("collection={value} is too large"))
}

fn plain(id: String, sequence: u64, channels: Vec<String>) -> Document {
    Document {
        id,
        sequence,
        revision: FIRST_REVISION.to_owned(),
        channels,
        left: Vec::new(),
        recent: None,
        unused: Vec::new(),
        deleted: false,
        deletion: false,
        same_cas: true,
        same_checksum: true,
        version: None,
        collection: 0,
    }
}

fn positive(sequence: u64) -> Parsed<u64> {
    if sequence == 0 { Err("0 is not a sequence".to_owned()) } else { Ok(sequence) }
}

/// `1,3-5 A,B [key=ID]`
pub(super) fn direct(words: &mut Words<'_>) -> Parsed<Step> {
    const KNOWN: &str = "key=, collection=";
    let sequences = numbers(words.need("the sequences")?)?;
    let channels = names(words.need("the channels (`-` for none)")?)?;
    let (mut key, mut of) = (None, 0);
    for word in words {
        match word.split_once('=') {
            Some(("key", id)) => key = Some(id.to_owned()),
            Some(("collection", value)) => of = collection(value)?,
            _ => return Err(unknown(word, KNOWN)),
        }
    }
    let document = |sequence: u64| {
        let id = key.clone().unwrap_or_else(|| format!("doc-{sequence}"));
        Event::Document(Box::new(Document { collection: of, ..plain(id, sequence, channels.clone()) }))
    };
    Ok(Step::Events(sequences.into_iter().map(document).collect()))
}

/// `ID SEQ` and the metadata.
pub(super) fn document(words: &mut Words<'_>) -> Parsed<Step> {
    const KNOWN: &str = "rev=, ch=, left=, recent=, unused=, del, deletion, cas=, crc=, cv=, collection=";
    let id = words.need("the document's id")?.to_owned();
    let sequence = positive(number(words.need("the document's sequence")?)?)?;
    let mut document = plain(id, sequence, Vec::new());
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("rev", revision) if !revision.is_empty() => document.revision = revision.to_owned(),
            ("ch", channels) => document.channels = names(channels)?,
            ("left", channels) => document.left = channels.split(',').map(left).collect::<Parsed<_>>()?,
            ("recent", list) => document.recent = Some(numbers(list)?),
            ("unused", list) => document.unused = numbers(list)?,
            ("del", "") => document.deleted = true,
            ("deletion", "") => document.deletion = true,
            ("cas", value) => document.same_cas = same(word, value)?,
            ("crc", value) => document.same_checksum = same(word, value)?,
            ("cv", version) => document.version = Some(self::version(version)?),
            ("collection", value) => document.collection = collection(value)?,
            _ => return Err(unknown(word, KNOWN)),
        }
    }
    Ok(Step::Events(vec![Event::Document(Box::new(document))]))
}

fn same(word: &str, value: &str) -> Parsed<bool> {
    match value {
        "same" => Ok(true),
        "other" => Ok(false),
        _ => Err(format!("`{word}`: expected same or other")),
    }
}

/// `C@SEQ/REV[!]`
fn left(text: &str) -> Parsed<Left> {
    let (text_of, by_deletion) = match text.strip_suffix('!') {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let parts = text_of.split_once('@').and_then(|(channel, rest)| Some((channel, rest.split_once('/')?)));
    match parts {
        Some((channel, (sequence, revision))) if !channel.is_empty() && !revision.is_empty() => {
            let (channel, revision) = (channel.to_owned(), revision.to_owned());
            Ok(Left { channel, sequence: number(sequence)?, revision, by_deletion })
        }
        _ => Err(format!("`{text}`: expected a channel left, such as `A@7/2-b` or `A@7/2-b!`")),
    }
}

/// `SOURCE@VALUE`
fn version(text: &str) -> Parsed<(String, u64)> {
    let (source, value) = text.rsplit_once('@').ok_or_else(|| format!("cv={text}: expected SOURCE@VALUE"))?;
    Ok((source.to_owned(), number(value)?))
}

/// `ID [A,B|-]` and the options of the write.
pub(super) fn put(words: &mut Words<'_>, deleted: bool) -> Parsed<Step> {
    const KNOWN: &str = "channels, quiet, seq=, unused=, collection=";
    let ids = expanded(words.need("the document's id")?)?;
    let mut put =
        Put { id: String::new(), deleted, channels: None, quiet: false, sequence: None, unused: Vec::new(), collection: 0 };
    let mut is_first = !deleted;
    for word in words {
        match word.split_once('=') {
            Some(("seq", value)) => put.sequence = Some(positive(number(value)?)?),
            Some(("unused", list)) => put.unused = numbers(list)?,
            Some(("collection", value)) => put.collection = collection(value)?,
            None if word == "quiet" => put.quiet = true,
            None if is_first => put.channels = Some(names(word)?),
            _ => return Err(unknown(word, KNOWN)),
        }
        is_first = false;
    }
    if ids.len() > 1 && (put.sequence.is_some() || !put.unused.is_empty()) {
        return Err("seq= and unused= are for one document".to_owned());
    }
    let event = |id| Event::Put(Put { id, ..put.clone() });
    Ok(Step::Events(ids.into_iter().map(event).collect()))
}

/// `NAME [SEQ] [channels=A,B]`
pub(super) fn principal(verb: &str, words: &mut Words<'_>) -> Parsed<Step> {
    let kind = if verb == "user" { PrincipalKind::User } else { PrincipalKind::Role };
    let name = words.need("the name")?.to_owned();
    let (mut sequence, mut channels) = (None, Vec::new());
    for word in words {
        match word.split_once('=') {
            Some(("channels", list)) => channels = names(list)?,
            None if sequence.is_none() => sequence = Some(positive(number(word)?)?),
            _ => return Err(unknown(word, "a sequence, channels=")),
        }
    }
    Ok(Step::Events(vec![Event::Principal { kind, name, sequence, channels }]))
}

/// `USER CHANNELS SEQ`
pub(super) fn grant(words: &mut Words<'_>) -> Parsed<Step> {
    let name = words.need("the user")?.to_owned();
    let channels = names(words.need("the channels")?)?;
    let sequence = Some(positive(number(words.need("the sequence")?)?)?);
    Ok(Step::Events(vec![Event::Principal { kind: PrincipalKind::User, name, sequence, channels }]))
}

/// `3 4-9`
pub(super) fn unused(words: &mut Words<'_>) -> Parsed<Step> {
    let mut events = vec![Event::Unused(range(words.need("a number or a range")?)?)];
    for word in words {
        events.push(Event::Unused(range(word)?));
    }
    Ok(Step::Events(events))
}

pub(super) fn allocated(words: &mut Words<'_>) -> Parsed<Step> {
    Ok(Step::Events(vec![Event::Allocated(number(words.need("a number")?)?)]))
}

/// `ID SEQ A,B`: a document that is in the bucket, and that the feed does not deliver.
pub(super) fn stored(words: &mut Words<'_>) -> Parsed<Step> {
    words.need("the document's id")?;
    let sequence = positive(number(words.need("the document's sequence")?)?)?;
    names(words.need("the channels")?)?;
    Ok(Step::Events(vec![Event::Allocated(sequence)]))
}

/// `ID [collection=N]`
pub(super) fn purge(words: &mut Words<'_>) -> Parsed<Step> {
    let id = words.need("the document's id")?.to_owned();
    let mut of = 0;
    for word in words {
        match word.split_once('=') {
            Some(("collection", value)) => of = collection(value)?,
            _ => return Err(unknown(word, "collection=")),
        }
    }
    Ok(Step::Events(vec![Event::Purge { id, collection: of }]))
}
