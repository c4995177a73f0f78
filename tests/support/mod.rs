//! Documents in short notation, and a coordinator that does as it is told.

#![allow(dead_code, reason = "each test program uses some of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt as _;
use sluicegate::coordinate::{Member, NodeId, RoleStream};
use sluicegate::decode::{DecodedDocument, Ignored};
use sluicegate::{
    Candidate, ChangeEntry, Channel, Coordinator, Decoded, EntryFlags, Membership, Mutation, MutationDecoder, Result, Role,
    Sequence,
};
use tokio::sync::watch;

/// Understands keys such as `7 doc +A -B over 3,5`: sequence 7 of `doc`, in channel A, leaves channel B, supersedes 3 and 5.
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
        Decoded::Document(DecodedDocument { entry, unused: Default::default(), departures: Vec::new() })
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
