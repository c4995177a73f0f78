//! Being asked to stop.

use sluicegate::{Error, ErrorKind, Result};
use tokio::sync::watch;

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// Another program asks for the end.
    Terminate,
}

/// The signals that ask for the end. Whoever holds one of these stops in order at the first; the second ends the process at once.
#[derive(Clone, Debug)]
pub(crate) struct Signals(watch::Receiver<Option<Signal>>);

impl Signals {
    /// Listens from now on.
    pub(crate) fn listen() -> Result<Self> {
        let failed = |e: std::io::Error| Error::new(ErrorKind::Unexpected, "signals cannot be listened for").with_source(e);
        let (sender, receiver) = watch::channel(None);
        #[cfg(unix)]
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(failed)?;
        #[cfg(unix)]
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(failed)?;
        #[cfg(windows)]
        let (mut interrupt, mut terminate) =
            (tokio::signal::windows::ctrl_c().map_err(failed)?, tokio::signal::windows::ctrl_close().map_err(failed)?);
        tokio::spawn(async move {
            loop {
                let signal = tokio::select! {
                    _ = interrupt.recv() => Signal::Interrupt,
                    _ = terminate.recv() => Signal::Terminate,
                };
                if sender.send_replace(Some(signal)).is_some() {
                    std::process::exit(130);
                }
            }
        });
        Ok(Signals(receiver))
    }

    /// Waits for the first one; comes back at once if it has come already.
    pub(crate) async fn first(&self) -> Signal {
        let mut signals = self.0.clone();
        match signals.wait_for(Option::is_some).await.map(|signal| *signal) {
            Ok(Some(signal)) => signal,
            _ => std::future::pending().await,
        }
    }
}
