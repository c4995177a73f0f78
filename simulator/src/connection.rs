//! One connection's socket: bytes in, bytes out, and what is to go wrong with them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rustls::ServerConfig;
use sluicegate_mcbp::{DEFAULT_MAX_BODY, FrameDecoder};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::cluster::Shared;
use crate::session::Session;
use crate::tls::{Opened, Tls};

/// The largest body taken before authentication, in bytes.
const MAX_STRANGER_BODY: usize = 64 << 10;

/// Bytes read at once.
const READ_LEN: usize = 64 << 10;

/// Bytes that wait for a client to be read before its requests wait, too.
const MAX_WAITING: usize = 64 << 20;

struct Connection {
    socket: TcpStream,
    shared: Arc<Shared>,
    session: Session,
    tls: Option<Tls>,
    /// Bytes that have arrived sealed; only for a moment.
    arrived: BytesMut,
    input: BytesMut,
    output: BytesMut,
    random: ChaCha8Rng,
    sent: u64,
}

/// What faults mean for the next write.
struct Plan {
    delay: Duration,
    split_percent: u8,
    cut_after: Option<u64>,
    is_paused: bool,
}

/// Serves a connection until one side ends it.
pub(crate) async fn serve(socket: TcpStream, tls: Option<Arc<ServerConfig>>, node: usize, shared: Arc<Shared>) {
    let tls = match tls.map(Tls::new).transpose() {
        Ok(tls) => tls,
        Err(error) => {
            tracing::error!(%error, "TLS cannot begin");
            return;
        }
    };
    let mut changes = shared.changes.subscribe();
    let (session, seed) = {
        let mut state = shared.state.lock();
        (Session::new(&mut state, node), state.config.seed)
    };
    let random = ChaCha8Rng::seed_from_u64(seed ^ session.number.rotate_left(32));
    let (input, output) = (BytesMut::with_capacity(READ_LEN), BytesMut::with_capacity(READ_LEN));
    let mut connection = Connection { socket, shared, session, tls, arrived: BytesMut::new(), input, output, random, sent: 0 };
    if let Err(error) = connection.run(&mut changes).await {
        tracing::debug!(%error, "a connection has failed");
    }
    connection.session.end(&mut connection.shared.state.lock());
}

impl Connection {
    async fn run(&mut self, changes: &mut watch::Receiver<u64>) -> io::Result<()> {
        self.socket.set_nodelay(true)?;
        loop {
            changes.borrow_and_update();
            let plan = self.advance();
            self.take();
            self.seal()?;
            if self.session.is_closing {
                return self.flush();
            }
            if plan.is_paused {
                if changes.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            }
            let waiting = self.outgoing().len();
            // What is read while a request waits for its end would only pile up.
            let reads = waiting <= MAX_WAITING && (!self.session.is_waiting() || self.input.len() < READ_LEN);
            let interest = match (reads, waiting > 0) {
                (true, false) => Some(Interest::READABLE),
                (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
                (false, true) => Some(Interest::WRITABLE),
                (false, false) => None,
            };
            let deadline = self.session.deadline();
            let ready = tokio::select! {
                ready = self.socket.ready(interest.unwrap_or(Interest::READABLE)), if interest.is_some() => ready?,
                changed = changes.changed() => match changed {
                    Ok(()) => continue,
                    // The cluster is gone.
                    Err(_) => return Ok(()),
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => continue,
            };
            if ready.is_readable() {
                match self.read() {
                    Ok(true) => (),
                    Ok(false) => return Ok(()),
                    Err(error) if self.tls.is_some() => {
                        tracing::debug!(%error, "a connection's TLS has failed");
                        return self.part(changes).await;
                    }
                    Err(error) => return Err(error),
                }
            }
            if ready.is_writable() && !self.outgoing().is_empty() && !self.write(&plan).await? {
                return Ok(());
            }
        }
    }

    /// Lets the session do what is due.
    fn advance(&mut self) -> Plan {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.lock();
        self.session.advance(&mut state, Instant::now(), &mut self.output);
        let faults = &state.faults;
        Plan {
            delay: faults.delay,
            split_percent: faults.split_percent,
            cut_after: faults.cut_after,
            is_paused: state.is_paused && !self.session.is_closing,
        }
    }

    /// What is to be sent as it is.
    fn outgoing(&mut self) -> &mut BytesMut {
        self.tls.as_mut().map_or(&mut self.output, |tls| &mut tls.sealed)
    }

    /// Seals what is to be sent, unless enough is sealed already.
    fn seal(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) if tls.sealed.is_empty() => tls.seal(&mut self.output),
            _ => Ok(()),
        }
    }

    /// Lets the client read why TLS has failed, before the connection is closed: a socket that is closed with bytes unread takes back
    /// what was sent last.
    async fn part(&mut self, changes: &mut watch::Receiver<u64>) -> io::Result<()> {
        while !self.outgoing().is_empty() {
            self.socket.writable().await?;
            self.flush()?;
        }
        self.socket.shutdown().await?;
        loop {
            tokio::select! {
                ready = self.socket.readable() => ready?,
                _ = changes.changed() => {
                    self.advance();
                    if self.session.is_closing {
                        return Ok(());
                    }
                    continue;
                }
            }
            self.arrived.clear();
            match self.socket.try_read_buf(&mut self.arrived) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => (),
            }
        }
    }

    /// Reads what there is; false at the end.
    fn read(&mut self) -> io::Result<bool> {
        let into = if self.tls.is_some() { &mut self.arrived } else { &mut self.input };
        into.reserve(READ_LEN);
        match self.socket.try_read_buf(into) {
            Ok(0) => return Ok(false),
            Ok(_) => (),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
        if let Some(tls) = &mut self.tls {
            let opened = tls.open(&self.arrived, &mut self.input)?;
            self.arrived.clear();
            if let Opened::Handshake(user) = opened {
                self.session.identify(user.as_deref(), &self.shared.state.lock());
            }
        }
        self.take();
        Ok(true)
    }

    /// Lets the session have what was read, unless it must wait.
    fn take(&mut self) {
        if self.input.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.lock();
        let before = state.version();
        while !self.session.is_waiting() {
            let max_body = if self.session.is_trusted() { DEFAULT_MAX_BODY } else { MAX_STRANGER_BODY };
            match FrameDecoder::new(max_body).decode(&mut self.input) {
                Ok(Some(frame)) => self.session.receive(frame, &mut state, Instant::now(), &mut self.output),
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "a connection sends no frames");
                    self.session.is_closing = true;
                }
            }
            if self.session.is_closing {
                break;
            }
        }
        if state.version() != before {
            shared.notify();
        }
    }

    /// Writes what the socket takes, as the faults want it; false if it is to be cut.
    async fn write(&mut self, plan: &Plan) -> io::Result<bool> {
        if !plan.delay.is_zero() {
            sleep(plan.delay).await;
        }
        let mut len = self.outgoing().len();
        let is_split = plan.split_percent > 0 && self.random.random_range(0..100) < plan.split_percent;
        if is_split {
            len = self.random.random_range(1..=len);
        }
        if let Some(limit) = plan.cut_after {
            len = len.min(usize::try_from(limit.saturating_sub(self.sent)).unwrap_or(usize::MAX));
            if len == 0 {
                return Ok(false);
            }
        }
        let outgoing = self.tls.as_mut().map_or(&mut self.output, |tls| &mut tls.sealed);
        match self.socket.try_write(&outgoing[..len]) {
            Ok(written) => {
                outgoing.advance(written);
                self.sent += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            Err(error) => return Err(error),
        }
        if is_split {
            // The other side may take the piece before the next one is there.
            tokio::task::yield_now().await;
        }
        Ok(true)
    }

    /// Writes what the socket takes before it is closed.
    fn flush(&mut self) -> io::Result<()> {
        let outgoing = self.tls.as_mut().map_or(&mut self.output, |tls| &mut tls.sealed);
        match self.socket.try_write(outgoing) {
            Ok(written) => outgoing.advance(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
