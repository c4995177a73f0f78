#![doc = include_str!("../README.md")]

mod cache;
mod feed;
pub mod mutate;
mod testdata;
mod wire;

use std::fmt::Debug;

/// One decoder, and what must hold for whatever bytes it gets.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name in commands.
    pub name: &'static str,
    /// Inputs to begin with: recorded ones, or what the project itself writes. All of them decode.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Decodes the bytes; whether that went well. Panics if something does not hold that must.
    pub check: fn(&[u8]) -> bool,
}

/// All of them.
pub fn targets() -> Vec<Target> {
    [wire::TARGETS, cache::TARGETS, feed::TARGETS].concat()
}

/// The target called `name`.
pub fn target(name: &str) -> Option<Target> {
    targets().into_iter().find(|target| target.name == name)
}

/// What `decode` gives.
///
/// # Panics
/// If it holds more than `limit` bytes of memory at a time, counting only what it allocates itself.
pub fn within<T>(limit: usize, decode: impl FnOnce() -> T) -> T {
    let mut result = None;
    let info = allocation_counter::measure(|| result = Some(decode()));
    assert!(info.bytes_max <= limit as u64, "a decoder held {} bytes; {limit} are its limit here", info.bytes_max);
    result.expect("what is measured has run")
}

/// What was decoded; an error must be presentable.
fn presented<T, E: std::error::Error>(result: Result<T, E>) -> Option<T> {
    let say = |error: E| {
        assert!(!error.to_string().is_empty() && !format!("{error:?}").is_empty());
    };
    result.map_err(say).ok()
}

/// Decodes, and if that goes well, encodes and decodes again: that must give the same.
fn round_trip<T: Debug + PartialEq, B: AsRef<[u8]>, E: std::error::Error>(
    bytes: &[u8],
    limit: usize,
    decode: impl Fn(&[u8]) -> Result<T, E>,
    encode: impl Fn(&T) -> B,
) -> bool {
    let Some(decoded) = presented(within(limit, || decode(bytes))) else { return false };
    let again = decode(encode(&decoded).as_ref()).expect("what was encoded decodes");
    assert_eq!(again, decoded, "it decodes to something else after encoding");
    true
}

/// The limit for a decoder of JSON: a small text can be a larger value, by a constant factor, and vectors grow by doubling.
fn json_limit(bytes: &[u8]) -> usize {
    (16 << 10) + 32 * bytes.len()
}
