//! A network that can be disturbed.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// To the server, or from it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    To,
    From,
}

/// Passes connections on to a server, as long as it is let.
pub(crate) struct Proxy {
    port: u16,
    control: Arc<Control>,
    task: JoinHandle<()>,
}

struct Control {
    server: u16,
    /// Swallow what comes.
    silent: [AtomicBool; 2],
    swallowed: AtomicU64,
    delay_us: AtomicU64,
    /// Bytes to pass before all connections are cut.
    left: [AtomicI64; 2],
    cuts: watch::Sender<u64>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

impl Proxy {
    pub(crate) async fn to(server: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let control = Arc::new(Control {
            server,
            silent: Default::default(),
            swallowed: AtomicU64::new(0),
            delay_us: AtomicU64::new(0),
            left: [AtomicI64::new(i64::MAX), AtomicI64::new(i64::MAX)],
            cuts: watch::Sender::new(0),
        });
        let shared = control.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, shared.clone()));
            }
        });
        Proxy { port, control, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Cuts all connections; new ones may be made.
    pub(crate) fn cut(&self) {
        self.control.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// How often connections have been cut.
    pub(crate) fn cuts(&self) -> u64 {
        *self.control.cuts.borrow()
    }

    /// Cuts all connections after so many bytes more: in the middle of a frame, mostly.
    pub(crate) fn cut_after(&self, bytes: i64, way: Way) {
        self.control.left[way as usize].store(bytes, Ordering::SeqCst);
    }

    /// Swallows what comes one way, or no longer does. A connection that has lost something stays silent.
    pub(crate) fn silent(&self, way: Way, silent: bool) {
        self.control.silent[way as usize].store(silent, Ordering::SeqCst);
    }

    /// Bytes that have been swallowed.
    pub(crate) fn swallowed(&self) -> u64 {
        self.control.swallowed.load(Ordering::SeqCst)
    }

    /// Lets everything wait.
    pub(crate) fn delay(&self, delay: Duration) {
        self.control.delay_us.store(delay.as_micros() as u64, Ordering::SeqCst);
    }
}

async fn pass(client: TcpStream, control: Arc<Control>) {
    let mut cuts = control.cuts.subscribe();
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, control.server)).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        _ = cuts.changed() => {}
        () = pump(from_client, to_server, &control, Way::To) => {}
        () = pump(from_server, to_client, &control, Way::From) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, control: &Control, way: Way) {
    let (silent, left) = (&control.silent[way as usize], &control.left[way as usize]);
    let mut dead = false;
    let mut bytes = vec![0; 16 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
        let delay = control.delay_us.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_micros(delay)).await;
        }
        dead |= silent.load(Ordering::SeqCst);
        if dead {
            control.swallowed.fetch_add(count as u64, Ordering::SeqCst);
            continue;
        }
        let before = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            Some(if left == i64::MAX { left } else { left - count as i64 })
        });
        let before = before.unwrap_or(i64::MAX);
        if before < count as i64 {
            let _ = to.write_all(&bytes[..before.max(0) as usize]).await;
            let _ = to.flush().await;
            left.store(i64::MAX, Ordering::SeqCst);
            control.cuts.send_modify(|cuts| *cuts += 1);
            return;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
