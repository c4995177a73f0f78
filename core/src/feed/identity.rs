//! The identity of a feed's source.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The source of a feed: the bucket, or the recording, however it is reached. A cache is bound to
/// it, because the sequences of two sources are unrelated.
///
/// It is not the feed's name, which identifies a checkpoint: a bucket followed with and without TLS
/// is one source, and two recordings of one name in different folders are two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedIdentity {
    name: String,
    /// Empty if it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    instance: String,
    #[serde(skip)]
    former_checkpoints: Vec<String>,
}

impl FeedIdentity {
    /// The source of this name, in a form for people: `dcp:travel`.
    pub fn new(name: impl Into<String>) -> Self {
        FeedIdentity { name: name.into(), instance: String::new(), former_checkpoints: Vec::new() }
    }

    /// Adds a value that differs between sources of one name, such as a bucket's UUID or a digest.
    /// An empty value means that it is not known.
    #[must_use]
    pub fn with_instance(mut self, instance: impl Into<String>) -> Self {
        self.instance = instance.into();
        self
    }

    /// Adds a name under which earlier builds kept the checkpoint of the same feed. A writer looks
    /// there when it upgrades a cache of format version 1.
    #[must_use]
    pub fn with_former_checkpoint(mut self, name: impl Into<String>) -> Self {
        self.former_checkpoints.push(name.into());
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value that differs between sources of one name; empty if it is not known.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Names under which earlier builds kept its checkpoint.
    pub fn former_checkpoints(&self) -> &[String] {
        &self.former_checkpoints
    }

    /// Whether both are the same source. An instance that is not known matches any.
    pub fn is_same(&self, other: &FeedIdentity) -> bool {
        let is_unknown = self.instance.is_empty() || other.instance.is_empty();
        self.name == other.name && (is_unknown || self.instance == other.instance)
    }
}

impl fmt::Display for FeedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.instance.as_str() {
            "" => f.write_str(&self.name),
            instance => write!(f, "{} (instance {instance})", self.name),
        }
    }
}
