//! What the registry discovers is what the features say: a crate that is only named in Cargo.toml is dropped by the linker.

use sluicegate::Registry;

fn schemes(list: &[(bool, &[&'static str])]) -> Vec<&'static str> {
    let mut schemes: Vec<_> =
        list.iter().filter(|(enabled, _)| *enabled).flat_map(|(_, schemes)| schemes.iter().copied()).collect();
    schemes.sort_unstable();
    schemes
}

#[test]
fn the_stores_discovered_are_those_of_the_features() {
    let registry = sluicegate::registry().unwrap();
    let found: Vec<_> = registry.stores().map(|store| store.scheme).collect();
    assert_eq!(
        found,
        schemes(&[
            (cfg!(feature = "memory"), &["memory"]),
            (cfg!(feature = "redis"), &["redis", "rediss", "redis+cluster", "rediss+cluster"]),
        ])
    );
}

#[test]
fn the_feeds_discovered_are_those_of_the_features() {
    let registry = sluicegate::registry().unwrap();
    let found: Vec<_> = registry.feeds().map(|feed| feed.scheme).collect();
    assert_eq!(
        found,
        schemes(&[(cfg!(feature = "dcp"), &["dcp", "dcps"]), (cfg!(feature = "replay"), &["replay", "synthetic"])])
    );
}

#[test]
fn what_is_discovered_says_what_it_is() {
    let registry = Registry::discover().unwrap();
    assert!(registry.stores().all(|store| !store.about.is_empty()));
    assert!(registry.feeds().all(|feed| !feed.about.is_empty()));
}

#[cfg(feature = "memory")]
#[tokio::test]
async fn a_store_opens_by_url_and_an_unknown_one_names_those_there_are() {
    assert_eq!(sluicegate::open_store("memory:").await.unwrap().info().scheme, "memory");
    let error = sluicegate::open_store("nothing:").await.unwrap_err().to_string();
    assert!(error.contains("available: memory"), "{error}");
}
