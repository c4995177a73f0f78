//! What every coordinator must do.
//!
//! Each public function is one case. [`coordinator_conformance!`](crate::coordinator_conformance) makes a test of each.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use sluicegate_core::commit::take_over;
use sluicegate_core::coordinate::{NodeId, RoleStream};
use sluicegate_core::meta::Meta;
use sluicegate_core::{CacheStore, Candidate, Coordinator, Epoch, ErrorKind, Role};

use crate::codec::SmallBlocks;
use crate::expect::Expect as _;
use crate::plain::PlainStore;

/// How long a role may take to come.
const ELECTION: Duration = Duration::from_secs(60);

/// Makes the coordinators of one case: one a node, all of one election.
pub struct Election {
    store: Arc<dyn CacheStore>,
    make: Make,
}

type Make = Box<dyn Fn(Arc<dyn CacheStore>) -> Arc<dyn Coordinator> + Send + Sync>;

impl Election {
    /// Coordinators made by `make`, over a store that holds the cache's clock.
    pub fn new(make: impl Fn(Arc<dyn CacheStore>) -> Arc<dyn Coordinator> + Send + Sync + 'static) -> Self {
        Election { store: Arc::new(PlainStore::new()), make: Box::new(make) }
    }

    /// A node's coordinator.
    fn node(&self) -> Arc<dyn Coordinator> {
        (self.make)(self.store.clone())
    }

    /// What a writer does first in its term.
    async fn begin(&self, epoch: Epoch) {
        let meta = Meta::new(&SmallBlocks::default(), 4, 0);
        take_over(&*self.store, epoch, "feed", &meta).await.must("begin the term");
    }
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election").field("store", &self.store).finish_non_exhaustive()
    }
}

/// One test for each thing a [`Coordinator`] must do. The expression makes a closure from the store of the case to a new node's coordinator (an
/// `Arc` of it); it may `.await`, and is evaluated once a case: an election outside the store gets its fresh name there. Waits should be
/// configured short: a new writer must be found within a minute.
///
/// ```
/// # mod tests {
/// use sluicegate_core::AlwaysWriter;
///
/// sluicegate_testkit::coordinator_conformance!(|store| std::sync::Arc::new(AlwaysWriter::new(store)));
/// # }
/// ```
#[macro_export]
macro_rules! coordinator_conformance {
    ($make:expr) => {
        $crate::coordinator_cases! { case_tests!(coordinator, election_of_a_case, $crate::coordinator::Election, $crate::coordinator::Election::new($make)) }
    };
}

/// The cases of the suite, handed to another macro after its arguments. Not for use by itself.
#[doc(hidden)]
#[macro_export]
macro_rules! coordinator_cases {
    ($then:ident! $arguments:tt) => {
        $crate::$then! { $arguments
            a_lone_candidate_becomes_the_writer
            epochs_grow_with_every_term
            no_epoch_is_given_twice
            nodes_never_share_an_epoch
            members_name_the_writer
            a_writer_that_leaves_is_followed
            a_candidate_may_leave_before_it_is_anything
            handing_over_is_done_or_refused
        }
    };
}

#[doc(hidden)]
pub mod boxed {
    crate::coordinator_cases! { boxed_cases!(super::Election) }
}

/// The epoch in which this candidate writes, once it does.
async fn writer(roles: &mut RoleStream) -> Epoch {
    let found = tokio::time::timeout(ELECTION, async {
        while let Some(role) = roles.next().await {
            if let Role::Writer { epoch } = role {
                return Some(epoch);
            }
        }
        None
    });
    match found.await {
        Ok(epoch) => epoch.must("become the writer before its roles end"),
        Err(_) => panic!("no writer within {ELECTION:?}"),
    }
}

/// Without anybody's help.
pub async fn a_lone_candidate_becomes_the_writer(election: Election) {
    let node = election.node();
    let mut roles = node.campaign(Candidate::new("n1")).await.must("campaign");
    let epoch = writer(&mut roles).await;
    assert!(epoch.counter > 0, "epoch 0 is that of a cache without a writer");
    election.begin(epoch).await;
}

/// By their counters, whichever node has them.
pub async fn epochs_grow_with_every_term(election: Election) {
    let nodes = [election.node(), election.node()];
    let mut last = Epoch::default();
    for term in 0..8 {
        let name = format!("n{}", term % 2);
        let mut roles = nodes[term % 2].campaign(Candidate::new(name)).await.must("campaign");
        let epoch = writer(&mut roles).await;
        assert!(epoch.supersedes(last), "epoch {epoch} came after {last}");
        election.begin(epoch).await;
        last = epoch;
    }
}

/// Also when a term ends before its writer wrote anything.
pub async fn no_epoch_is_given_twice(election: Election) {
    let mut given = HashSet::new();
    for term in 0..8 {
        let node = election.node();
        let mut roles = node.campaign(Candidate::new(format!("n{term}"))).await.must("campaign");
        let epoch = writer(&mut roles).await;
        assert!(given.insert(epoch), "epoch {epoch} came again");
    }
}

/// Several at once: whoever is told that it writes has an epoch of its own.
pub async fn nodes_never_share_an_epoch(election: Election) {
    let nodes: Vec<_> = (0..4).map(|_| election.node()).collect();
    let campaigns = (0..).zip(&nodes).map(|(n, node)| node.campaign(Candidate::new(format!("n{n}"))));
    let mut streams: Vec<RoleStream> = join_all(campaigns).await.into_iter().map(|roles| roles.must("campaign")).collect();
    let mut given = HashSet::new();
    // Each winner leaves, until everybody has won.
    while !streams.is_empty() {
        let firsts = streams.iter_mut().map(|roles| Box::pin(writer(roles)));
        let (epoch, winner, rest) = futures::future::select_all(firsts).await;
        drop(rest);
        assert!(given.insert(epoch), "epoch {epoch} was given to two nodes");
        drop(streams.swap_remove(winner));
    }
}

/// And call it so.
pub async fn members_name_the_writer(election: Election) {
    let node = election.node();
    let mut roles = node.campaign(Candidate::new("n1")).await.must("campaign");
    election.begin(writer(&mut roles).await).await;
    let members = node.members().await.must("tell the members");
    let writers: Vec<_> = members.iter().filter(|member| member.is_writer).map(|member| &member.node).collect();
    assert_eq!(writers, [&NodeId("n1".to_owned())], "{members:?}");
}

/// By another candidate, in a later epoch.
pub async fn a_writer_that_leaves_is_followed(election: Election) {
    let (first, second) = (election.node(), election.node());
    let mut roles = first.campaign(Candidate::new("n1")).await.must("campaign");
    let before = writer(&mut roles).await;
    election.begin(before).await;
    drop(roles);
    let mut roles = second.campaign(Candidate::new("n2")).await.must("campaign");
    let after = writer(&mut roles).await;
    assert!(after.supersedes(before), "epoch {after} came after {before}");
}

/// And nobody waits for it.
pub async fn a_candidate_may_leave_before_it_is_anything(election: Election) {
    let (first, second) = (election.node(), election.node());
    drop(first.campaign(Candidate::new("n1")).await.must("campaign"));
    let mut roles = second.campaign(Candidate::new("n2")).await.must("campaign");
    election.begin(writer(&mut roles).await).await;
}

/// A coordinator that can hand over does so to the node named, in a later epoch; one that cannot says that it is unsupported.
pub async fn handing_over_is_done_or_refused(election: Election) {
    let (first, second) = (election.node(), election.node());
    let mut first_roles = first.campaign(Candidate::new("n1")).await.must("campaign");
    let before = writer(&mut first_roles).await;
    election.begin(before).await;
    let mut second_roles = second.campaign(Candidate::new("n2")).await.must("campaign");
    // Whoever hands over is told of it by its roles: so they are read on meanwhile.
    let reading = tokio::spawn(async move { while first_roles.next().await.is_some() {} });
    match first.hand_over(Some(NodeId("n2".to_owned()))).await {
        Ok(()) => {
            let after = writer(&mut second_roles).await;
            assert!(after.supersedes(before), "epoch {after} came after {before}");
        }
        Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported, "{e:?}"),
    }
    reading.abort();
}
