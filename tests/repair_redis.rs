//! What is damaged in Redis, by commands of its own, is found and named, keeps to itself, and is rebuilt. There documents lie otherwise than the cache
//! sees them: eight sequence documents share a string, and a string may be too short for any document, or be none.

#![cfg(all(feature = "memory", feature = "redis", feature = "replay"))]

#[path = "support/case.rs"]
mod case;
#[path = "support/damage.rs"]
mod damage;
#[path = "support/seeds.rs"]
mod seeds;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use case::{Case, FEED, checked, clock, load, options, repaired, since, write};
use damage::stored;
use sluicegate::core::verify::repair;
use sluicegate::{BlockIndex, CacheKey, CacheStore, Channel, ErrorKind, ReaderConfig, ReaderNode};
use sluicegate_test_servers::RedisServer;

/// A ring that holds all of the load, so that nothing can be lost; and one that does not.
const WHOLE: u64 = 512;
const SHORT: u64 = 8;

/// A case whose cache is in Redis, written there by a writer.
struct OnRedis<'s> {
    server: &'s RedisServer,
    url: String,
    namespace: String,
    store: Arc<dyn CacheStore>,
    case: &'s Case,
}

impl<'s> OnRedis<'s> {
    async fn new(server: &'s RedisServer, case: &'s Case) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let namespace = format!("n{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let url = format!("{}?namespace={namespace}", server.url());
        let store = sluicegate::open_store(&url).await.unwrap();
        write(store.clone(), &load(case.seed).0, case.seed, case.ring).await.unwrap();
        OnRedis { server, url, namespace, store, case }
    }

    /// The Redis key behind this end of a key of the cache.
    fn key(&self, end: &str) -> String {
        let keys = self.server.cli(&["--scan"]);
        let wanted = format!("}}{}{end}", self.namespace);
        let mut keys = keys.lines().filter(|key| key.ends_with(&wanted));
        match (keys.next(), keys.next()) {
            (Some(key), None) => key.to_owned(),
            (found, _) => panic!("{end} of {} is {found:?}", self.namespace),
        }
    }

    /// Runs a command with `KEY` in place of the Redis key.
    fn damage(&self, key: &str, commands: &[&[&str]]) {
        for command in commands {
            let command: Vec<&str> = command.iter().map(|word| if *word == "KEY" { key } else { word }).collect();
            let answer = self.server.cli(&command);
            assert!(!answer.contains("ERR") && !answer.contains("WRONGTYPE"), "{command:?}: {answer}");
        }
    }

    /// The documents of the cache that the store does not give any more as they were.
    async fn harmed(&self) -> BTreeSet<u64> {
        let mut harmed = BTreeSet::new();
        for (n, entry) in &self.case.held.entries {
            let found = self.store.entries(&[entry.sequence()]).await;
            if !found.is_ok_and(|found| found[0].as_deref() == Some(entry)) {
                harmed.insert(*n);
            }
        }
        harmed
    }

    /// Sequences that the blocks of a channel show.
    fn live(&self, channel: &Channel) -> BTreeSet<u64> {
        let of_channel = format!("_cache:[{channel}]:block[");
        let blocks = self.case.held.blocks.iter().filter(|(key, _)| key.starts_with(&of_channel));
        blocks.flat_map(|(_, states)| states).filter(|(_, state)| state.is_live()).map(|(n, _)| *n).collect()
    }

    /// Asks for all of each channel. Those must fail, with the key, that are among `broken` or show a document that was harmed; the others must
    /// answer as before, but for those where an older row that no mark hides yet must be looked at.
    async fn assert_that_only_these_fail(&self, broken: &BTreeMap<String, CacheKey>, harmed: &BTreeSet<u64>, what: &str) {
        let reader = ReaderNode::open(self.store.clone(), ReaderConfig::default()).await.unwrap();
        for channel in &self.case.channels {
            let rows = &self.case.held.answers[&channel.to_string()];
            let needed: Vec<u64> = rows.iter().map(|(n, ..)| *n).filter(|n| harmed.contains(n)).collect();
            let live = self.live(channel);
            let options = since(0).delivery(sluicegate::changes::Delivery::Eager);
            let answer = reader.changes(std::slice::from_ref(channel), &options).await.map(|reply| reply.answer());
            match (answer, broken.get(channel.name())) {
                (Ok(answer), None) if needed.is_empty() => assert_eq!(answer.rows.len(), rows.len(), "{channel}: {what}"),
                (Err(e), broken) => {
                    let keys = harmed.intersection(&live).map(|n| CacheKey::Sequence((*n).into())).chain(broken.cloned());
                    let text = e.to_string();
                    let is_named = keys.into_iter().any(|key| text.contains(&key.to_string()));
                    assert!(e.kind() == ErrorKind::Corrupt && is_named, "{channel} needs {needed:?}: {e}: {what}");
                }
                (Ok(answer), broken) => {
                    panic!("{channel} needs {needed:?} and {broken:?}, and {} rows came: {what}", answer.rows.len())
                }
            }
        }
    }

    /// The command, as a user runs it: its exit code and what it printed.
    fn sluicegate(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = sluicegate_test_servers::command(env!("CARGO_BIN_EXE_sluicegate"));
        command.args(arguments).args(["--store", &self.url, "--checkpoint", FEED]).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout) + &text(output.stderr))
    }

    /// Repairs what was damaged; nothing must be lost.
    async fn assert_mended(&self, what: &str) {
        let report = repaired(&self.store).await;
        let last = self.case.last_record(&clock(&self.store).await);
        let left: Vec<_> = report.left.findings.iter().filter(|finding| finding.key != last).collect();
        assert!(left.is_empty() && report.lost().count() == 0, "{what}\n{report:#?}");
        self.case.content(&self.store).await.assert_same(&self.case.held, &format!("{what}\n{report:#?}"));
        let again = repaired(&self.store).await;
        assert!(again.repairs.is_empty(), "{what}\n{again:#?}");
        self.assert_goes_on(what).await;
    }

    /// A writer goes on, and everything comes out as if nothing had happened.
    async fn assert_goes_on(&self, what: &str) {
        self.case.go_on(&self.store).await;
        let after = checked(&self.store).await;
        assert!(after.is_clean(), "{what}\n{after:#?}");
        self.case.content(&self.store).await.assert_outcome(&self.case.whole, what);
    }
}

/// What can be done to a string, by name.
const DAMAGES: [(&str, &[&[&str]]); 5] = [
    ("short garbage", &[&["SET", "KEY", "garbage"]]),
    ("long garbage", &[&["SET", "KEY", "garbage garbage garbage garbage garbage garbage garbage garbage garbage garbage"]]),
    ("empty", &[&["SET", "KEY", ""]]),
    ("of another type", &[&["DEL", "KEY"], &["RPUSH", "KEY", "a", "list"]]),
    ("gone", &[&["DEL", "KEY"]]),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_alone_in_a_string_is_named_and_rebuilt() {
    let server = RedisServer::start();
    // With pointers.
    let case = Case::new(1, WHOLE).await;
    let document = case.held.pointers.keys().next().unwrap().clone();
    let block = case.held.listed["ch0"].first().unwrap().to_string();
    let targets = [
        (
            format!(":[ch0]:block[{block}]"),
            CacheKey::Block(case::channel("ch0"), BlockIndex(block.parse().unwrap())),
            Some("ch0"),
        ),
        (":_dir:[ch0]".to_owned(), CacheKey::Directory(case::channel("ch0")), Some("ch0")),
        (":_count:[ch0]".to_owned(), CacheKey::Counter(case::channel("ch0")), None),
        // Counted from the last.
        (String::new(), CacheKey::Batch(0), None),
        (String::new(), CacheKey::Batch(3), None),
        (format!(":_doc:[{document}]"), CacheKey::Document(document.as_str().into()), None),
        (":_late:[0]".to_owned(), CacheKey::Late(0), None),
        (format!(":_checkpoint:[{}]", FEED.replace(':', "%3A")), CacheKey::Checkpoint(FEED.to_owned()), None),
    ];
    for (end, key, channel) in &targets {
        for (way, commands) in DAMAGES {
            let cache = OnRedis::new(&server, &case).await;
            let last = clock(&cache.store).await.batch;
            let (end, key) = match key {
                CacheKey::Batch(back) => (format!(":_batch:[{}]", last - back), CacheKey::Batch(last - back)),
                key => (end.clone(), key.clone()),
            };
            let what = format!("{key}: {way}");
            cache.damage(&cache.key(&end), commands);
            // What is gone and is not needed is no fault: any record but the last; a pointer, of which nobody knows whether there was one.
            let is_gone = way == "gone";
            let is_fine = is_gone && (matches!(key, CacheKey::Document(_)) || matches!(key, CacheKey::Batch(n) if n != last));
            let found = checked(&cache.store).await;
            assert_eq!(found.findings.iter().any(|finding| finding.key == key), !is_fine, "{what}: {found:#?}");
            if key == CacheKey::Batch(last) && !is_gone {
                // A new reader begins with the last record, as it names the gaps.
                let error = ReaderNode::open(cache.store.clone(), ReaderConfig::default()).await.unwrap_err();
                assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(&key.to_string()), "{what}: {error}");
            } else if !(is_gone && channel.is_some()) {
                // A directory that is gone lists nothing.
                let broken = channel.iter().map(|channel| ((*channel).to_owned(), key.clone())).collect();
                cache.assert_that_only_these_fail(&broken, &BTreeSet::new(), &what).await;
            }
            if !is_fine {
                cache.assert_mended(&what).await;
            }
        }
    }
}

/// What can be done to a page, given its length: from its middle on, or to a few bytes of it.
fn page_damages(length: usize) -> Vec<(String, Vec<Vec<String>>)> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let cut = format!("redis.call('SET', KEYS[1], redis.call('GETRANGE', KEYS[1], 0, {}))", length / 2);
    let mut damages = vec![
        ("cut in its middle".to_owned(), vec![words(&["EVAL", &cut, "1", "KEY"])]),
        ("followed by garbage".to_owned(), vec![words(&["APPEND", "KEY", "garbage that is no record"])]),
    ];
    damages.extend(DAMAGES.map(|(way, commands)| (way.to_owned(), commands.iter().map(|command| words(command)).collect())));
    // Some hit a record's head, and hide what comes after it; some a document, of which they leave no JSON.
    for at in (0..length).step_by(length / 9 + 1) {
        damages.push((format!("overwritten at {at}"), vec![words(&["SETRANGE", "KEY", &at.to_string(), r#"""""""""#])]));
    }
    damages
}

/// How many sequences share a page.
const PAGE: u64 = 8;

/// The page in the first half of the cache that shows most.
fn page(case: &Case) -> u64 {
    let half = case.held.entries.keys().next_back().unwrap() / 2;
    let mut shown: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for (n, ..) in case.held.answers.values().flatten().filter(|(n, ..)| *n <= half) {
        shown.entry(n / PAGE).or_default().insert(*n);
    }
    *shown.iter().max_by_key(|(_, shown)| shown.len()).unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_page_of_documents_is_rebuilt_from_the_records() {
    let server = RedisServer::start();
    let mut most = 0;
    for seed in [2, 1] {
        let case = Case::new(seed, WHOLE).await;
        let page = page(&case);
        let end = format!(":_seq:[{page}]");
        let length = {
            let cache = OnRedis::new(&server, &case).await;
            server.cli(&["STRLEN", &cache.key(&end)]).trim().parse().unwrap()
        };
        for (way, commands) in page_damages(length) {
            let what = format!("seed {seed}: page {way}");
            let cache = OnRedis::new(&server, &case).await;
            let commands: Vec<Vec<&str>> = commands.iter().map(|words| words.iter().map(String::as_str).collect()).collect();
            cache.damage(&cache.key(&end), &commands.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let harmed = cache.harmed().await;
            assert!(harmed.iter().all(|n| n / PAGE == page), "{what}: {harmed:?}");
            most = most.max(harmed.len());
            let found = checked(&cache.store).await;
            // Those of which a block shows or remembers something.
            let named: Vec<&CacheKey> = found.findings.iter().map(|finding| &finding.key).collect();
            for n in &harmed {
                let key = CacheKey::Sequence((*n).into());
                let is_shown = case.held.answers.values().flatten().any(|(shown, ..)| shown == n);
                assert!(named.contains(&&key) || !is_shown, "{what}: {key} is not among {found:#?}");
            }
            cache.assert_that_only_these_fail(&BTreeMap::new(), &harmed, &what).await;
            cache.assert_mended(&what).await;
        }
    }
    assert!(most >= 4, "at most {most} documents were harmed at once");
}

/// Old documents are in no batch record any more: what is lost is named, and comes again with the feed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_of_a_page_comes_again_with_the_feed_and_the_command_says_how() {
    let server = RedisServer::start();
    let case = Case::new(2, SHORT).await;
    let cache = OnRedis::new(&server, &case).await;
    let page = cache.key(&format!(":_seq:[{}]", page(&case)));
    let length: usize = server.cli(&["STRLEN", &page]).trim().parse().unwrap();
    // More than a document has, so a record's head is among it.
    cache.damage(&page, &[&["SETRANGE", "KEY", &(length / 3).to_string(), &"~".repeat(length / 3)]]);
    let harmed = cache.harmed().await;
    let is_shown = |n: &&u64| case.held.answers.values().flatten().any(|(shown, ..)| shown == *n);
    let shown: Vec<CacheKey> = harmed.iter().filter(is_shown).map(|n| CacheKey::Sequence((*n).into())).collect();
    assert!(!shown.is_empty(), "{harmed:?}");

    let (code, out) = cache.sluicegate(&["verify"]);
    assert_eq!(code, 3, "{out}");
    assert!(shown.iter().all(|key| out.contains(&key.to_string())), "{shown:?} in {out}");
    let (code, out) = cache.sluicegate(&["verify", "--repair"]);
    assert_eq!(code, 3, "{out}");
    assert!(shown.iter().all(|key| out.contains(&key.to_string())) && out.contains("--from-beginning"), "{out}");
    cache.assert_that_only_these_fail(&BTreeMap::new(), &harmed, "after the repair").await;

    let (_, out) = cache.sluicegate(&["verify", "--repair", "--from-beginning"]);
    assert!(out.contains("_checkpoint"), "{out}");
    case.go_on(&cache.store).await;
    let (code, out) = cache.sluicegate(&["verify"]);
    assert!(code == 0 && out.contains("clean"), "{out}");
    assert_eq!(case.content(&cache.store).await.answers, case.whole.answers);
}

/// The page that a writer appends to next: it stops there, the command mends it, and the next writer goes on.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_where_a_writer_appends_next_stops_it_until_it_is_repaired() {
    let server = RedisServer::start();
    for seed in [1, 2] {
        let case = Case::new(seed, WHOLE).await;
        let cache = OnRedis::new(&server, &case).await;
        let next = case.whole.entries.keys().find(|n| !case.held.entries.contains_key(n)).unwrap();
        let page = (case.held.entries.keys().map(|n| n / 8)).find(|page| page == &(next / 8));
        let Some(page) = page else { panic!("seed {seed}: no page has documents and gets more, choose another") };
        cache.damage(&cache.key(&format!(":_seq:[{page}]")), &[&["APPEND", "KEY", "garbage that is no record"]]);
        assert_eq!(cache.harmed().await, BTreeSet::new());

        let ended = write(cache.store.clone(), &case.feed, seed, WHOLE).await.unwrap_err();
        let text = ended.to_string();
        assert!(ended.kind() == ErrorKind::Corrupt && text.contains("_cache:_seq:["), "{text}");
        assert!(text.contains("sluicegate verify --repair"), "{text}");

        let (code, out) = cache.sluicegate(&["verify", "--repair"]);
        assert_eq!(code, 0, "{out}");
        cache.assert_goes_on("after garbage where the writer appends").await;
        assert!(stored(cache.store.as_ref(), &CacheKey::Sequence((*next).into())).await.is_some());
    }
}

/// A repair that was asked for its name of the feed, and finds what another program wrote in the cache's own keys.
#[tokio::test(flavor = "multi_thread")]
async fn clock_and_description_of_another_type_are_named_and_nothing_is_touched() {
    let server = RedisServer::start();
    let case = Case::new(2, WHOLE).await;
    for (end, key) in [("_stableSeq", CacheKey::Clock), (":_meta", CacheKey::Meta)] {
        for (way, commands) in &DAMAGES[..4] {
            let cache = OnRedis::new(&server, &case).await;
            cache.damage(&cache.key(end), commands);
            let before = server.cli(&["--scan"]).lines().count();
            let report = repair(cache.store.as_ref(), &options()).await.unwrap();
            assert!(report.epoch.is_none() && report.repairs.is_empty(), "{key} {way}: {report:#?}");
            assert!(report.left.findings.len() == 1 && report.left.findings[0].key == key, "{key} {way}: {report:#?}");
            assert_eq!(server.cli(&["--scan"]).lines().count(), before);
        }
    }
}
