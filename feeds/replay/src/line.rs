//! The lines of a recording, one JSON object each: an event, a marker, or first of all what the recording is. Here they are read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use sluicegate_core::decode::attributes;
use sluicegate_core::feed::{Datatype, MutationKind};
use sluicegate_core::{Error, ErrorKind, FeedEvent, Mutation, PartitionId, PartitionSeqno, Result, Sequence};

use crate::notice::{Header, Notice};
use crate::recording::Marker;

/// The longest line accepted; a longer one is refused before it is held in memory. A document is at most 20 MiB.
pub(crate) const MAX_LINE_BYTES: u64 = 64 << 20;

/// What a line says.
#[derive(Debug)]
pub(crate) enum Line {
    /// An event and its index.
    Event(u64, FeedEvent),
    /// All that was asked at the marker has been answered: its state is the state here.
    MarkerEnd(Marker),
    /// The answers of a marker begin here.
    MarkerBegin,
    /// The names of collections.
    Collections(Vec<(u32, Box<str>)>),
}

/// Reads a recording line by line. After an error it is at its end.
pub(crate) struct Lines<R> {
    reader: R,
    file: PathBuf,
    buffer: Vec<u8>,
    number: u64,
    last_n: u64,
    header: Header,
    has_begun: bool,
    /// A line that was read to see whether it is the header.
    ahead: Option<Result<Line>>,
    failed: bool,
}

/// Opens the recording at `path`, gzip or plain; the file's first bytes tell, not its name.
///
/// # Errors
/// `NotFound` if there is no such file, `ConfigInvalid` if it is none, `Unavailable` if it cannot be read.
pub(crate) fn open(path: &Path) -> Result<Lines<Box<dyn BufRead + Send>>> {
    let failed = |e: std::io::Error| {
        let error = match e.kind() {
            std::io::ErrorKind::NotFound => Error::new(
                ErrorKind::NotFound,
                "no such recording; check the path, which is taken as it stands and from the working directory unless absolute",
            ),
            std::io::ErrorKind::IsADirectory => Error::config("a directory is not a recording; name a file in it"),
            _ => Error::new(ErrorKind::Unavailable, "the recording cannot be read; check its permissions"),
        };
        error.with_operation("open recording").with_context("file", path.display()).with_source(e)
    };
    if path.as_os_str().is_empty() {
        return Err(Error::config("no file is named; write replay:FILE"));
    }
    let mut file = std::fs::File::open(path).map_err(failed)?;
    // Two bytes are enough to tell; a file may well be shorter.
    let mut magic = Vec::with_capacity(2);
    (&mut file).take(2).read_to_end(&mut magic).map_err(failed)?;
    let gzip = magic == [0x1f, 0x8b];
    let whole = std::io::BufReader::with_capacity(128 << 10, std::io::Cursor::new(magic).chain(file));
    let reader: Box<dyn BufRead + Send> =
        if gzip { Box::new(std::io::BufReader::with_capacity(128 << 10, MultiGzDecoder::new(whole))) } else { Box::new(whole) };
    Ok(Lines::new(reader, path))
}

impl<R: BufRead> Lines<R> {
    /// Reads from `reader`; `path` is for messages.
    pub(crate) fn new(reader: R, path: &Path) -> Self {
        Lines {
            reader,
            file: path.to_owned(),
            buffer: Vec::new(),
            number: 0,
            last_n: 0,
            header: Header::default(),
            has_begun: false,
            ahead: None,
            failed: false,
        }
    }

    /// What the recording says of itself. Reads its beginning; what is wrong there shows with the first line.
    pub(crate) fn header(&mut self) -> &Header {
        if self.number == 0 {
            self.ahead = self.next();
        }
        &self.header
    }

    /// The line of the first event, if there is one that can be read. Reads up to there.
    pub(crate) fn first_event(&mut self) -> Option<&[u8]> {
        loop {
            match self.next() {
                Some(Ok(Line::Event(..))) => return Some(self.buffer.trim_ascii()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// The error for the line just read: a last line without an end was cut off in writing.
    fn cut_off(&self, error: Error) -> Error {
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(&self.buffer);
        if self.buffer.ends_with(b"\n") || !json.is_err_and(|e| e.is_eof()) {
            return error;
        }
        let next_step = match self.last_n {
            0 => "there is no complete event before it".to_owned(),
            last => format!("the option until={last} ends with what there is"),
        };
        Error::corrupt(format!("not a line of a recording: it is the last one, and cut off; {next_step}")).with_source(error)
    }

    fn read_line(&mut self) -> Result<Option<Line>> {
        loop {
            self.buffer.clear();
            self.number += 1;
            let read = (&mut self.reader).take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut self.buffer);
            match read {
                Ok(0) => return Ok(None),
                Ok(n) if n as u64 > MAX_LINE_BYTES => {
                    return Err(Error::corrupt(format!("a line is longer than {} MiB", MAX_LINE_BYTES >> 20)));
                }
                Ok(_) => {}
                // How gzip says that its data is damaged or cut off.
                Err(e) if matches!(e.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData) => {
                    return Err(Error::corrupt("the compressed data is damaged").with_source(e));
                }
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    let last = self.last_n;
                    let message = format!("the compressed data is cut off; the option until={last} ends with what there is");
                    return Err(Error::corrupt(message).with_source(e));
                }
                Err(e) => return Err(Error::new(ErrorKind::Unavailable, "the recording cannot be read").with_source(e)),
            }
            if self.buffer.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let parsed = parse(&self.buffer, self.header.partitions).map_err(|e| self.cut_off(e))?;
            let line = match parsed {
                Parsed::Line(line) => line,
                Parsed::Header(header) if !self.has_begun => {
                    (self.header, self.has_begun) = (header, true);
                    continue;
                }
                Parsed::Header(_) => return Err(Error::corrupt("what the recording is must be said in its first line")),
            };
            // Names may come before the header, or after it.
            self.has_begun |= !matches!(line, Line::Collections(_));
            if let Line::Event(n, _) = &line {
                if *n <= self.last_n {
                    return Err(Error::corrupt(format!("feed index {n} does not come after {}", self.last_n)));
                }
                self.last_n = *n;
            }
            return Ok(Some(line));
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(line) = self.ahead.take() {
            return Some(line);
        }
        if self.failed {
            return None;
        }
        let line = self.read_line().transpose()?;
        self.failed = line.is_err();
        Some(line.map_err(|e| {
            let e = e.with_operation("read recording");
            e.with_context("file", self.file.display()).with_context("line", self.number)
        }))
    }
}

/// A line's fields, with the bytes of JSON values kept as they stand.
#[derive(Deserialize)]
struct Fields<'a> {
    recording: Option<u32>,
    collections: Option<BTreeMap<u32, Box<str>>>,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    marker: Option<u32>,
    #[serde(borrow)]
    phase: Option<Cow<'a, str>>,
    after_n: Option<u64>,
    high_seq: Option<u64>,
    n: Option<u64>,
    seqno: Option<u64>,
    vb: Option<u16>,
    #[serde(borrow)]
    op: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key_b64: Option<Cow<'a, str>>,
    #[serde(borrow)]
    cas: Option<Cow<'a, str>>,
    #[serde(default)]
    rev_no: u64,
    datatype: Option<u8>,
    #[serde(default)]
    coll: u32,
    #[serde(default)]
    flags: u32,
    #[serde(default)]
    expiry: u32,
    #[serde(borrow, default)]
    xattrs: Pairs<'a>,
    #[serde(default)]
    xattrs_b64: BTreeMap<String, String>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
    #[serde(borrow)]
    body_b64: Option<Cow<'a, str>>,
    body_len: Option<u64>,
    #[serde(borrow)]
    value_b64: Option<Cow<'a, str>>,
}

enum Parsed {
    Header(Header),
    Line(Line),
}

fn parse(line: &[u8], partitions: u16) -> Result<Parsed> {
    let no_line = |e| Error::corrupt("not a line of a recording").with_source(e);
    let fields: Fields<'_> = serde_json::from_slice(line).map_err(no_line)?;
    if fields.recording.is_some() {
        let header: Header = serde_json::from_slice(line).map_err(no_line)?;
        return header.checked().map(Parsed::Header);
    }
    if let Some(names) = fields.collections {
        return Ok(Parsed::Line(Line::Collections(names.into_iter().collect())));
    }
    let line = match fields.event {
        Some(_) => {
            let event = serde_json::from_slice::<Notice>(line).map_err(no_line)?.into();
            Line::Event(required(fields.n, "n")?, event)
        }
        None => line_of(fields)?,
    };
    if let Line::Event(_, event) = &line
        && let Some(PartitionId(partition)) = event.partition()
        && partition >= partitions
    {
        return Err(Error::corrupt(format!("partition {partition} is out of range; there are {partitions}")));
    }
    Ok(Parsed::Line(line))
}

/// A marker or a mutation.
fn line_of(fields: Fields<'_>) -> Result<Line> {
    if let Some(marker) = fields.marker {
        return match fields.phase.as_deref() {
            Some("begin") => Ok(Line::MarkerBegin),
            Some("end") => Ok(Line::MarkerEnd(Marker {
                marker,
                after_n: required(fields.after_n, "after_n")?,
                high_seq: Sequence(required(fields.high_seq, "high_seq")?),
            })),
            other => Err(Error::corrupt(format!("unknown phase {other:?} of a marker"))),
        };
    }
    let datatype = Datatype(required(fields.datatype, "datatype")?);
    let n = required(fields.n, "n")?;
    let mutation = Mutation {
        kind: kind_named(required(fields.op.as_deref(), "op")?)?,
        partition: PartitionId(required(fields.vb, "vb")?),
        seqno: PartitionSeqno(fields.seqno.unwrap_or(n)),
        value: value_of(&fields, datatype)?,
        cas: required(fields.cas.as_deref(), "cas")?
            .parse()
            .map_err(|e| Error::corrupt("`cas` is not a decimal number of 64 bits").with_source(e))?,
        datatype,
        rev_no: fields.rev_no,
        flags: fields.flags,
        expiry: fields.expiry,
        collection: fields.coll,
        key: match (fields.key, &fields.key_b64) {
            (None, Some(text)) => from_base64("key_b64", text)?.into(),
            (key, _) => match required(key, "key")? {
                Cow::Borrowed(key) => Bytes::copy_from_slice(key.as_bytes()),
                Cow::Owned(key) => Bytes::from(key),
            },
        },
    };
    Ok(Line::Event(n, FeedEvent::Mutation(mutation)))
}

/// The value as the wire has it.
fn value_of(fields: &Fields<'_>, datatype: Datatype) -> Result<Bytes> {
    if let Some(text) = &fields.value_b64 {
        return Ok(from_base64("value_b64", text)?.into());
    }
    let decoded;
    let body: &[u8] = match (fields.body, &fields.body_b64, fields.body_len) {
        (Some(body), _, _) => body.get().as_bytes(),
        (None, Some(text), _) => {
            decoded = from_base64("body_b64", text)?;
            &decoded
        }
        // Where only the length was kept the bytes are not known. Such keys mean nothing to a cache.
        (None, None, _) => &[],
    };
    if !datatype.has_attributes() {
        if !fields.xattrs.0.is_empty() || !fields.xattrs_b64.is_empty() {
            return Err(Error::corrupt("attributes are there, but not the datatype bit that says so"));
        }
        return Ok(Bytes::copy_from_slice(body));
    }
    let binary = fields.xattrs_b64.iter().map(|(key, text)| Ok((key.as_str(), from_base64("xattrs_b64", text)?)));
    let binary = binary.collect::<Result<Vec<_>>>()?;
    let pairs = fields.xattrs.0.iter().map(|(key, value)| (&**key, value.get().as_bytes()));
    let pairs: Vec<_> = pairs.chain(binary.iter().map(|(key, value)| (*key, value.as_slice()))).collect();
    Ok(attributes::encode(pairs, body)?.into())
}

fn kind_named(name: &str) -> Result<MutationKind> {
    let found = MutationKind::ALL.into_iter().find(|kind| kind.name() == name);
    found.ok_or_else(|| Error::corrupt(format!("unknown operation `{name}`")))
}

fn required<T>(field: Option<T>, name: &str) -> Result<T> {
    field.ok_or_else(|| Error::corrupt(format!("`{name}` is missing")))
}

fn from_base64(name: &str, text: &str) -> Result<Vec<u8>> {
    BASE64.decode(text).map_err(|e| Error::corrupt(format!("`{name}` is not base64")).with_source(e))
}

/// The members of an object in the order in which they stand, their values verbatim.
#[derive(Default)]
struct Pairs<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct PairsVisitor;

        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some((Key(key), value)) = map.next_entry()? {
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<Result<Line>> {
        Lines::new(text.as_bytes(), Path::new("some.ndjson")).collect()
    }

    fn mutation(fields: &str) -> Result<Mutation> {
        let text = format!(r#"{{"n":7,"vb":3,"op":"mutation","key":"k\u00e9","cas":"18446744073709551615",{fields}}}"#);
        match lines(&text).pop().unwrap()? {
            Line::Event(_, FeedEvent::Mutation(m)) => Ok(m),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_mutation_keeps_every_byte_of_attributes_and_body() {
        let m = mutation(
            r#""datatype":5,"rev_no":9,"coll":8,"flags":6,"expiry":5,"xattrs":{"b":{"x": 1.0e3},"a":"\u0041"},"body":{ "s":[1 ,2]}"#,
        )
        .unwrap();
        assert_eq!((m.key.as_ref(), m.cas, m.partition.0, m.seqno.0), ("ké".as_bytes(), u64::MAX, 3, 7));
        assert_eq!((m.rev_no, m.collection, m.flags, m.expiry, m.datatype.0), (9, 8, 6, 5, 5));
        let expected =
            attributes::encode([("b", br#"{"x": 1.0e3}"#.as_slice()), ("a", br#""\u0041""#)], br#"{ "s":[1 ,2]}"#).unwrap();
        assert_eq!(m.value, expected);
    }

    #[test]
    fn bodies_come_in_four_forms() {
        assert_eq!(mutation(r#""datatype":0,"body":0"#).unwrap().value, "0");
        assert_eq!(mutation(r#""datatype":0,"body":null"#).unwrap().value, "");
        assert_eq!(mutation(r#""datatype":0,"body_b64":"PQAA""#).unwrap().value, b"\x3d\0\0".as_slice());
        assert_eq!(mutation(r#""datatype":0,"body_len":57"#).unwrap().value, "");
    }

    #[test]
    fn attributes_that_are_not_json_come_as_base64() {
        let m = mutation(r#""datatype":4,"xattrs":{"a":1},"xattrs_b64":{"b":"/w=="},"body_b64":"""#).unwrap();
        assert_eq!(m.value, attributes::encode([("a", b"1".as_slice()), ("b", b"\xff")], b"").unwrap());
        assert_eq!(mutation(r#""datatype":4,"body":null"#).unwrap().value, [0, 0, 0, 0].as_slice());
    }

    #[test]
    fn what_is_wrong_is_named_with_file_and_line_and_ends_the_reading() {
        let good = r#"{"n":1,"vb":3,"op":"mutation","key":"k","cas":"1","datatype":0}"#;
        for (bad, complaint) in [
            ("{", "not a line"),
            (r#"{"n":2}"#, "`datatype` is missing"),
            (good, "feed index 1 does not come after 1"),
            (r#"{"n":2,"vb":1024,"op":"mutation","key":"k","cas":"1","datatype":0}"#, "partition 1024"),
            (r#"{"n":2,"vb":3,"op":"append","key":"k","cas":"1","datatype":0}"#, "`append`"),
            (r#"{"n":2,"vb":3,"op":"mutation","key":"k","cas":"-1","datatype":0}"#, "`cas`"),
            (r#"{"n":2,"vb":3,"op":"mutation","key":"k","cas":"1","datatype":0,"body_b64":"?"}"#, "`body_b64`"),
            (r#"{"n":2,"vb":3,"op":"mutation","key":"k","cas":"1","datatype":1,"xattrs":{"a":1}}"#, "datatype bit"),
            (r#"{"marker":2,"phase":"middle"}"#, "middle"),
            (r#"{"marker":2,"phase":"end"}"#, "`after_n`"),
        ] {
            let read = lines(&format!("{good}\n\n{bad}\n{good}\n"));
            assert_eq!(read.len(), 2, "{bad}");
            let error = read[1].as_ref().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            let message = error.to_string();
            assert!(message.contains(complaint) && message.contains("file some.ndjson, line 3"), "{message}");
        }
    }

    /// Never ends and never breaks the line.
    struct Endless;

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            buffer.fill(b' ');
            Ok(buffer.len())
        }
    }

    #[test]
    fn names_of_collections_are_a_line_of_their_own() {
        let read = lines("{\"collections\":{\"8\":\"s.c\",\"0\":\"_default._default\"}}\n{\"marker\":1,\"phase\":\"begin\"}\n");
        let [Ok(Line::Collections(names)), Ok(Line::MarkerBegin)] = &read[..] else { panic!("{read:?}") };
        assert_eq!(names[..], [(0, "_default._default".into()), (8, "s.c".into())]);
    }

    #[test]
    fn a_last_line_that_is_cut_off_names_the_option_to_do_without_it() {
        let good = r#"{"n":4,"vb":3,"op":"mutation","key":"k","cas":"1","datatype":0}"#;
        assert_eq!(lines(&format!("{good}\n{}", good.replace('4', "5"))).len(), 2);
        for cut in [1, 20, good.len() - 1] {
            let error = lines(&format!("{good}\n{}", &good[..cut])).pop().unwrap().unwrap_err().to_string();
            assert!(error.contains("cut off") && error.contains("until=4") && error.contains("line 2"), "{error}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let reader = std::io::BufReader::with_capacity(1 << 20, Endless);
        let error = Lines::new(reader, Path::new("endless")).next().unwrap().unwrap_err();
        assert!(error.to_string().contains("longer than 64 MiB"), "{error}");
    }
}
