//! URLs, passwords and rights that are wrong. No secret shows anywhere.

use std::io::Write;
use std::sync::{Arc, Mutex};

use sluicegate_core::{CacheKey, CacheStore as _, Error, ErrorKind};
use sluicegate_redis::RedisStore;
use sluicegate_test_servers::{RedisServer, free_port};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::load::Load;
use crate::support::{block, open, rights};

const SECRET: &str = "sesame-0815";

/// What was logged.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;
    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// Everything that this thread logs from now on.
pub(crate) fn captured() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false).with_writer(log.clone()).finish();
    (log, tracing::subscriber::set_default(subscriber))
}

async fn refused(url: &str) -> Error {
    let error = RedisStore::connect(url).await.map(drop).expect_err(url);
    let mut text = format!("{error} {error:?}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text += &format!(" {cause} {cause:?}");
        source = cause.source();
    }
    assert!(!text.contains(SECRET) && !text.contains("sesame"), "{text}");
    error
}

#[tokio::test]
async fn what_is_wrong_with_a_url_or_a_login_is_said_and_no_secret_shows() {
    let (log, _guard) = captured();
    let open_server = RedisServer::start();
    let closed = RedisServer::with(&["--save", "", "--requirepass", "another"]);
    let (port, closed_port, nobody) = (open_server.port(), closed.port(), free_port());
    let cases = [
        (format!("redis://127.0.0.1:{closed_port}"), ErrorKind::ConfigInvalid, "password"),
        (format!("redis://:{SECRET}@127.0.0.1:{closed_port}"), ErrorKind::ConfigInvalid, "password"),
        (format!("redis://somebody:{SECRET}@127.0.0.1:{closed_port}"), ErrorKind::ConfigInvalid, "password"),
        (format!("redis://:{SECRET}@127.0.0.1:{port}"), ErrorKind::ConfigInvalid, "password"),
        (format!("redis://127.0.0.1:{port}/99"), ErrorKind::ConfigInvalid, "database"),
        (format!("redis://127.0.0.1:{port}/x"), ErrorKind::ConfigInvalid, "database"),
        (format!("redis://:{SECRET}@127.0.0.1:{nobody}"), ErrorKind::Unavailable, "reached"),
        (format!("redis://:{SECRET}@no-such-host.invalid:1"), ErrorKind::Unavailable, "reached"),
        (format!("rediss://:{SECRET}@127.0.0.1:{port}?connect_timeout_ms=2000"), ErrorKind::Unavailable, "TLS"),
        (format!("redis://:{SECRET}@127.0.0.1:{port}?ca=/x"), ErrorKind::ConfigInvalid, "rediss"),
        (format!("rediss://:{SECRET}@127.0.0.1:{port}?ca=/no/such/file"), ErrorKind::ConfigInvalid, "/no/such/file"),
        (format!("redis://:{SECRET}@127.0.0.1:{port}?poool=2"), ErrorKind::ConfigInvalid, "poool"),
        (format!("redis://:{SECRET}@127.0.0.1:{port}?pool=0"), ErrorKind::ConfigInvalid, "pool"),
        (format!("redis://:{SECRET}/x@127.0.0.1:{port}"), ErrorKind::ConfigInvalid, "percent-encoded"),
        (format!("redis://:{SECRET}@127.0.0.1:port"), ErrorKind::ConfigInvalid, "address"),
        (format!("redis+cluster://:{SECRET}@127.0.0.1:{nobody}"), ErrorKind::Unavailable, "reached"),
        (format!("redis+cluster://:{SECRET}@127.0.0.1:{closed_port}"), ErrorKind::ConfigInvalid, "password"),
        (format!("redis+cluster://127.0.0.1:{port}"), ErrorKind::ConfigInvalid, "redis://"),
        (format!("redis+cluster://:{SECRET}@127.0.0.1:{port}/1"), ErrorKind::ConfigInvalid, "namespace"),
    ];
    for (url, kind, word) in cases {
        let error = refused(&url).await;
        assert_eq!(error.kind(), kind, "{url}: {error:?}");
        assert!(error.to_string().contains(word), "{url}: no `{word}` in: {error}");
    }
    assert!(!log.text().contains("sesame"), "{}", log.text());
}

#[tokio::test]
async fn a_password_does_not_show_while_all_goes_well_or_badly() {
    let (log, _guard) = captured();
    let mut server = RedisServer::with(&["--save", "", "--requirepass", SECRET]);
    let url = format!("redis://:{SECRET}@127.0.0.1:{}?timeout_ms=500&connect_timeout_ms=500", server.port());
    let store = open(&url).await;
    let shown = |store: &RedisStore| format!("{store:?} {:?} {}", store.info(), store.info().name);
    assert!(!shown(&store).contains("sesame") && shown(&store).contains("127.0.0.1"), "{}", shown(&store));
    let load = Load::new(90, 60).await;
    load.run(store.clone(), 60_000).await.unwrap();
    server.kill();
    let error = load.run(store.clone(), 50).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!format!("{error:?} {}", shown(&store)).contains("sesame"));
    assert!(!log.text().contains("sesame"), "{}", log.text());
}

/// The rights that the README names, and no others.
#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_the_readme_names_are_enough() {
    let server = block(RedisServer::start);
    let rules = [&["ACL", "SETUSER", "cache"], &rights()[0][..]].concat();
    assert_eq!(block(|| server.cli(&rules)).trim(), "OK", "{rules:?}");
    let url = format!("redis://cache:sesame@127.0.0.1:{}", server.port());
    for seed in 92..94 {
        let store = open(&format!("{url}?namespace=_cache")).await;
        let load = Load::new(seed, 200).await;
        load.run(store.clone(), 1_000).await.unwrap();
        load.check(store.clone(), "with few rights").await;
        store.ping().await.unwrap();
        store.remove(&CacheKey::Meta, None).await.unwrap();
        use futures::StreamExt as _;
        assert!(store.wakes().unwrap().next().await.is_some());
        block(|| server.cli(&["FLUSHALL"]));
    }
    // Not those of another namespace.
    let store = open(&format!("{url}?namespace=other")).await;
    let error = store.get(&CacheKey::Clock).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error:?}");
    assert!(error.to_string().contains("README"), "{error}");
    // A user without any.
    block(|| server.cli(&["ACL", "SETUSER", "nobody", "on", ">sesame"]));
    let error = refused(&format!("redis://nobody:sesame@127.0.0.1:{}", server.port())).await;
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error:?}");
}
