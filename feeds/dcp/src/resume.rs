//! Where a vbucket can be taken up again (protocol, sections 5.1 and 5.4). Pure.

use sluicegate_core::feed::PartitionPosition;

/// The histories of a vbucket, newest first: identity, and the seqno at which each begins.
pub(crate) type Histories = Vec<(u64, u64)>;

/// What the server is told of a position besides where it is (protocol, sections 3.5 and 5.1); 0 for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Context {
    /// The last collections manifest that was seen.
    pub(crate) manifest_uid: u64,
    /// The purge seqno of the snapshot.
    pub(crate) purge_seqno: u64,
}

impl Context {
    pub(crate) fn of(position: &PartitionPosition) -> Self {
        Context { manifest_uid: position.manifest_uid, purge_seqno: position.purge_seqno }
    }
}

/// What has been received of a vbucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) uuid: u64,
    pub(crate) seqno: u64,
    pub(crate) snapshot_start: u64,
    pub(crate) snapshot_end: u64,
}

impl Position {
    /// A place at which a snapshot ends.
    pub(crate) fn at(uuid: u64, seqno: u64) -> Self {
        Position { uuid, seqno, snapshot_start: seqno, snapshot_end: seqno }
    }

    pub(crate) fn of(position: &PartitionPosition) -> Self {
        let PartitionPosition { uuid, seqno, snapshot_start, snapshot_end, .. } = *position;
        Position { uuid, seqno, snapshot_start, snapshot_end }
    }

    /// Whether the snapshot it lies in is complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.seqno == self.snapshot_end
    }

    /// What to ask for: the snapshot always encloses the seqno. It is narrowed to the seqno only where that hides nothing: at its
    /// end, or outside it, which is at the end of the one before (protocol, section 5.2, rules 5 to 7).
    pub(crate) fn resume(&self) -> Position {
        let is_inside = self.snapshot_start <= self.seqno && self.seqno < self.snapshot_end;
        match (self.seqno, is_inside) {
            (0, _) => Position::default(),
            (_, true) => *self,
            (seqno, false) => Position::at(self.uuid, seqno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_always_encloses_the_seqno_in_its_snapshot() {
        let at = |seqno, start, end| Position { uuid: 7, seqno, snapshot_start: start, snapshot_end: end }.resume();
        assert_eq!(at(5, 1, 9), Position { uuid: 7, seqno: 5, snapshot_start: 1, snapshot_end: 9 });
        assert_eq!(at(9, 1, 9), Position::at(7, 9), "the snapshot is complete");
        assert_eq!(at(5, 6, 9), Position::at(7, 5), "the next one has only been announced");
        assert_eq!(at(5, 1, 4), Position::at(7, 5));
        assert_eq!(at(0, 0, 9), Position::default(), "nothing was received, so no history matters");
    }
}
