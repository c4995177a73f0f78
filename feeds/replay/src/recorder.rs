//! Writes a feed's events down, so that they can be played back without it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use serde_json::value::RawValue;
use sluicegate_core::decode::attributes;
use sluicegate_core::feed::FeedInfo;
use sluicegate_core::{Error, ErrorKind, FeedEvent, Mutation, Result};

use crate::line::MAX_LINE_BYTES;
use crate::notice::{Header, Large, Notice};

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Recorded {
    /// Events, of all kinds.
    pub events: u64,
    /// Those about a key.
    pub mutations: u64,
    /// Bytes of all lines, before they are compressed.
    pub bytes: u64,
}

/// Writes a feed's events to a recording, which [`ReplayFeed`](crate::ReplayFeed) plays back as the feed delivered them: mutations with every byte,
/// snapshots, histories, what was taken back. Blocks.
///
/// A recording holds the documents as they are. Where a program ends without [`finish`](Self::finish), all that was
/// [flushed](Self::flush) is there, and playing it back ends with an error.
pub struct Recorder<W: Write> {
    out: Out<W>,
    line: Vec<u8>,
    recorded: Recorded,
}

impl<W: Write> fmt::Debug for Recorder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("recorded", &self.recorded).finish_non_exhaustive()
    }
}

enum Out<W: Write> {
    Plain(BufWriter<W>),
    Gzip(Box<GzEncoder<BufWriter<W>>>),
}

impl<W: Write> Out<W> {
    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Out::Plain(out) => out,
            Out::Gzip(out) => out,
        }
    }
}

impl Recorder<File> {
    /// Records into a new file, which only its owner may read; compressed if its name ends in `.gz`.
    ///
    /// # Errors
    /// `AlreadyExists` if there is a file; `Unavailable` if it cannot be made or written.
    pub fn create(path: &Path, info: &FeedInfo) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).map_err(|e| {
            let error = match e.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    Error::new(ErrorKind::AlreadyExists, "there is a file of that name; name another, or remove it")
                }
                _ => Error::new(ErrorKind::Unavailable, "the recording cannot be made; check its folder and permissions"),
            };
            error.with_operation("record").with_context("file", path.display()).with_source(e)
        })?;
        let is_compressed = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
        Recorder::new(file, info, is_compressed)
    }
}

impl<W: Write> Recorder<W> {
    /// Records into `out` what the feed of this description delivers; with `is_compressed`, as gzip.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be written.
    pub fn new(out: W, info: &FeedInfo, is_compressed: bool) -> Result<Self> {
        let out = BufWriter::with_capacity(64 << 10, out);
        let out = match is_compressed {
            true => Out::Gzip(Box::new(GzEncoder::new(out, Compression::fast()))),
            false => Out::Plain(out),
        };
        let mut recorder = Recorder { out, line: Vec::new(), recorded: Recorded::default() };
        recorder.write_line(&Header::of(info))?;
        Ok(recorder)
    }

    /// Writes one event down.
    ///
    /// # Errors
    /// `TooLarge`, naming the key, for one that could not be read again; `Unavailable` if it cannot be written. Then the recording is of no use.
    pub fn write(&mut self, event: &FeedEvent) -> Result<()> {
        let n = self.recorded.events + 1;
        if let FeedEvent::Mutation(mutation) = event {
            self.write_line(&MutationLine::of(n, mutation)).map_err(|e| e.with_context("key", mutation.key.escape_ascii()))?;
            self.recorded.mutations += 1;
        } else if let FeedEvent::CollectionNames(names) = event {
            // The names are not an event of the feed: they have no index.
            return self.write_line(&NamesLine { collections: names.iter().map(|(id, name)| (*id, &**name)).collect() });
        } else {
            let Some(notice) = Notice::of(event) else { return Ok(()) };
            self.write_line(&NoticeLine { n, notice })?;
        }
        self.recorded.events = n;
        Ok(())
    }

    /// What was written until now.
    pub fn recorded(&self) -> Recorded {
        self.recorded
    }

    /// Hands on all that was written: it stays if the program ends.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.out.writer().flush().map_err(unwritten)
    }

    /// Ends the recording, and gives back what it was written to.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be written.
    pub fn finish(self) -> Result<(W, Recorded)> {
        let out = match self.out {
            Out::Plain(out) => out,
            Out::Gzip(out) => out.finish().map_err(unwritten)?,
        };
        let out = out.into_inner().map_err(|e| unwritten(e.into_error()))?;
        Ok((out, self.recorded))
    }

    fn write_line(&mut self, line: &impl Serialize) -> Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, line)
            .map_err(|e| Error::new(ErrorKind::Unexpected, "an event cannot be written as JSON; this is a bug").with_source(e))?;
        self.line.push(b'\n');
        if self.line.len() as u64 > MAX_LINE_BYTES {
            let message =
                format!("the event takes a line of over {} MiB; leave it out, or do without a recording", MAX_LINE_BYTES >> 20);
            return Err(Error::new(ErrorKind::TooLarge, message).with_operation("record"));
        }
        self.out.writer().write_all(&self.line).map_err(unwritten)?;
        self.recorded.bytes += self.line.len() as u64;
        Ok(())
    }
}

fn unwritten(e: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "the recording cannot be written; is the disk full?")
        .with_operation("record")
        .with_source(e)
}

#[derive(Serialize)]
struct NamesLine<'a> {
    collections: BTreeMap<u32, &'a str>,
}

#[derive(Serialize)]
struct NoticeLine {
    n: u64,
    #[serde(flatten)]
    notice: Notice,
}

/// A mutation as `line` reads it.
#[derive(Serialize)]
struct MutationLine<'a> {
    n: u64,
    vb: u16,
    seqno: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    cas: Large,
    rev_no: u64,
    datatype: u8,
    coll: u32,
    flags: u32,
    expiry: u32,
    #[serde(flatten)]
    value: Value<'a>,
}

/// A value with its parts as they stand, or whole.
#[derive(Default, Serialize)]
struct Value<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    xattrs: Option<Attributes<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_b64: Option<String>,
}

/// The attributes of a value, in their order.
struct Attributes<'a>(Vec<(&'a str, &'a RawValue)>);

impl Serialize for Attributes<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

impl<'a> MutationLine<'a> {
    fn of(n: u64, mutation: &'a Mutation) -> Self {
        let key = std::str::from_utf8(&mutation.key).ok();
        MutationLine {
            n,
            vb: mutation.partition.0,
            seqno: mutation.seqno.0,
            op: mutation.kind.name(),
            key,
            key_b64: key.is_none().then(|| BASE64.encode(&mutation.key)),
            cas: Large(mutation.cas),
            rev_no: mutation.rev_no,
            datatype: mutation.datatype.0,
            coll: mutation.collection,
            flags: mutation.flags,
            expiry: mutation.expiry,
            value: apart(mutation)
                .unwrap_or_else(|| Value { value_b64: Some(BASE64.encode(&mutation.value)), ..Value::default() }),
        }
    }
}

/// The value with its parts as they stand, if all of them can be written so that every byte is kept.
fn apart(mutation: &Mutation) -> Option<Value<'_>> {
    if mutation.datatype.is_compressed() {
        return None;
    }
    let value = &mutation.value[..];
    let mut xattrs = None;
    let mut body = value;
    if mutation.datatype.has_attributes() {
        let pairs = attributes::iter(value).ok()?.map(|pair| {
            let (name, value) = pair.ok()?;
            Some((std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?, json(value)?))
        });
        xattrs = Some(Attributes(pairs.collect::<Option<_>>()?));
        body = attributes::body(value).ok()?;
    }
    // As a JSON null a missing body is written.
    let as_json = json(body).filter(|body| body.get() != "null");
    let body_b64 = (as_json.is_none() && !body.is_empty()).then(|| BASE64.encode(body));
    Some(Value { xattrs, body: as_json, body_b64, value_b64: None })
}

/// JSON in one line with nothing around it, as it stands.
fn json(bytes: &[u8]) -> Option<&RawValue> {
    let value: &RawValue = serde_json::from_slice(bytes).ok()?;
    (value.get().len() == bytes.len() && !bytes.contains(&b'\n')).then_some(value)
}
