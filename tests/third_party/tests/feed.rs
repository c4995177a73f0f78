//! Does the feed do what a feed must?

use std::sync::Arc;

use third_party::Countdown;

sluicegate_testkit::feed_conformance!(Arc::new(Countdown::new(100)));
