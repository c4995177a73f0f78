//! The gateway's metadata of one document, as far as the cache needs it.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::json::{Result, Scanner};

/// The limit for elements of a list of sequences; the newest are kept. The gateway keeps about 20,
/// and more while its stable sequence does not move.
pub(super) const MAX_NUMBERS: usize = 10_000;

/// Numbers of one list.
pub(super) type Numbers = SmallVec<[u64; 8]>;

/// What the metadata says, in its own words. Absent fields are empty or zero.
#[derive(Debug, Default)]
pub(super) struct Metadata<'a> {
    pub(super) revision: Cow<'a, str>,
    /// Source and number of the revision's current version. Since gateway 4.0.
    pub(super) source: Cow<'a, str>,
    pub(super) version: Cow<'a, [u8]>,
    pub(super) sequence: u64,
    pub(super) flags: u64,
    /// The document's CAS when the metadata was written.
    pub(super) cas: Cow<'a, [u8]>,
    /// Sequences of the last revisions, this one included, and those that their writes did not use.
    pub(super) recent: Numbers,
    /// Sequences that this write allocated and did not use, sorted.
    pub(super) unused: Numbers,
    /// How many elements of the two lists were over [`MAX_NUMBERS`].
    pub(super) cut: [usize; 2],
    /// The channel map, sorted by name, each name once.
    pub(super) channels: SmallVec<[ChannelState<'a>; 4]>,
    /// The last stay in each channel.
    pub(super) last_stays: Stays<'a>,
    /// Stays before those.
    pub(super) earlier_stays: Stays<'a>,
}

/// How the document stands in a channel that it is or was in.
#[derive(Debug)]
pub(super) struct ChannelState<'a> {
    /// Its name, not known to be UTF-8.
    pub(super) name: Cow<'a, [u8]>,
    /// That it left; `None` if it is in the channel.
    pub(super) removal: Option<Removal<'a>>,
}

/// That the document left a channel.
#[derive(Debug, Default)]
pub(super) struct Removal<'a> {
    pub(super) sequence: u64,
    pub(super) revision: Cow<'a, str>,
    /// By being deleted.
    pub(super) deleted: bool,
}

/// A time that the document was in a channel.
#[derive(Debug, Default)]
pub(super) struct Stay<'a> {
    pub(super) channel: Cow<'a, [u8]>,
    /// The sequence at which it entered.
    pub(super) start: u64,
    /// The sequence at which it left; zero if it did not.
    pub(super) end: u64,
}

impl<'a> Metadata<'a> {
    /// Reads the object that comes next into this, which must be empty: it is too large to be handed around. Of fields that come
    /// twice the last one counts.
    pub(super) fn read(&mut self, scanner: &mut Scanner<'a>) -> Result<()> {
        let m = self;
        scanner.object(|s, key| {
            match key {
                b"rev" => m.read_revision(s)?,
                b"sequence" => m.sequence = s.u64()?,
                b"flags" => m.flags = s.u64()?,
                b"cas" => m.cas = s.bytes()?,
                b"recent_sequences" => m.cut[0] = numbers(s, &mut m.recent)?,
                b"unused_sequences" => {
                    m.cut[1] = numbers(s, &mut m.unused)?;
                    m.unused.sort_unstable();
                }
                b"channels" => m.read_channels(s)?,
                b"channel_set" => m.last_stays.read(s)?,
                b"channel_set_history" => m.earlier_stays.read(s)?,
                _ => s.skip()?,
            }
            Ok(())
        })
    }

    /// Whether it has neither a sequence nor a revision.
    pub(super) fn is_empty(&self) -> bool {
        self.sequence == 0 && self.revision.is_empty()
    }

    /// A revision: a string, or an object with one and with its version.
    #[inline]
    fn read_revision(&mut self, scanner: &mut Scanner<'a>) -> Result<()> {
        (self.source, self.version) = Default::default();
        if scanner.peek()? != b'{' {
            self.revision = scanner.string()?;
            return Ok(());
        }
        self.revision = Cow::default();
        scanner.object(|s, key| {
            match key {
                b"rev" => self.revision = s.string()?,
                b"src" if s.peek()? == b'"' => self.source = s.string()?,
                b"ver" if s.peek()? == b'"' => self.version = s.bytes()?,
                _ => s.skip()?,
            }
            Ok(())
        })
    }

    fn read_channels(&mut self, scanner: &mut Scanner<'a>) -> Result<()> {
        let channels = &mut self.channels;
        channels.clear();
        if scanner.null()? {
            return Ok(());
        }
        scanner.map(|s, name| {
            let removal = if s.null()? { None } else { Some(removal(s)?) };
            channels.push(ChannelState { name, removal });
            Ok(())
        })?;
        // The gateway writes them sorted.
        if !channels.is_sorted_by(|a, b| a.name < b.name) {
            channels.sort_by(|a, b| a.name.cmp(&b.name));
            channels.reverse();
            channels.dedup_by(|next, kept| next.name == kept.name);
            channels.reverse();
        }
        Ok(())
    }
}

/// Stays in channels.
#[derive(Debug, Default)]
pub(super) struct Stays<'a> {
    list: SmallVec<[Stay<'a>; 4]>,
    /// Long lists are sorted by channel, so that a document in very many channels does not cost their square.
    sorted: bool,
}

/// Up to this length a list is searched from one end to the other.
const SHORT: usize = 16;

impl<'a> Stays<'a> {
    fn read(&mut self, scanner: &mut Scanner<'a>) -> Result<()> {
        let list = &mut self.list;
        list.clear();
        if scanner.null()? {
            return Ok(());
        }
        scanner.array(|s| {
            let mut stay = Stay::default();
            s.object(|s, key| {
                match key {
                    b"name" => stay.channel = s.bytes()?,
                    b"start" => stay.start = s.u64()?,
                    b"end" => stay.end = if s.null()? { 0 } else { s.u64()? },
                    _ => s.skip()?,
                }
                Ok(())
            })?;
            list.push(stay);
            Ok(())
        })?;
        self.sorted = list.len() > SHORT;
        if self.sorted {
            list.sort_unstable_by(|a, b| a.channel.cmp(&b.channel));
        }
        Ok(())
    }

    /// Those in `channel`.
    #[inline]
    pub(super) fn of(&self, channel: &[u8]) -> impl Iterator<Item = &Stay<'a>> {
        let (from, to) = if self.sorted {
            let from = self.list.partition_point(|stay| *stay.channel < *channel);
            (from, from + self.list[from..].partition_point(|stay| *stay.channel == *channel))
        } else {
            (0, self.list.len())
        };
        self.list[from..to].iter().filter(move |stay| *stay.channel == *channel)
    }
}

/// A revision: a string, or an object with one.
#[inline]
fn revision<'a>(scanner: &mut Scanner<'a>) -> Result<Cow<'a, str>> {
    if scanner.peek()? != b'{' {
        return scanner.string();
    }
    let mut revision = Cow::default();
    scanner.object(|s, key| {
        if key == b"rev" {
            revision = s.string()?;
            Ok(())
        } else {
            s.skip()
        }
    })?;
    Ok(revision)
}

fn removal<'a>(scanner: &mut Scanner<'a>) -> Result<Removal<'a>> {
    let mut removal = Removal::default();
    scanner.object(|s, key| {
        match key {
            b"seq" => removal.sequence = s.u64()?,
            b"rev" => removal.revision = revision(s)?,
            b"del" => removal.deleted = s.bool()?,
            _ => s.skip()?,
        }
        Ok(())
    })?;
    Ok(removal)
}

/// Reads a list of sequences; returns how many were left out because the list is too long.
#[inline]
fn numbers(scanner: &mut Scanner<'_>, numbers: &mut Numbers) -> Result<usize> {
    numbers.clear();
    if scanner.null()? {
        return Ok(0);
    }
    let mut cut = 0;
    scanner.array(|s| {
        // At twice the limit, so that a very long list costs no more per number than a short one.
        if numbers.len() == 2 * MAX_NUMBERS {
            cut += keep_newest(numbers, MAX_NUMBERS);
        }
        numbers.push(s.u64()?);
        Ok(())
    })?;
    Ok(cut + keep_newest(numbers, MAX_NUMBERS))
}

/// Drops all but the `most` greatest; returns how many were dropped. If none are, the order stays.
#[inline]
fn keep_newest<A: smallvec::Array<Item: Ord>>(numbers: &mut SmallVec<A>, most: usize) -> usize {
    let excess = numbers.len().saturating_sub(most);
    if excess > 0 {
        numbers.select_nth_unstable(excess);
        numbers.drain(..excess);
    }
    excess
}

/// A property of a body is taken for the gateway's metadata if it has at least this many of these
/// fields, with any values.
///
/// Bodies of other programs may have a property `_sync` of their own. Every gateway has written at
/// least `rev`, `sequence` and `history`, so metadata with a missing or broken field are still
/// recognized, and reported as broken.
const MARKS: (usize, [&[u8]; 7]) =
    (2, [b"rev", b"sequence", b"history", b"channels", b"recent_sequences", b"cas", b"time_saved"]);

/// Whether the next value, in a body, is the gateway's metadata by its fields.
pub(super) fn is_gateways(scanner: &mut Scanner<'_>) -> bool {
    let (least, names) = MARKS;
    let mut found = [false; MARKS.1.len()];
    // Fields before an error count: metadata may be cut off.
    let _ = scanner.object(|s, key| {
        if let Some(place) = names.iter().position(|name| *name == key) {
            found[place] = true;
        }
        s.skip()
    });
    found.iter().filter(|found| **found).count() >= least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Metadata<'_>> {
        let mut metadata = Metadata::default();
        metadata.read(&mut Scanner::new(text.as_bytes()))?;
        Ok(metadata)
    }

    #[test]
    fn of_fields_and_channels_that_come_twice_the_last_counts() {
        let text = r#"{"rev":"1-a","sequence":1,"channels":{"z":null},"recent_sequences":[1,2],"rev":"2-b","sequence":2,
            "channels":{"b":null,"a":{"seq":1},"b":{"seq":2,"seq":3}},"recent_sequences":[3],
            "channel_set":[{"name":"x","start":1}],"channel_set":null}"#;
        let m = read(text).unwrap();
        assert_eq!((&*m.revision, m.sequence, &m.recent[..]), ("2-b", 2, &[3][..]));
        let channels: Vec<_> =
            m.channels.iter().map(|c| (std::str::from_utf8(&c.name).unwrap(), c.removal.as_ref().map(|r| r.sequence))).collect();
        assert_eq!(channels, [("a", Some(1)), ("b", Some(3))]);
        assert_eq!(m.last_stays.of(b"x").count(), 0);
    }

    #[test]
    fn a_revision_may_be_an_object_and_unknown_fields_are_skipped() {
        let text = r#"{"x":[{"rev":"no"}],"rev":{"src":"s","rev":"3-c","ver":"v"},"channels":{"a":{"rev":{"rev":"2-b"},"del":true,"y":{}}}}"#;
        let m = read(text).unwrap();
        assert_eq!(m.revision, "3-c");
        let removal = m.channels[0].removal.as_ref().unwrap();
        assert_eq!((&*removal.revision, removal.deleted), ("2-b", true));
    }

    #[test]
    fn stays_are_found_in_short_and_in_long_lists() {
        for count in [3, SHORT, SHORT + 1, 500] {
            let stays: Vec<String> = (0..count).rev().map(|n| format!(r#"{{"name":"c{}","start":{n}}}"#, n / 2)).collect();
            let text = format!(r#"{{"channel_set_history":[{}]}}"#, stays.join(","));
            let m = read(&text).unwrap();
            for n in 0..count {
                let mut starts: Vec<u64> = m.earlier_stays.of(format!("c{}", n / 2).as_bytes()).map(|s| s.start).collect();
                starts.sort_unstable();
                assert!(starts.contains(&(n as u64)) && starts.len() <= 2, "{count} {n} {starts:?}");
            }
            assert_eq!(m.earlier_stays.of(b"none").count(), 0);
        }
    }

    #[test]
    fn wrong_types_are_errors() {
        for text in [
            "[]",
            r#"{"sequence":"1"}"#,
            r#"{"sequence":1.0}"#,
            r#"{"sequence":-1}"#,
            r#"{"rev":5}"#,
            r#"{"channels":[]}"#,
            r#"{"channels":{"a":1}}"#,
            r#"{"recent_sequences":{}}"#,
            r#"{"recent_sequences":[null]}"#,
            r#"{"channel_set":{}}"#,
            r#"{"channel_set":[1]}"#,
            r#"{"cas":1}"#,
            r#"{"x":tru}"#,
            r#"{"sequence":1"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn of_lists_that_are_too_long_the_newest_numbers_are_kept() {
        for count in [MAX_NUMBERS, MAX_NUMBERS + 1, 2 * MAX_NUMBERS, 2 * MAX_NUMBERS + 1, 5 * MAX_NUMBERS + 7] {
            let list = |numbers: &mut dyn Iterator<Item = usize>| numbers.map(|n| n.to_string()).collect::<Vec<_>>().join(",");
            let (up, down) = (list(&mut (1..=count)), list(&mut (1..=count).rev()));
            let text = format!(r#"{{"recent_sequences":[{down}],"unused_sequences":[{up}]}}"#);
            let mut m = read(&text).unwrap();
            let cut = count - MAX_NUMBERS;
            assert_eq!(m.cut, [cut, cut]);
            m.recent.sort_unstable();
            for numbers in [&m.recent, &m.unused] {
                assert!(numbers.iter().copied().eq((cut as u64 + 1)..=count as u64), "{count}");
            }
        }
    }

    #[test]
    fn the_gateways_metadata_is_told_from_a_property_of_the_same_name() {
        let is = |text: &str| is_gateways(&mut Scanner::new(text.as_bytes()));
        for text in [
            r#"{"rev":"1-a","sequence":1}"#,
            r#"{"rev":{"rev":"1-a"},"history":{}}"#,
            r#"{"x":{"\ud800":1e400},"sequence":0,"channels":null}"#,
            r#"{"sequence":"1","rev":"1-a","recent_sequences":[1]}"#,
            r#"{"rev":"1-a","sequence":18446744073709551616"#,
            r#"{"cas":"","time_saved":"2026-11-22T00:35:29Z","x":tru"#,
            r#"{"sequence":"many","rev":7}"#,
        ] {
            assert!(is(text), "{text}");
        }
        for text in [
            "5",
            "null",
            "[]",
            "\"rev\"",
            "{}",
            r#"{"status":"pending"}"#,
            r#"{"sequence":12,"state":"done"}"#,
            r#"{"rev":5,"rev":"1-a"}"#,
            r#"{"rev":"abc","hist":[]}"#,
            r#"{"x":{"rev":"1-a","sequence":1}}"#,
        ] {
            assert!(!is(text), "{text}");
        }
    }
}
