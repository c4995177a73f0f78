//! The store suite on the stores of this repository that need nothing set up.

mod memory {
    use std::sync::Arc;

    use sluicegate_memory::MemoryStore;

    sluicegate_testkit::store_conformance!(Arc::new(MemoryStore::new()));
}

mod plain {
    use std::sync::Arc;

    use sluicegate_testkit::PlainStore;

    sluicegate_testkit::store_conformance!(Arc::new(PlainStore::new()));
}

mod without_faults {
    use std::sync::Arc;

    use sluicegate_testkit::{FaultStore, Faults, PlainStore};

    sluicegate_testkit::store_conformance!(Arc::new(FaultStore::new(Arc::new(PlainStore::new()), 1, Faults::none())));
}

/// Operations take turns in odd places.
mod delayed {
    use std::sync::Arc;

    use sluicegate_memory::MemoryStore;
    use sluicegate_testkit::{FaultStore, Faults};

    sluicegate_testkit::store_conformance!({
        let mut faults = Faults::none();
        faults.delay = 0.3;
        Arc::new(FaultStore::new(Arc::new(MemoryStore::new()), 1, faults))
    });
}
