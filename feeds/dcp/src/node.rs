//! One connection to one node: it asks for streams, receives them, and says what becomes of them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sluicegate_core::FeedEvent;
use sluicegate_mcbp::client::{ClientError, ClientResult, Fault, FrameReader, FrameWriter, Link};
use sluicegate_mcbp::dcp::{BufferAck, GetAllVbSeqnos, StreamFlags, StreamRequest, VbucketState as Active};
use sluicegate_mcbp::errormap::ErrorMap;
use sluicegate_mcbp::hello::{Feature, GetClusterConfig};
use sluicegate_mcbp::{Command, Empty, Request};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::flow::Credit;
use crate::handshake;
use crate::orders::{Node, Order, Report};
use crate::parcel::{BATCH, Parcel};
use crate::status::VbucketState;
use crate::tally::Open;
use crate::vbucket::{Ask, Next, Vbucket};

/// Questions about single vbuckets that are under way at once: a node that starts 1,024 backfills at once serves none of them well.
const MAX_IN_FLIGHT: usize = 64;
/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(200);
/// How long little credit is held back.
const CREDIT_DELAY: Duration = Duration::from_secs(1);
/// How often the node is asked how far it is, to tell how far behind we are.
const LAG_INTERVAL: Duration = Duration::from_secs(5);
/// How long a stream may go on after the cluster map has given its vbucket to another node.
const MOVE_GRACE: Duration = Duration::from_secs(5);

/// A vbucket that was given to this node.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) vbucket: Box<Vbucket>,
    /// That of its stream, or of the request for it; 0 for none. Messages with another one are stale.
    pub(super) opaque: u32,
    /// When the stream is given up, because the vbucket is another node's.
    pub(super) moved: Option<Instant>,
    /// All of it has come, and it is let go once what waits was let through.
    ending: Option<String>,
}

/// What an answer is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// The node's seqnos, of the collection with this place in the filter.
    Highs(usize),
    Log(u16),
    Stream(u16),
    Close,
    Map,
    Alive,
    /// The node's seqnos, only to tell how far behind we are.
    Lag,
}

/// A connection that streams.
pub(super) struct Connection {
    pub(super) node: Node,
    pub(super) has_collections: bool,
    pub(super) error_map: ErrorMap,
    pub(super) writer: FrameWriter,
    pub(super) credit: Arc<Credit>,
    next_opaque: u32,
    pub(super) held: Vec<Option<Held>>,
    /// Vbuckets that have something to ask.
    pub(super) asking: VecDeque<u16>,
    /// Those that wait for the node's seqnos.
    pub(super) waiting_for_highs: Vec<u16>,
    /// Those whose question for seqnos is under way.
    pub(super) asked_for_highs: Vec<u16>,
    pub(super) highs: HashMap<u16, u64>,
    pub(super) questions: HashMap<u32, (Question, Instant)>,
    in_flight: usize,
    /// Events that are not delivered yet, and the bytes that came with them.
    pub(super) out: Vec<FeedEvent>,
    pub(super) unclaimed: u64,
    /// Bytes of messages that are just being taken in.
    pub(super) arrived: u64,
    pub(super) open: Open,
    pub(super) resolved: Vec<u16>,
    pub(super) caught_up: usize,
    last_read: Instant,
    last_credit: Instant,
    asked_for_lag: Instant,
}

/// Connects to a node and streams from it, until the connection breaks or nobody gives orders any more. All it was given comes back in
/// reports.
pub(crate) async fn run(node: Node, mut orders: mpsc::UnboundedReceiver<Order>) {
    let opened = handshake::open(&node.address, &node.target, &node.name).await;
    let (id, reports, tally) = (node.id, node.reports.clone(), node.tally.clone());
    let (error, mut vbuckets) = match opened {
        Err(error) => (error, Vec::new()),
        Ok(link) => {
            let announces_maps = link.granted.contains(Feature::ClusterMapNotification);
            let _ = reports.send(Report::Up { id, announces_maps });
            let (mut connection, reader) = Connection::new(node, link);
            let error = match connection.serve(reader, &mut orders).await {
                Ok(()) => return,
                Err(error) => error,
            };
            (error.at(&connection.node.address), connection.give_back())
        }
    };
    tally.disconnected();
    orders.close();
    while let Ok(order) = orders.try_recv() {
        if let Order::Open(vbucket) = order {
            vbuckets.push(*vbucket);
        }
    }
    let _ = reports.send(Report::Down { id, error, vbuckets });
}

/// Waits for a change; for ever if there is nothing to change.
async fn changed(watch: &mut Option<watch::Receiver<u64>>) {
    if let Some(watch) = watch
        && watch.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

impl Connection {
    fn new(node: Node, link: Link) -> (Connection, FrameReader) {
        let now = Instant::now();
        let mut connection = Connection {
            has_collections: link.granted.contains(Feature::Collections),
            error_map: link.error_map,
            writer: link.writer,
            credit: Arc::new(Credit::new(node.target.options.buffer)),
            next_opaque: link.next_opaque,
            held: Vec::new(),
            asking: VecDeque::new(),
            waiting_for_highs: Vec::new(),
            asked_for_highs: Vec::new(),
            highs: HashMap::new(),
            questions: HashMap::new(),
            in_flight: 0,
            out: Vec::new(),
            unclaimed: 0,
            arrived: 0,
            open: Open::new(node.tally.clone()),
            resolved: Vec::new(),
            caught_up: 0,
            last_read: now,
            last_credit: now,
            asked_for_lag: now,
            node,
        };
        for notice in link.notices {
            connection.on_notice(notice);
        }
        (connection, link.reader)
    }

    /// Ends well when nobody gives orders any more.
    async fn serve(&mut self, mut reader: FrameReader, orders: &mut mpsc::UnboundedReceiver<Order>) -> ClientResult<()> {
        if !self.node.filter.is_everything() && !self.has_collections {
            return Err(ClientError::new(
                Fault::Unsupported,
                "the server has no collections; leave out the options scope and collections",
            ));
        }
        let credit = self.credit.clone();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut on_disk = self.node.horizon.as_ref().map(|horizon| horizon.watch());
        loop {
            self.ask_more()?;
            self.give_credit(false)?;
            let is_full = credit.is_full();
            tokio::select! {
                flushed = self.writer.flush(), if self.writer.queued() > 0 => flushed?,
                frames = reader.read(), if !is_full => {
                    self.last_read = Instant::now();
                    self.receive(frames?)?;
                }
                () = credit.changed() => {}
                () = changed(&mut on_disk) => self.free_all(),
                _ = tick.tick() => {
                    if is_full {
                        // It is we who do not read.
                        self.last_read = Instant::now();
                    }
                    self.look_at_the_clock()?;
                }
                order = orders.recv() => match order {
                    Some(order) => self.obey(order)?,
                    None => return Ok(()),
                },
            }
        }
    }

    fn obey(&mut self, order: Order) -> ClientResult<()> {
        match order {
            Order::Open(vbucket) => {
                let id = vbucket.id();
                self.node.board.set_state(id, VbucketState::Opening);
                self.node.board.set_node(id, Some(self.node.address.clone()));
                if self.held.len() <= usize::from(id) {
                    self.held.resize_with(usize::from(id) + 1, || None);
                }
                self.held[usize::from(id)] = Some(Held { vbucket, opaque: 0, moved: None, ending: None });
                self.asking.push_back(id);
                Ok(())
            }
            Order::AskForMap => self.ask_for_map(),
            Order::Moved(vbuckets) => {
                let deadline = Instant::now() + MOVE_GRACE;
                for held in self.held.iter_mut().flatten() {
                    let is_moved = vbuckets.binary_search(&held.vbucket.id()).is_ok();
                    held.moved = is_moved.then(|| held.moved.unwrap_or(deadline));
                }
                Ok(())
            }
        }
    }

    /// Sends the questions for which there is room.
    fn ask_more(&mut self) -> ClientResult<()> {
        while self.in_flight < MAX_IN_FLIGHT
            && let Some(id) = self.asking.pop_front()
        {
            // What is asked already needs no second question.
            let Some(held) = self.held[usize::from(id)].as_mut().filter(|held| held.opaque == 0) else { continue };
            match held.vbucket.ask() {
                Ask::High => self.waiting_for_highs.push(id),
                Ask::Log => {
                    self.in_flight += 1;
                    self.send(Question::Log(id), Request::new(Command::DcpGetFailoverLog(Empty {})).with_vbucket(id))?;
                }
                Ask::Stream(at, end) => {
                    self.in_flight += 1;
                    let filter = match self.has_collections {
                        true => self.node.filter.encode(held.vbucket.context())?,
                        false => Bytes::new(),
                    };
                    let request = StreamRequest {
                        flags: StreamFlags::ACTIVE_VB_ONLY,
                        reserved: 0,
                        start: at.seqno,
                        end,
                        vbucket_uuid: at.uuid,
                        snapshot_start: at.snapshot_start,
                        snapshot_end: at.snapshot_end,
                        filter,
                    };
                    held.opaque = self.next_opaque;
                    self.send(Question::Stream(id), Request::new(Command::DcpStreamRequest(request)).with_vbucket(id))?;
                }
                Ask::Nothing => self.release(id, Next::Done, "there is nothing in it".to_owned()),
            }
        }
        if !self.waiting_for_highs.is_empty() && self.asked_for_highs.is_empty() {
            std::mem::swap(&mut self.waiting_for_highs, &mut self.asked_for_highs);
            self.highs.clear();
            let state = Some(Active::Active);
            let collections = match &self.node.filter.collections[..] {
                [] => vec![None],
                collections => collections.iter().map(|id| Some(*id)).collect(),
            };
            let last = collections.len() - 1;
            for (place, collection) in collections.into_iter().enumerate() {
                let request = Request::new(Command::GetAllVbSeqnos(GetAllVbSeqnos { state, collection }));
                self.send(Question::Highs(last - place), request)?;
            }
        }
        Ok(())
    }

    pub(super) fn ask_for_map(&mut self) -> ClientResult<()> {
        if self.questions.values().any(|(question, _)| *question == Question::Map) {
            return Ok(());
        }
        self.send(Question::Map, Request::new(Command::GetClusterConfig(GetClusterConfig::default())))
    }

    pub(super) fn send(&mut self, question: Question, request: Request) -> ClientResult<()> {
        let opaque = self.next_opaque;
        // 0 stands for no stream.
        self.next_opaque = opaque.checked_add(1).unwrap_or(1);
        self.questions.insert(opaque, (question, Instant::now()));
        self.writer.push(&request.with_opaque(opaque))
    }

    /// The question that an answer is to.
    pub(super) fn answered(&mut self, opaque: u32) -> Option<Question> {
        let (question, _) = self.questions.remove(&opaque)?;
        if matches!(question, Question::Log(_) | Question::Stream(_)) {
            self.in_flight -= 1;
        }
        Some(question)
    }

    fn give_credit(&mut self, little_too: bool) -> ClientResult<()> {
        let Some(bytes) = (if little_too { self.credit.rest() } else { self.credit.due() }) else { return Ok(()) };
        self.last_credit = Instant::now();
        self.open.acknowledged(u64::from(bytes));
        self.writer.push(&Request::new(Command::DcpBufferAck(BufferAck { bytes })))
    }

    fn look_at_the_clock(&mut self) -> ClientResult<()> {
        let now = Instant::now();
        if now.duration_since(self.last_credit) >= CREDIT_DELAY {
            self.give_credit(true)?;
        }
        let silence = now.duration_since(self.last_read);
        let patience = self.node.target.options.patience();
        if silence > patience {
            return Err(ClientError::new(Fault::Timeout, format!("the node has said nothing for {silence:?}")));
        }
        // The server asks only where there are streams (protocol, section 7).
        let is_asked = self.questions.values().any(|(question, _)| *question == Question::Alive);
        if silence > patience * 3 / 5 && !is_asked {
            self.send(Question::Alive, Request::new(Command::Noop(Empty {})))?;
        }
        // Of some collections it would have to be asked for each.
        if now.duration_since(self.asked_for_lag) >= LAG_INTERVAL && self.node.filter.is_everything() {
            self.asked_for_lag = now;
            let all = GetAllVbSeqnos { state: Some(Active::Active), collection: None };
            self.send(Question::Lag, Request::new(Command::GetAllVbSeqnos(all)))?;
        }
        let timeout = self.node.target.connect.answer_timeout;
        if let Some((question, _)) = self.questions.values().find(|(_, asked)| now.duration_since(*asked) > timeout) {
            return Err(ClientError::new(Fault::Timeout, format!("no answer within {timeout:?} ({question:?})")));
        }
        let overdue = |held: &&Held| held.opaque != 0 && held.moved.is_some_and(|deadline| now >= deadline);
        let overdue: Vec<u16> = self.held.iter().flatten().filter(overdue).map(|held| held.vbucket.id()).collect();
        for id in overdue {
            self.close_stream(id)?;
            self.again(id, "the cluster map has given it to another node");
        }
        Ok(())
    }

    pub(super) fn close_stream(&mut self, id: u16) -> ClientResult<()> {
        self.send(Question::Close, Request::new(Command::DcpCloseStream(Empty {})).with_vbucket(id))
    }

    /// Lets go of a vbucket whose stream was lost, to be opened again where the newest map says.
    pub(super) fn again(&mut self, id: u16, why: impl Into<String>) {
        if let Some(Some(held)) = self.held.get_mut(usize::from(id)) {
            held.vbucket.on_lost();
        }
        self.release(id, Next::Again { needs_map: true, is_permanent: false }, why.into());
    }

    /// Lets go of a vbucket. What came of it is delivered first.
    pub(super) fn release(&mut self, id: u16, next: Next, why: String) {
        self.deliver();
        let Some(place) = self.held.get_mut(usize::from(id)) else { return };
        if let Some(held) = place
            && next == Next::Done
            && !held.vbucket.held_back.is_empty()
        {
            (held.opaque, held.ending) = (0, Some(why));
            return;
        }
        if let Some(mut held) = place.take() {
            // What still waits takes nothing of this connection's window any more.
            self.credit.consume(held.vbucket.held_back.forget_bytes());
            self.node.board.set_state(id, if next == Next::Done { VbucketState::Done } else { VbucketState::Waiting });
            let _ = self.node.reports.send(Report::Released { vbucket: held.vbucket, next, why });
        }
    }

    /// Keeps what has come of a vbucket until it is on all disks, if that is wanted.
    #[inline]
    pub(super) fn hold_back(&mut self, id: u16) {
        if self.node.horizon.is_none() {
            return;
        }
        if let Some(Some(held)) = self.held.get_mut(usize::from(id)) {
            let is_caught_up = std::mem::take(&mut self.caught_up) > 0;
            held.vbucket.held_back.push(self.out.drain(..), std::mem::take(&mut self.unclaimed), is_caught_up);
            self.free(id);
            self.deliver();
        }
    }

    /// Lets through what is on all disks of a vbucket.
    fn free(&mut self, id: u16) {
        let (Some(horizon), Some(Some(held))) = (&self.node.horizon, self.held.get_mut(usize::from(id))) else { return };
        let freed = held.vbucket.held_back.free(horizon.limit(id), &mut self.out);
        self.unclaimed += freed.bytes;
        self.caught_up += usize::from(freed.is_caught_up);
        horizon.set_wanted(id, !held.vbucket.held_back.is_empty());
        if held.vbucket.held_back.is_empty()
            && let Some(why) = held.ending.take()
        {
            self.release(id, Next::Done, why);
        }
    }

    fn free_all(&mut self) {
        let waits = |held: &&Held| !held.vbucket.held_back.is_empty();
        let waiting: Vec<u16> = self.held.iter().flatten().filter(waits).map(|held| held.vbucket.id()).collect();
        for id in waiting {
            self.free(id);
            if self.out.len() >= BATCH {
                self.deliver();
            }
        }
        self.deliver();
    }

    /// Hands on what has come.
    pub(super) fn deliver(&mut self) {
        let bytes = std::mem::take(&mut self.unclaimed);
        if self.out.is_empty() {
            if bytes > 0 {
                self.credit.consume(bytes);
            }
        } else {
            let events = std::mem::take(&mut self.out);
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.node.tally.delivered(&events, now);
            self.node.outlet.send(Parcel::new(events, bytes, self.credit.clone()));
        }
        let (resolved, caught_up) = (std::mem::take(&mut self.resolved), std::mem::take(&mut self.caught_up));
        if !resolved.is_empty() || caught_up > 0 {
            let _ = self.node.reports.send(Report::Progress { resolved, caught_up });
        }
    }

    /// All vbuckets, when the connection is gone.
    fn give_back(&mut self) -> Vec<Vbucket> {
        self.deliver();
        let mut vbuckets: Vec<Vbucket> = self.held.drain(..).flatten().map(|held| *held.vbucket).collect();
        for vbucket in &mut vbuckets {
            vbucket.on_lost();
            vbucket.held_back.forget_bytes();
        }
        vbuckets
    }
}
