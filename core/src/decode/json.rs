//! A pull scanner for JSON that reads the few fields it is asked for and skips the rest, without making a tree.
//!
//! It exists because of speed: it reads the gateway's metadata in about half the time that `serde_json` takes to fill borrowed
//! structures. It accepts what `serde_json` accepts, with the same strings and numbers, and also text whose encoding is wrong: of
//! text that is skipped it checks the syntax only, and in text that is read it does what Go's `encoding/json` does, which is what the
//! gateway reads with. Half a surrogate pair, and each byte that is not UTF-8, becomes U+FFFD. Nothing here recurses.

use std::borrow::Cow;
use std::fmt;

use smallvec::SmallVec;

/// That input cannot be read; the scanner knows why. It has no size, so that results fit into registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

pub(super) type Result<T> = std::result::Result<T, Malformed>;

/// Reads JSON from left to right. After an error it must not be used but to ask why.
#[derive(Clone, Debug)]
pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Whether the last string read had escapes.
    escaped: bool,
    /// What is wrong at `at`.
    failure: &'static str,
}

impl<'a> Scanner<'a> {
    /// At the beginning of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Scanner { bytes, at: 0, escaped: false, failure: "" }
    }

    /// Why input cannot be read, and where: after an error.
    pub(super) fn failure(&self) -> impl fmt::Display {
        format!("{} at byte {}", self.failure, self.at)
    }

    /// An error here.
    #[cold]
    pub(super) fn error(&mut self, what: &'static str) -> Malformed {
        self.failure = what;
        Malformed
    }

    /// The first byte of what comes next, white space skipped.
    #[inline]
    pub(super) fn peek(&mut self) -> Result<u8> {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                Some(&byte) => return Ok(byte),
                None => return Err(self.error("unexpected end")),
            }
        }
    }

    /// Nothing but white space may follow.
    pub(super) fn end(&mut self) -> Result<()> {
        match self.peek() {
            Ok(_) => Err(self.error("trailing characters")),
            Err(_) => Ok(()),
        }
    }

    /// Reads an object: calls `field` with each key, as bytes that need not be UTF-8; it must read the value.
    #[inline]
    pub(super) fn object(&mut self, mut field: impl FnMut(&mut Self, &[u8]) -> Result<()>) -> Result<()> {
        self.members(|scanner| {
            let raw = scanner.raw_string()?;
            let unescaped = if scanner.escaped { unescape(raw) } else { Vec::new() };
            let key = if scanner.escaped { &unescaped } else { raw };
            scanner.expect(b':', "expected a colon")?;
            field(scanner, key)
        })
    }

    /// Reads an object whose keys are data, as bytes that need not be UTF-8: calls `entry` with each key; it must read the value.
    #[inline]
    pub(super) fn map(&mut self, mut entry: impl FnMut(&mut Self, Cow<'a, [u8]>) -> Result<()>) -> Result<()> {
        self.members(|scanner| {
            let key = scanner.bytes()?;
            scanner.expect(b':', "expected a colon")?;
            entry(scanner, key)
        })
    }

    /// Reads an array: calls `element` where each begins; it must read it.
    #[inline]
    pub(super) fn array(&mut self, mut element: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.expect(b'[', "expected an array")?;
        if self.peek()? == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            element(self)?;
            match self.peek()? {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.error("expected a comma or the end of the array")),
            }
        }
    }

    /// Reads a string.
    #[inline]
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>> {
        let raw = self.raw_string()?;
        if self.escaped {
            return Ok(Cow::Owned(text(unescape(raw))));
        }
        Ok(match std::str::from_utf8(raw) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => Cow::Owned(replaced(raw)),
        })
    }

    /// Reads a string as bytes that need not be UTF-8.
    #[inline]
    pub(super) fn bytes(&mut self) -> Result<Cow<'a, [u8]>> {
        let raw = self.raw_string()?;
        Ok(if self.escaped { Cow::Owned(unescape(raw)) } else { Cow::Borrowed(raw) })
    }

    /// Reads a number that must be a `u64`.
    #[inline]
    pub(super) fn u64(&mut self) -> Result<u64> {
        let first = self.peek()?;
        let mut number = 0u64;
        let mut length = 0;
        while let Some(digit) = self.bytes.get(self.at).map(|byte| byte.wrapping_sub(b'0'))
            && digit < 10
        {
            number = if length < 19 {
                // So many nines fit.
                number * 10 + u64::from(digit)
            } else {
                let more = number.checked_mul(10).and_then(|n| n.checked_add(u64::from(digit)));
                more.ok_or_else(|| self.error("a number over 64 bits"))?
            };
            length += 1;
            self.at += 1;
        }
        if length == 0 || matches!(self.bytes.get(self.at), Some(b'.' | b'e' | b'E')) {
            return Err(self.error("expected an unsigned integer"));
        }
        if first == b'0' && length > 1 {
            return Err(self.error("a number with a leading zero"));
        }
        Ok(number)
    }

    /// Reads `true` or `false`.
    pub(super) fn bool(&mut self) -> Result<bool> {
        match self.peek()? {
            b't' => self.literal(b"true").map(|()| true),
            b'f' => self.literal(b"false").map(|()| false),
            _ => Err(self.error("expected true or false")),
        }
    }

    /// Reads `null` if that comes next; otherwise reads nothing.
    #[inline]
    pub(super) fn null(&mut self) -> Result<bool> {
        if self.peek()? != b'n' {
            return Ok(false);
        }
        self.literal(b"null").map(|()| true)
    }

    /// Skips one value of any kind.
    pub(super) fn skip(&mut self) -> Result<()> {
        let mut nesting = Nesting::default();
        loop {
            match self.peek()? {
                b'"' => {
                    self.raw_string()?;
                }
                b'{' => {
                    self.at += 1;
                    if self.peek()? == b'}' {
                        self.at += 1;
                    } else {
                        nesting.push(true);
                        self.skip_key()?;
                        continue;
                    }
                }
                b'[' => {
                    self.at += 1;
                    if self.peek()? == b']' {
                        self.at += 1;
                    } else {
                        nesting.push(false);
                        continue;
                    }
                }
                b'-' | b'0'..=b'9' => self.skip_number()?,
                b't' => self.literal(b"true")?,
                b'f' => self.literal(b"false")?,
                b'n' => self.literal(b"null")?,
                _ => return Err(self.error("expected a value")),
            }
            // A value has ended: so may what it is in, and what that is in.
            loop {
                let Some(in_object) = nesting.innermost() else { return Ok(()) };
                match self.peek()? {
                    b',' => {
                        self.at += 1;
                        if in_object {
                            self.skip_key()?;
                        }
                        break;
                    }
                    b'}' if in_object => self.at += 1,
                    b']' if !in_object => self.at += 1,
                    _ => return Err(self.error("expected a comma or a closing bracket")),
                }
                nesting.pop();
            }
        }
    }

    #[inline]
    fn members(&mut self, mut member: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.expect(b'{', "expected an object")?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            member(self)?;
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.error("expected a comma or the end of the object")),
            }
        }
    }

    #[inline]
    fn expect(&mut self, byte: u8, otherwise: &'static str) -> Result<()> {
        if self.peek()? != byte {
            return Err(self.error(otherwise));
        }
        self.at += 1;
        Ok(())
    }

    #[inline]
    fn literal(&mut self, literal: &'static [u8]) -> Result<()> {
        if !self.bytes[self.at..].starts_with(literal) {
            return Err(self.error("expected a value"));
        }
        self.at += literal.len();
        Ok(())
    }

    #[inline]
    fn skip_key(&mut self) -> Result<()> {
        self.raw_string()?;
        self.expect(b':', "expected a colon")
    }

    fn skip_number(&mut self) -> Result<()> {
        if self.bytes[self.at] == b'-' {
            self.at += 1;
        }
        let first = self.at;
        self.digits()?;
        if self.bytes[first] == b'0' && self.at > first + 1 {
            return Err(self.error("a number with a leading zero"));
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.bytes.get(self.at) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// One digit or more.
    #[inline]
    fn digits(&mut self) -> Result<()> {
        let length = self.bytes[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        if length == 0 {
            return Err(self.error("expected a digit"));
        }
        self.at += length;
        Ok(())
    }

    /// Reads a string: what is between the quotes. Escapes are noted in `escaped`; their syntax has been checked.
    #[inline]
    fn raw_string(&mut self) -> Result<&'a [u8]> {
        let bytes = self.bytes;
        if bytes.get(self.at) == Some(&b'"')
            && let Some(rest) = bytes.get(self.at + 1..)
        {
            let length = plain_text(rest);
            if rest.get(length) == Some(&b'"') {
                self.escaped = false;
                self.at += length + 2;
                return Ok(&rest[..length]);
            }
        }
        self.odd_string()
    }

    /// Reads a string, after white space, with escapes.
    #[cold]
    fn odd_string(&mut self) -> Result<&'a [u8]> {
        self.expect(b'"', "expected a string")?;
        let bytes = self.bytes;
        let start = self.at;
        self.escaped = false;
        loop {
            self.at += bytes.get(self.at..).map_or(0, plain_text);
            match bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(&bytes[start..self.at - 1]);
                }
                Some(b'\\') => {
                    self.escaped = true;
                    self.skip_escape()?;
                }
                Some(_) => return Err(self.error("a control character in a string")),
                None => return Err(self.error("a string without end")),
            }
        }
    }

    #[cold]
    fn skip_escape(&mut self) -> Result<()> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') if hex4(self.bytes.get(self.at + 2..)).is_some() => self.at += 6,
            _ => return Err(self.error("an unknown escape")),
        }
        Ok(())
    }
}

/// The text of `raw`, whose escapes are known to be well-formed one by one. It is UTF-8 where `raw` is.
#[cold]
fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(plain) = rest.iter().position(|b| *b == b'\\') {
        out.extend_from_slice(&rest[..plain]);
        let escape = rest.get(plain + 1).copied().unwrap_or_default();
        rest = rest.get(plain + 2..).unwrap_or_default();
        let plain = match escape {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let (character, length) = character(rest);
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                rest = rest.get(length..).unwrap_or_default();
                continue;
            }
            other => other,
        };
        out.push(plain);
    }
    out.extend_from_slice(rest);
    out
}

/// The character of a `\u` escape whose digits come first in `digits`, and how many bytes it takes. Half a surrogate pair is U+FFFD, and
/// what follows it stands for itself.
fn character(digits: &[u8]) -> (char, usize) {
    let Some(first) = hex4(Some(digits)) else { return (char::REPLACEMENT_CHARACTER, 4) };
    if let Some(character) = char::from_u32(u32::from(first)) {
        return (character, 4);
    }
    let second = digits.get(4..).and_then(|rest| hex4(rest.strip_prefix(b"\\u")));
    match second.and_then(|second| char::decode_utf16([first, second]).next()) {
        Some(Ok(character)) => (character, 10),
        _ => (char::REPLACEMENT_CHARACTER, 4),
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| replaced(error.as_bytes()))
}

/// `bytes` with U+FFFD in place of each byte that is not part of a character.
#[cold]
fn replaced(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    out
}

/// How many bytes come before a quote, a backslash or a control character; eight are looked at at a time.
#[inline]
fn plain_text(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let mut rest = bytes;
    while let Some((chunk, after)) = rest.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(*chunk);
        // Each difference borrows from the next byte only where it has found one: so the lowest high bit is exact, which is
        // enough. No byte over 127 is looked for.
        let quotes = (word ^ (ONES * b'"' as u64)).wrapping_sub(ONES);
        let backslashes = (word ^ (ONES * b'\\' as u64)).wrapping_sub(ONES);
        let controls = word.wrapping_sub(ONES * 0x20);
        let found = (quotes | backslashes | controls) & !word & HIGH;
        if found != 0 {
            return bytes.len() - rest.len() + found.trailing_zeros() as usize / 8;
        }
        rest = after;
    }
    let tail = rest.iter().take_while(|b| !matches!(b, b'"' | b'\\' | 0..0x20)).count();
    bytes.len() - rest.len() + tail
}

/// The number that four hexadecimal digits make.
fn hex4(digits: Option<&[u8]>) -> Option<u16> {
    let digits = digits?.first_chunk::<4>()?;
    digits.iter().try_fold(0u16, |n, digit| Some(n << 4 | char::from(*digit).to_digit(16)? as u16))
}

/// Which of the brackets that are open are of objects: a stack of bits.
#[derive(Default)]
struct Nesting {
    bits: u64,
    depth: usize,
    /// The bits of full words below.
    below: SmallVec<[u64; 1]>,
}

impl Nesting {
    #[inline]
    fn push(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.below.push(self.bits);
        }
        self.bits = self.bits << 1 | u64::from(object);
        self.depth += 1;
    }

    #[inline]
    fn pop(&mut self) {
        self.depth -= 1;
        self.bits >>= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.bits = self.below.pop().unwrap_or_default();
        }
    }

    /// Whether the innermost is an object; `None` if none is open.
    #[inline]
    fn innermost(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.bits & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// A tree, to compare with. Only tests make one; it recurses as deep as the test's input.
    fn tree(scanner: &mut Scanner<'_>) -> Result<Value> {
        Ok(match scanner.peek()? {
            b'{' => {
                let mut map = serde_json::Map::new();
                scanner.map(|s, key| {
                    let key = String::from_utf8(key.into_owned()).unwrap();
                    map.insert(key, tree(s)?);
                    Ok(())
                })?;
                Value::Object(map)
            }
            b'[' => {
                let mut list = Vec::new();
                scanner.array(|s| tree(s).map(|value| list.push(value)))?;
                Value::Array(list)
            }
            b'"' => Value::String(scanner.string()?.into_owned()),
            b'n' => scanner.literal(b"null").map(|()| Value::Null)?,
            b't' | b'f' => Value::Bool(scanner.bool()?),
            _ => {
                let mut ahead = scanner.clone();
                if let Ok(number) = ahead.u64() {
                    *scanner = ahead;
                    number.into()
                } else {
                    let start = scanner.at;
                    scanner.skip()?;
                    let text = std::str::from_utf8(&scanner.bytes[start..scanner.at]).unwrap();
                    serde_json::from_str(text).map_err(|_| scanner.error("number"))?
                }
            }
        })
    }

    fn parse(bytes: &[u8]) -> Result<Value> {
        let mut scanner = Scanner::new(bytes);
        let value = tree(&mut scanner)?;
        scanner.end()?;
        Ok(value)
    }

    fn skip(bytes: &[u8]) -> Result<()> {
        let mut scanner = Scanner::new(bytes);
        scanner.skip()?;
        scanner.end()
    }

    /// `text` with an escape of U+FFFD in place of each escape of half a surrogate pair.
    fn without_halves(text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('\\') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            let escape = |rest: &str| {
                let digits = rest.strip_prefix("\\u")?.get(..4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
                u16::from_str_radix(digits, 16).ok()
            };
            let is_high = |n: u16| (0xd800..0xdc00).contains(&n);
            let is_low = |n: u16| (0xdc00..0xe000).contains(&n);
            let length = match (escape(rest), rest.get(6..).and_then(escape)) {
                (Some(first), Some(second)) if is_high(first) && is_low(second) => 12,
                (Some(first), _) if is_high(first) || is_low(first) => {
                    out.push_str("\\ufffd");
                    rest = &rest[6..];
                    continue;
                }
                (Some(_), _) => 6,
                // Not to take an escaped backslash for the beginning of an escape.
                (None, _) => 1 + rest.chars().nth(1).map_or(0, char::len_utf8),
            };
            out.push_str(&rest[..length]);
            rest = &rest[length..];
        }
        out + rest
    }

    /// Compares with `serde_json` on valid UTF-8. It refuses half surrogate pairs, which are no reason to refuse a document.
    fn check(text: &str) {
        let theirs = serde_json::from_str::<Value>(&without_halves(text));
        match (parse(text.as_bytes()), &theirs) {
            (Ok(mine), Ok(theirs)) => assert_eq!(mine, *theirs, "{text}"),
            (Err(_), Err(_)) => {}
            (mine, theirs) => panic!("{text:?}: {mine:?} {theirs:?}"),
        }
        let ignored = serde_json::from_str::<serde::de::IgnoredAny>(text);
        assert_eq!(skip(text.as_bytes()).is_ok(), ignored.is_ok(), "{text:?}");
    }

    #[test]
    fn odd_values_are_read_as_serde_json_reads_them() {
        let values = [
            "",
            " ",
            "{}",
            "[]",
            "[ ]",
            "{ }",
            "[1,]",
            "[,1]",
            "{,}",
            "{\"a\":1,}",
            "{\"a\"}",
            "{1:2}",
            "[1 2]",
            "{\"a\" 1}",
            "nul",
            "null",
            " true ",
            "tru",
            "false",
            "truefalse",
            "01",
            "-01",
            "-",
            "-0",
            "1.",
            "1.5",
            ".5",
            "1e",
            "1e+",
            "1e5",
            "-1E-5",
            "1.5e3x",
            "00",
            "18446744073709551615",
            "18446744073709551616",
            "9007199254740993",
            "\"\"",
            "\"a",
            "\"\\",
            "\"\\u12\"",
            "\"\\u00e9\"",
            "\"\\ud83d\\ude00\"",
            "\"\\ud83d\"",
            "\"\\ude00\"",
            "\"\\ud83dx\"",
            "\"\\ud83d\\u0041\"",
            "\"\\x\"",
            "\"\\/\\b\\f\\n\\r\\t\\\\\\\"\"",
            "\"a\nb\"",
            "\"\u{7f}é😀\"",
            "{\"a\":{\"b\":[1,{\"c\":null}]},\"a\":2}",
            "[[[[",
            "]",
            "}",
            "[}",
            "{\"a\":1]",
            "\u{feff}1",
            "1 1",
            "{\"\\u0061\":1}",
            "\"\\u0000\"",
            "{\"k\":\"abcdefgh\\\"ijklmnop\"}",
            "\"abcdefg\u{1f}\"",
        ];
        values.into_iter().for_each(check);
    }

    #[test]
    fn numbers_are_exact_or_refused() {
        assert_eq!(Scanner::new(b"9007199254740993").u64(), Ok(9_007_199_254_740_993));
        assert_eq!(Scanner::new(b" 18446744073709551615,").u64(), Ok(u64::MAX));
        for bad in ["18446744073709551616", "1.0", "1e3", "-1", "07", "\"1\"", "null", ""] {
            assert!(Scanner::new(bad.as_bytes()).u64().is_err(), "{bad}");
        }
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
            let depth = 1_000_000;
            let text = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            skip(text.as_bytes()).unwrap();
            assert!(skip(&text.as_bytes()[..text.len() - 1]).is_err());
            assert!(skip(open.repeat(depth).as_bytes()).is_err());
        }
        let crossed = format!("{}1{}", "[{\"a\":".repeat(100), "]}".repeat(100));
        assert!(skip(crossed.as_bytes()).is_err());
    }

    #[test]
    fn wrong_encoding_is_read_as_go_reads_it() {
        let cases: [(&[u8], &str); 10] = [
            (b"\"a\xff\"", "a\u{fffd}"),
            (b"\"\\n\xff\"", "\n\u{fffd}"),
            (b"\"\xe2\x82z\"", "\u{fffd}\u{fffd}z"),
            (b"\"\xf0\x9f\x98\"", "\u{fffd}\u{fffd}\u{fffd}"),
            (b"\"\xed\xa0\xbd\"", "\u{fffd}\u{fffd}\u{fffd}"),
            (b"\"\\ud83d\"", "\u{fffd}"),
            (b"\"\\ude00x\"", "\u{fffd}x"),
            (b"\"\\ud83d\\u0041\"", "\u{fffd}A"),
            (b"\"\\ud83d\\ud83d\\ude00\"", "\u{fffd}\u{1f600}"),
            (b"\"\\ud83d\\n\\u0000\"", "\u{fffd}\n\0"),
        ];
        for (json, expected) in cases {
            assert_eq!(Scanner::new(json).string().as_deref(), Ok(expected), "{}", json.escape_ascii());
            assert_eq!(skip(json), Ok(()), "{}", json.escape_ascii());
        }
        // As bytes the text stays what it is, so that who needs UTF-8 can tell.
        assert_eq!(Scanner::new(b"\"\\n\xff\"").bytes().as_deref(), Ok(&b"\n\xff"[..]));
    }

    #[test]
    fn odd_values_are_skipped() {
        for json in
            ["1e400", "-0.0e-999", "123456789012345678901234567890", r#"{"a":1,"a":{"a":[]},"\ud800":"\udfff"}"#, r#""\u0000""#]
        {
            assert_eq!(skip(json.as_bytes()), Ok(()), "{json}");
        }
        // Go refuses these as well.
        for json in ["\"\0\"", "{\"a\":1}\0", "{\"a\0\":1}", "1e", "\u{feff}{}"] {
            assert!(skip(json.as_bytes()).is_err(), "{json:?}");
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e9..1e9).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 60, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map("[a-z\"\\\\é\u{1}-\u{20}]{0,12}", inner, 0..8)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_document_is_read_as_serde_json_reads_it(value in json(), pretty in any::<bool>()) {
            check(&if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap());
        }

        #[test]
        fn damaged_documents_are_accepted_or_refused_alike(
            value in json(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), "[\\[\\]{}:,\"\\\\a0-9eE.+u-]"), 1..4),
        ) {
            let mut text: Vec<char> = serde_json::to_string(&value).unwrap().chars().collect();
            for (at, with) in damage {
                let at = at.index(text.len());
                text[at] = with.chars().next().unwrap();
            }
            check(&text.into_iter().collect::<String>());
        }

        #[test]
        fn any_string_with_escapes_is_read_as_serde_json_reads_it(
            parts in prop::collection::vec(prop_oneof![
                any::<char>().prop_map(String::from),
                any::<u16>().prop_map(|n| format!("\\u{n:04x}")),
                (0xd800u16..0xe000).prop_map(|n| format!("\\u{n:04X}")),
                "\\\\[\"\\\\/bfnrt]",
                "[a-z]{1,20}",
            ], 0..12),
        ) {
            check(&format!("\"{}\"", parts.concat()));
        }
    }
}
