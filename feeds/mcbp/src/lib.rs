#![doc = include_str!("../README.md")]

#[macro_use]
mod codes;
#[macro_use]
mod body;
#[cfg(feature = "client")]
pub mod client;
pub mod collections;
pub mod config;
pub mod dcp;
mod error;
pub mod errormap;
mod frame;
pub mod framing;
pub mod hello;
pub mod kv;
mod message;
mod opcode;
pub mod sasl;
pub mod status;
pub mod tap;
pub mod topology;
pub mod value;

pub use body::{Body, Empty, Parts, Secret, Writer};
pub use error::{Error, ErrorKind, Result};
pub use frame::{DEFAULT_MAX_BODY, Frame, FrameDecoder, Frames, HEADER_LEN, Header, Magic};
pub use message::{Command, Message, Notice, Reply, Request, Response, ServerRequest};
pub use opcode::Opcode;
pub use status::Status;
pub use value::Datatype;
