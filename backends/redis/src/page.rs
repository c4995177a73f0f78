//! Pages: consecutive sequence documents, one after the other in one string.
//!
//! A record is the document's place in the page (one byte), its length with the version (four bytes, big-endian), the version, the value. The
//! first record of a place counts. So a commit appends, without asking what is there, and leaves documents as first written.

use bytes::{Buf as _, Bytes};
use rustc_hash::FxHashMap;
use sluicegate_core::store::{Version, Versioned};
use sluicegate_core::{Error, Result, Sequence};

use crate::VERSION;

/// How many consecutive sequence documents share one Redis string.
///
/// `cargo bench -p sluicegate-redis --bench layout` (400,000 documents of 132 bytes, Redis 7.0): a key each takes 251 bytes and 2.7 µs of the
/// server a document, a field each of hashes of 128 takes 209 bytes and 2.0 µs, an appended record in strings of 8 takes 173 bytes and 0.4 µs.
/// Longer strings gain little, and whoever reads one document reads the whole string.
pub(crate) const PAGE: u64 = 8;

// The script of pages has these numbers in it.
const _: () = assert!(PAGE == 8 && VERSION == 8);

/// Bytes of place and length.
const HEAD: usize = 5;

/// The lengths of so many consecutive pages are remembered together: 1 KiB.
const RUN: usize = 256;

/// The limit for runs: 16 MiB, the pages of 33,000,000 sequences where these lie close together. A
/// cold start writes to each page of a bucket several times, far apart.
const RUNS: usize = 16_384;

/// The page of `sequence`, and its place there.
pub(crate) fn place(sequence: Sequence) -> (u64, u8) {
    (sequence.0 / PAGE, (sequence.0 % PAGE) as u8)
}

/// Writes the record of `value` at the end of `page`.
pub fn append(page: &mut Vec<u8>, place: u8, version: Version, value: &[u8]) {
    page.push(place);
    page.extend_from_slice(&((VERSION + value.len()) as u32).to_be_bytes());
    page.extend_from_slice(&version.0.to_be_bytes());
    page.extend_from_slice(value);
}

/// The document at `place`, if there is one.
///
/// # Errors
/// `Corrupt` if something before it, or where it might be, is no record.
pub fn find(mut page: Bytes, place: u8) -> Result<Option<Versioned<Bytes>>> {
    let whole = page.len();
    while page.has_remaining() {
        let unreadable = || Error::corrupt(format!("the page of documents is not one from byte {} on", whole - page.len()));
        let Some((&[at, a, b, c, d], rest)) = page.split_first_chunk::<HEAD>() else { return Err(unreadable()) };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let Some((version, _)) = rest.split_first_chunk::<VERSION>() else { return Err(unreadable()) };
        if u64::from(at) >= PAGE || !(VERSION..=rest.len()).contains(&length) {
            return Err(unreadable());
        }
        if at == place {
            let version = Version(u64::from_be_bytes(*version));
            return Ok(Some(Versioned { version, value: page.slice(HEAD + VERSION..HEAD + length) }));
        }
        page.advance(HEAD + length);
    }
    Ok(None)
}

/// How long the pages can be at most that were appended to lately. One that is longer has records that nobody can see, of a commit that was
/// repeated, or that another writer made.
#[derive(Debug, Default)]
pub(crate) struct KnownLengths(FxHashMap<u64, Box<[u32; RUN]>>);

impl KnownLengths {
    fn known(&mut self, page: u64) -> &mut u32 {
        let (run, at) = (page / RUN as u64, page % RUN as u64);
        if self.0.len() >= RUNS && !self.0.contains_key(&run) {
            // These pages are tidied when they are appended to next.
            self.0.clear();
        }
        &mut self.0.entry(run).or_insert_with(|| Box::new([0; RUN]))[at as usize]
    }

    /// So many bytes are about to be appended to `page`.
    pub(crate) fn grow(&mut self, page: u64, bytes: u64) {
        let known = self.known(page);
        *known = known.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Whether all of the page is accounted for, if it is so long.
    pub(crate) fn accounts_for(&mut self, page: u64, length: u64) -> bool {
        length <= u64::from(*self.known(page))
    }

    /// The page was tidied, and is so long. If it is not known how long: 0.
    pub(crate) fn tidied(&mut self, page: u64, length: u64) {
        *self.known(page) = u32::try_from(length).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(records: &[(u8, &str)]) -> Vec<u8> {
        let mut page = Vec::new();
        for (at, (place, value)) in records.iter().enumerate() {
            append(&mut page, *place, Version(at as u64), value.as_bytes());
        }
        page
    }

    fn found(page: &[u8], place: u8) -> Result<Option<(u64, Bytes)>> {
        Ok(find(Bytes::copy_from_slice(page), place)?.map(|found| (found.version.0, found.value)))
    }

    #[test]
    fn the_first_record_of_a_place_is_its_document() {
        let page = page(&[(3, "three"), (0, ""), (3, "another"), (7, "seven")]);
        assert_eq!(found(&page, 3).unwrap(), Some((0, "three".into())));
        assert_eq!(found(&page, 0).unwrap(), Some((1, Bytes::new())));
        assert_eq!(found(&page, 7).unwrap(), Some((3, "seven".into())));
        assert_eq!(found(&page, 1).unwrap(), None);
    }

    #[test]
    fn what_is_no_record_hides_only_what_comes_after_it() {
        for garbage in
            [&b"garbage that is no record"[..], b"\x01\0\0\0\x07", b"\x01\0\0\0\x08short", b"\x08\0\0\0\x08.version", b"\0"]
        {
            let page = [page(&[(3, "three")]), garbage.to_vec()].concat();
            assert_eq!(found(&page, 3).unwrap(), Some((0, "three".into())));
            let error = found(&page, 0).unwrap_err().to_string();
            assert!(error.contains("from byte 18 on"), "{error}");
        }
    }

    #[test]
    fn a_page_that_is_longer_than_what_was_appended_is_noticed() {
        let mut known = KnownLengths::default();
        known.grow(1, 100);
        known.grow(1, 50);
        assert!(known.accounts_for(1, 150), "the later may come first");
        assert!(known.accounts_for(1, 100));
        assert!(!known.accounts_for(1, 250), "somebody else was there");
        assert!(!known.accounts_for(2, 1), "nothing is known of it");
        known.tidied(1, 200);
        known.grow(1, 10);
        assert!(known.accounts_for(1, 210));
        assert!(!known.accounts_for(1, 211));
    }

    #[test]
    fn lengths_of_a_limited_number_of_pages_are_known() {
        let mut known = KnownLengths::default();
        for run in 0..=RUNS as u64 {
            known.grow(run * RUN as u64, 9);
            assert!(known.0.len() <= RUNS);
        }
        assert!(known.accounts_for((RUNS * RUN) as u64, 9) && !known.accounts_for(0, 9));
    }
}
