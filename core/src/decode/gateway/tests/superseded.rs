//! Sequences that a revision supersedes, and departures in its channel map.

use proptest::prelude::*;

use super::*;

#[test]
fn recent_sequences_are_superseded() {
    let d = revision(r#""sequence":9,"recent_sequences":[8,3,9,8,12,0,5,6],"unused_sequences":[6]"#);
    assert_eq!(superseded(&d), [3, 5, 6, 8, 12], "also one that is higher, and an unused one");
    assert_eq!(superseded(&revision(r#""sequence":9,"recent_sequences":null"#)), [0; 0]);
    let many = |count: u64| {
        let list: Vec<String> = (1..=count).map(|n| n.to_string()).collect();
        with_attribute(&format!(r#""rev":"1-a","sequence":100000,"recent_sequences":[{}]"#, list.join(",")))
    };
    assert_eq!(superseded(&document(&many(1000))).len(), 1000);
    assert!(document(&many(1000)).accounted.is_empty());
    let d = document(&many(1101));
    assert!(superseded(&d).into_iter().eq(102..=1101), "the newest");
    let mut earlier: Vec<u64> = d.earlier().map(|s| s.0).collect();
    earlier.sort_unstable();
    assert!(earlier.into_iter().eq(1..=1101), "all are accounted for");
    assert_eq!(d.left_out, None);
    let d = document(&many(10_005));
    assert_eq!((d.earlier().count(), d.left_out.as_ref().unwrap().sequences), (10_000, 5));
    assert!(d.left_out.unwrap().to_string().starts_with("5 of its earlier or unused sequences"));
}

#[test]
fn departures_from_very_many_channels_do_not_take_the_place_of_recent_sequences() {
    let names = |f: &dyn Fn(u64) -> String| (0..1_500).map(f).collect::<Vec<_>>().join(",");
    let d = revision(&format!(
        r#""sequence":9000,"recent_sequences":[{}],"channels":{{{}}},"channel_set":[{}],"channel_set_history":[{}]"#,
        (7_000..8_100).map(|n| n.to_string()).collect::<Vec<_>>().join(","),
        names(&|n| format!(r#""c{n}":null"#)),
        names(&|n| format!(r#"{{"name":"c{n}","start":9000}}"#)),
        names(&|n| format!(r#"{{"name":"c{n}","start":1,"end":{}}}"#, n + 2)),
    ));
    assert!(superseded(&d).into_iter().eq((502..1_502).chain(7_100..8_100)));
    let mut accounted: Vec<u64> = d.accounted.iter().map(|s| s.0).collect();
    accounted.sort_unstable();
    assert!(accounted.into_iter().eq((2..502).chain(7_000..7_100)));
    assert_eq!((d.entry.channels().len(), d.left_out), (1_500, None));
}

#[test]
fn rows_before_a_stay_are_out_of_reach() {
    let d = revision(
        r#""sequence":9,"recent_sequences":[3,5,8,9],"channels":{"a":null,"b":null,"c":{"seq":9,"rev":"1-a"},"d":{"seq":7}},
        "channel_set":[{"name":"b","start":9},{"name":"a","start":5},{"name":"c","start":8,"end":9},{"name":"d","start":3,"end":7}]"#,
    );
    assert_eq!(channels(&d), [("a", Present, 5), ("b", Present, 9), ("c", Removed, 8)]);
    assert_eq!(superseded(&d), [3, 5, 8]);
    // It left `d` at 7, which is no recent sequence, but may still never have been a row.
    assert_eq!(d.departures[0].sequence, Sequence(7));
}

#[test]
fn entering_again_supersedes_the_departure_however_long_ago_it_was() {
    let again = |recent: &str, own: u64| {
        revision(&format!(
            r#""sequence":{own},"recent_sequences":[{recent}],"channels":{{"a":null,"b":null}},
            "channel_set":[{{"name":"a","start":40}},{{"name":"b","start":1}}],
            "channel_set_history":[{{"name":"a","start":2,"end":3}},{{"name":"b","start":1,"end":7}},{{"name":"a","start":5,"end":8}}]"#
        ))
    };
    let d = again("30,35,40", 40);
    assert_eq!((superseded(&d), channels(&d)[0]), (vec![7, 8, 30, 35], ("a", Present, 2)));
    // Later revisions name it, too, in case the feed leaves the first out.
    assert_eq!(superseded(&again("35,40,45", 45)), [7, 8, 35, 40]);
    assert_eq!(superseded(&again("45,50,55", 55)), [7, 8, 45, 50]);
    // The lowest recent sequence may be one that was never used: it does not tell what is older
    // than the recent revisions.
    assert_eq!(superseded(&again("6,40", 40)), [6, 7, 8]);
    assert_eq!(superseded(&again("", 55)), [7, 8]);
}

#[test]
fn removals_at_superseded_sequences_are_departures() {
    let d = revision(
        r#""sequence":20,"recent_sequences":[12,15,18,20],"channels":{"a":{"seq":15,"rev":{"rev":"3-c"}},"b":{"seq":15,"rev":"3-c","del":true},
        "c":{"seq":4,"rev":"0-z"},"d":null,"e":{"seq":16}},"channel_set":[{"name":"a","start":12,"end":15},{"name":"b","start":13,"end":14},{"name":"d","start":18}],
        "channel_set_history":[{"name":"a","start":2,"end":6}]"#,
    );
    assert_eq!(channels(&d), [("d", Present, 18)]);
    assert_eq!(superseded(&d), [6, 12, 14, 15, 18]);
    let departures: Vec<_> =
        d.departures.iter().map(|d| (d.sequence.0, d.channel.name(), &*d.revision, d.membership, d.since.0)).collect();
    let expected = [
        (15, "a", "3-c", Removed, 2),
        (15, "b", "3-c", RemovedByDeletion, 0),
        (4, "c", "0-z", Removed, 0),
        (16, "e", "", Removed, 0),
    ];
    assert_eq!(departures, expected);
}

#[test]
fn removals_at_impossible_sequences_are_left_out() {
    let d = revision(r#""sequence":9,"channels":{"a":{"seq":10},"b":{"rev":"1-a"},"c":{}}"#);
    assert!(d.departures.is_empty() && d.entry.channels().is_empty());
}

#[test]
fn without_a_channel_set_everything_is_within_reach() {
    let d =
        revision(r#""sequence":9,"recent_sequences":[3,9],"channels":{"a":null},"channel_set":null,"channel_set_history":null"#);
    assert_eq!(channels(&d), [("a", Present, 0)]);
    // A channel set that does not match the channel map is ignored.
    let d =
        revision(r#""sequence":9,"recent_sequences":[3,9],"channels":{"a":null},"channel_set":[{"name":"a","start":3,"end":5}]"#);
    assert_eq!((channels(&d), superseded(&d)), (vec![("a", Present, 0)], vec![3, 5]));
}

/// The history of a document: the channels, of three, that it was in at each sequence.
fn histories() -> impl Strategy<Value = (Vec<u8>, Vec<bool>)> {
    (1usize..60).prop_flat_map(|len| (prop::collection::vec(0u8..8, len), prop::collection::vec(prop::bool::weighted(0.4), len)))
}

/// The metadata that the gateway writes at each step of `history`, at sequences 1, 2 and so on.
fn metadata_of(history: &[u8]) -> Vec<String> {
    let names = ["a", "b", "c"];
    let (mut recent, mut was) = (Vec::new(), 0);
    let mut left = [0; 3];
    let mut stays: [Vec<(usize, usize)>; 3] = Default::default();
    let mut out = Vec::new();
    for (step, &now) in history.iter().enumerate() {
        let sequence = step + 1;
        recent.push(sequence);
        if recent.len() > 20 {
            recent.drain(..15);
        }
        let (mut map, mut set, mut earlier) = (Vec::new(), Vec::new(), Vec::new());
        for (c, name) in names.iter().enumerate() {
            let (is, was) = (now >> c & 1 == 1, was >> c & 1 == 1);
            if is && !was {
                stays[c].push((sequence, 0));
            } else if was && !is {
                left[c] = sequence;
                stays[c].last_mut().unwrap().1 = sequence;
            }
            if is {
                map.push(format!(r#""{name}":null"#));
            } else if left[c] > 0 {
                map.push(format!(r#""{name}":{{"seq":{},"rev":"{}-x"}}"#, left[c], left[c]));
            }
            if stays[c].len() > 6 {
                let (first, second) = (stays[c][0], stays[c][1]);
                stays[c].splice(..2, [(first.0, second.1)]);
            }
            let text = |(start, end): &(usize, usize)| match end {
                0 => format!(r#"{{"name":"{name}","start":{start}}}"#),
                _ => format!(r#"{{"name":"{name}","start":{start},"end":{end}}}"#),
            };
            if let Some((last, before)) = stays[c].split_last() {
                set.push(text(last));
                earlier.extend(before.iter().map(text));
            }
        }
        was = now;
        out.push(format!(
            r#""rev":"{sequence}-x","sequence":{sequence},"recent_sequences":{recent:?},"channels":{{{}}},"channel_set":[{}],"channel_set_history":[{}]"#,
            map.join(","),
            set.join(","),
            earlier.join(",")
        ));
    }
    out
}

proptest! {
    /// A document enters and leaves channels, and the feed leaves out revisions (but never so many
    /// that the last delivered one is not among the recent sequences). Each channel shows exactly
    /// the newest row.
    #[test]
    fn a_document_has_one_live_row_a_channel_whatever_the_feed_leaves_out((history, delivered) in histories()) {
        let mut last = 0;
        let mut rows: std::collections::BTreeMap<(usize, u64), bool> = Default::default();
        let mut accounted = std::collections::BTreeSet::new();
        for (step, fields) in metadata_of(&history).iter().enumerate() {
            let sequence = step as u64 + 1;
            if !delivered[step] && sequence - last < 5 && step + 1 < history.len() {
                continue;
            }
            last = sequence;
            let d = document(&with_attribute(fields));
            let column = |name: &str| usize::from(name.as_bytes()[0] - b'a');
            // The rows of departures first, then this one; each marks what it supersedes.
            let mut made: Vec<(u64, usize, u64)> = Vec::new();
            for departure in &d.departures {
                if !accounted.contains(&departure.sequence.0) {
                    made.push((departure.sequence.0, column(departure.channel.name()), departure.since.0));
                }
            }
            accounted.extend(d.entry.supersedes().iter().map(|s| s.0));
            made.extend(d.entry.channels().iter().map(|c| (sequence, column(c.channel.name()), c.since.0)));
            made.push((sequence, 3, 0));
            accounted.insert(sequence);
            for (row, channel, since) in made {
                rows.entry((channel, row)).or_insert(true);
                for &old in d.entry.supersedes() {
                    if old.0 < row && old.0 >= since {
                        rows.insert((channel, old.0), false);
                    }
                }
            }
            let live: Vec<(usize, u64)> = rows.iter().filter(|(_, live)| **live).map(|(row, _)| *row).collect();
            let mut expected = Vec::new();
            for channel in 0..3 {
                let member = |step: usize| history[step] >> channel & 1 == 1;
                let touched = (0..=step).rev().find(|&s| member(s) || s > 0 && member(s - 1));
                expected.extend(touched.map(|s| (channel, s as u64 + 1)));
            }
            expected.push((3, sequence));
            prop_assert_eq!(live, expected, "at {}", sequence);
        }
    }
}
