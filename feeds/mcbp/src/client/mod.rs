//! Sessions with nodes: connecting, TLS, authentication, selecting a bucket, asking questions (protocol, section 2).
//!
//! A [`Session`] is one connection on which questions are asked one after another. [`Session::split`] makes of it a reader and a
//! writer of frames, for a connection whose other side speaks without being asked, as with DCP.

mod error;
mod options;
mod session;
mod socket;

pub use error::{ClientError, ClientResult, Fault};
pub use options::{ConnectOptions, Login, Tls};
pub use session::{Link, Session, read_cluster_map};
pub use socket::{FrameReader, FrameWriter, READ_CHUNK};
