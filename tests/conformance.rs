//! The conformance suite over the feeds. (That over stores and coordinators is run by the testkit itself.)

use std::sync::Arc;

use sluicegate_replay::synthetic::{SyntheticConfig, SyntheticFeed};
use sluicegate_replay::{MemoryFeed, Recording, ReplayFeed, ReplayOptions};

const RECORDING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/gateway/mutations-xattr33.ndjson.gz");

mod replay_feed {
    use super::*;
    sluicegate_testkit::feed_conformance!(Arc::new(ReplayFeed::open(RECORDING, ReplayOptions::default()).await.unwrap()));
}

mod mutations_in_memory {
    use super::*;
    sluicegate_testkit::feed_conformance!(Arc::new(MemoryFeed::new("suite", Recording::read(RECORDING).unwrap().mutations)));
}

mod synthetic_feed {
    use super::*;
    sluicegate_testkit::feed_conformance!(Arc::new(SyntheticFeed::new(SyntheticConfig::rough(), 7, Some(3_000)).unwrap()));
}
