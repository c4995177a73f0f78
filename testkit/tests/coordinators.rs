//! The coordinator suite on the trivial one.

mod always_writer {
    use std::sync::Arc;

    use sluicegate_core::AlwaysWriter;

    sluicegate_testkit::coordinator_conformance!(|store| Arc::new(AlwaysWriter::new(store)));
}
