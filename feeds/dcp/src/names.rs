//! What collections are called.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use serde::Deserialize;
use sluicegate_core::FeedEvent;
use sluicegate_mcbp::dcp::{Change, SystemEvent};

/// The scope that every bucket has.
const DEFAULT_SCOPE: (u32, &str) = (0, "_default");

/// The names of a bucket's collections: from its manifest when the feed is opened, and from what its
/// vbuckets tell later.
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
    /// Nothing is known but the default scope.
    pub(crate) fn new() -> Self {
        let (id, name) = DEFAULT_SCOPE;
        Names(Mutex::new(Known { scopes: BTreeMap::from([(id, name.to_owned())]), told: BTreeSet::new() }))
    }

    /// What a manifest tells; nothing if it cannot be read.
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

    /// What a vbucket tells, if it is new: all of them tell the same.
    pub(crate) fn on_change(&self, event: &SystemEvent, change: &Change) -> Option<FeedEvent> {
        let name = std::str::from_utf8(&event.name).ok()?;
        let mut known = self.0.lock();
        match *change {
            Change::ScopeCreated { scope, .. } => {
                known.scopes.insert(scope, name.to_owned());
                None
            }
            Change::CollectionCreated { scope, collection, .. } => {
                let full = format!("{}.{name}", known.scopes.get(&scope)?);
                known.told.insert(collection).then(|| FeedEvent::CollectionNames(vec![(collection, full.into_boxed_str())]))
            }
            _ => None,
        }
    }
}
