//! A DCP connection: options, streams, flow control, no-ops (protocol, sections 3, 6 and 7).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sluicegate_mcbp::dcp::{Control, EndReason, Open, OpenFlags};
use sluicegate_mcbp::hello::Feature;
use sluicegate_mcbp::{Command, Empty, Header, Opcode, Request, Status};
use tokio::time::Instant;

use super::form::{Form, Values};
use super::stream::{MarkerVersion, Progress, Sink, Stream, Style};
use super::{Answer, Session, done};
use crate::bucket::Bucket;
use crate::config::Liveness;
use crate::state::State;

mod request;

/// The longest name of a connection, in bytes.
const MAX_NAME: usize = 200;

/// Opaques of no-ops are above this.
const FIRST_NOOP: u32 = 10_000_000;

/// Bytes after which another stream has its turn.
const TURN: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Dcp {
    name: Bytes,
    flags: OpenFlags,
    has_snappy: bool,
    style: Style,
    window: u64,
    outstanding: u64,
    noop: Noop,
    sends_end_on_close: bool,
    has_stream_ids: bool,
    has_v7_status: bool,
    streams: BTreeMap<(u16, Option<u16>), Stream>,
    ready: VecDeque<(u16, Option<u16>)>,
    /// Streams that were closed by request, and whose end is to be told.
    closed: Vec<Stream>,
    retains_history: bool,
    liveness: Liveness,
}

#[derive(Debug)]
struct Noop {
    is_on: bool,
    interval: Duration,
    last_heard: Instant,
    last_sent: Instant,
    opaque: u32,
    is_unanswered: bool,
    has_streamed: bool,
}

impl Session {
    /// The answer to a DCP command; none if it is no such command.
    pub(super) fn answer_dcp(&mut self, request: &Request, state: &mut State, now: Instant) -> Option<Answer> {
        let opcode = request.command.opcode();
        if let Command::DcpOpen(open) = &request.command {
            return Some(self.open(open, state, now));
        }
        let is_dcp = matches!(
            request.command,
            Command::DcpControl(_)
                | Command::DcpStreamRequest(_)
                | Command::DcpCloseStream(_)
                | Command::DcpGetFailoverLog(_)
                | Command::DcpBufferAck(_)
        );
        let Some(dcp) = &mut self.dcp else {
            // Servers close a connection that has not opened.
            self.is_closing |= is_dcp;
            return is_dcp.then_some(None);
        };
        Some(match &request.command {
            Command::DcpBufferAck(ack) => {
                dcp.outstanding = dcp.outstanding.saturating_sub(u64::from(ack.bytes));
                None
            }
            Command::DcpControl(control) => Some(match dcp.control(control) {
                Status::Success => done(opcode),
                status => self.refuse(opcode, status, "the option is unknown, or cannot be set so"),
            }),
            Command::DcpGetFailoverLog(_) => Some(self.failover_log(request, state)),
            Command::DcpStreamRequest(asked) => Some(self.open_stream(request, asked, state)),
            Command::DcpCloseStream(_) => Some(self.close_stream(request)),
            _ => return None,
        })
    }

    fn open(&mut self, open: &Open, state: &mut State, now: Instant) -> Answer {
        if self.dcp.is_some() {
            self.is_closing = true;
            return None;
        }
        let flags = open.flags;
        let has = |flag| flags.contains(flag);
        let both_no_values = OpenFlags::NO_VALUE | OpenFlags::NO_VALUE_WITH_UNDERLYING_DATATYPE;
        let has_collections = self.has(Feature::Collections);
        let is_refused = flags.unknown().0 != 0
            || !has(OpenFlags::PRODUCER)
            || has(both_no_values)
            || has(OpenFlags::INCLUDE_DELETED_USER_XATTRS) && !has(OpenFlags::INCLUDE_XATTRS)
            || has(OpenFlags::SKIP_DELETES_IN_INITIAL_BACKFILL) && !has_collections
            || !open.value.is_empty()
            || !(1..=MAX_NAME).contains(&open.name.len());
        if is_refused {
            return Some(self.refuse(Opcode::DcpOpen, Status::InvalidArguments, "the flags or the name are not allowed"));
        }
        let values = match flags {
            _ if has(OpenFlags::NO_VALUE) => Values::None,
            _ if has(OpenFlags::NO_VALUE_WITH_UNDERLYING_DATATYPE) => Values::NoneWithDatatype,
            _ => Values::Whole,
        };
        let form = Form {
            has_collections,
            has_snappy: self.has(Feature::Snappy),
            forces_snappy: false,
            has_xattrs: has(OpenFlags::INCLUDE_XATTRS),
            values,
            has_delete_times: has(OpenFlags::INCLUDE_DELETE_TIMES),
            has_expirations: false,
            has_flat_events: false,
        };
        let noop = Noop {
            is_on: false,
            interval: Duration::from_secs(180),
            last_heard: now,
            last_sent: now,
            opaque: FIRST_NOOP,
            is_unanswered: false,
            has_streamed: false,
        };
        // Whoever has had the name is closed.
        state.dcp_names.insert((self.node, open.name.clone()), self.number);
        state.dcp_names_taken += 1;
        self.dcp = Some(Dcp {
            name: open.name.clone(),
            flags,
            has_snappy: form.has_snappy,
            style: Style { form, skips_deletes: has(OpenFlags::SKIP_DELETES_IN_INITIAL_BACKFILL), ..Style::default() },
            window: u64::MAX,
            outstanding: 0,
            noop,
            sends_end_on_close: false,
            has_stream_ids: false,
            has_v7_status: false,
            streams: BTreeMap::new(),
            ready: VecDeque::new(),
            closed: Vec::new(),
            liveness: state.config.liveness,
            retains_history: state.config.retains_history,
        });
        Some(done(Opcode::DcpOpen))
    }
}

impl Dcp {
    pub(super) fn name(&self) -> &Bytes {
        &self.name
    }

    pub(super) fn has_sync_writes(&self) -> bool {
        self.style.has_sync_writes
    }

    /// Something was received.
    pub(super) fn heard(&mut self, now: Instant) {
        self.noop.last_heard = now;
    }

    /// Takes a client's response; whether the connection may go on (protocol, section 4).
    pub(super) fn receive_response(&mut self, header: &Header) -> bool {
        match Opcode::from(header.opcode) {
            _ if header.vbucket_or_status != 0 => false,
            Opcode::DcpNoop => {
                let is_right = self.noop.is_unanswered && header.opaque == self.noop.opaque;
                self.noop.is_unanswered = false;
                is_right
            }
            Opcode::DcpSeqnoAdvanced | Opcode::DcpOsoSnapshot => false,
            _ => true,
        }
    }

    /// Sets an option (protocol, section 3.3).
    fn control(&mut self, control: &Control) -> Status {
        let (Ok(name), Ok(value)) = (std::str::from_utf8(&control.name), std::str::from_utf8(&control.value)) else {
            return Status::InvalidArguments;
        };
        let is_true = value == "true";
        let is_boolean = is_true || value == "false";
        let form = &mut self.style.form;
        let accepted = match name {
            _ if value.is_empty() => false,
            "connection_buffer_size" => match value.parse::<u32>() {
                Ok(0) => {
                    self.window = u64::MAX;
                    true
                }
                Ok(window) => {
                    self.window = window.into();
                    true
                }
                Err(_) => false,
            },
            "enable_noop" => {
                self.noop.is_on = is_true;
                true
            }
            "set_noop_interval" => match value.parse::<f64>() {
                Ok(seconds) if (0.01..=100_000.0).contains(&seconds) => {
                    self.noop.interval = Duration::from_secs_f64(seconds);
                    true
                }
                _ => false,
            },
            "set_priority" => matches!(value, "high" | "medium" | "low"),
            "force_value_compression" => {
                form.forces_snappy = is_true;
                is_boolean && self.has_snappy
            }
            "supports_cursor_dropping" | "supports_cursor_dropping_vulcan" => is_boolean,
            "backfill_order" => matches!(value, "round-robin" | "sequential"),
            "send_stream_end_on_client_close_stream" => {
                self.sends_end_on_close |= is_true;
                is_true
            }
            "enable_expiry_opcode" => {
                form.has_expirations = is_true && form.has_delete_times;
                is_boolean
            }
            "enable_stream_id" => {
                self.has_stream_ids |= is_true;
                is_true
            }
            "enable_sync_writes" if self.has_stream_ids => return Status::NotSupported,
            "enable_sync_writes" => {
                self.style.has_sync_writes |= is_true;
                if self.style.marker == MarkerVersion::V1 {
                    self.style.marker = MarkerVersion::V2_0;
                }
                is_true
            }
            "enable_out_of_order_snapshots" => {
                self.style.oso = match value {
                    "true" => Some(false),
                    "true_with_seqno_advanced" => Some(true),
                    _ => return Status::InvalidArguments,
                };
                true
            }
            "include_deleted_user_xattrs" => is_true && self.flags.contains(OpenFlags::INCLUDE_DELETED_USER_XATTRS),
            "v7_dcp_status_codes" => {
                self.has_v7_status = is_true;
                is_boolean
            }
            "max_marker_version" if !form.has_collections => return Status::NotSupported,
            "max_marker_version" => {
                self.style.marker = match value {
                    "1.0" => MarkerVersion::V1,
                    "2.0" => MarkerVersion::V2_0,
                    "2.2" => MarkerVersion::V2_2,
                    _ => return Status::InvalidArguments,
                };
                true
            }
            "flatbuffers_system_events" => {
                form.has_flat_events |= is_true;
                is_true
            }
            "change_streams" if self.retains_history => {
                self.style.has_history = is_true;
                is_boolean
            }
            "stream_buffer_size" | "change_streams" | "cache_transfer" => {
                return Status::NotSupported;
            }
            _ => false,
        };
        if accepted { Status::Success } else { Status::InvalidArguments }
    }

    /// When a no-op is due, or the connection to be given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (self.noop.is_on && self.noop.has_streamed).then(|| self.noop.next(self.liveness))
    }

    /// Sends what is due; whether the connection may go on.
    pub(super) fn advance(
        &mut self,
        number: u64,
        node: usize,
        state: &mut State,
        now: Instant,
        out: &mut BytesMut,
        limit: usize,
    ) -> bool {
        if state.dcp_names.get(&(node, self.name.clone())) != Some(&number) || !self.check_liveness(now, out) {
            return false;
        }
        self.end_streams(state, out);
        let bucket = &state.bucket;
        for (key, stream) in &mut self.streams {
            if !stream.is_queued && has_news(stream, bucket) {
                stream.is_queued = true;
                self.ready.push_back(*key);
            }
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            let Some(vbucket) = bucket.vbucket(stream.vbucket) else { continue };
            let turn = limit.min(out.len() + TURN);
            let mut sink = Sink { out, limit: turn, outstanding: &mut self.outstanding, window: self.window };
            let copy = vbucket.copy(node);
            match stream.produce(vbucket, copy, bucket.manifest(), &self.style, &state.config, &mut sink) {
                Progress::Blocked => self.ready.push_back(key),
                Progress::Idle => stream.is_queued = false,
                Progress::Ended => {
                    self.streams.remove(&key);
                }
            }
            if out.len() >= limit || self.outstanding >= self.window {
                break;
            }
        }
        true
    }

    /// Ends streams as a test has asked for.
    fn end_streams(&mut self, state: &State, out: &mut BytesMut) {
        let mut sink = Sink { out, limit: usize::MAX, outstanding: &mut self.outstanding, window: u64::MAX };
        for stream in self.closed.drain(..) {
            stream.finish(EndReason::Closed, &mut sink);
        }
        if state.endings.is_empty() {
            return;
        }
        self.streams.retain(|_, stream| match state.endings.get(&stream.vbucket) {
            Some((reason, until)) if stream.number <= *until => {
                stream.finish(*reason, &mut sink);
                false
            }
            _ => true,
        });
    }

    /// Sends a no-op if one is due; false if the client is silent for too long (protocol, section 7).
    fn check_liveness(&mut self, now: Instant, out: &mut BytesMut) -> bool {
        let noop = &mut self.noop;
        if !noop.is_on || !noop.has_streamed {
            return true;
        }
        if let Liveness::Idle(limit) = self.liveness
            && now >= noop.last_heard + limit
        {
            return false;
        }
        if now < noop.last_sent + noop.interval {
            return true;
        }
        if noop.is_unanswered {
            noop.last_sent = now;
            return self.liveness != Liveness::NextNoop;
        }
        noop.opaque = noop.opaque.wrapping_add(1).max(FIRST_NOOP);
        (noop.last_sent, noop.is_unanswered) = (now, true);
        match Request::new(Command::DcpNoop(Empty {})).with_opaque(noop.opaque).encode(out) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "a no-op has no encoding");
                false
            }
        }
    }
}

impl Noop {
    fn next(&self, liveness: Liveness) -> Instant {
        let due = self.last_sent + self.interval;
        match liveness {
            Liveness::Idle(limit) => due.min(self.last_heard + limit),
            Liveness::NextNoop => due,
        }
    }
}

fn has_news(stream: &Stream, bucket: &Bucket) -> bool {
    bucket.vbucket(stream.vbucket).is_some_and(|vbucket| stream.idle_at != Some(vbucket.changes()))
}
