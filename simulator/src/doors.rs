//! The ports of a node.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::cluster::Shared;
use crate::connection::serve;

/// Where a node listens: without TLS, and with it.
#[derive(Debug)]
pub(crate) struct Doors {
    plain: TcpListener,
    tls: Option<(TcpListener, Arc<ServerConfig>)>,
}

impl Doors {
    /// Listens on these ports; 0 is any free one.
    pub(crate) async fn open(host: IpAddr, ports: (u16, Option<u16>), tls: Option<Arc<ServerConfig>>) -> io::Result<Doors> {
        let plain = TcpListener::bind((host, ports.0)).await?;
        let tls = match ports.1.zip(tls) {
            Some((port, config)) => Some((TcpListener::bind((host, port)).await?, config)),
            None => None,
        };
        Ok(Doors { plain, tls })
    }

    /// The ports, without TLS and with it.
    pub(crate) fn ports(&self) -> io::Result<(u16, Option<u16>)> {
        let port = |listener: &TcpListener| Ok::<_, io::Error>(listener.local_addr()?.port());
        Ok((port(&self.plain)?, self.tls.as_ref().map(|(listener, _)| port(listener)).transpose()?))
    }

    /// Lets clients in, until the task is aborted.
    pub(crate) fn serve(self, node: usize, shared: &Arc<Shared>) -> JoinHandle<()> {
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            loop {
                match self.accept().await {
                    Ok((socket, tls)) => drop(tokio::spawn(serve(socket, tls, node, Arc::clone(&shared)))),
                    Err(error) => {
                        // Too many open files, most likely: others may close theirs.
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        })
    }

    async fn accept(&self) -> io::Result<(TcpStream, Option<Arc<ServerConfig>>)> {
        match &self.tls {
            None => Ok((self.plain.accept().await?.0, None)),
            Some((listener, config)) => tokio::select! {
                accepted = self.plain.accept() => Ok((accepted?.0, None)),
                accepted = listener.accept() => Ok((accepted?.0, Some(config.clone()))),
            },
        }
    }
}
