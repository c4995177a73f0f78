//! The first map, and the names of collections: asked of whichever node answers.

use std::collections::BTreeSet;

use sluicegate_core::{Error, ErrorKind, FeedEvent, Status as Retry};
use sluicegate_mcbp::client::{ClientError, ClientResult, Fault, Session};
use sluicegate_mcbp::config::{Address, ClusterMap};
use sluicegate_mcbp::hello::Feature;
use sluicegate_mcbp::{Command, Empty, Reply, Request, kv};
use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::names::Names;
use crate::options::Target;
use crate::orders::Filter;
use crate::seeds::Found;

/// Connects to the first that answers with a map that has vbuckets: of the nodes that are `known`, then of those that the URL names.
///
/// A bucket that was just created has none for a while: then it is asked again, as long as one may wait for an answer.
///
/// # Errors
/// That of the node that says most: a wrong password counts for more than a node that is down.
pub(crate) async fn bootstrap(target: &Target, known: BTreeSet<Address>) -> ClientResult<(Session, ClusterMap)> {
    let mut worst: Option<ClientError> = None;
    for address in &known {
        match first_map(address, target).await {
            Ok(found) => return Ok(found),
            Err(error) => worst = Some(worse(worst, error)),
        }
    }
    // Nodes may have new addresses since the records were asked for.
    let Found { addresses, trouble } = target.seeds.find().await;
    for address in addresses.iter().filter(|address| !known.contains(address)) {
        match first_map(address, target).await {
            Ok(found) => return Ok(found),
            Err(error) => worst = Some(worse(worst, error)),
        }
    }
    let worst = worst.unwrap_or_else(|| ClientError::new(Fault::Invalid, "there is no address to begin with"));
    Err(match trouble {
        Some(trouble) => ClientError::new(worst.fault(), format!("{worst} ({trouble})")).with_source(worst),
        None => worst,
    })
}

fn worse(worst: Option<ClientError>, error: ClientError) -> ClientError {
    tracing::debug!(%error, "a node does not answer with a map");
    match worst {
        Some(worst) if worst.is_permanent() || !error.is_permanent() => worst,
        _ => error,
    }
}

async fn first_map(address: &Address, target: &Target) -> ClientResult<(Session, ClusterMap)> {
    let mut session = Session::open(address, &target.connect).await?;
    let deadline = Instant::now() + target.connect.answer_timeout;
    let mut backoff = Backoff::of_streams();
    loop {
        if let Some(map) = session.cluster_map().await?
            && map.num_vbuckets() > 0
        {
            return Ok((session, map));
        }
        if Instant::now() > deadline {
            let message = "the bucket has no vbuckets yet; try again when it is ready";
            return Err(ClientError::new(Fault::Timeout, message).at(address));
        }
        sleep(backoff.next()).await;
    }
}

/// What the streams are limited to, by the names in the options.
///
/// # Errors
/// `Unsupported` where the server has no collections; `Refused` for a name it does not know.
pub(crate) async fn filter(session: &mut Session, target: &Target) -> ClientResult<Filter> {
    let options = &target.options;
    if options.scope.is_none() && options.collections.is_none() {
        return Ok(Filter::default());
    }
    if !session.granted().contains(Feature::Collections) {
        let message = "the server has no collections; leave out the options scope and collections";
        return Err(ClientError::new(Fault::Unsupported, message).at(session.address()));
    }
    let mut filter = Filter::default();
    if let Some(scope) = &options.scope {
        filter.scope = Some(id_of(session, Command::GetScopeId, scope).await?);
    }
    for collection in options.collections.iter().flat_map(|names| names.split(',')) {
        let id = match numbered(collection) {
            Some(id) => id,
            None => id_of(session, Command::GetCollectionId, collection).await?,
        };
        filter.collections.push(id);
    }
    Ok(filter)
}

/// The names of collections, and the event that reports them. Without an answer of the server,
/// collections have no names.
///
/// # Errors
/// If the request cannot be sent.
pub(crate) async fn names(session: &mut Session) -> ClientResult<(Names, Option<FeedEvent>)> {
    let names = Names::new();
    if !session.granted().contains(Feature::Collections) {
        return Ok((names, None));
    }
    let response = session.ask(Request::new(Command::GetCollectionsManifest(Empty {}))).await?;
    let told = match &response.reply {
        Reply::Plain(parts) => names.on_manifest(&parts.value()),
        _ => None,
    };
    if told.is_none() {
        tracing::warn!(node = %session.address(), "the server does not report the names of collections; only their numbers are known");
    }
    Ok((names, told))
}

/// A collection that is given by its number, as `0x8`: no name is like it, since there is a dot in each.
fn numbered(collection: &str) -> Option<u32> {
    u32::from_str_radix(collection.strip_prefix("0x")?, 16).ok()
}

async fn id_of(session: &mut Session, command: fn(kv::Path) -> Command, name: &str) -> ClientResult<u32> {
    let response = session.ask(Request::new(command(kv::Path { path: name.to_owned().into() }))).await?;
    match response.reply {
        Reply::Id(id) => Ok(id.id),
        _ => Err(ClientError::refused(&format!("the name `{name}` of a scope or collection"), &response).at(session.address())),
    }
}

/// The error as those who use the feed see it.
pub(crate) fn core_error(error: ClientError) -> Error {
    let kind = match error.fault() {
        Fault::Unreachable | Fault::Closed => ErrorKind::Unavailable,
        Fault::Timeout => ErrorKind::Timeout,
        Fault::Authentication | Fault::Certificate | Fault::AccessDenied | Fault::Invalid => ErrorKind::ConfigInvalid,
        Fault::NoBucket => ErrorKind::NotFound,
        Fault::Unsupported => ErrorKind::Unsupported,
        Fault::Refused(_) if !error.is_permanent() => ErrorKind::Unavailable,
        _ => ErrorKind::Unexpected,
    };
    let retry = if error.is_permanent() { Retry::Permanent } else { Retry::Temporary };
    Error::new(kind, error.to_string()).with_status(retry).with_operation("follow the bucket").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_is_a_number() {
        let numbers = ["0x8", "0xffffffff", "0x", "0x100000000", "0x8.a", "_default._default"].map(numbered);
        assert_eq!(numbers, [Some(8), Some(u32::MAX), None, None, None, None]);
    }
}
