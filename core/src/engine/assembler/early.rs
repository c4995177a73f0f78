//! Entries whose marks do not wait for the stable sequence.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::entry::ChangeEntry;
use crate::sequence::Sequence;

/// Entries of a first read whose predecessors the feed has left out. Under the sequences that they
/// supersede nothing is stored but departures from other channels, so their marks hide no row. The
/// marks only wait until the entries are published, since a mark must not stay where an entry is
/// not published.
///
/// So a writer does not keep all entries of a first read.
#[derive(Debug, Default)]
pub(super) struct EarlyMarks {
    /// By batch. The last group may be of the batch that is prepared next.
    groups: VecDeque<Group>,
    published: u64,
}

#[derive(Debug)]
struct Group {
    batch: u64,
    /// No entry has a lower sequence.
    first: Sequence,
    entries: Vec<Arc<ChangeEntry>>,
}

impl EarlyMarks {
    /// Adds an entry of this batch, which is the last or a later one.
    pub(super) fn push(&mut self, batch: u64, entry: Arc<ChangeEntry>) {
        let sequence = entry.sequence();
        match self.groups.back_mut().filter(|group| group.batch == batch) {
            Some(group) => {
                group.first = group.first.min(sequence);
                group.entries.push(entry);
            }
            None => self.groups.push_back(Group { batch, first: sequence, entries: vec![entry] }),
        }
    }

    /// All batches up to this one are published.
    pub(super) fn published(&mut self, batch: u64) {
        self.published = batch;
    }

    /// How many can be marked.
    pub(super) fn due(&self) -> usize {
        self.groups.iter().take_while(|group| group.batch <= self.published).map(|group| group.entries.len()).sum()
    }

    /// Takes those that can be marked, at least one group of them if there is one, and up to
    /// `limit`.
    pub(super) fn take(&mut self, limit: usize) -> Vec<Arc<ChangeEntry>> {
        let mut taken = Vec::new();
        while let Some(group) = self.groups.front()
            && group.batch <= self.published
            && (taken.is_empty() || taken.len() + group.entries.len() <= limit)
        {
            taken.extend(self.groups.pop_front().into_iter().flat_map(|group| group.entries));
        }
        taken
    }

    /// No entry has a lower sequence. `None` if there are no entries.
    pub(super) fn first(&self) -> Option<Sequence> {
        self.groups.iter().map(|group| group.first).min()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<ChangeEntry>> {
        self.groups.iter().flat_map(|group| &group.entries)
    }

    /// Forgets the entries at the positions of these.
    pub(super) fn remove(&mut self, gone: &[Arc<ChangeEntry>]) {
        if self.groups.is_empty() || gone.is_empty() {
            return;
        }
        let gone: FxHashSet<Sequence> = gone.iter().map(|entry| entry.position()).collect();
        for group in &mut self.groups {
            group.entries.retain(|entry| !gone.contains(&entry.position()));
        }
        self.groups.retain(|group| !group.entries.is_empty());
    }
}
