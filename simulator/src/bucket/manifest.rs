//! The collections of a bucket (protocol, section 3.4).

use serde_json::{Value, json};
use sluicegate_mcbp::collections::DEFAULT_COLLECTION;

/// Number of the default scope.
pub const DEFAULT_SCOPE: u32 = 0;

/// The first number that is given to a scope or collection of users.
const FIRST_ID: u32 = 8;

/// The scopes and collections of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Counts changes.
    pub uid: u64,
    /// The scopes, the default one first.
    pub scopes: Vec<Scope>,
    next_id: u32,
}

/// A scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
    /// Its collections.
    pub collections: Vec<Collection>,
}

/// A collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collection {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
    /// How long its documents live at most, in seconds; none if not limited.
    pub max_ttl: Option<u32>,
}

impl Default for Manifest {
    fn default() -> Self {
        let collection = Collection { name: "_default".to_owned(), id: DEFAULT_COLLECTION, max_ttl: None };
        let scope = Scope { name: "_default".to_owned(), id: DEFAULT_SCOPE, collections: vec![collection] };
        Manifest { uid: 0, scopes: vec![scope], next_id: FIRST_ID }
    }
}

impl Manifest {
    /// A scope by its name.
    pub fn scope(&self, name: &str) -> Option<&Scope> {
        self.scopes.iter().find(|scope| scope.name == name)
    }

    /// Whether there is a scope of this number.
    pub fn has_scope(&self, id: u32) -> bool {
        self.scopes.iter().any(|scope| scope.id == id)
    }

    /// A collection by its number, with its scope's number.
    pub fn collection(&self, id: u32) -> Option<(u32, &Collection)> {
        let find = |scope: &'_ Scope| scope.collections.iter().position(|collection| collection.id == id);
        self.scopes.iter().find_map(|scope| Some((scope.id, &scope.collections[find(scope)?])))
    }

    /// The number of a collection given as `scope.collection`, where an empty name is the default one.
    pub fn resolve(&self, path: &str) -> Option<u32> {
        let (scope, collection) = path.split_once('.')?;
        let name = |name: &str| if name.is_empty() { "_default".to_owned() } else { name.to_owned() };
        let (scope, collection) = (self.scope(&name(scope))?, name(collection));
        scope.collections.iter().find(|there| there.name == collection).map(|there| there.id)
    }

    /// Adds a scope, and gives its number; none if there is one of this name.
    pub fn add_scope(&mut self, name: &str) -> Option<u32> {
        if self.scope(name).is_some() {
            return None;
        }
        let id = self.take_id();
        self.scopes.push(Scope { name: name.to_owned(), id, collections: Vec::new() });
        Some(id)
    }

    /// Adds a collection to a scope, and gives both numbers; none if there is no such scope, or one of this name in it.
    pub fn add_collection(&mut self, scope: &str, name: &str, max_ttl: Option<u32>) -> Option<(u32, u32)> {
        let there = self.scope(scope)?;
        if there.collections.iter().any(|collection| collection.name == name) {
            return None;
        }
        let id = self.take_id();
        let scope = self.scopes.iter_mut().find(|there| there.name == scope)?;
        scope.collections.push(Collection { name: name.to_owned(), id, max_ttl });
        Some((scope.id, id))
    }

    /// Changes how long documents of a collection live at most, and gives its scope's number and its name; none if there is none.
    pub fn modify_collection(&mut self, id: u32, max_ttl: Option<u32>) -> Option<(u32, String)> {
        let (scope, there) = self
            .scopes
            .iter_mut()
            .find_map(|scope| Some((scope.id, scope.collections.iter_mut().find(|there| there.id == id)?)))?;
        there.max_ttl = max_ttl;
        self.uid += 1;
        Some((scope, there.name.clone()))
    }

    /// Removes a collection, and gives its scope's number; none if there is none.
    pub fn remove_collection(&mut self, id: u32) -> Option<u32> {
        let (scope, _) = self.collection(id)?;
        let there = self.scopes.iter_mut().find(|there| there.id == scope)?;
        there.collections.retain(|collection| collection.id != id);
        self.uid += 1;
        Some(scope)
    }

    /// Removes an empty scope; whether there was one.
    pub fn remove_scope(&mut self, id: u32) -> bool {
        let before = self.scopes.len();
        self.scopes.retain(|scope| scope.id != id || !scope.collections.is_empty());
        let is_gone = self.scopes.len() < before;
        self.uid += u64::from(is_gone);
        is_gone
    }

    /// The manifest as a client gets it.
    pub fn to_json(&self) -> Value {
        let collection = |collection: &Collection| {
            let mut value = json!({ "name": collection.name, "uid": format!("{:x}", collection.id) });
            if let Some(max_ttl) = collection.max_ttl {
                value["maxTTL"] = max_ttl.into();
            }
            value
        };
        let scope = |scope: &Scope| {
            let collections: Vec<Value> = scope.collections.iter().map(collection).collect();
            json!({ "name": scope.name, "uid": format!("{:x}", scope.id), "collections": collections })
        };
        let scopes: Vec<Value> = self.scopes.iter().map(scope).collect();
        json!({ "uid": format!("{:x}", self.uid), "scopes": scopes })
    }

    fn take_id(&mut self) -> u32 {
        self.uid += 1;
        self.next_id += 1;
        self.next_id - 1
    }
}
