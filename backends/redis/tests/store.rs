//! The conformance suite on a real server.

mod support;

mod single {
    sluicegate_testkit::store_conformance!(crate::support::fresh(crate::support::server().url()).await);
}

mod cluster {
    sluicegate_testkit::store_conformance!(crate::support::fresh(crate::support::cluster().url()).await);
}
