//! Where to begin: the hosts of the URL, or what the DNS says of the one that is named (protocol, section 2.4).

use std::net::SocketAddr;
use std::time::Duration;

use sluicegate_core::{Error, Result};
use sluicegate_mcbp::config::Address;
use sluicegate_mcbp::topology::{parse_seeds, srv_name, srv_seeds};

use crate::dns::NameServers;
use crate::options::SHAPE;

/// Where to begin.
#[derive(Clone, Debug)]
pub(crate) struct Seeds {
    named: Vec<Address>,
    /// The name whose records say more, and who is asked for them.
    lookup: Option<(String, NameServers)>,
    patience: Duration,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) addresses: Vec<Address>,
    /// Why the DNS was of no help, if it was asked and was not.
    pub(crate) trouble: Option<String>,
}

impl Seeds {
    /// The hosts of a URL; `server` is asked for records instead of the system's name servers. Reads a file.
    pub(crate) fn parse(hosts: &str, is_tls: bool, server: Option<SocketAddr>, patience: Duration) -> Result<Seeds> {
        let named = parse_seeds(hosts, is_tls).map_err(|e| Error::config(e.to_string()).with_next_step(SHAPE))?;
        let servers = || server.map_or_else(NameServers::of_system, NameServers::only);
        let lookup = srv_name(hosts, is_tls).map(|name| (name, servers()));
        Ok(Seeds { named, lookup, patience })
    }

    /// The addresses to begin with now: the records may have changed since the last time.
    ///
    /// Cancel safe.
    pub(crate) async fn find(&self) -> Found {
        let named = |trouble| Found { addresses: self.named.clone(), trouble };
        let Some((name, servers)) = &self.lookup else { return named(None) };
        let trouble = match tokio::time::timeout(self.patience, servers.srv(name)).await {
            Ok(Ok(records)) if records.is_empty() => return named(None),
            Ok(Ok(records)) => match srv_seeds(records, |most| rand::random_range(0..=most)) {
                addresses if addresses.is_empty() => "they say that there is no such service".to_owned(),
                addresses => {
                    tracing::debug!(name, ?addresses, "the DNS says where to begin");
                    return Found { addresses, trouble: None };
                }
            },
            Ok(Err(trouble)) => trouble,
            Err(_) => format!("no answer within {:?}", self.patience),
        };
        let trouble = format!("SRV records of {name}: {trouble}");
        tracing::warn!(trouble, "the DNS does not say where to begin; taking the host as it is named");
        named(Some(trouble))
    }
}
