//! A store (`plainmap:`) and a feed (`countdown:`) that Sluicegate knows nothing of.
//!
//! Each submits a factory; a program that links this crate (`use third_party as _;`) can open both by URL.

mod countdown;
mod plain_map;

pub use countdown::Countdown;
pub use plain_map::PlainMap;
