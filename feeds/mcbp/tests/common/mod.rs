//! What the tests share.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use sluicegate_mcbp::dcp::{Durability, Prepare};
use sluicegate_mcbp::{Frame, FrameDecoder};

pub(crate) fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// The one frame that `bytes` are.
pub(crate) fn frame(bytes: &[u8]) -> Frame {
    let mut buffer = BytesMut::from(bytes);
    let frame = FrameDecoder::default().decode(&mut buffer).unwrap().expect("a whole frame");
    assert!(buffer.is_empty());
    frame
}

/// A durable write that has begun, of this key and value.
pub(crate) fn prepare(by_seqno: u64, key: &'static str, value: &'static str) -> Prepare {
    Prepare {
        by_seqno,
        rev_seqno: 1,
        flags: 0,
        expiry: 0,
        lock_time: 0,
        nru: 0,
        deleted: 0,
        durability: Durability::Majority,
        key: key.into(),
        value: value.into(),
    }
}

/// A recorded connection: the bytes of its frames in order, and whether the client sent them.
pub(crate) struct Recording {
    pub(crate) name: String,
    pub(crate) frames: Vec<(bool, Bytes)>,
}

impl Recording {
    /// What one side sent.
    pub(crate) fn stream(&self, by_client: bool) -> Vec<u8> {
        self.frames.iter().filter(|(client, _)| *client == by_client).flat_map(|(_, bytes)| bytes).copied().collect()
    }
}

pub(crate) fn wire() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/wire")
}

/// All recorded connections, by name.
pub(crate) fn recordings() -> Vec<Recording> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(wire()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let frames = text.lines().map(|line| {
            let (side, bytes) = line.split_once(' ').unwrap();
            (side == ">", hex(bytes).into())
        });
        Recording { name: path.file_name().unwrap().to_str().unwrap().to_owned(), frames: frames.collect() }
    };
    paths.into_iter().map(read).collect()
}
