//! A node that wants to write: campaigns, takes over, follows the feed, and begins again when it must.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, Shared};
use futures::stream::Fuse;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::clock::{Epoch, PublishedClock};
use crate::coordinate::{AlwaysWriter, Candidate, Coordinator, Role, RoleStream};
use crate::decode::{GatewayDecoder, MutationDecoder};
use crate::engine::WriterStats;
use crate::error::{Error, ErrorKind, Result};
use crate::feed::Feed;
use crate::source::{CacheSource, DatabaseIdentity, Following};
use crate::store::CacheStore;
use crate::writer::{Ended, Writer, WriterConfig, WriterProgress};

/// The shortest and the longest pause before another try.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What ends a node, for all who wait for it.
type Stop<'a> = Shared<BoxFuture<'a, ()>>;

/// What a [`WriterNode`] is doing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WriterStatus {
    /// What the node is at the moment.
    pub role: Role,
    /// How often it has begun to write.
    pub takeovers: u64,
    /// The clock it last published or found.
    pub clock: Option<PublishedClock>,
    /// What it has seen, over all its terms.
    pub stats: WriterStats,
    /// How many arrived entries wait for a lower number.
    pub pending: usize,
    /// Bytes of feed events taken and not yet published.
    pub queued_bytes: usize,
    /// Why it is trying again, if it is.
    pub trouble: Option<Arc<Error>>,
}

/// A node that wants to write. Give it a store and a feed, and [`run`](Self::run) it in a task of its own.
///
/// Unless told otherwise it decodes what the gateway writes, and takes the writer's role without asking anybody.
#[derive(Debug)]
pub struct WriterNode {
    store: Arc<dyn CacheStore>,
    feed: Arc<dyn Feed>,
    decoder: Arc<dyn MutationDecoder>,
    coordinator: Arc<dyn Coordinator>,
    candidate: Candidate,
    config: WriterConfig,
    database: DatabaseIdentity,
    adopt: bool,
    status: watch::Sender<WriterStatus>,
}

/// How a term went, if it did not fail.
enum Term {
    /// There is nothing more to write.
    Ended(Ended),
    /// The node has another role now.
    Deposed(Role),
}

impl WriterNode {
    /// A node that writes what `feed` delivers to `store`.
    pub fn new(store: Arc<dyn CacheStore>, feed: Arc<dyn Feed>) -> Self {
        let status = WriterStatus {
            role: Role::Standby { leader: None },
            takeovers: 0,
            clock: None,
            stats: WriterStats::default(),
            pending: 0,
            queued_bytes: 0,
            trouble: None,
        };
        WriterNode {
            coordinator: Arc::new(AlwaysWriter::new(store.clone())),
            store,
            feed,
            decoder: Arc::new(GatewayDecoder::default()),
            candidate: Candidate::new("sluicegate"),
            config: WriterConfig::default(),
            database: DatabaseIdentity::default(),
            adopt: false,
            status: watch::Sender::new(status),
        }
    }

    /// Understands other documents than the gateway's.
    #[must_use]
    pub fn with_decoder(mut self, decoder: Arc<dyn MutationDecoder>) -> Self {
        self.decoder = decoder;
        self
    }

    /// Asks `coordinator` for the writer's role, as `candidate`.
    #[must_use]
    pub fn with_coordinator(mut self, coordinator: Arc<dyn Coordinator>, candidate: Candidate) -> Self {
        (self.coordinator, self.candidate) = (coordinator, candidate);
        self
    }

    /// Sets how it writes.
    #[must_use]
    pub fn with_config(mut self, config: WriterConfig) -> Self {
        self.config = config;
        self
    }

    /// Sets the database of the feed that the decoder takes. The cache is bound to it, as it is to
    /// the feed.
    #[must_use]
    pub fn with_database(mut self, database: DatabaseIdentity) -> Self {
        self.database = database;
        self
    }

    /// Binds a cache that was made from another feed or database to this one, instead of refusing
    /// it. The feed is then read from its beginning; the entries of the cache stay.
    #[must_use]
    pub fn adopting(mut self, adopt: bool) -> Self {
        self.adopt = adopt;
        self
    }

    /// What it is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<WriterStatus> {
        self.status.subscribe()
    }

    /// Campaigns, takes over when elected, and follows the feed until a finite one ends or `stop` completes. Everything taken from the
    /// feed is then stored and published.
    ///
    /// A later writer's epoch makes it campaign again, and what may pass by itself (a store or a feed that cannot be reached) makes it try
    /// again after a pause, for ever; [`status`](Self::status) tells. Dropping the future loses nothing that the next writer would not find again.
    ///
    /// # Errors
    /// What does not pass by itself: `ConfigInvalid`, `Corrupt`, `RolledBack`.
    pub fn run<'a>(&'a self, stop: impl Future<Output = ()> + Send + 'a) -> BoxFuture<'a, Result<Ended>> {
        self.run_until(stop.boxed().shared())
    }

    fn run_until<'a>(&'a self, stop: Stop<'a>) -> BoxFuture<'a, Result<Ended>> {
        Box::pin(self.campaigns(stop).instrument(self.database.span()))
    }

    async fn campaigns(&self, stop: Stop<'_>) -> Result<Ended> {
        self.config.validate()?;
        let mut pause = Pause::default();
        loop {
            let began = Instant::now();
            let error = match self.campaign(&stop).await {
                Err(e) if e.is_retryable() || e.kind() == ErrorKind::Fenced => e,
                ended => return ended,
            };
            let pause = pause.after(began.elapsed());
            self.trouble(Role::Standby { leader: None }, error, pause);
            tokio::select! {
                () = stop.clone() => return Ok(Ended::Stopped),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One candidacy: until the end, or until something fails.
    async fn campaign(&self, stop: &Stop<'_>) -> Result<Ended> {
        let over = || Error::new(ErrorKind::Unavailable, "the election ended by itself");
        let mut roles = tokio::select! {
            () = stop.clone() => return Ok(Ended::Stopped),
            roles = self.coordinator.campaign(self.candidate.clone()) => roles.map_err(|e| e.with_operation("campaign"))?.fuse(),
        };
        let mut deposed = None;
        loop {
            let role = match deposed.take() {
                Some(role) => role,
                None => tokio::select! {
                    () = stop.clone() => return Ok(Ended::Stopped),
                    role = roles.next() => role.ok_or_else(over)?,
                },
            };
            self.status.send_modify(|status| status.role = role.clone());
            let epoch = match role {
                Role::Writer { epoch } => epoch,
                Role::Standby { leader } => {
                    let leader = leader.map(|leader| leader.to_string());
                    tracing::info!(leader, "standing by: another node writes");
                    continue;
                }
                Role::Offline { reason } => {
                    tracing::warn!(reason, "offline: the coordinator cannot be reached");
                    continue;
                }
            };
            tracing::info!(%epoch, "writing");
            match self.term(epoch, &mut roles, stop).await? {
                Term::Ended(ended) => return Ok(ended),
                Term::Deposed(role) => deposed = Some(role),
            }
        }
    }

    /// Writes in one epoch: until the end, another role, or an error that ends the candidacy.
    async fn term(&self, epoch: Epoch, roles: &mut Fuse<RoleStream>, stop: &Stop<'_>) -> Result<Term> {
        let finite = self.feed.info().capabilities.finite;
        let mut pause = Pause::default();
        loop {
            let began = Instant::now();
            let error = match self.write(epoch, roles, stop).await {
                Ok(Term::Ended(Ended::Feed)) if !finite => Error::new(ErrorKind::Unavailable, "the feed ended by itself"),
                Err(e) if e.is_retryable() => e,
                ended => return ended,
            };
            // The role is kept meanwhile: who else could write would find the same trouble.
            let pause = pause.after(began.elapsed());
            self.trouble(Role::Writer { epoch }, error, pause);
            tokio::select! {
                () = stop.clone() => return Ok(Term::Ended(Ended::Stopped)),
                role = roles.next() => match role {
                    Some(Role::Writer { epoch: same }) if same == epoch => {}
                    role => return Ok(Term::Deposed(role.unwrap_or_else(lost))),
                },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Takes over and follows the feed, once.
    async fn write(&self, epoch: Epoch, roles: &mut Fuse<RoleStream>, stop: &Stop<'_>) -> Result<Term> {
        let source = CacheSource { feed: self.feed.identity(), database: self.database.clone() };
        let following = Following::from(self.feed.info().checkpoint_name()).with_source(source).adopting(self.adopt);
        let taking = Writer::take_over(self.store.clone(), self.decoder.clone(), following, epoch, self.config.clone());
        let mut writer = tokio::select! {
            () = stop.clone() => return Ok(Term::Ended(Ended::Stopped)),
            writer = taking => writer.map_err(|e| e.with_operation("take over"))?,
        };
        let mut progress = writer.progress();
        let before = self.status.borrow().stats;
        self.status.send_modify(|status| status.takeovers += 1);
        self.tell(before, &progress.borrow_and_update());

        let (depose, deposed) = oneshot::channel::<()>();
        let mut depose = Some(depose);
        let stopping = async {
            tokio::select! {
                () = stop.clone() => {}
                Ok(()) = deposed => {}
            }
        };
        let mut role = None;
        let ended = {
            let mut run = pin!(writer.run(self.feed.as_ref(), stopping));
            loop {
                tokio::select! {
                    ended = &mut run => break ended,
                    Ok(()) = progress.changed() => self.tell(before, &progress.borrow_and_update()),
                    next = roles.next(), if role.is_none() => match next {
                        Some(Role::Writer { epoch: same }) if same == epoch => {}
                        next => {
                            role = Some(next.unwrap_or_else(lost));
                            // Fails only if the writer has ended already.
                            let _ = depose.take().map(|depose| depose.send(()));
                        }
                    },
                }
            }
        };
        self.tell(before, &progress.borrow_and_update());
        match (role, ended) {
            // A deposed writer may well be fenced before it has put everything away; the next one begins where it stopped.
            (Some(role), Ok(Ended::Stopped)) => Ok(Term::Deposed(role)),
            (Some(role), Err(e)) if e.kind() == ErrorKind::Fenced || e.is_retryable() => Ok(Term::Deposed(role)),
            (_, ended) => ended.map(Term::Ended),
        }
    }

    fn tell(&self, before: WriterStats, progress: &WriterProgress) {
        self.status.send_modify(|status| {
            status.clock = Some(progress.clock.clone());
            status.stats = before;
            status.stats += progress.stats;
            (status.pending, status.queued_bytes) = (progress.pending, progress.queued_bytes);
            status.trouble = None;
        });
    }

    fn trouble(&self, role: Role, error: Error, pause: Duration) {
        tracing::warn!(?error, ?pause, "the writer stopped; it tries again");
        let error = Some(Arc::new(error));
        self.status.send_modify(|status| (status.role, status.trouble) = (role, error));
    }
}

fn lost() -> Role {
    Role::Offline { reason: "the election ended by itself".to_owned() }
}

/// Pauses that double, with jitter, and begin anew after a time without trouble.
#[derive(Debug)]
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Pause(PAUSES.0)
    }
}

impl Pause {
    /// The pause after a try that lasted for `lasted`.
    fn after(&mut self, lasted: Duration) -> Duration {
        if lasted > 2 * PAUSES.1 {
            *self = Pause::default();
        }
        let pause = self.0;
        self.0 = (2 * pause).min(PAUSES.1);
        pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_begin_anew_after_a_quiet_time() {
        let mut pause = Pause::default();
        let pauses: Vec<Duration> = (0..20).map(|_| pause.after(Duration::ZERO)).collect();
        assert!(pauses[0] <= PAUSES.0 && pauses[19] >= PAUSES.1 / 2 && pauses[19] <= PAUSES.1, "{pauses:?}");
        assert!(pause.after(Duration::from_secs(60)) <= PAUSES.0);
    }
}
