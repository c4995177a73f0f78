//! Small inputs made after public bug reports, with the right results.

mod support;

use std::path::Path;
use std::sync::Arc;

use sluicegate::changes::ChangesOptions;
use sluicegate::decode::{GatewayDecoder, GatewayOptions};
use sluicegate::engine::WriterStats;
use sluicegate::pointer::Supersession;
use sluicegate::verify::{VerifyOptions, verify};
use sluicegate::{
    CacheStore, Channel, CollectionId, FeedEvent, Mutation, ReaderConfig, ReaderNode, Sequence, Writer, WriterConfig,
};
use sluicegate_replay::{Recording, ReplayFeed, ReplayOptions};
use support::{Kind, on_every_store};

/// A case: its settings, and its expected results.
struct Case {
    file: &'static str,
    metadata_id: Option<&'static str>,
    collections: Option<&'static [u32]>,
    /// Sequence, collection, document and revision of each row of channel `A` and of `hr`.
    rows: &'static [(u64, u32, &'static str, &'static str)],
    stable: u64,
    check: fn(&WriterStats),
}

const ONE: &str = "1-00000000000000000000000000000001";
const TWO: &str = "1-00000000000000000000000000000002";
const THREE: &str = "1-00000000000000000000000000000003";
const FOUR: &str = "1-00000000000000000000000000000004";

const PLAIN: Case = Case { file: "", metadata_id: None, collections: None, rows: &[], stable: 0, check: |_| {} };

const CASES: &[Case] = &[
    Case {
        file: "01-user-of-another-database",
        rows: &[(1, 0, "order-1", ONE), (2, 0, "order-2", TWO), (3, 0, "order-3", THREE), (4, 0, "order-4", FOUR)],
        stable: 4,
        check: |stats| assert_eq!((stats.other_database, stats.duplicates, stats.conflicts), (1, 0, 0)),
        ..PLAIN
    },
    Case {
        file: "02-same-id-in-two-collections",
        rows: &[(1, 8, "same-id", ONE), (2, 9, "same-id", TWO), (3, 8, "other", THREE)],
        stable: 3,
        ..PLAIN
    },
    Case {
        // No database is configured: nothing is lost, and conflicts are counted.
        file: "03-two-databases-in-one-bucket",
        rows: &[(1, 8, "order-1", ONE), (1, 10, "emp-1", ONE), (2, 8, "order-2", TWO), (2, 10, "emp-2", TWO)],
        stable: 2,
        check: |stats| assert_eq!((stats.conflicts, stats.duplicates), (2, 0)),
        ..PLAIN
    },
    Case {
        file: "03-two-databases-in-one-bucket",
        collections: Some(&[10]),
        rows: &[(1, 10, "emp-1", ONE), (2, 10, "emp-2", TWO)],
        stable: 2,
        check: |stats| assert_eq!((stats.conflicts, stats.other_collection), (0, 2)),
        ..PLAIN
    },
    Case {
        file: "04-other-programs-attribute-body-unchanged",
        rows: &[(1, 0, "order-1", ONE), (2, 0, "order-2", TWO), (3, 0, "order-3", THREE)],
        stable: 3,
        check: |stats| assert_eq!(stats.foreign, 0),
        ..PLAIN
    },
    Case {
        file: "05-metadata-id",
        metadata_id: Some("db1"),
        rows: &[(1, 0, "d1", ONE), (7, 0, "d2", "1-00000000000000000000000000000007")],
        stable: 7,
        check: |stats| assert_eq!((stats.principals, stats.unused), (1, 4)),
        ..PLAIN
    },
    Case {
        file: "06-released-yet-used",
        rows: &[(1, 0, "d1", ONE), (2, 0, "d2", TWO), (3, 0, "d3", THREE)],
        stable: 3,
        check: |stats| assert_eq!((stats.conflicts, stats.late, stats.duplicates), (1, 1, 0)),
        ..PLAIN
    },
    Case {
        file: "08-hot-document-1101-recent-sequences",
        rows: &[(1, 0, "quiet", ONE), (1102, 0, "hot", "1101-x"), (1103, 0, "last", "1-0000000000000000000000000000044f")],
        stable: 1103,
        check: |stats| assert_eq!((stats.invalid, stats.superseded), (0, 1100)),
        ..PLAIN
    },
    Case {
        file: "09-later-revision-lower-sequence",
        rows: &[
            (1, 0, "o1", ONE),
            (2, 0, "o2", TWO),
            (3, 0, "o3", THREE),
            (4, 0, "x", "2-b"),
            (6, 0, "y", "1-00000000000000000000000000000006"),
        ],
        stable: 6,
        ..PLAIN
    },
    Case {
        file: "11-giant-unused-range",
        rows: &[(1, 0, "d1", ONE), (2, 0, "d2", TWO), (3, 0, "d3", THREE)],
        stable: 3,
        check: |stats| assert_eq!((stats.invalid, stats.late), (1, 0)),
        ..PLAIN
    },
    Case {
        file: "12-purged",
        rows: &[(2, 0, "b", TWO)],
        stable: 2,
        check: |stats| assert_eq!((stats.purged, stats.purged_entries), (1, 1)),
        ..PLAIN
    },
    Case {
        file: "14-half-surrogate-in-a-key",
        rows: &[(1, 0, "d1", ONE), (2, 0, "d2", "1-b"), (3, 0, "d3", THREE)],
        stable: 3,
        ..PLAIN
    },
    Case {
        file: "15-one-bad-channel-hides-the-good-one",
        rows: &[(1, 0, "d1", ONE), (2, 0, "d2", TWO), (3, 0, "d3", THREE)],
        stable: 3,
        check: |stats| assert_eq!((stats.bad_channels, stats.invalid), (1, 0)),
        ..PLAIN
    },
    Case {
        file: "18-applications-own-sync-property",
        check: |stats| assert_eq!((stats.ignored, stats.invalid), (3, 0)),
        ..PLAIN
    },
];

fn mutations(file: &str) -> Vec<Mutation> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/reports").join(format!("{file}.ndjson"));
    Recording::read(path).unwrap().mutations
}

/// The rows of the channels in all collections.
async fn rows(reader: &ReaderNode) -> Vec<(u64, u32, String, String)> {
    let collections = [0, 8, 9, 10].map(CollectionId);
    let channels: Vec<Channel> =
        collections.into_iter().flat_map(|id| ["A", "hr"].map(|name| Channel::of(id, name).unwrap())).collect();
    let answer = reader.changes(&channels, &ChangesOptions::new()).await.unwrap().answer();
    let row = |row: &sluicegate::changes::AnswerRow| {
        let entry = &row.entry;
        (row.id.sequence.0, entry.collection().0, entry.key().to_owned(), entry.revision().to_owned())
    };
    answer.rows.iter().map(row).collect()
}

/// Plays a case. After `cut` events another writer takes over, and gets all of them again.
async fn play(kind: Kind, case: &Case, supersession: Supersession, cut: Option<usize>) {
    let what = format!("{}, {supersession:?}, {cut:?}", case.file);
    let store: Arc<dyn CacheStore> = kind.fresh().await;
    let mut options = GatewayOptions::default();
    options.metadata_id = case.metadata_id.map(str::to_owned);
    options.collections = case.collections.map(|ids| ids.iter().copied().collect());
    let decoder = Arc::new(GatewayDecoder::new(&options));
    let config = WriterConfig::default().with_supersession(supersession);
    let open = || Writer::alone(store.clone(), decoder.clone(), "report", config.clone());
    let events: Vec<FeedEvent> = mutations(case.file).into_iter().map(FeedEvent::Mutation).collect();
    let mut writer = open().await.unwrap();
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    if let Some(cut) = cut {
        for event in &events[..cut] {
            writer.process(vec![event.clone()].into()).await.unwrap();
        }
        writer.flush().await.unwrap();
        writer = open().await.unwrap();
    }
    for event in events {
        writer.process(vec![event].into()).await.unwrap();
    }
    writer.finish().await.unwrap();
    reader.refresh().await.unwrap();
    let expected: Vec<_> =
        case.rows.iter().map(|(n, c, document, rev)| (*n, *c, (*document).to_owned(), (*rev).to_owned())).collect();
    assert_eq!(rows(&reader).await, expected, "{what}");
    let opened = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    assert_eq!(rows(&opened).await, expected, "{what}, a reader opened after it");
    assert_eq!(reader.clock().stable, Sequence(case.stable), "{what}");
    if cut.is_none() {
        (case.check)(&writer.stats());
    }
    let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
    assert!(report.is_clean(), "{what}: {:#?}", report.findings);
}

async fn each_report_comes_out_right(kind: Kind) {
    for case in CASES {
        for supersession in [Supersession::Recents, Supersession::Pointers] {
            play(kind, case, supersession, None).await;
            for cut in 0..=mutations(case.file).len() {
                play(kind, case, supersession, Some(cut)).await;
            }
        }
    }
}

/// The only report whose file cannot be read as a whole.
async fn a_recording_that_is_cut_off_says_how_to_take_what_there_is(kind: Kind) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/reports/16-plain-recording-cut-off.ndjson");
    let open = |options| ReplayFeed::open(path.clone(), options);
    let whole = open(ReplayOptions::default()).await.unwrap();
    let (store, decoder) = (kind.fresh().await, Arc::new(GatewayDecoder::default()));
    let name = sluicegate::Feed::info(&whole).checkpoint_name();
    let writer = || Writer::alone(store.clone(), decoder.clone(), &name, WriterConfig::default());
    let error = writer().await.unwrap().run(&whole, std::future::pending()).await.unwrap_err();
    let text = error.to_string();
    for part in ["16-plain-recording-cut-off.ndjson", "line 2", "cut off", "until=1"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    // As the message says.
    let rest = open(ReplayOptions::default().with_until(1)).await.unwrap();
    let mut writer = writer().await.unwrap();
    writer.run(&rest, std::future::pending()).await.unwrap();
    let reader = ReaderNode::open(store.clone(), ReaderConfig::default()).await.unwrap();
    assert_eq!(rows(&reader).await, [(1, 0, "d1".to_owned(), ONE.to_owned())]);
    assert_eq!((reader.clock().stable, reader.clock().gaps), (Sequence(1), 0));
    let report = verify(store.as_ref(), &VerifyOptions::default()).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.findings);
}

/// Each input is played here.
#[test]
fn no_report_is_left_out() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/reports");
    let mut left: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|file| Some(file.unwrap().file_name().to_str()?.strip_suffix(".ndjson")?.to_owned()))
        .collect();
    left.retain(|file| file != "16-plain-recording-cut-off" && !CASES.iter().any(|case| case.file == file));
    assert_eq!(left, Vec::<String>::new());
}

on_every_store! {
    each_report_comes_out_right
    a_recording_that_is_cut_off_says_how_to_take_what_there_is
}
