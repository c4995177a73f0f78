#![doc = include_str!("../README.md")]

pub mod bucket;
mod cluster;
mod config;
mod connection;
mod faults;
mod session;
mod state;

pub use bucket::{Content, Stored};
pub use cluster::Cluster;
pub use config::{ClusterConfig, Liveness, Load};
pub use faults::Faults;
pub use sluicegate_mcbp::dcp::{EndReason, FailoverLog};
pub use sluicegate_mcbp::sasl::Password;
pub use sluicegate_mcbp::{Datatype, Opcode, Status};
