//! Being told of publications. Only a hint: readers poll as well, so what is lost here delays and never hides a change.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use redis::{ProtocolVersion, PushInfo, PushKind, RedisError, RedisResult};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::link::{client, cluster_client};
use crate::options::Target;

/// Longest wait before it connects again.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// How long a connection may be silent before it is asked whether it still lives, at most.
const SILENCE: Duration = Duration::from_secs(15);

fn silence(target: &Target) -> Duration {
    SILENCE.min(2 * target.options.timeout())
}

/// Yields when something was published on `channel`, and when it may have been without our being told.
pub(crate) fn wakes(target: Arc<Target>, channel: String) -> BoxStream<'static, ()> {
    let (told, tells) = mpsc::channel(1);
    let stream = futures::stream::unfold((tells, None, Some((target, channel, told))), |(mut tells, task, start)| async move {
        // The task begins with the first poll, where there is a runtime.
        let task = match start {
            Some((target, channel, told)) => Some(AbortOnDropHandle::new(tokio::spawn(listen(target, channel, told)))),
            None => task,
        };
        tells.recv().await?;
        Some(((), (tells, task, None)))
    });
    stream.boxed()
}

/// Tells of whatever comes, until nobody listens.
async fn listen(target: Arc<Target>, channel: String, told: mpsc::Sender<()>) {
    let mut wait = Duration::from_millis(20);
    loop {
        let mut subscribed = false;
        let ended = match target.cluster {
            true => listen_to_cluster(&target, &channel, &told, &mut subscribed).await,
            false => listen_to_server(&target, &channel, &told, &mut subscribed).await,
        };
        match ended {
            Ok(()) => return,
            Err(error) => tracing::debug!(store = target.name, %error, "not told of publications; connecting again"),
        }
        wait = if subscribed { Duration::from_millis(20) } else { (wait * 2).min(LONGEST_WAIT) };
        tokio::time::sleep(wait).await;
    }
}

/// One that waits already need not be told twice.
fn tell(told: &mpsc::Sender<()>) -> bool {
    !matches!(told.try_send(()), Err(mpsc::error::TrySendError::Closed(())))
}

fn lost() -> RedisError {
    (redis::ErrorKind::Io, "the subscription's connection was lost").into()
}

/// Ends with `Ok` when nobody listens any longer.
async fn listen_to_server(target: &Target, channel: &str, told: &mpsc::Sender<()>, subscribed: &mut bool) -> RedisResult<()> {
    let connect = async { client(target)?.get_async_pubsub().await };
    let pubsub = tokio::time::timeout(target.options.connect_timeout(), connect).await.map_err(|_| lost())??;
    let (mut sink, mut messages) = pubsub.split();
    tokio::time::timeout(target.options.timeout(), sink.subscribe(channel)).await.map_err(|_| lost())??;
    *subscribed = true;
    // What was published before is not told here.
    if !tell(told) {
        return Ok(());
    }
    loop {
        tokio::select! {
            message = messages.next() => {
                message.ok_or_else(lost)?;
                if !tell(told) {
                    return Ok(());
                }
            }
            () = told.closed() => return Ok(()),
            () = tokio::time::sleep(silence(target)) => {
                tokio::time::timeout(target.options.timeout(), sink.ping::<redis::Value>()).await.map_err(|_| lost())??;
            }
        }
    }
}

async fn listen_to_cluster(target: &Target, channel: &str, told: &mpsc::Sender<()>, subscribed: &mut bool) -> RedisResult<()> {
    let (pushes, mut pushed) = mpsc::unbounded_channel::<PushInfo>();
    let builder = cluster_client(target).use_protocol(ProtocolVersion::RESP3).push_sender(pushes);
    let mut connection = builder.build()?.get_async_connection().await?;
    connection.ssubscribe(channel).await?;
    *subscribed = true;
    if !tell(told) {
        return Ok(());
    }
    loop {
        tokio::select! {
            push = pushed.recv() => {
                let push = push.ok_or_else(lost)?;
                // After a lost connection something may have been missed; the client subscribes again by itself.
                if matches!(push.kind, PushKind::SMessage | PushKind::SSubscribe | PushKind::Disconnection) && !tell(told) {
                    return Ok(());
                }
            }
            () = told.closed() => return Ok(()),
            () = tokio::time::sleep(silence(target)) => {
                // The slot may have moved while nobody was told: whoever has it now is asked, and what came meanwhile may have been missed.
                connection.ssubscribe(channel).await?;
                if !tell(told) {
                    return Ok(());
                }
            }
        }
    }
}
