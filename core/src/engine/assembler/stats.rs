//! Counts of what a writer has seen and done.

/// What a writer has seen and done. Counters only grow; names as in the gateway's statistics where there is one.
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
    /// Documents and principals that came again.
    pub duplicates: u64,
    /// Documents whose sequence was accounted for by something else: another document, a principal, a
    /// marker that said it would not be used, or another document that named it as its own. They are
    /// cached all the same.
    pub conflicts: u64,
    /// Numbers that were found to be implausibly high, each once.
    pub implausible: u64,
    /// Entries that came after high had passed them.
    pub late: u64,
    /// Numbers put on the skipped list.
    pub skipped: u64,
    /// Numbers given up.
    pub abandoned: u64,
    /// Numbers for which a partial feed delivered nothing: those of the collections that it leaves out.
    pub undelivered: u64,
    /// Events that are not about the cache.
    pub ignored: u64,
    /// Documents last written by another program: they are not shown, and their numbers are superseded.
    pub foreign: u64,
    /// Keys that are gone with all they had. Most never were documents of the gateway.
    pub purged: u64,
    /// Entries removed because their documents were purged.
    pub purged_entries: u64,
    /// Users, roles and markers of unused numbers of other databases of the bucket.
    pub other_database: u64,
    /// Documents in collections that are not the database's.
    pub other_collection: u64,
    /// Channels whose names cannot be kept: their documents are shown in their other channels.
    pub bad_channels: u64,
    /// Numbers that documents name beyond what is kept of such lists: nothing accounts for them.
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
        // Taken apart, so that a counter cannot be forgotten here.
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
