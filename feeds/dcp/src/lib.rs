#![doc = include_str!("../README.md")]

mod answers;
mod backoff;
mod bootstrap;
mod dns;
mod driver;
mod feed;
mod flow;
mod handshake;
mod held_back;
mod horizon;
mod names;
mod node;
mod observer;
mod options;
mod orders;
mod parcel;
mod receive;
mod resume;
mod seeds;
mod status;
mod tally;
mod vbucket;

pub use feed::DcpFeed;
pub use options::{Compression, DcpOptions, Until};
pub use status::{Counters, DcpStatus, VbucketState, VbucketStatus};
