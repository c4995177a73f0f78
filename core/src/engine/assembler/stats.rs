//! Counters of a writer.

/// Counters of a writer. They only grow. Their names are those of the gateway's statistics if it
/// has the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct WriterStats {
    /// Events received.
    pub received: u64,
    /// Entries stored, departures included.
    pub cached: u64,
    /// Numbers accounted for by a newer revision of their document, without a row of their own.
    pub superseded: u64,
    /// Numbers that were never used.
    pub unused: u64,
    /// Users and roles.
    pub principals: u64,
    /// Duplicate documents and principals.
    pub duplicates: u64,
    /// Documents whose sequence was accounted for already: by another document, a principal, a
    /// marker that released it, or another document that named it as its own. They are cached
    /// nevertheless.
    pub conflicts: u64,
    /// Gaps below an implausibly high sequence, at which high stopped. All sequences above such a
    /// gap wait.
    pub implausible: u64,
    /// Entries that came after high had passed their sequence.
    pub late: u64,
    /// Numbers put on the skipped list.
    pub skipped: u64,
    /// Numbers given up.
    pub abandoned: u64,
    /// Numbers for which a partial feed delivered nothing: those of the collections that it leaves
    /// out.
    pub undelivered: u64,
    /// Events that are not about the cache.
    pub ignored: u64,
    /// Documents last written by another program: they are not shown, and their sequences are
    /// superseded.
    pub foreign: u64,
    /// Keys that were deleted with all their attributes. Most never were documents of the gateway.
    pub purged: u64,
    /// Entries removed because their documents were purged.
    pub purged_entries: u64,
    /// Users, roles and markers of unused sequences of other databases in the bucket.
    pub other_database: u64,
    /// Documents in collections that are not the database's.
    pub other_collection: u64,
    /// Channels whose names were refused: their documents are shown in their other channels.
    pub bad_channels: u64,
    /// Sequences over the limit for lists in a document's metadata: nothing accounts for them.
    pub cut_numbers: u64,
    /// Events that could not be understood.
    pub invalid: u64,
    /// Entries withdrawn: the feed took their mutations back.
    pub withdrawn: u64,
    /// Batches published.
    pub batches: u64,
}

impl std::ops::AddAssign for WriterStats {
    fn add_assign(&mut self, other: Self) {
        // Destructured, so that no counter can be forgotten here.
        let WriterStats {
            received,
            cached,
            superseded,
            unused,
            principals,
            duplicates,
            conflicts,
            implausible,
            late,
            skipped,
            abandoned,
            undelivered,
            ignored,
            foreign,
            purged,
            purged_entries,
            other_database,
            other_collection,
            bad_channels,
            cut_numbers,
            invalid,
            withdrawn,
            batches,
        } = other;
        self.received += received;
        self.cached += cached;
        self.superseded += superseded;
        self.unused += unused;
        self.principals += principals;
        self.duplicates += duplicates;
        self.conflicts += conflicts;
        self.implausible += implausible;
        self.late += late;
        self.skipped += skipped;
        self.abandoned += abandoned;
        self.undelivered += undelivered;
        self.ignored += ignored;
        self.foreign += foreign;
        self.purged += purged;
        self.purged_entries += purged_entries;
        self.other_database += other_database;
        self.other_collection += other_collection;
        self.bad_channels += bad_channels;
        self.cut_numbers += cut_numbers;
        self.invalid += invalid;
        self.withdrawn += withdrawn;
        self.batches += batches;
    }
}
