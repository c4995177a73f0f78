//! Before any stream: features, cluster maps on the wire, error maps on the wire (protocol, section 2).

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::json;

use crate::body::{Body, Field, Part, Parts, Writer};
use crate::config::Revision;
use crate::error::Result;

codes! {
    /// What a connection can do, if both sides agree (protocol, section 2.1).
    Feature: u16 {
        /// Datatypes, on servers before 5.0.
        Datatype = 0x01,
        /// No delay of small packets.
        TcpNoDelay = 0x03,
        /// Answers to writes say where the write is.
        MutationSeqno = 0x04,
        /// Attributes.
        Xattr = 0x06,
        /// Status codes that need the error map.
        Xerror = 0x07,
        /// Selecting a bucket.
        SelectBucket = 0x08,
        /// Compressed values.
        Snappy = 0x0a,
        /// Values marked as JSON.
        Json = 0x0b,
        /// Requests of the server.
        Duplex = 0x0c,
        /// The server pushes cluster maps.
        ClusterMapNotification = 0x0d,
        /// Answers in any order. DCP refuses it.
        UnorderedExecution = 0x0e,
        /// Answers say how long the server worked.
        Tracing = 0x0f,
        /// Framing extras.
        AltRequest = 0x10,
        /// Durable writes.
        SyncReplication = 0x11,
        /// Collections; changes keys.
        Collections = 0x12,
        /// Anything may be compressed.
        SnappyEverywhere = 0x13,
        /// Asking only for a newer cluster map.
        GetClusterConfigWithKnownVersion = 0x1d,
        /// A cluster map is not repeated in each answer.
        DedupeNotMyVbucketClusterMap = 0x1e,
        /// The server pushes revisions of cluster maps.
        ClusterMapNotificationBrief = 0x1f,
        /// The first backfill of a stream can leave deletions out.
        DcpSkipDeletesInInitialBackfill = 0x26,
    }
}

/// Features, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features(pub Vec<Feature>);

bodies! {
    /// Asks for features.
    Hello {
        key {
            /// Who asks: text, or what [`agent_key`] gives.
            agent: Bytes
        }
        value {
            /// What it asks for.
            features: Features
        }
    }

    /// The features that both sides have.
    Granted {
        value {
            /// They.
            features: Features
        }
    }

    /// Asks for the error map (protocol, section 2.7).
    GetErrorMap {
        value {
            /// The latest version of its layout that is understood.
            max_version: u16
        }
    }
}

/// Asks for the cluster map (protocol, section 2.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetClusterConfig {
    /// The one that is known: the answer is empty unless there is a newer one.
    pub known: Option<Revision>,
}

/// There is another cluster map (protocol, section 2.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterMapChanged {
    /// Its revision. An epoch below 0 is not set.
    pub revision: Revision,
    /// Whether the revision is in the short form of old servers, which has no epoch.
    pub is_short: bool,
    /// Of which bucket; empty for the whole cluster's.
    pub bucket: Bytes,
    /// The cluster map, or nothing: then it is to be fetched.
    pub config: Bytes,
}

/// The key of a HELLO: the agent, and two numbers that let the server's log tell connections apart.
pub fn agent_key(agent: &str, client_id: u64, connection_id: u64) -> Bytes {
    // The server takes no more than 250 bytes of key.
    let end = agent.floor_char_boundary(200);
    json!({ "a": &agent[..end], "i": format!("{client_id:016x}/{connection_id:016x}") }).to_string().into()
}

impl Features {
    /// Whether `feature` is among them.
    pub fn contains(&self, feature: Feature) -> bool {
        self.0.contains(&feature)
    }
}

impl Part for Features {
    fn take(bytes: Bytes) -> Option<Self> {
        let (codes, []) = bytes.as_chunks() else { return None };
        Some(Features(codes.iter().map(|code| u16::from_be_bytes(*code).into()).collect()))
    }

    fn put(&self, to: &mut BytesMut) {
        for feature in &self.0 {
            to.put_u16(feature.code());
        }
    }
}

impl Body for GetClusterConfig {
    fn decode(parts: Parts) -> Result<Self> {
        let mut extras = parts.extras();
        if !matches!(extras.len(), 0 | 16) || !parts.key().is_empty() || !parts.value().is_empty() {
            return Err(parts.malformed("the request for a cluster map has 16 bytes of extras, or none, and nothing else"));
        }
        Ok(GetClusterConfig { known: (!extras.is_empty()).then(|| Revision::read(&mut extras)) })
    }

    fn encode(&self, to: &mut Writer<'_>) {
        if let Some(known) = &self.known {
            to.field(known);
        }
    }
}

impl Body for ClusterMapChanged {
    fn decode(parts: Parts) -> Result<Self> {
        let mut extras = parts.extras();
        let (revision, is_short) = match extras.len() {
            16 => (Revision::read(&mut extras), false),
            4 => (Revision { epoch: 0, rev: u32::read(&mut extras).into() }, true),
            _ => return Err(parts.malformed("the notice of a cluster map has 16 or 4 bytes of extras")),
        };
        let (bucket, config) = parts.into_key_and_value();
        Ok(ClusterMapChanged { revision, is_short, bucket, config })
    }

    fn encode(&self, to: &mut Writer<'_>) {
        match (self.is_short, u32::try_from(self.revision.rev)) {
            (false, _) => to.field(&self.revision),
            (true, Ok(rev)) => to.field(&rev),
            (true, Err(_)) => to.refuse("the short form has no such revision"),
        }
        to.key(&self.bucket);
        to.value(&self.config);
    }
}

impl Field for Revision {
    const LEN: usize = 16;

    fn read(from: &mut &[u8]) -> Self {
        Revision { epoch: i64::read(from), rev: i64::read(from) }
    }

    fn write(&self, to: &mut BytesMut) {
        to.put_i64(self.epoch);
        to.put_i64(self.rev);
    }
}
