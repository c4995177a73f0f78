//! One connection's socket: bytes in, bytes out, and what is to go wrong with them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sluicegate_mcbp::{DEFAULT_MAX_BODY, FrameDecoder};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::cluster::Shared;
use crate::session::Session;

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
pub(crate) async fn serve(socket: TcpStream, node: usize, shared: Arc<Shared>) {
    let mut changes = shared.changes.subscribe();
    let (session, seed) = {
        let mut state = shared.state.lock();
        (Session::new(&mut state, node), state.config.seed)
    };
    let random = ChaCha8Rng::seed_from_u64(seed ^ session.number.rotate_left(32));
    let (input, output) = (BytesMut::with_capacity(READ_LEN), BytesMut::with_capacity(READ_LEN));
    let mut connection = Connection { socket, shared, session, input, output, random, sent: 0 };
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
            if self.session.is_closing {
                return self.flush();
            }
            if plan.is_paused {
                if changes.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            }
            let interest = match (self.output.is_empty(), self.output.len() > MAX_WAITING) {
                (true, _) => Interest::READABLE,
                (false, false) => Interest::READABLE | Interest::WRITABLE,
                (false, true) => Interest::WRITABLE,
            };
            let deadline = self.session.deadline();
            let ready = tokio::select! {
                ready = self.socket.ready(interest) => ready?,
                changed = changes.changed() => match changed {
                    Ok(()) => continue,
                    // The cluster is gone.
                    Err(_) => return Ok(()),
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => continue,
            };
            if ready.is_readable() && !self.read()? {
                return Ok(());
            }
            if ready.is_writable() && !self.output.is_empty() && !self.write(&plan).await? {
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

    /// Reads what there is; false at the end.
    fn read(&mut self) -> io::Result<bool> {
        self.input.reserve(READ_LEN);
        match self.socket.try_read_buf(&mut self.input) {
            Ok(0) => return Ok(false),
            Ok(_) => (),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.lock();
        let before = state.version();
        loop {
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
        Ok(true)
    }

    /// Writes what the socket takes, as the faults want it; false if it is to be cut.
    async fn write(&mut self, plan: &Plan) -> io::Result<bool> {
        if !plan.delay.is_zero() {
            sleep(plan.delay).await;
        }
        let mut len = self.output.len();
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
        match self.socket.try_write(&self.output[..len]) {
            Ok(written) => {
                self.output.advance(written);
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
        match self.socket.try_write(&self.output) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}
