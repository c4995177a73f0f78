//! The feed suite on the testkit's own feed.

mod list {
    use std::sync::Arc;

    use sluicegate_core::Mutation;
    use sluicegate_testkit::ListFeed;

    sluicegate_testkit::feed_conformance!(Arc::new(ListFeed::numbered((0..100).map(|n| Mutation::new(format!("k{n}"), "{}")))));
}

mod list_without_positions {
    use std::sync::Arc;

    use sluicegate_core::Mutation;
    use sluicegate_testkit::ListFeed;

    sluicegate_testkit::feed_conformance!({
        let mutations = (0..9).map(|n| Mutation::new(format!("k{n}"), "{}"));
        Arc::new(ListFeed::numbered(mutations).with_batch(1).without_positions())
    });
}
