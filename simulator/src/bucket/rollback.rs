//! What a server decides about a stream request's history (protocol, section 5.3).

use sluicegate_mcbp::dcp::FailoverLog;

/// Where a client says that it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// The last position it has.
    pub start: u64,
    /// Start of the snapshot it was in.
    pub snapshot_start: u64,
    /// End of that snapshot.
    pub snapshot_end: u64,
    /// Identity of the history it was in.
    pub vbucket_uuid: u64,
    /// Whether the identity is looked at even at position 0.
    pub is_strict: bool,
    /// Whether it does not mind that deletions are gone.
    pub ignores_purge: bool,
    /// The purge position it has seen; 0 if none.
    pub purge_seqno: u64,
    /// The last position of the collections it asks for, if it asks for some only.
    pub filtered_high: Option<u64>,
}

/// The position to roll back to; none if the client can go on from where it is.
///
/// `high` is the vbucket's last position, `purge` the position up to which deletions may be gone.
pub fn decide(log: &FailoverLog, high: u64, purge: u64, resume: &Resume) -> Option<u64> {
    let &Resume { start, mut snapshot_start, mut snapshot_end, vbucket_uuid, .. } = resume;
    if start == 0 && (!resume.is_strict || vbucket_uuid == 0) {
        return None;
    }
    let purge = if resume.ignores_purge { 0 } else { purge };
    let has_missed_nothing = resume.filtered_high.is_some_and(|filtered| start >= filtered && filtered <= purge);
    if start != 0 && start < purge && resume.purge_seqno != purge && !has_missed_nothing {
        return Some(0);
    }
    let Some(place) = log.0.iter().position(|entry| entry.vbucket_uuid == vbucket_uuid) else { return Some(0) };
    // Where the history ended in which the client was.
    let upper = place.checked_sub(1).map_or(high, |newer| log.0[newer].seqno);
    if start == snapshot_start {
        snapshot_end = start;
    }
    if snapshot_end <= upper {
        return None;
    }
    if start == snapshot_end {
        snapshot_start = start;
    }
    Some(upper.min(snapshot_start))
}

#[cfg(test)]
mod tests {
    use sluicegate_mcbp::dcp::FailoverEntry;

    use super::*;

    fn log(entries: &[(u64, u64)]) -> FailoverLog {
        FailoverLog(entries.iter().map(|&(vbucket_uuid, seqno)| FailoverEntry { vbucket_uuid, seqno }).collect())
    }

    fn resume(vbucket_uuid: u64, start: u64, snapshot: [u64; 2]) -> Resume {
        Resume { start, snapshot_start: snapshot[0], snapshot_end: snapshot[1], vbucket_uuid, ..Resume::default() }
    }

    #[test]
    fn the_vectors_of_the_protocol_notes_hold() {
        let log = log(&[(2222, 3), (1111, 0)]);
        let strict = |resume: Resume| Resume { is_strict: true, ..resume };
        for (purge, asked, expected) in [
            (0, resume(1111, 3, [1, 4]), Some(1)),
            (0, resume(1111, 3, [3, 3]), None),
            (0, resume(9999, 3, [1, 4]), Some(0)),
            (0, resume(1111, 5, [5, 9]), Some(3)),
            (0, resume(2222, 10, [8, 10]), None),
            (0, resume(1111, 0, [0, 0]), None),
            (0, strict(resume(1111, 0, [0, 0])), None),
            (0, strict(resume(9999, 0, [0, 0])), Some(0)),
            (0, strict(resume(0, 0, [0, 0])), None),
            (7, resume(2222, 5, [5, 5]), Some(0)),
            (7, Resume { purge_seqno: 7, ..resume(2222, 5, [5, 5]) }, None),
            (7, Resume { ignores_purge: true, ..resume(2222, 5, [5, 5]) }, None),
        ] {
            assert_eq!(decide(&log, 10, purge, &asked), expected, "purge {purge}, {asked:?}");
        }
    }

    #[test]
    fn a_purge_that_took_nothing_from_the_filtered_collections_is_no_reason() {
        let log = log(&[(2222, 3), (1111, 0)]);
        let asked = |filtered_high| Resume { filtered_high, ..resume(2222, 5, [5, 5]) };
        assert_eq!(decide(&log, 10, 7, &asked(Some(5))), None);
        assert_eq!(decide(&log, 10, 7, &asked(Some(6))), Some(0));
        assert_eq!(decide(&log, 10, 7, &asked(Some(9))), Some(0));
    }

    #[test]
    fn whoever_is_ahead_of_the_newest_history_goes_back_to_its_end() {
        assert_eq!(decide(&log(&[(2222, 3), (1111, 0)]), 10, 0, &resume(2222, 12, [12, 12])), Some(10));
        assert_eq!(decide(&log(&[(2222, 3), (1111, 0)]), 10, 0, &resume(2222, 8, [6, 12])), Some(6));
    }
}
