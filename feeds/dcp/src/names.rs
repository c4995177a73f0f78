//! The names of collections.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use serde::Deserialize;
use sluicegate_core::FeedEvent;
use sluicegate_mcbp::dcp::{Change, SystemEvent};

/// The scope that every bucket has.
const DEFAULT_SCOPE: (u32, &str) = (0, "_default");

/// The names of a bucket's collections: from its manifest when the feed is opened, and later from
/// the system events of its vbuckets.
#[derive(Debug)]
pub(crate) struct Names(Mutex<Known>);

#[derive(Debug)]
struct Known {
    scopes: BTreeMap<u32, String>,
    told: BTreeSet<u32>,
}

#[derive(Deserialize)]
struct Manifest {
    scopes: Vec<Scope>,
}

#[derive(Deserialize)]
struct Scope {
    name: String,
    uid: String,
    #[serde(default)]
    collections: Vec<Collection>,
}

#[derive(Deserialize)]
struct Collection {
    name: String,
    uid: String,
}

fn number(uid: &str) -> Option<u32> {
    u32::from_str_radix(uid, 16).ok()
}

impl Names {
    /// Only the default scope is known.
    pub(crate) fn new() -> Self {
        let (id, name) = DEFAULT_SCOPE;
        Names(Mutex::new(Known { scopes: BTreeMap::from([(id, name.to_owned())]), told: BTreeSet::new() }))
    }

    /// The names in a manifest; `None` if it cannot be read or has none.
    pub(crate) fn on_manifest(&self, manifest: &[u8]) -> Option<FeedEvent> {
        let manifest: Manifest = serde_json::from_slice(manifest).ok()?;
        let mut known = self.0.lock();
        let mut names = Vec::new();
        for scope in manifest.scopes {
            let Some(id) = number(&scope.uid) else { continue };
            for collection in scope.collections {
                let Some(id) = number(&collection.uid) else { continue };
                names.push((id, format!("{}.{}", scope.name, collection.name).into_boxed_str()));
                known.told.insert(id);
            }
            known.scopes.insert(id, scope.name);
        }
        (!names.is_empty()).then_some(FeedEvent::CollectionNames(names))
    }

    /// Takes what a vbucket reports, and passes the name of a new collection to `send`. All
    /// vbuckets report the same collections; only the first report is passed on.
    ///
    /// The lock is held during `send`. A vbucket of another connection that reports the collection
    /// later goes on only after its name was sent, so no document of the collection is sent before.
    pub(crate) fn on_change(&self, event: &SystemEvent, change: &Change, send: impl FnOnce(FeedEvent)) {
        let Ok(name) = std::str::from_utf8(&event.name) else { return };
        let mut known = self.0.lock();
        match *change {
            Change::ScopeCreated { scope, .. } => {
                known.scopes.insert(scope, name.to_owned());
            }
            Change::CollectionCreated { scope, collection, .. } => {
                let Some(full) = known.scopes.get(&scope).map(|scope| format!("{scope}.{name}")) else { return };
                if known.told.insert(collection) {
                    send(FeedEvent::CollectionNames(vec![(collection, full.into_boxed_str())]));
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sluicegate_mcbp::dcp::SystemEventKind;

    use super::*;

    #[test]
    fn no_vbucket_goes_on_before_the_name_of_a_new_collection_is_sent() {
        let names = Names::new();
        names.on_manifest(br#"{"uid":"1","scopes":[{"name":"s","uid":"8","collections":[]}]}"#);
        let change = Change::CollectionCreated { manifest_uid: 2, scope: 8, collection: 9, max_ttl: None };
        let name = Bytes::from_static(b"c");
        let event = SystemEvent { by_seqno: 1, event: SystemEventKind::BeginCollection, version: 0, name, value: Bytes::new() };
        let mut sent = Vec::new();
        names.on_change(&event, &change, |told| {
            assert!(names.0.is_locked(), "another vbucket waits until the name is sent");
            sent.push(told);
        });
        assert_eq!(sent, [FeedEvent::CollectionNames(vec![(9, "s.c".into())])]);
        names.on_change(&event, &change, |told| panic!("sent again: {told:?}"));
    }
}
