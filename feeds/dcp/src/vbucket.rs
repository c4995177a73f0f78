//! One vbucket: what was received of it, and what to ask for next (protocol, section 5). Pure: answers and messages come in, events
//! for the consumer, requests and wishes go out.

use sluicegate_core::feed::{PartitionPosition, SnapshotEnds, begun_snapshot, common_point};
use sluicegate_core::{FeedEvent, PartitionId, PartitionSeqno};
use sluicegate_mcbp::Status;
use sluicegate_mcbp::dcp::EndReason;

use crate::held_back::HeldBack;
use crate::resume::{Context, Histories, Position};

/// Rollbacks in a row after which the vbucket is begun anew.
const MAX_ROLLBACKS: u32 = 16;

/// The seqno at which a stream without end ends.
pub(crate) const NO_END: u64 = u64::MAX;

/// What to ask the node that has the vbucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// The last seqno it has.
    High,
    /// Its failover log.
    Log,
    /// A stream after this position, up to this seqno.
    Stream(Position, u64),
    /// Nothing: all that is wanted was received.
    Nothing,
}

/// What to do with a vbucket that has no stream any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Ask the same node again at once.
    Ask,
    /// Look for the node that has it, and ask again after a pause.
    Again {
        /// The cluster map is out of date.
        needs_map: bool,
        /// No pause helps, most likely: somebody must do something.
        is_permanent: bool,
    },
    /// All that is wanted was received.
    Done,
}

impl Next {
    const SOON: Next = Next::Again { needs_map: true, is_permanent: false };
    const LATER: Next = Next::Again { needs_map: false, is_permanent: false };
    const STUCK: Next = Next::Again { needs_map: false, is_permanent: true };
}

/// A message does not fit what came before it: the stream must be opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disorder {
    pub(crate) seqno: u64,
    pub(crate) after: u64,
}

/// Where a vbucket is to be begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// At its beginning.
    Zero,
    /// After what there is when it is first asked for.
    Now,
    /// After a position.
    At(PartitionPosition),
}

/// One vbucket.
#[derive(Clone, Debug)]
pub(crate) struct Vbucket {
    id: PartitionId,
    at: Position,
    log: Histories,
    /// Where snapshots ended before that one.
    ends: SnapshotEnds,
    /// The seqno at which it began without having anything up to it.
    began: u64,
    /// A snapshot that was announced, and of which nothing has come: it counts from its first item on (section 5.2, rule 2).
    pending: Option<(u64, u64)>,
    /// The purge seqno of the snapshot that was announced, if it was told.
    pending_purge: Option<u64>,
    context: Context,
    /// The highest seqno of a snapshot in the order of keys; the position stays before it until it is over (section 4.13).
    unordered: Option<u64>,
    /// What the server had when it was first asked.
    target: Option<u64>,
    /// The seqno at which it is caught up; past all seqnos once it is, or while that is not known.
    goal: u64,
    is_caught_up: bool,
    /// Something was taken back, and not all that there is now has come since.
    is_returning: bool,
    is_finite: bool,
    /// Begins at what there is, which is not known yet.
    wants_now: bool,
    /// It began at what there was, and nothing has come since.
    is_fresh: bool,
    /// Where the server asks to go back to, while its log is fetched to find a better place.
    walk: Option<u64>,
    has_walked: bool,
    has_narrowed: bool,
    /// The consumer knows the histories.
    is_told: bool,
    rollbacks: u32,
    /// What was received and waits until it is on all disks; nothing unless that is wanted.
    pub(crate) held_back: HeldBack,
}

impl Vbucket {
    pub(crate) fn new(id: u16, begin: Begin, is_finite: bool) -> Self {
        let is_now = begin == Begin::Now;
        let (at, context, log, ends) = match begin {
            Begin::Zero | Begin::Now => Default::default(),
            Begin::At(position) => {
                (Position::of(&position), Context::of(&position), position.failover_log, position.snapshot_ends)
            }
        };
        Vbucket {
            id: PartitionId(id),
            at,
            log,
            ends,
            began: 0,
            pending: None,
            pending_purge: None,
            context,
            unordered: None,
            target: None,
            goal: NO_END,
            is_caught_up: false,
            is_returning: false,
            is_finite,
            wants_now: is_now,
            is_fresh: is_now,
            walk: None,
            has_walked: false,
            has_narrowed: false,
            is_told: false,
            rollbacks: 0,
            held_back: HeldBack::after(at.seqno),
        }
    }

    /// One all of which the consumer was told to be taken back.
    pub(crate) fn taken_back(id: u16, is_finite: bool) -> Self {
        let held_back = HeldBack::after_rollback();
        Vbucket { is_returning: true, held_back, ..Vbucket::new(id, Begin::Zero, is_finite) }
    }

    pub(crate) fn id(&self) -> u16 {
        self.id.0
    }

    pub(crate) fn seqno(&self) -> u64 {
        self.at.seqno
    }

    /// Identity of its history.
    pub(crate) fn uuid(&self) -> u64 {
        self.at.uuid
    }

    /// What to tell the server with the position.
    pub(crate) fn context(&self) -> Context {
        self.context
    }

    /// Whether it still has to find out where it begins.
    pub(crate) fn wants_now(&self) -> bool {
        self.wants_now
    }

    pub(crate) fn is_caught_up(&self) -> bool {
        self.is_caught_up
    }

    /// What to ask next.
    pub(crate) fn ask(&self) -> Ask {
        let Some(target) = self.target else { return Ask::High };
        if self.wants_now || self.walk.is_some() {
            return Ask::Log;
        }
        let resume = if self.has_narrowed { Position::at(self.at.uuid, self.at.seqno) } else { self.at.resume() };
        match self.is_finite {
            false => Ask::Stream(resume, NO_END),
            // Nothing was received and there is nothing. If something was received, a stream shows whether it still holds.
            true if resume.seqno == 0 && target == 0 && self.at.uuid == 0 => Ask::Nothing,
            true => Ask::Stream(resume, target.max(resume.seqno)),
        }
    }

    /// The last seqno of the node.
    pub(crate) fn on_high(&mut self, high: u64, out: &mut Vec<FeedEvent>) {
        self.target = Some(high);
        if self.wants_now {
            self.at = Position::at(0, high);
            self.began = high;
        }
        if !self.is_caught_up || self.is_returning {
            self.goal = high;
            // Of an empty vbucket nothing comes, and nothing can be taken back, unless what was there is another history's.
            if high == 0 && self.at.seqno == 0 && self.at.uuid == 0 {
                self.catch_up(out);
            }
        }
    }

    /// The failover log of the node, asked for by itself.
    pub(crate) fn on_log(&mut self, log: Histories, out: &mut Vec<FeedEvent>) {
        if self.wants_now {
            self.wants_now = false;
            self.at.uuid = log.first().map_or(0, |(uuid, _)| *uuid);
            self.log = log;
        } else if let Some(asked) = self.walk.take() {
            let common = common_point(&self.log, &log, self.at.seqno);
            // A server that shares all of our history has another reason, and is obeyed.
            let to = if common >= self.at.seqno { asked } else { common.max(asked) };
            self.take_back(to, out);
        }
    }

    /// The stream is open: everything that comes belongs to the newest history of `log` (section 5.2, rule 1).
    pub(crate) fn on_accepted(&mut self, log: Histories, out: &mut Vec<FeedEvent>) {
        (self.has_walked, self.has_narrowed, self.rollbacks) = (false, false, 0);
        (self.pending, self.unordered) = (None, None);
        let uuid = log.first().map_or(0, |(uuid, _)| *uuid);
        if self.at.uuid != 0 && uuid != self.at.uuid && !self.is_caught_up && !self.is_returning {
            // The consumer may hold more than its position says, of the history before.
            self.is_returning = true;
            out.push(FeedEvent::Rollback { partition: self.id, to: PartitionSeqno(self.at.seqno) });
        }
        if !self.is_told || uuid != self.at.uuid || log != self.log {
            self.is_told = true;
            out.push(FeedEvent::PartitionState { partition: self.id, uuid, failover_log: log.clone() });
            if self.is_fresh && self.at.seqno > 0 {
                // The consumer must know where it begins.
                out.push(FeedEvent::SeqnoAdvanced { partition: self.id, seqno: PartitionSeqno(self.at.seqno) });
            }
        }
        self.at.uuid = uuid;
        self.log = log;
        if self.at.seqno >= self.goal {
            self.catch_up(out);
        }
    }

    /// The server asks to go back (section 5.4).
    pub(crate) fn on_rollback(&mut self, to: u64, out: &mut Vec<FeedEvent>) -> Next {
        self.rollbacks += 1;
        if self.at.seqno == 0 {
            return Next::STUCK;
        }
        if self.is_fresh {
            // Nothing was delivered: it can begin at what there is now just as well.
            (self.wants_now, self.target) = (true, None);
            return if self.rollbacks > MAX_ROLLBACKS { Next::LATER } else { Next::Ask };
        }
        let to = if self.rollbacks > MAX_ROLLBACKS { 0 } else { to.min(self.at.seqno) };
        if to == 0 && !self.has_walked && !self.log.is_empty() {
            (self.walk, self.has_walked) = (Some(to), true);
        } else {
            self.take_back(to, out);
        }
        Next::Ask
    }

    /// The stream was refused otherwise.
    pub(crate) fn on_refused(&mut self, status: Status, out: &mut Vec<FeedEvent>) -> Next {
        match status {
            Status::NotMyVbucket => Next::SOON,
            Status::Range if self.at.seqno > 0 && !self.has_narrowed => {
                self.has_narrowed = true;
                Next::Ask
            }
            // The bucket may be another one of the same name: then the history says so.
            Status::ManifestAhead if self.context.manifest_uid > 0 => {
                self.context.manifest_uid = 0;
                Next::Ask
            }
            // The server is behind us without saying so.
            Status::Range if self.at.seqno > 0 => self.on_rollback(0, out),
            Status::InvalidArguments | Status::AccessDenied | Status::NotSupported | Status::Range => Next::STUCK,
            Status::UnknownCollection | Status::UnknownScope | Status::DcpStreamIdInvalid => Next::STUCK,
            _ => Next::LATER,
        }
    }

    /// A snapshot was announced.
    pub(crate) fn on_marker(&mut self, start: u64, end: u64) {
        (self.pending, self.pending_purge) = (Some((start, end)), None);
    }

    /// The purge seqno of the snapshot that was just announced.
    pub(crate) fn on_purge_seqno(&mut self, seqno: u64) {
        self.pending_purge = Some(seqno);
    }

    /// The collections are those of this manifest now.
    pub(crate) fn on_manifest(&mut self, uid: u64, out: &mut Vec<FeedEvent>) {
        self.set_context(Context { manifest_uid: uid, ..self.context }, out);
    }

    fn set_context(&mut self, context: Context, out: &mut Vec<FeedEvent>) {
        if self.context != context {
            self.context = context;
            let Context { manifest_uid, purge_seqno } = context;
            out.push(FeedEvent::PartitionContext { partition: self.id, manifest_uid, purge_seqno });
        }
    }

    /// An item has come. What it begins is put before it; true if it is the last of what there was: then [`on_goal`](Self::on_goal) follows.
    #[inline]
    pub(crate) fn on_item(&mut self, seqno: u64, out: &mut Vec<FeedEvent>) -> Result<bool, Disorder> {
        if let Some(highest) = &mut self.unordered {
            *highest = seqno.max(*highest);
            return Ok(false);
        }
        if seqno <= self.at.seqno {
            return Err(Disorder { seqno, after: self.at.seqno });
        }
        self.go_to(seqno, out);
        Ok(seqno >= self.goal)
    }

    /// What there was when it was opened has come, if an item said so: to be told after that item. Whether it is caught up with it.
    #[cold]
    pub(crate) fn on_goal(&mut self, out: &mut Vec<FeedEvent>) -> bool {
        self.catch_up(out)
    }

    /// The position moves; a snapshot that was announced begins with it.
    #[inline]
    fn go_to(&mut self, seqno: u64, out: &mut Vec<FeedEvent>) {
        if let Some((start, end)) = self.pending.take() {
            self.begin_snapshot(start.min(seqno), end.max(seqno));
            let (start, end) = (PartitionSeqno(self.at.snapshot_start), PartitionSeqno(self.at.snapshot_end));
            out.push(FeedEvent::SnapshotStart { partition: self.id, start, end });
            let purge_seqno = self.pending_purge.take().unwrap_or(0);
            self.set_context(Context { purge_seqno, ..self.context }, out);
        }
        self.at.seqno = seqno;
        self.at.snapshot_end = self.at.snapshot_end.max(seqno);
        self.is_fresh = false;
    }

    /// The position moves without an item (section 5.2, rule 4); as [`on_item`](Self::on_item).
    pub(crate) fn on_advanced(&mut self, seqno: u64, out: &mut Vec<FeedEvent>) -> Result<bool, Disorder> {
        if let Some(highest) = &mut self.unordered {
            *highest = seqno.max(*highest);
            return Ok(false);
        }
        // It may repeat where we are.
        if seqno < self.at.seqno {
            return Err(Disorder { seqno, after: self.at.seqno });
        }
        self.go_to(seqno, out);
        out.push(FeedEvent::SeqnoAdvanced { partition: self.id, seqno: PartitionSeqno(seqno) });
        Ok(seqno >= self.goal)
    }

    fn begin_snapshot(&mut self, start: u64, end: u64) {
        let at = &mut self.at;
        if at.seqno > 0 && at.is_complete() {
            self.ends.push(at.seqno);
        }
        (at.snapshot_start, at.snapshot_end) = begun_snapshot(at.seqno, (at.snapshot_start, at.snapshot_end), (start, end));
    }

    /// A snapshot in the order of keys begins: until it is over the position stays where it is.
    pub(crate) fn on_unordered_begin(&mut self, out: &mut Vec<FeedEvent>) {
        self.unordered = Some(self.at.seqno);
        out.push(FeedEvent::Unordered { partition: self.id });
    }

    /// Such a snapshot is over; true if the vbucket is caught up with it.
    pub(crate) fn on_unordered_end(&mut self, out: &mut Vec<FeedEvent>) -> bool {
        match self.unordered.take() {
            Some(highest) if highest > self.at.seqno => {
                (self.pending, self.is_fresh) = (None, false);
                self.begin_snapshot(highest, highest);
                self.at.seqno = highest;
                out.push(FeedEvent::SeqnoAdvanced { partition: self.id, seqno: PartitionSeqno(highest) });
                highest >= self.goal && self.catch_up(out)
            }
            _ => false,
        }
    }

    /// The server has ended the stream (section 4.1). Each end is either wanted, or a reason to open again.
    pub(crate) fn on_end(&mut self, reason: EndReason, out: &mut Vec<FeedEvent>) -> Next {
        self.on_lost();
        let is_all = reason == EndReason::FilterEmpty || reason == EndReason::Ok && self.is_finite;
        if is_all && self.is_returning {
            // What ends has come to its end, even where the server had less to tell than it counts.
            self.is_returning = false;
            out.push(FeedEvent::RollbackEnded { partition: self.id });
        }
        match reason {
            EndReason::Ok if self.is_finite => Next::Done,
            EndReason::FilterEmpty => Next::Done,
            EndReason::LostPrivileges => Next::STUCK,
            _ => Next::SOON,
        }
    }

    /// The connection is gone, or the stream was given up.
    pub(crate) fn on_lost(&mut self) {
        (self.pending, self.unordered, self.walk) = (None, None, None);
        if self.is_returning && !self.is_finite {
            // Another failover may have taken some of it away, which nothing else would tell.
            (self.target, self.goal) = (None, NO_END);
        }
    }

    fn catch_up(&mut self, out: &mut Vec<FeedEvent>) -> bool {
        self.goal = NO_END;
        if std::mem::take(&mut self.is_returning) {
            out.push(FeedEvent::RollbackEnded { partition: self.id });
        }
        !std::mem::replace(&mut self.is_caught_up, true)
    }

    /// Goes back to `to`, or before it to where a snapshot ended: at other places the server may have left something out.
    fn take_back(&mut self, to: u64, out: &mut Vec<FeedEvent>) {
        let is_at = self.at.seqno <= to && self.at.is_complete();
        let to = if is_at { self.at.seqno } else { self.ends.up_to(to).unwrap_or(to.min(self.began)) };
        self.ends.forget_after(to);
        self.log.retain(|(_, begin)| *begin <= to);
        let uuid = if to == 0 { 0 } else { self.log.first().map_or(0, |(uuid, _)| *uuid) };
        if to < self.at.seqno {
            out.push(FeedEvent::Rollback { partition: self.id, to: PartitionSeqno(to) });
            // What the server has now is another history's.
            (self.is_returning, self.target, self.goal) = (true, None, NO_END);
        }
        (self.at, self.context) = (Position::at(uuid, to), Context::default());
        (self.pending, self.unordered) = (None, None);
    }
}

#[cfg(test)]
mod tests;
