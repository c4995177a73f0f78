//! Sequence documents, in pages.

use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use sluicegate_core::store::Version;
use sluicegate_core::{CacheKey, ChangeEntry, Result, Sequence};
use tokio::time::Instant;

use crate::value::{Area, Raw, Stored, map_bytes, shared_bytes};

/// Slots a page.
const PAGE: u64 = 1024;

/// Sequence documents by sequence: sequences are dense, so a slot in a page is cheaper than a place in a map.
#[derive(Debug, Default)]
pub(crate) struct Sequences {
    pages: Vec<Page>,
    places: FxHashMap<u64, usize>,
    /// Number and place of the page used last.
    last: Option<(u64, usize)>,
    /// The places of pages, and the slots in them, where a commit puts its entries.
    slots: Vec<(usize, usize)>,
    /// Documents that are not the canonical bytes of an entry, or that expire.
    raw: FxHashMap<u64, (Raw, Version)>,
}

#[derive(Debug)]
struct Page {
    number: u64,
    used: usize,
    slots: Box<[Option<Slot>]>,
}

type Slot = (Arc<ChangeEntry>, Version);

/// Whether entries seem to be in many different pages, as in a cold start.
fn are_scattered(entries: &[Arc<ChangeEntry>]) -> bool {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return false };
    first.position().0.abs_diff(last.position().0) > 4 * PAGE
}

impl Sequences {
    /// Keeps committed entries, each unless there is a document already.
    pub(crate) fn insert_all(&mut self, entries: &[Arc<ChangeEntry>], version: Version) {
        let mut slots = std::mem::take(&mut self.slots);
        slots.extend(entries.iter().map(|entry| {
            let n = entry.position().0;
            (self.place(n / PAGE), (n % PAGE) as usize)
        }));
        if are_scattered(entries) {
            // The slots are mostly not in the processor's caches. The processor waits for several
            // of them at a time here, and for one at a time where they are written.
            for (place, slot) in &slots {
                std::hint::black_box(self.pages[*place].slots[*slot].is_none());
            }
        }
        for (entry, (place, slot)) in entries.iter().zip(slots.drain(..)) {
            if !self.raw.is_empty() && self.raw(entry.position().0).is_some() {
                continue;
            }
            let page = &mut self.pages[place];
            let slot = &mut page.slots[slot];
            if slot.is_none() {
                *slot = Some((entry.clone(), version));
                page.used += 1;
            }
        }
        self.slots = slots;
    }

    /// The entry of `sequence`.
    pub(crate) fn entry(&self, sequence: Sequence) -> Result<Option<Arc<ChangeEntry>>> {
        if let Some((entry, _)) = self.slot(sequence.0) {
            return Ok(Some(entry.clone()));
        }
        let Some((raw, _)) = self.raw(sequence.0) else { return Ok(None) };
        let entry = ChangeEntry::from_bytes(&raw.bytes);
        entry.map(|e| Some(Arc::new(e))).map_err(|e| e.with_context("key", CacheKey::Sequence(sequence)))
    }

    /// Bytes of page `place` and of the entries in it.
    pub(crate) fn page_bytes(&self, place: usize) -> Option<usize> {
        let page = self.pages.get(place)?;
        let entries = page.slots.iter().flatten().map(|(entry, _)| shared_bytes(entry.memory_bytes()));
        Some(size_of_val(&*page.slots) + entries.sum::<usize>())
    }

    /// Bytes of all but the pages' contents.
    pub(crate) fn overhead_bytes(&self) -> usize {
        let raw: usize = self.raw.values().map(|(raw, _)| raw.bytes.len()).sum();
        self.pages.capacity() * size_of::<Page>() + map_bytes(&self.places) + map_bytes(&self.raw) + raw
    }

    fn slot(&self, n: u64) -> Option<&Slot> {
        self.pages[*self.places.get(&(n / PAGE))?].slots[(n % PAGE) as usize].as_ref()
    }

    fn raw(&self, n: u64) -> Option<&(Raw, Version)> {
        self.raw.get(&n).filter(|(raw, _)| !raw.is_over())
    }

    #[inline]
    fn place(&mut self, number: u64) -> usize {
        match self.last {
            Some((last, place)) if last == number => place,
            _ => self.find_page(number),
        }
    }

    fn find_page(&mut self, number: u64) -> usize {
        let place = *self.places.entry(number).or_insert_with(|| {
            self.pages.push(Page { number, used: 0, slots: (0..PAGE).map(|_| None).collect() });
            self.pages.len() - 1
        });
        self.last = Some((number, place));
        place
    }

    fn free_page(&mut self, number: u64) {
        let Some(place) = self.places.remove(&number) else { return };
        self.last = None;
        self.pages.swap_remove(place);
        if let Some(moved) = self.pages.get(place) {
            self.places.insert(moved.number, place);
        }
    }
}

impl Area for Sequences {
    fn read(&self, key: &CacheKey) -> Option<(Stored, Version)> {
        let &CacheKey::Sequence(Sequence(n)) = key else { return None };
        if let Some((entry, version)) = self.slot(n) {
            return Some((Stored::Entry(entry.clone()), *version));
        }
        self.raw(n).map(|(raw, version)| (Stored::Bytes(raw.bytes.clone()), *version))
    }

    fn version(&self, key: &CacheKey) -> Option<Version> {
        let &CacheKey::Sequence(Sequence(n)) = key else { return None };
        self.slot(n).map(|(_, version)| *version).or_else(|| self.raw(n).map(|(_, version)| *version))
    }

    fn put(&mut self, key: &CacheKey, value: Bytes, deadline: Option<Instant>, version: Version) {
        let &CacheKey::Sequence(Sequence(n)) = key else { return };
        self.take(key);
        let entry = ChangeEntry::from_bytes(&value).ok();
        match entry.filter(|entry| deadline.is_none() && entry.to_bytes() == value) {
            Some(entry) => {
                let place = self.place(n / PAGE);
                let page = &mut self.pages[place];
                page.slots[(n % PAGE) as usize] = Some((Arc::new(entry), version));
                page.used += 1;
            }
            None => drop(self.raw.insert(n, (Raw { bytes: value, deadline }, version))),
        }
    }

    fn take(&mut self, key: &CacheKey) {
        let &CacheKey::Sequence(Sequence(n)) = key else { return };
        self.raw.remove(&n);
        let Some(&place) = self.places.get(&(n / PAGE)) else { return };
        let page = &mut self.pages[place];
        if page.slots[(n % PAGE) as usize].take().is_some() {
            page.used -= 1;
            if page.used == 0 {
                self.free_page(n / PAGE);
            }
        }
    }
}
