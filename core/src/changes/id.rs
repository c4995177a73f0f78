//! The ids by which clients name a place in the stream of changes.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::sequence::Sequence;

/// A place in the stream of changes, as clients see it: `S`, `T:S`, `L::S` or `L:T:S`.
///
/// It is printed in the shortest form that says all: `T` only inside a backfill (`S < T`), `L` only while it lies below the rest.
/// So text does not always read back to equal fields, but always to the same [canonical](Self::canonical) id.
///
/// In JSON it is a bare integer only if it has neither `L` nor `T`. An id made while something is skipped carries `L`
/// even where it prints as a plain number (at or below `L`), and is a string then, as clients of the gateway know it.
///
/// Order: by `L` if it is below the rest, else by `T` if present, else by `S`. Ids that this leaves
/// equal are in the order in which one answer sends its rows, which all have one `L`: by `T` if
/// present, else by `S`; within one `T` by `S`; a plain `N` comes after every `N:M`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SequenceId {
    /// While something is skipped: the sequence up to which nothing is missing. Else zero.
    pub low: Sequence,
    /// The sequence that granted the channel which is being sent from its beginning. Zero outside such a backfill.
    pub triggered: Sequence,
    /// The sequence of the row itself.
    pub sequence: Sequence,
}

impl SequenceId {
    /// Before everything.
    pub const ZERO: SequenceId = SequenceId { low: Sequence::ZERO, triggered: Sequence::ZERO, sequence: Sequence::ZERO };

    /// The plain id of `sequence`.
    pub fn new(sequence: impl Into<Sequence>) -> Self {
        SequenceId { sequence: sequence.into(), ..SequenceId::ZERO }
    }

    /// The same with another low sequence; zero for none.
    #[must_use]
    pub fn with_low(self, low: impl Into<Sequence>) -> Self {
        SequenceId { low: low.into(), ..self }
    }

    /// The same inside the backfill that `triggered` began; zero for none.
    #[must_use]
    pub fn with_triggered(self, triggered: impl Into<Sequence>) -> Self {
        SequenceId { triggered: triggered.into(), ..self }
    }

    /// The sequence from which nothing can be missed: the low sequence where that is lower.
    pub fn safe(&self) -> Sequence {
        if Sequence::ZERO < self.low && self.low < self.sequence { self.low } else { self.sequence }
    }

    /// Where a request with this `since` starts while the low sequence is `low` (zero if nothing is skipped).
    ///
    /// As long as low has not moved since the id was made, what lies between low and the sequence
    /// was sent and is not sent again; afterwards the request starts at the safe sequence. Inside a
    /// backfill everything below `T` was sent before: a channel of which nothing is being sent from
    /// its beginning goes on just before `T`, as with the gateway.
    pub fn start(&self, low: Sequence) -> Sequence {
        let reached = if self.in_backfill() { self.triggered.previous() } else { self.sequence };
        match self.low > Sequence::ZERO && self.low != low {
            true => reached.min(self.low),
            false => reached,
        }
    }

    /// Whether it names a place inside a backfill.
    pub fn in_backfill(&self) -> bool {
        self.sequence < self.triggered
    }

    /// Without the parts that are not printed.
    #[must_use]
    pub fn canonical(&self) -> Self {
        let triggered = if self.in_backfill() { self.triggered } else { Sequence::ZERO };
        let bound = if self.in_backfill() { self.triggered } else { self.sequence };
        let low = if self.low < bound { self.low } else { Sequence::ZERO };
        SequenceId { low, triggered, sequence: self.sequence }
    }

    /// As JSON: always a string, also if simple. `last_seq` is written so.
    pub fn text(self) -> SequenceText {
        SequenceText(self)
    }

    /// `T` if present, else `S`.
    fn major(&self) -> Sequence {
        if self.triggered > Sequence::ZERO { self.triggered } else { self.sequence }
    }

    fn order_key(&self) -> (Sequence, Sequence, bool, Sequence, Sequence) {
        let major = self.major();
        let first = if Sequence::ZERO < self.low && self.low < major { self.low } else { major };
        (first, major, self.triggered == Sequence::ZERO, self.sequence, self.low)
    }
}

impl From<Sequence> for SequenceId {
    fn from(sequence: Sequence) -> Self {
        SequenceId::new(sequence)
    }
}

impl From<u64> for SequenceId {
    fn from(sequence: u64) -> Self {
        SequenceId::new(sequence)
    }
}

impl Ord for SequenceId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order_key().cmp(&other.order_key())
    }
}

impl PartialOrd for SequenceId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SequenceId { low, triggered, sequence } = self.canonical();
        match (low > Sequence::ZERO, triggered > Sequence::ZERO) {
            (true, true) => write!(f, "{low}:{triggered}:{sequence}"),
            (true, false) => write!(f, "{low}::{sequence}"),
            (false, true) => write!(f, "{triggered}:{sequence}"),
            (false, false) => sequence.fmt(f),
        }
    }
}

impl FromStr for SequenceId {
    type Err = Error;

    /// Reads any of the four forms; the empty text is zero.
    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(SequenceId::ZERO);
        }
        let mut parts = text.split(':');
        let id = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(s), None, ..) => number(s).map(SequenceId::new),
            (Some(t), Some(s), None, _) => number(t).zip(number(s)).map(|(t, s)| SequenceId::new(s).with_triggered(t)),
            (Some(l), Some(""), Some(s), None) => number(l).zip(number(s)).map(|(l, s)| SequenceId::new(s).with_low(l)),
            (Some(l), Some(t), Some(s), None) => {
                number(l).zip(number(t)).zip(number(s)).map(|((l, t), s)| SequenceId::new(s).with_triggered(t).with_low(l))
            }
            _ => None,
        };
        id.ok_or_else(|| Error::config(format!("invalid sequence {:?}; expected S, T:S, L::S or L:T:S", Shortened(text))))
    }
}

/// Digits only: `u64::from_str` would take a plus sign too.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Quotes a client's text in a message, at most its first characters.
struct Shortened<'a>(&'a str);

impl fmt::Debug for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(80) {
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
            None => write!(f, "{:?}", self.0),
        }
    }
}

impl Serialize for SequenceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        if self.low == Sequence::ZERO && self.triggered == Sequence::ZERO {
            serializer.serialize_u64(self.sequence.0)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for SequenceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = SequenceId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence id: a number that is not negative, or a string")
            }

            fn visit_u64<E: serde::de::Error>(self, n: u64) -> std::result::Result<SequenceId, E> {
                Ok(SequenceId::new(n))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<SequenceId, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// A [`SequenceId`] that is a string in JSON also where it is simple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceText(pub SequenceId);

impl fmt::Display for SequenceText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for SequenceText {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SequenceText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        SequenceId::deserialize(deserializer).map(SequenceText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(text: &str) -> SequenceId {
        text.parse().unwrap()
    }

    fn parts() -> impl Strategy<Value = u64> {
        prop_oneof![4 => 0u64..6, 1 => any::<u64>(), 1 => Just(u64::MAX), 1 => Just((1 << 53) + 1)]
    }

    fn ids() -> impl Strategy<Value = SequenceId> {
        (parts(), parts(), parts()).prop_map(|(l, t, s)| SequenceId::new(s).with_triggered(t).with_low(l))
    }

    #[test]
    fn the_four_forms_read_and_print() {
        assert_eq!(id(""), SequenceId::ZERO);
        assert_eq!(id("7"), SequenceId::new(7));
        assert_eq!(id("9:7"), SequenceId::new(7).with_triggered(9));
        assert_eq!(id("2::7"), SequenceId::new(7).with_low(2));
        assert_eq!(id("2:9:7"), SequenceId::new(7).with_triggered(9).with_low(2));
        for text in ["0", "7", "9:7", "2::7", "2:9:7", "18446744073709551615", "44:478:438", "8:9:7"] {
            assert_eq!(id(text).to_string(), text);
        }
    }

    #[test]
    fn parts_that_say_nothing_are_not_printed() {
        assert_eq!(SequenceId::new(7).with_triggered(7).to_string(), "7");
        assert_eq!(SequenceId::new(7).with_low(7).to_string(), "7");
        assert_eq!(SequenceId::new(7).with_triggered(9).with_low(9).to_string(), "9:7");
        assert_eq!(SequenceId::new(12).with_triggered(9).with_low(10).to_string(), "10::12");
    }

    #[test]
    fn malformed_ids_are_refused() {
        for text in [
            "foo",
            ":",
            ":1",
            "::1",
            "1:",
            "1::",
            "::",
            "a:b:c:d",
            "1:2:3:4",
            "-1",
            "1:-2",
            "+1",
            "+1::2",
            " 1",
            "1 ",
            "1.0",
            "1e3",
            "0x10",
            "18446744073709551616",
            "1:18446744073709551616",
            "null",
            "\"1\"",
            "١",
        ] {
            let error = text.parse::<SequenceId>().unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::ConfigInvalid, "{text}");
        }
        assert!("x".repeat(1 << 20).parse::<SequenceId>().unwrap_err().to_string().len() < 400);
    }

    #[test]
    fn a_request_from_inside_a_backfill_starts_before_what_triggered_it() {
        for (text, low, start) in
            [("9:7", 0, 8), ("7", 0, 7), ("2::7", 0, 2), ("2::7", 2, 7), ("2:9:7", 0, 2), ("2:9:7", 2, 8), ("8:9:7", 0, 8)]
        {
            assert_eq!(id(text).start(Sequence(low)), Sequence(start), "{text}");
        }
    }

    #[test]
    fn a_plain_number_sorts_after_every_backfill_it_triggered() {
        let sorted = ["1", "2:1", "2", "2::9", "3:1", "3:2", "1:4:3", "4", "5:3", "4::7", "5"].map(id);
        let expected = ["1", "1:4:3", "2:1", "2", "2::9", "3:1", "3:2", "4", "4::7", "5:3", "5"].map(id);
        let mut sorted = sorted.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, expected);
        assert!(id("3:1") < id("3:2") && id("3:2") < id("3") && id("3") < id("4:1"));
        assert!(id("4:1") < id("4") && id("2") < id("3:1"));
        assert!(id("2::9") < id("3"), "the low sequence counts");
        assert!(id("2:8:5") < id("2:8:6") && id("2:8:6") < id("2::9") && id("2::9") < id("9"));
    }

    #[test]
    fn the_safe_sequence_is_the_lower_of_low_and_own() {
        assert_eq!(id("2::7").safe(), Sequence(2));
        assert_eq!(SequenceId::new(7).with_low(9).safe(), Sequence(7));
        assert_eq!(id("7").safe(), Sequence(7));
    }

    #[test]
    fn a_request_starts_at_its_sequence_until_low_moves() {
        assert_eq!(id("2::7").start(Sequence(2)), Sequence(7));
        assert_eq!(id("2::7").start(Sequence(3)), Sequence(2));
        assert_eq!(id("2::7").start(Sequence(0)), Sequence(2));
        assert_eq!(id("7").start(Sequence(0)), Sequence(7));
        assert_eq!(id("7").start(Sequence(2)), Sequence(7));
    }

    #[test]
    fn json_is_a_number_only_where_nothing_else_is_said() {
        let json = |id: SequenceId| serde_json::to_string(&id).unwrap();
        assert_eq!(json(id("7")), "7");
        assert_eq!(json(id("9:7")), r#""9:7""#);
        assert_eq!(json(SequenceId::new(167).with_low(200)), r#""167""#);
        assert_eq!(json(SequenceId::new((1 << 53) + 1)), "9007199254740993");
        assert_eq!(serde_json::to_string(&id("7").text()).unwrap(), r#""7""#);
        assert_eq!(serde_json::from_str::<SequenceId>("9007199254740993").unwrap(), SequenceId::new((1 << 53) + 1));
        assert_eq!(serde_json::from_str::<SequenceId>("\"\"").unwrap(), SequenceId::ZERO);
        for bad in ["-1", "1.5", "18446744073709551616", "null", "true", "[1]", "\"foo\"", "\"-1\""] {
            assert!(serde_json::from_str::<SequenceId>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(id in ids()) {
            let read: SequenceId = id.to_string().parse().unwrap();
            prop_assert_eq!(read, id.canonical());
            prop_assert_eq!(read.to_string(), id.to_string());
            prop_assert_eq!(id.canonical().canonical(), id.canonical());
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(serde_json::from_str::<SequenceId>(&json).unwrap(), id.canonical());
            let text = serde_json::to_string(&id.text()).unwrap();
            prop_assert_eq!(text.clone(), format!("\"{id}\""));
            prop_assert_eq!(serde_json::from_str::<SequenceId>(&text).unwrap(), id.canonical());
            let value = serde_json::to_value(id).unwrap();
            prop_assert_eq!(serde_json::from_value::<SequenceId>(value).unwrap(), id.canonical());
        }

        #[test]
        fn the_order_is_total_and_agrees_with_equality(a in ids(), b in ids(), c in ids()) {
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            prop_assert_eq!(a.cmp(&b) == Ordering::Equal, a == b);
            if a <= b && b <= c {
                prop_assert!(a <= c);
            }
        }

        #[test]
        fn the_order_is_that_of_the_rows_of_an_answer(a in ids(), b in ids(), low in parts()) {
            // All ids of an answer have the same low sequence, or none.
            let low = if low < a.major().min(b.major()).0 { low } else { 0 };
            let (a, b) = (a.with_low(low), b.with_low(low));
            let before = match (a.triggered.0, b.triggered.0) {
                (t, u) if t == u => a.sequence < b.sequence,
                (0, u) => a.sequence.0 < u,
                (t, 0) => t <= b.sequence.0,
                (t, u) => t < u,
            };
            if before {
                prop_assert!(a < b);
            }
        }
    }
}
