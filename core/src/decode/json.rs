//! A pull scanner for JSON that reads the few fields it is asked for and skips the rest, without making a tree.
//!
//! It exists because of speed: it reads the gateway's metadata in about half the time that
//! `serde_json` takes to fill borrowed structures. It accepts all input that `serde_json` accepts,
//! with the same strings and numbers, and also text with a wrong encoding. It checks only the
//! syntax of skipped text. It decodes text that is read as Go's `encoding/json` does, which the
//! gateway uses: half a surrogate pair, and each byte that is not UTF-8, become U+FFFD. Nothing
//! here recurses.

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

/// The text of `raw`, in which each escape is well-formed. It is UTF-8 where `raw` is.
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

/// The character of a `\u` escape whose digits begin `digits`, and its length in bytes. Half a
/// surrogate pair is U+FFFD; the text after it is read on its own.
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
mod tests;
