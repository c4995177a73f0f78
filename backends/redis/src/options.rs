//! What a URL says.

use std::fmt;
use std::time::Duration;

use redis::{ClientTlsConfig, ConnectionInfo, IntoConnectionInfo, TlsCertificates};
use rustls::crypto::CryptoProvider;
use serde::Deserialize;
use sluicegate_core::registry::Location;
use sluicegate_core::{Error, Result};

/// The options after the question mark of a `redis:` URL.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RedisOptions {
    /// Every key of the cache begins with it; one server holds as many caches as there are namespaces. Default `_cache`.
    pub namespace: String,
    /// Connections that commands are spread over. Default 2; at most 64. A Cluster has one to each node.
    pub pool: usize,
    /// Longest wait for an answer, in milliseconds. Default 10,000.
    pub timeout_ms: u64,
    /// Longest wait for a connection, in milliseconds. Default 5,000.
    pub connect_timeout_ms: u64,
    /// How many replicas must have a publication before it counts (`WAIT`). Default 0.
    pub wait_replicas: u32,
    /// A file with the certificates (PEM) of the authorities to trust, instead of those built in.
    pub ca: Option<String>,
    /// A file with the client's certificate (PEM); with `client_key`.
    pub client_cert: Option<String>,
    /// A file with the key (PEM) of the client's certificate.
    pub client_key: Option<String>,
}

impl Default for RedisOptions {
    fn default() -> Self {
        RedisOptions {
            namespace: "_cache".to_owned(),
            pool: 2,
            timeout_ms: 10_000,
            connect_timeout_ms: 5_000,
            wait_replicas: 0,
            ca: None,
            client_cert: None,
            client_key: None,
        }
    }
}

impl RedisOptions {
    /// Longest wait for an answer.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// Longest wait for a connection.
    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    fn validate(&self) -> Result<()> {
        let mut wrong = Vec::new();
        if self.namespace.is_empty() || self.namespace.len() > 64 {
            wrong.push(format!("namespace has {} bytes, must have 1 to 64", self.namespace.len()));
        }
        if !(1..=64).contains(&self.pool) {
            wrong.push(format!("pool is {}, must be from 1 to 64", self.pool));
        }
        for (name, value) in [("timeout_ms", self.timeout_ms), ("connect_timeout_ms", self.connect_timeout_ms)] {
            if value == 0 {
                wrong.push(format!("{name} is 0, must be at least 1"));
            }
        }
        if self.client_cert.is_some() != self.client_key.is_some() {
            wrong.push("client_cert and client_key go together".to_owned());
        }
        if wrong.is_empty() { Ok(()) } else { Err(Error::config(format!("options of `redis:`: {}", wrong.join("; ")))) }
    }

    fn certificates(&self) -> Result<Option<TlsCertificates>> {
        let read = |file: &String| {
            std::fs::read(file).map_err(|e| Error::config(format!("the file {file} cannot be read")).with_source(e))
        };
        if self.ca.is_none() && self.client_cert.is_none() {
            return Ok(None);
        }
        let client_tls = match (&self.client_cert, &self.client_key) {
            (Some(cert), Some(key)) => Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? }),
            _ => None,
        };
        Ok(Some(TlsCertificates { client_tls, root_cert: self.ca.as_ref().map(read).transpose()? }))
    }
}

/// A server, or some nodes of a Cluster, and how to speak with them.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) nodes: Vec<ConnectionInfo>,
    pub(crate) cluster: bool,
    pub(crate) certificates: Option<TlsCertificates>,
    pub(crate) options: RedisOptions,
    /// The URL without its secrets.
    pub(crate) name: String,
    pub(crate) scheme: &'static str,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Target {
    /// What `location` names.
    pub(crate) fn new(location: &Location, scheme: &'static str) -> Result<Target> {
        let options: RedisOptions = location.options()?;
        options.validate()?;
        let cluster = scheme.contains("+cluster");
        let tls = scheme.starts_with("rediss");
        if !tls && (options.ca.is_some() || options.client_cert.is_some()) {
            return Err(Error::config("the options ca, client_cert and client_key need TLS; use rediss:// or rediss+cluster://"));
        }
        let certificates = options.certificates()?;
        if tls && CryptoProvider::get_default().is_none() {
            // Fails only if the program has just chosen one itself.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let rest = location
            .rest()
            .strip_prefix("//")
            .ok_or_else(|| Error::config("a Redis URL is redis://[user:password@]host[:port][/database][?option=value]"))?;
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').map_or(("", authority), |(login, hosts)| (login, hosts));
        let hosts: Vec<&str> = if cluster { hosts.split(',').collect() } else { vec![hosts] };
        if cluster && !database.is_empty() {
            return Err(Error::config(
                "a Redis Cluster has no databases; leave out what follows the address, and use the option namespace",
            ));
        }
        let at = if login.is_empty() { "" } else { "@" };
        let base = if tls { "rediss" } else { "redis" };
        let node = |host: &&str| {
            let host = if host.is_empty() { "127.0.0.1" } else { host };
            // What the parser says may quote the password.
            format!("{base}://{login}{at}{host}/{database}").into_connection_info().map_err(|_| {
                Error::config("not a Redis address; use redis://[user:password@]host[:port][/database], with special characters percent-encoded")
            })
        };
        let nodes = hosts.iter().map(node).collect::<Result<_>>()?;
        Ok(Target { nodes, cluster, certificates, options, name: location.to_string(), scheme })
    }
}
