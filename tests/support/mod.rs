//! Stores of every kind, documents in short notation, and a coordinator that does as it is told.

#![allow(dead_code, reason = "each test program uses some of it")]

pub(crate) mod client;
pub(crate) mod copies;
pub(crate) mod recorded;
pub(crate) mod seeds;

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt as _;
use sluicegate::coordinate::{Member, NodeId, RoleStream};
use sluicegate::decode::Ignored;
use sluicegate::{
    CacheStore, Candidate, ChangeEntry, Channel, CollectionId, Coordinator, Decoded, EntryFlags, Membership, Mutation,
    MutationDecoder, Result, Role, Sequence,
};
use sluicegate_memory::MemoryStore;
use sluicegate_test_servers::RedisServer;
use tokio::sync::watch;

/// A kind of store that tests run on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Memory,
    Redis,
}

impl Kind {
    /// An empty one. The server is started with the first, and ends with the program.
    pub(crate) async fn fresh(self) -> Arc<dyn CacheStore> {
        static SERVER: OnceLock<RedisServer> = OnceLock::new();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        match self {
            Kind::Memory => Arc::new(MemoryStore::new()),
            Kind::Redis => {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let url = format!("{}?namespace=t{number}", SERVER.get_or_init(RedisServer::start).url());
                sluicegate::open_store(&url).await.unwrap()
            }
        }
    }
}

/// One test of each case on each kind of store.
#[allow(unused_macros, reason = "each test program uses some of it")]
macro_rules! on_every_store {
    ($($case:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Kind::Memory).await;
            })*
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Kind::Redis).await;
            })*
        }
    };
}
#[allow(unused_imports, reason = "each test program uses some of it")]
pub(crate) use on_every_store;

/// Understands keys such as `7 doc +A -B over 3,5`: sequence 7 of `doc`, in channel A, leaves
/// channel B, supersedes 3 and 5. The collection is the mutation's.
#[derive(Debug, Default)]
pub(crate) struct Notation;

impl MutationDecoder for Notation {
    fn decode(&self, mutation: &Mutation) -> Decoded {
        let text = String::from_utf8_lossy(&mutation.key);
        let mut words = text.split(' ');
        let Some(sequence) = words.next().and_then(|word| word.parse().ok()) else { return Decoded::Ignored(Ignored::Internal) };
        let document = words.next().unwrap_or("doc");
        let mut entry = ChangeEntry::new(Sequence(sequence), document, "1-a", EntryFlags::default()).unwrap();
        while let Some(word) = words.next() {
            if let Some(name) = word.strip_prefix('+') {
                entry = entry.with_channel(Channel::new(name).unwrap(), Membership::Present);
            } else if let Some(name) = word.strip_prefix('-') {
                entry = entry.with_channel(Channel::new(name).unwrap(), Membership::Removed);
            } else if word == "over" {
                let list = words.next().unwrap_or_default().split(',').map(|n| Sequence(n.parse().unwrap()));
                entry = entry.with_supersedes(list);
            }
        }
        Decoded::Document(entry.with_collection(CollectionId(mutation.collection)).into())
    }
}

/// Mutations in that notation.
pub(crate) fn mutations(lines: &[&str]) -> Vec<Mutation> {
    lines.iter().map(|line| Mutation::new(line.to_string(), "")).collect()
}

/// Gives the roles that a test sets, to all who campaign.
#[derive(Debug)]
pub(crate) struct Told {
    role: watch::Receiver<Role>,
    /// How often someone campaigned.
    pub(crate) campaigns: AtomicU64,
}

impl Told {
    /// The coordinator, and what tells it.
    pub(crate) fn new(role: Role) -> (Arc<Told>, watch::Sender<Role>) {
        let (sender, role) = watch::channel(role);
        (Arc::new(Told { role, campaigns: AtomicU64::new(0) }), sender)
    }
}

#[async_trait::async_trait]
impl Coordinator for Told {
    async fn campaign(&self, _candidate: Candidate) -> Result<RoleStream> {
        self.campaigns.fetch_add(1, Ordering::SeqCst);
        let mut role = self.role.clone();
        role.mark_changed();
        let roles = futures::stream::unfold(role, |mut role| async move {
            role.changed().await.ok()?;
            let now = role.borrow_and_update().clone();
            Some((now, role))
        });
        Ok(roles.boxed())
    }

    async fn hand_over(&self, _to: Option<NodeId>) -> Result<()> {
        Ok(())
    }

    async fn members(&self) -> Result<Vec<Member>> {
        Ok(Vec::new())
    }
}
