//! Does the store do what a store must?

use std::sync::Arc;

use third_party::PlainMap;

sluicegate_testkit::store_conformance!(Arc::new(PlainMap::new("a store's own")));
