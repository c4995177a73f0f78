//! Opens a feed once for all databases, and distributes its events.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::future::select_all;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::{Share, Territory, earliest};
use crate::decode::databases::{DEFAULT_ID, Owner};
use crate::error::{Error, ErrorKind, Result};
use crate::feed::{Feed, FeedBatch, FeedEvent, FeedIdentity, FeedInfo, FeedStart, FeedStream};

/// The limit for batches that wait for a database. Over it, the feed waits.
const QUEUE: usize = 4;

/// The limit for names that are counted one by one; the rest are counted under one name.
const MAX_STRANGERS: usize = 1_000;

/// Events that belong to none of the databases: documents by collection, and users, roles and
/// markers by metadata id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Strangers {
    /// By name, or by number such as `0x8` if the name is not known.
    pub collections: BTreeMap<String, u64>,
    /// By metadata id.
    pub databases: BTreeMap<String, u64>,
}

impl Strangers {
    /// Counts one event; returns whether it is the first of its name.
    fn count(counts: &mut BTreeMap<String, u64>, name: String) -> bool {
        let name = if counts.len() < MAX_STRANGERS || counts.contains_key(&name) { name } else { "others".to_owned() };
        let count = counts.entry(name).or_default();
        *count += 1;
        *count == 1
    }
}

/// One database's handle of a shared feed. The feed is opened once, at the earliest of their
/// positions, when all handles are open. If one handle is closed, the others end with a retryable
/// error, and all open theirs again, except those that have read a finite feed to its end.
#[derive(Clone)]
pub struct SharedFeed {
    hub: Arc<Hub>,
    number: usize,
}

struct Hub {
    feed: Arc<dyn Feed>,
    territories: Vec<Territory>,
    places: Mutex<Vec<Place>>,
    strangers: Mutex<Strangers>,
}

/// What a database does at the moment, as far as the others must know to open the feed.
enum Place {
    /// It has not opened its handle, or is given what comes.
    Elsewhere,
    /// It has opened its handle.
    Waiting(Waiting),
    /// It has read to the end of a finite feed: the others begin without it.
    Done,
}

/// A database that has opened its handle.
struct Waiting {
    start: FeedStart,
    opened: oneshot::Sender<Result<()>>,
    outlet: mpsc::Sender<Delivery>,
}

/// What a database is given.
enum Delivery {
    Batch(Result<FeedBatch>),
    /// There is nothing more.
    End,
}

impl SharedFeed {
    /// One handle for each territory, in their order.
    pub fn split(feed: Arc<dyn Feed>, territories: Vec<Territory>) -> Vec<SharedFeed> {
        let count = territories.len();
        let places = Mutex::new((0..count).map(|_| Place::Elsewhere).collect());
        let hub = Arc::new(Hub { feed, territories, places, strangers: Mutex::default() });
        (0..count).map(|number| SharedFeed { hub: hub.clone(), number }).collect()
    }

    /// Counts of the events that belong to no database of this feed.
    pub fn strangers(&self) -> Strangers {
        self.hub.strangers.lock().clone()
    }
}

impl fmt::Debug for SharedFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedFeed").field("feed", &self.hub.feed).field("number", &self.number).finish_non_exhaustive()
    }
}

#[async_trait]
impl Feed for SharedFeed {
    fn info(&self) -> FeedInfo {
        self.hub.feed.info()
    }

    fn identity(&self) -> FeedIdentity {
        self.hub.feed.identity()
    }

    fn is_partial(&self) -> bool {
        self.hub.feed.is_partial()
    }

    async fn open(&self, start: FeedStart) -> Result<FeedStream> {
        if start == FeedStart::Now {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a shared feed is opened at its beginning or at a position, not at its end",
            ));
        }
        let (outlet, inlet) = mpsc::channel(QUEUE);
        let (opened, is_open) = oneshot::channel();
        self.hub.wait(self.number, Waiting { start, opened, outlet });
        is_open.await.map_err(|_| others_ended())??;
        let (hub, number) = (self.hub.clone(), self.number);
        // The stream ends after an error.
        let batches = futures::stream::unfold((Some(inlet), hub), move |(inlet, hub)| async move {
            let mut inlet = inlet?;
            match inlet.recv().await {
                Some(Delivery::Batch(Ok(batch))) => Some((Ok(batch), (Some(inlet), hub))),
                Some(Delivery::Batch(Err(error))) => Some((Err(error), (None, hub))),
                None => Some((Err(failed()), (None, hub))),
                Some(Delivery::End) => {
                    // One that ends though it should not is opened again by all.
                    if hub.feed.info().capabilities.finite {
                        hub.done(number);
                    }
                    None
                }
            }
        });
        Ok(batches.boxed())
    }
}

fn others_ended() -> Error {
    Error::new(ErrorKind::Unavailable, "the writer of another database of this feed has ended; all writers start again")
}

/// The task that distributes the events ended without an error.
fn failed() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the task that reads the feed for all databases ended, probably by a panic that is in the log; all writers start again",
    )
}

/// One error for each of `count` databases: the error itself for the first, which has its cause,
/// and copies without the cause for the others.
fn for_each(error: Error, count: usize) -> impl Iterator<Item = Error> {
    let copy = |error: &Error| Error::new(error.kind(), error.to_string()).with_status(error.status());
    let copies: Vec<Error> = (1..count).map(|_| copy(&error)).collect();
    std::iter::once(error).chain(copies)
}

/// Opens the feed for these databases, each with its number, and distributes its events, until the
/// feed ends or fails, or a database ends.
async fn hand_out(hub: Arc<Hub>, waiting: Vec<(usize, Waiting)>) {
    let start = earliest(waiting.iter().map(|(_, waiting)| &waiting.start));
    let mut stream = match hub.feed.open(start.clone()).await {
        Ok(stream) => stream,
        Err(error) => {
            let errors = for_each(error, waiting.len());
            for ((_, waiting), error) in waiting.into_iter().zip(errors) {
                // The receiver may be gone.
                let _ = waiting.opened.send(Err(error));
            }
            return;
        }
    };
    let (mut shares, mut outlets) = (Vec::new(), Vec::new());
    // What belongs to those that are done is nobody else's.
    let mut done: BTreeMap<usize, Territory> = hub.territories.iter().cloned().enumerate().collect();
    for (number, waiting) in waiting {
        let Some(territory) = done.remove(&number) else { continue };
        shares.push(Share::new(territory, &waiting.start, &start));
        outlets.push(waiting.outlet);
        let _ = waiting.opened.send(Ok(()));
    }
    let mut done: Vec<Territory> = done.into_values().collect();
    let mut names = BTreeMap::new();
    let error = loop {
        let closed = select_all(outlets.iter().map(|outlet| Box::pin(outlet.closed())));
        let batch = tokio::select! {
            batch = stream.next() => batch,
            _ = closed => break others_ended(),
        };
        let batch = match batch {
            Some(Ok(batch)) => batch,
            Some(Err(error)) => break error,
            None => {
                for outlet in outlets {
                    let _ = outlet.send(Delivery::End).await;
                }
                return;
            }
        };
        // The shares learn the names of collections first.
        let own: Vec<FeedBatch> = shares.iter_mut().map(|share| share.of(&batch)).collect();
        if let Err(error) = shares.iter().try_for_each(Share::check) {
            break error;
        }
        hub.look_at(&batch, &shares, &mut done, &mut names);
        let mut is_closed = false;
        for (own, outlet) in own.into_iter().zip(&outlets) {
            if !own.events.is_empty() {
                is_closed |= outlet.send(Delivery::Batch(Ok(own))).await.is_err();
            }
        }
        if is_closed {
            break others_ended();
        }
    };
    drop(stream);
    let errors = for_each(error, outlets.len());
    for (outlet, error) in outlets.into_iter().zip(errors) {
        let _ = outlet.send(Delivery::Batch(Err(error))).await;
    }
}

impl Hub {
    /// A database has opened its handle.
    fn wait(self: &Arc<Self>, number: usize, waiting: Waiting) {
        let mut places = self.places.lock();
        places[number] = Place::Waiting(waiting);
        self.begin(&mut places);
    }

    /// A database has read to the end.
    fn done(self: &Arc<Self>, number: usize) {
        let mut places = self.places.lock();
        if let Place::Elsewhere = places[number] {
            places[number] = Place::Done;
            self.begin(&mut places);
        }
    }

    /// Opens the feed, once all wait for it but those that are done.
    fn begin(self: &Arc<Self>, places: &mut [Place]) {
        for place in places.iter_mut() {
            // Its database has given up in the meantime.
            if matches!(place, Place::Waiting(waiting) if waiting.opened.is_closed()) {
                *place = Place::Elsewhere;
            }
        }
        if places.iter().any(|place| matches!(place, Place::Elsewhere)) {
            return;
        }
        let mut all = Vec::new();
        for (number, place) in places.iter_mut().enumerate() {
            if matches!(place, Place::Waiting(_))
                && let Place::Waiting(waiting) = std::mem::replace(place, Place::Elsewhere)
            {
                all.push((number, waiting));
            }
        }
        if !all.is_empty() {
            tokio::spawn(hand_out(self.clone(), all));
        }
    }

    /// Counts the events that belong to no database, and logs the first of each name. `done` are
    /// the territories of the databases that the feed was opened without.
    fn look_at(&self, batch: &FeedBatch, shares: &[Share], done: &mut [Territory], names: &mut BTreeMap<u32, Box<str>>) {
        for event in &batch.events {
            match event {
                FeedEvent::CollectionNames(told) => {
                    let is_first = names.is_empty();
                    names.extend(told.iter().cloned());
                    for territory in done.iter_mut() {
                        for (number, name) in told {
                            territory.learn(*number, name);
                        }
                    }
                    for share in shares.iter().filter(|_| is_first) {
                        let missing = share.territory.unresolved(names);
                        if !missing.is_empty() {
                            tracing::warn!(
                                metadata_id = share.territory.metadata_id.as_deref().unwrap_or(DEFAULT_ID),
                                collections = ?missing,
                                "the bucket does not have these collections of the database; check their names; \
                                 if they are created later, their documents are taken from then on"
                            );
                        }
                    }
                }
                FeedEvent::Mutation(mutation) => {
                    let owner = Owner::of(mutation);
                    let mut territories = shares.iter().map(|share| &share.territory).chain(done.iter());
                    let is_own = territories.any(|territory| territory.has(&owner));
                    if !is_own {
                        self.count(&owner, names);
                    }
                }
                _ => {}
            }
        }
    }

    fn count(&self, owner: &Owner<'_>, names: &BTreeMap<u32, Box<str>>) {
        let mut strangers = self.strangers.lock();
        match owner {
            Owner::Collection(number) => {
                let name = names.get(number).map_or_else(|| format!("0x{number:x}"), |name| name.to_string());
                if Strangers::count(&mut strangers.collections, name.clone()) {
                    tracing::warn!(
                        collection = name,
                        "a collection belongs to none of the databases; its documents are left out"
                    );
                }
            }
            Owner::Database(id) => {
                let name = id.map_or(DEFAULT_ID.into(), String::from_utf8_lossy).into_owned();
                if Strangers::count(&mut strangers.databases, name.clone()) {
                    tracing::warn!(
                        metadata_id = name,
                        "a metadata id belongs to none of the databases; its users, roles, unused sequences and counter are left out"
                    );
                }
            }
            Owner::Nobody => {}
        }
    }
}
