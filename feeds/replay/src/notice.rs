//! The lines of a recording that are about no key: what it is, and what the feed told besides mutations. Read and written alike.

use serde::{Deserialize, Serialize, Serializer};
use sluicegate_core::feed::FeedInfo;
use sluicegate_core::{Error, FeedEvent, PartitionId, PartitionSeqno, Result};

use crate::PARTITIONS;

/// The version of the format that is written here, and the only one that says so.
const VERSION: u32 = 1;

/// What a recording is. One without it holds mutations alone, each at the place of its index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    recording: u32,
    /// The feed that was recorded.
    feed: String,
    pub(crate) partitions: u16,
    /// Whether snapshots are announced.
    #[serde(default)]
    pub(crate) snapshots: bool,
}

impl Default for Header {
    fn default() -> Self {
        Header { recording: VERSION, feed: String::new(), partitions: PARTITIONS, snapshots: false }
    }
}

impl Header {
    pub(crate) fn of(info: &FeedInfo) -> Self {
        Header {
            recording: VERSION,
            feed: info.checkpoint_name(),
            partitions: info.partitions,
            snapshots: info.capabilities.snapshots,
        }
    }

    pub(crate) fn checked(self) -> Result<Self> {
        match self.recording {
            VERSION => Ok(self),
            other => Err(Error::corrupt(format!(
                "a recording of version {other}, and only {VERSION} is known here; use a newer program"
            ))),
        }
    }
}

/// A number that other programs would read as a float: it is written as a string.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Large(pub(crate) u64);

impl Serialize for Large {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl TryFrom<String> for Large {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> std::result::Result<Self, Self::Error> {
        text.parse().map(Large)
    }
}

/// An event that is about no key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Notice {
    Snapshot { vb: u16, start: u64, end: u64 },
    Rollback { vb: u16, to: u64 },
    RollbackEnded { vb: u16 },
    Unordered { vb: u16 },
    Advanced { vb: u16, seqno: u64 },
    History { vb: u16, uuid: Large, log: Vec<(Large, u64)> },
    Context { vb: u16, manifest: Large, purge: u64 },
}

impl Notice {
    /// The line of an event; none for one about a key, and for [`FeedEvent::CaughtUp`], which a recording says at its own end.
    pub(crate) fn of(event: &FeedEvent) -> Option<Notice> {
        Some(match event {
            FeedEvent::SnapshotStart { partition, start, end } => {
                Notice::Snapshot { vb: partition.0, start: start.0, end: end.0 }
            }
            FeedEvent::Rollback { partition, to } => Notice::Rollback { vb: partition.0, to: to.0 },
            FeedEvent::RollbackEnded { partition } => Notice::RollbackEnded { vb: partition.0 },
            FeedEvent::Unordered { partition } => Notice::Unordered { vb: partition.0 },
            FeedEvent::SeqnoAdvanced { partition, seqno } => Notice::Advanced { vb: partition.0, seqno: seqno.0 },
            FeedEvent::PartitionState { partition, uuid, failover_log } => {
                let log = failover_log.iter().map(|(uuid, seqno)| (Large(*uuid), *seqno)).collect();
                Notice::History { vb: partition.0, uuid: Large(*uuid), log }
            }
            FeedEvent::PartitionContext { partition, manifest_uid, purge_seqno } => {
                Notice::Context { vb: partition.0, manifest: Large(*manifest_uid), purge: *purge_seqno }
            }
            _ => return None,
        })
    }
}

impl From<Notice> for FeedEvent {
    fn from(notice: Notice) -> Self {
        let (partition, seqno) = (PartitionId, PartitionSeqno);
        match notice {
            Notice::Snapshot { vb, start, end } => {
                FeedEvent::SnapshotStart { partition: partition(vb), start: seqno(start), end: seqno(end) }
            }
            Notice::Rollback { vb, to } => FeedEvent::Rollback { partition: partition(vb), to: seqno(to) },
            Notice::RollbackEnded { vb } => FeedEvent::RollbackEnded { partition: partition(vb) },
            Notice::Unordered { vb } => FeedEvent::Unordered { partition: partition(vb) },
            Notice::Advanced { vb, seqno: at } => FeedEvent::SeqnoAdvanced { partition: partition(vb), seqno: seqno(at) },
            Notice::History { vb, uuid, log } => FeedEvent::PartitionState {
                partition: partition(vb),
                uuid: uuid.0,
                failover_log: log.into_iter().map(|(uuid, seqno)| (uuid.0, seqno)).collect(),
            },
            Notice::Context { vb, manifest, purge } => {
                FeedEvent::PartitionContext { partition: partition(vb), manifest_uid: manifest.0, purge_seqno: purge }
            }
        }
    }
}
