//! One connection: what it has agreed on, and what it answers. Without I/O; the clock comes in from outside.

mod auth;
mod dcp;
mod form;
mod kv;
mod query;
mod stream;
#[cfg(test)]
mod tests;

use bytes::{Bytes, BytesMut};
use serde_json::json;
use sluicegate_mcbp::hello::{Feature, Features, Granted};
use sluicegate_mcbp::{Command, Datatype, Frame, Notice, Opcode, Parts, Reply, Request, Response, ServerRequest, Status};
use tokio::time::Instant;

use crate::state::State;
use crate::tls::TlsConfig;
use auth::Auth;
use dcp::Dcp;
use kv::Waiting;
pub(crate) use kv::is_json;

/// Features that are granted if they are asked for.
const FEATURES: [Feature; 16] = [
    Feature::TcpNoDelay,
    Feature::MutationSeqno,
    Feature::Xattr,
    Feature::Xerror,
    Feature::SelectBucket,
    Feature::Snappy,
    Feature::Json,
    Feature::Duplex,
    Feature::ClusterMapNotification,
    Feature::AltRequest,
    Feature::SyncReplication,
    Feature::Collections,
    Feature::GetClusterConfigWithKnownVersion,
    Feature::DedupeNotMyVbucketClusterMap,
    Feature::ClusterMapNotificationBrief,
    Feature::DcpSkipDeletesInInitialBackfill,
];

/// The largest value that is decompressed, in bytes.
const MAX_VALUE: usize = 21 << 20;

/// Bytes of output that are prepared at once.
const OUT_LIMIT: usize = 256 << 10;

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) number: u64,
    pub(crate) node: usize,
    life: u64,
    features: Features,
    auth: Auth,
    has_bucket: bool,
    dcp: Option<Dcp>,
    /// A durable write whose answer waits.
    waiting: Option<Waiting>,
    /// The bucket that was selected, by its identity.
    bucket_uuid: String,
    /// The revision of the cluster map that the client was told of.
    announced: i64,
    /// The revision of the map that was sent with an answer.
    attached: i64,
    pub(crate) is_closing: bool,
}

/// What a request is answered; `None` for what is not.
type Answer = Option<(Status, Reply)>;

impl Session {
    pub(crate) fn new(state: &mut State, node: usize) -> Self {
        state.next_connection += 1;
        Session {
            number: state.next_connection,
            node,
            life: state.nodes[node].life,
            features: Features::default(),
            auth: Auth::None,
            has_bucket: false,
            dcp: None,
            waiting: None,
            bucket_uuid: String::new(),
            announced: state.revision,
            attached: 0,
            is_closing: false,
        }
    }

    /// Whether it may send large frames.
    pub(crate) fn is_trusted(&self) -> bool {
        self.auth.is_done()
    }

    /// TLS is agreed on, with a client whose certificate names this user, or that has shown none.
    pub(crate) fn identify(&mut self, user: Option<&str>, state: &State) {
        if user == Some(&state.config.user) {
            self.auth = Auth::Certified;
        } else {
            self.is_closing |= state.config.tls.as_ref().is_some_and(TlsConfig::is_certificate_mandatory);
        }
    }

    /// Whether a request must be complete before the next one is taken.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    fn has_sync_writes(&self) -> bool {
        self.dcp.as_ref().is_some_and(Dcp::has_sync_writes)
    }

    fn has(&self, feature: Feature) -> bool {
        self.features.contains(feature)
    }

    /// Takes one frame, and appends the answer.
    pub(crate) fn receive(&mut self, frame: Frame, state: &mut State, now: Instant, out: &mut BytesMut) {
        let header = *frame.header();
        if let Some(dcp) = &mut self.dcp {
            dcp.heard(now);
        }
        if header.magic.is_response() {
            if let Some(dcp) = &mut self.dcp {
                self.is_closing |= !dcp.receive_response(&header);
            }
            return;
        }
        let opcode = Opcode::from(header.opcode);
        if state.faults.unanswered.contains(&opcode) {
            return;
        }
        let (status, reply, cas, datatype) = match Request::decode(frame) {
            Ok(request) => {
                let Some((status, reply)) = self.answer(&request, state, now) else { return };
                if self.waiting.is_some() {
                    // A durable write has begun; it is answered when it is complete.
                    self.answer_durable(state, out);
                    return;
                }
                let (cas, datatype) = self.metadata(&request, &reply, state);
                (status, reply, cas, datatype)
            }
            Err(error) => {
                let status = Status::InvalidArguments;
                (status, self.explain(opcode, status, &error.to_string()), 0, Datatype::default())
            }
        };
        if self.is_closing {
            return;
        }
        let datatype = match &reply {
            Reply::Failed(parts) if parts.value().first() == Some(&b'{') => Datatype::JSON,
            _ => datatype,
        };
        respond(Response { opcode, status, opaque: header.opaque, cas, datatype, framing: Bytes::new(), reply }, out);
    }

    /// Does what is due without being asked: notices, stream messages. Appends to `out` until it is full.
    pub(crate) fn advance(&mut self, state: &mut State, now: Instant, out: &mut BytesMut) {
        let node = &state.nodes[self.node];
        let is_gone = self.has_bucket && self.bucket_uuid != state.bucket.uuid();
        if !node.is_up || node.life != self.life || self.number <= state.oldest_connection || is_gone {
            self.is_closing = true;
        }
        if self.is_closing || state.is_paused {
            return;
        }
        self.answer_durable(state, out);
        if self.announced < state.revision {
            self.announced = state.revision;
            let is_brief = self.has(Feature::ClusterMapNotificationBrief);
            if self.has_bucket && (is_brief || self.has(Feature::ClusterMapNotification)) {
                let notice = Notice::ClusterMapChanged(state.notice(self.node, is_brief));
                let datatype = if is_brief { Datatype::default() } else { Datatype::JSON };
                if let Err(error) = (ServerRequest { opaque: 0, datatype, notice }).encode(out) {
                    tracing::error!(%error, "a notice has no encoding");
                }
            }
        }
        if let Some(dcp) = &mut self.dcp {
            self.is_closing |= !dcp.advance(self.number, self.node, state, now, out, OUT_LIMIT);
        }
    }

    /// When [`advance`](Session::advance) has something to do even if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.dcp.as_ref()?.deadline()
    }

    /// Forgets what others know of the connection.
    pub(crate) fn end(&self, state: &mut State) {
        if let Some(dcp) = &self.dcp {
            let key = (self.node, dcp.name().clone());
            if state.dcp_names.get(&key) == Some(&self.number) {
                state.dcp_names.remove(&key);
            }
        }
    }

    fn answer(&mut self, request: &Request, state: &mut State, now: Instant) -> Answer {
        let opcode = request.command.opcode();
        match &request.command {
            Command::Hello(hello) => return Some(self.hello(&hello.features)),
            Command::Noop(_) => return Some(done(opcode)),
            Command::Version(_) => return plain(opcode, "7.6.2-0000-simulator"),
            Command::GetErrorMap(_) => return plain(opcode, error_map()),
            Command::SaslListMechs(_) => return plain(opcode, auth::mechanisms(state)),
            Command::SaslAuth(exchange) => return Some(self.auth.begin(exchange, state)),
            Command::SaslStep(exchange) => return Some(self.auth.go_on(exchange)),
            _ => (),
        }
        if !self.auth.is_done() {
            return Some(self.refuse(opcode, Status::AccessDenied, "authenticate first"));
        }
        match &request.command {
            Command::SelectBucket(bucket) => {
                if bucket.key != state.bucket.name().as_bytes() {
                    return Some(self.refuse(opcode, Status::AccessDenied, "there is no such bucket"));
                }
                self.has_bucket = true;
                state.bucket.uuid().clone_into(&mut self.bucket_uuid);
                return Some(done(opcode));
            }
            Command::GetClusterConfig(asked) => {
                let is_known = asked.known.is_some_and(|known| known >= state.map_revision());
                let config = if is_known { String::new() } else { state.map(self.node, self.has_bucket).to_string() };
                return plain(opcode, config);
            }
            _ if !self.has_bucket => return Some(self.refuse(opcode, Status::NoBucket, "select a bucket first")),
            _ => (),
        }
        self.answer_dcp(request, state, now).unwrap_or_else(|| Some(self.answer_other(request, state)))
    }

    /// Compare-and-swap value and datatype of an answer.
    fn metadata(&self, request: &Request, reply: &Reply, state: &State) -> (u64, Datatype) {
        match (reply, &request.command) {
            (Reply::Document(_) | Reply::Stored(_) | Reply::Counter(_), _) => self.document_metadata(request, state),
            (Reply::Plain(parts), Command::GetClusterConfig(_)) if !parts.value().is_empty() => (0, Datatype::JSON),
            (Reply::Plain(_), Command::GetErrorMap(_) | Command::GetCollectionsManifest(_)) => (0, Datatype::JSON),
            _ => (0, Datatype::default()),
        }
    }

    fn hello(&mut self, asked: &Features) -> (Status, Reply) {
        let is_asked = |feature: &Feature| asked.contains(*feature);
        let needs_duplex = [Feature::ClusterMapNotification, Feature::ClusterMapNotificationBrief];
        if needs_duplex.iter().any(is_asked) && !is_asked(&Feature::Duplex) {
            return self.refuse(Opcode::Hello, Status::InvalidArguments, "cluster map notices need Duplex");
        }
        self.features = Features(FEATURES.into_iter().filter(is_asked).collect());
        (Status::Success, Reply::Hello(Granted { features: self.features.clone() }))
    }

    /// A failure with words about it, if the client understands them (protocol, section 2.8).
    fn refuse(&self, opcode: Opcode, status: Status, context: &str) -> (Status, Reply) {
        (status, self.explain(opcode, status, context))
    }

    fn explain(&self, opcode: Opcode, status: Status, context: &str) -> Reply {
        let value = match self.has(Feature::Xerror) && !status.is_success_class() {
            true => json!({ "error": { "context": context } }).to_string(),
            false => String::new(),
        };
        Reply::Failed(Parts::from_value(opcode, value))
    }

    /// The answer that another node has the vbucket, with the map unless the client has got it (protocol, section 2.5).
    fn not_my_vbucket(&mut self, opcode: Opcode, state: &State) -> (Status, Reply) {
        let is_known = self.has(Feature::DedupeNotMyVbucketClusterMap) && self.attached == state.revision;
        self.attached = state.revision;
        let map = if is_known { String::new() } else { state.map(self.node, true).to_string() };
        (Status::NotMyVbucket, Reply::Failed(Parts::from_value(opcode, map)))
    }

    /// The answer that there is no such collection or scope, with the number of the manifest.
    fn unknown(&self, opcode: Opcode, status: Status, state: &State) -> (Status, Reply) {
        let value = json!({ "manifest_uid": format!("{:x}", state.bucket.manifest().uid) }).to_string();
        (status, Reply::Failed(Parts::from_value(opcode, value)))
    }
}

fn respond(response: Response, out: &mut BytesMut) {
    if let Err(error) = response.encode(out) {
        tracing::error!(%error, "an answer has no encoding");
    }
}

fn done(opcode: Opcode) -> (Status, Reply) {
    (Status::Success, Reply::Plain(Parts::from_value(opcode, Bytes::new())))
}

fn plain(opcode: Opcode, value: impl Into<Bytes>) -> Answer {
    Some((Status::Success, Reply::Plain(Parts::from_value(opcode, value))))
}

/// What the server says about its status codes (protocol, section 2.7).
fn error_map() -> String {
    let entry = |name: &str, attributes: &[&str]| json!({ "name": name, "desc": name, "attrs": attributes });
    json!({
        "version": 2,
        "revision": 1,
        "errors": {
            "1": entry("KEY_ENOENT", &["item-only"]),
            "2": entry("KEY_EEXISTS", &["item-only"]),
            "4": entry("EINVAL", &["internal", "conn-state-invalidated"]),
            "7": entry("NOT_MY_VBUCKET", &["fetch-config", "invalid-input"]),
            "8": entry("NO_BUCKET", &["conn-state-invalidated"]),
            "1f": entry("AUTH_STALE", &["conn-state-invalidated", "auth"]),
            "20": entry("AUTH_ERROR", &["conn-state-invalidated", "auth"]),
            "22": entry("ERANGE", &["invalid-input"]),
            "23": entry("ROLLBACK", &["special-handling", "dcp"]),
            "24": entry("EACCESS", &["support", "auth"]),
            "81": entry("UNKNOWN_COMMAND", &["support"]),
            "82": entry("ENOMEM", &["temp", "retry-later"]),
            "83": entry("NOT_SUPPORTED", &["support"]),
            "85": entry("EBUSY", &["temp", "retry-later"]),
            "86": entry("ETMPFAIL", &["temp", "retry-later"]),
            "88": entry("UNKNOWN_COLLECTION", &["fetch-config", "item-only"]),
            "a2": entry("SYNC_WRITE_IN_PROGRESS", &["item-only", "retry-later"]),
            "a3": entry("SYNC_WRITE_AMBIGUOUS", &["item-only"]),
        }
    })
    .to_string()
}
