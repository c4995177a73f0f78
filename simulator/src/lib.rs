#![doc = include_str!("../README.md")]

pub mod bucket;
pub mod certificates;
mod cluster;
mod config;
mod connection;
mod doors;
mod faults;
mod session;
mod state;
mod tls;

pub use bucket::{Content, Stored};
pub use cluster::Cluster;
pub use config::{ClusterConfig, Liveness, Load};
pub use faults::Faults;
pub use sluicegate_mcbp::dcp::{Durability, EndReason, FailoverLog};
pub use sluicegate_mcbp::sasl::{Mechanism, Password};
pub use sluicegate_mcbp::{Datatype, Opcode, Status};
pub use tls::{ClientCertificates, TlsConfig};
