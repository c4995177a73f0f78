//! DCP: streams of changes, one per vbucket (protocol, sections 3 and 4).

pub mod event;
mod flat;
pub mod query;
pub mod stream;
pub mod system;

pub use event::*;
pub use query::*;
pub use stream::*;
pub use system::*;
