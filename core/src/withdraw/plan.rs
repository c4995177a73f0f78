//! What a withdrawal changes: no I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::batch::{entry_marks, entry_states};
use crate::block::{Block, BlockState};
use crate::channel::Channel;
use crate::document::DocumentRef;
use crate::entry::ChangeEntry;
use crate::key::BlockIndex;
use crate::sequence::Sequence;

/// Entries by sequence.
pub(crate) type BySequence = BTreeMap<Sequence, Arc<ChangeEntry>>;

/// What is withdrawn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gone {
    pub(crate) entries: BySequence,
    /// Positions of departures among them that only make room for the whole revision of the same
    /// number. Their block states are right as they are.
    pub(crate) room: BTreeSet<Sequence>,
}

impl Gone {
    pub(crate) fn entries(&self) -> Vec<Arc<ChangeEntry>> {
        self.entries.values().cloned().collect()
    }
}

impl From<BySequence> for Gone {
    fn from(entries: BySequence) -> Self {
        Gone { entries, room: BTreeSet::new() }
    }
}

/// What becomes of one state of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// Nothing is known of the sequence any more.
    Clear,
    /// It is superseded no longer: the entry's own state. An absent state is restored, too: a
    /// commit that was cut off may not have written it.
    Restore(BlockState),
}

/// The states to be edited, by offset.
pub(crate) type Edits = BTreeMap<u32, Edit>;

/// What a withdrawal changes.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// By channel and block.
    pub(crate) blocks: BTreeMap<(Channel, BlockIndex), Edits>,
    /// Entries that are shown again in some channel.
    pub(crate) restored: Vec<Arc<ChangeEntry>>,
    /// Numbers that nothing accounts for any more: what is gone, and what only that said to be
    /// superseded.
    pub(crate) numbers: Vec<Sequence>,
}

impl Plan {
    /// The withdrawal of `gone`, where `named` are the stored entries, of whatever document, of the
    /// numbers that these say to be superseded.
    ///
    /// In each channel of the withdrawn entries of a document, the newest row that they superseded
    /// is shown again. Marks that other entries have left on rows stay. A mark is removed if the
    /// superseded entry has no row there: its sequence may be allocated again, and the next entry
    /// may have a row there. A sequence that belongs to another document now was never superseded
    /// by them.
    pub(crate) fn new(gone: &Gone, named: &BySequence, capacity: u32) -> Plan {
        let is_room = |(position, _): &(Sequence, Arc<ChangeEntry>)| gone.room.contains(position);
        let (room, gone): (BySequence, BySequence) = gone.entries.clone().into_iter().partition(is_room);
        let mut named = named.clone();
        named.extend(room.clone());
        let mut plan = Plan { numbers: room.into_keys().collect(), ..Plan::default() };
        let mut documents: BTreeMap<DocumentRef<'_>, Vec<&ChangeEntry>> = BTreeMap::new();
        for entry in gone.values() {
            documents.entry(entry.document()).or_default().push(entry);
        }
        for (document, gone_of) in documents {
            plan.document(document, &gone_of, &gone, &named, capacity);
        }
        plan
    }

    fn document(
        &mut self,
        document: DocumentRef<'_>,
        gone_of: &[&ChangeEntry],
        gone: &BySequence,
        named: &BySequence,
        capacity: u32,
    ) {
        // A revision may name the number of an earlier one that a later one has by now.
        let is_later = |entry: &ChangeEntry, number: Sequence| {
            named.get(&number).is_some_and(|found| found.document() == document && found.is_newer_than(entry))
        };
        let superseded = |entry: &&ChangeEntry| {
            let entry = *entry;
            entry.supersedes().iter().copied().filter(move |number| !is_later(entry, *number)).collect::<Vec<_>>()
        };
        let numbers: BTreeSet<Sequence> = gone_of.iter().flat_map(superseded).collect();
        let numbers: Vec<Sequence> = numbers.into_iter().filter(|number| !gone.contains_key(number)).collect();
        let surviving: Vec<&Arc<ChangeEntry>> =
            numbers.iter().filter_map(|number| named.get(number)).filter(|entry| entry.document() == document).collect();

        let mut newest: HashMap<Channel, (&ChangeEntry, BlockState)> = HashMap::new();
        let mut marked: BTreeSet<(Channel, Sequence)> = BTreeSet::new();
        let mut rows: HashSet<(Channel, Sequence)> = HashSet::new();
        for entry in numbers.iter().filter_map(|number| named.get(number)) {
            entry_states(entry, |change| {
                rows.insert((change.channel.clone(), change.sequence));
            });
        }
        for entry in &surviving {
            entry_states(entry, |change| {
                let is_older = newest.get(change.channel).is_some_and(|(newest, _)| newest.is_newer_than(entry));
                if change.state.is_live() && !is_older {
                    newest.insert(change.channel.clone(), (entry.as_ref(), change.state));
                }
            });
            entry_marks(entry, |change| {
                marked.insert((change.channel.clone(), change.sequence));
            });
        }
        // A revision accounts for lower sequences that its document did not use, too. Its entry
        // does not name them.
        let highest = surviving.iter().filter(|entry| entry.in_star()).map(|entry| entry.sequence()).max();
        let is_below = |number: &Sequence| number.slot() == 0 && highest.is_some_and(|highest| *number < highest);
        let is_named = |number: &Sequence| surviving.iter().any(|entry| entry.supersedes().contains(number));
        let is_known = |number: &Sequence| named.contains_key(number) || is_below(number) || is_named(number);
        let mut restored: BTreeSet<Sequence> = BTreeSet::new();
        let mut edit = |channel: &Channel, sequence: Sequence, edit: Edit| {
            let (index, offset) = Block::locate(sequence, capacity);
            self.blocks.entry((channel.clone(), index)).or_default().insert(offset, edit);
        };
        for entry in gone_of {
            entry_states(entry, |change| {
                edit(change.channel, change.sequence, Edit::Clear);
            });
            entry_marks(entry, |change| {
                let (channel, sequence) = (change.channel, change.sequence);
                if is_later(entry, sequence) {
                    return;
                }
                if gone.contains_key(&sequence) {
                    edit(channel, sequence, Edit::Clear);
                } else if let Some((_, state)) = newest.get(channel).filter(|(newest, _)| newest.position() == sequence) {
                    edit(channel, sequence, Edit::Restore(*state));
                    restored.insert(sequence);
                } else {
                    let at = (channel.clone(), sequence);
                    if !rows.contains(&at) && !marked.contains(&at) {
                        edit(channel, sequence, Edit::Clear);
                    }
                }
            });
        }
        self.numbers.extend(gone_of.iter().map(|entry| entry.position()));
        self.numbers.extend(numbers.iter().filter(|number| !is_known(number)));
        self.restored.extend(surviving.into_iter().filter(|entry| restored.contains(&entry.position())).cloned());
    }
}

/// The changes in blocks where `now` replaces `before`, which was never published: states that only
/// `before` had are removed; where both have one, they were merged. Marks on the same revision
/// stay: later revisions made them.
pub(crate) fn replaced(before: &ChangeEntry, now: &ChangeEntry, capacity: u32) -> BTreeMap<(Channel, BlockIndex), Edits> {
    let (index, offset) = Block::locate(now.position(), capacity);
    let is_same = before.document() == now.document() && before.revision() == now.revision();
    let mut states = BTreeMap::new();
    entry_states(before, |change| {
        states.insert(change.channel.clone(), (change.state, Some(Edit::Clear)));
    });
    entry_states(now, |change| {
        if let Some((before, edit)) = states.get_mut(change.channel) {
            // Only a mark can have made another state of two that are the same.
            *edit = (!is_same || *before != change.state).then_some(Edit::Restore(change.state));
        }
    });
    let edits = states.into_iter().filter_map(|(channel, (_, edit))| Some(((channel, index), Edits::from([(offset, edit?)]))));
    edits.collect()
}

/// Edits a block; whether that changes anything.
pub(crate) fn edited(block: &Block, edits: &Edits) -> Option<Block> {
    let after = |offset: u32, state: BlockState| match edits.get(&offset) {
        Some(Edit::Clear) => BlockState::Absent,
        Some(Edit::Restore(own)) if state == BlockState::Superseded => *own,
        _ => state,
    };
    let mut edited = Block::new(block.capacity());
    for (offset, state) in block.iter() {
        edited.raise(offset, after(offset, state));
    }
    for (offset, edit) in edits {
        if let Edit::Restore(own) = edit
            && block.get(*offset) == BlockState::Absent
        {
            edited.raise(*offset, *own);
        }
    }
    (edited != *block).then_some(edited)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EntryFlags;
    use crate::feed::{PartitionId, PartitionSeqno};
    use crate::{Membership, block::BlockState::*};

    fn entry(sequence: u64, seqno: u64, over: &[u64], channels: &[(&str, Membership)], flags: EntryFlags) -> Arc<ChangeEntry> {
        let entry = ChangeEntry::new(Sequence(sequence), "d", "1-a", flags)
            .unwrap()
            .with_origin(PartitionId(0), PartitionSeqno(seqno))
            .with_supersedes(over.iter().copied().map(Sequence));
        let with = |entry: ChangeEntry, (name, membership): &(&str, Membership)| {
            entry.with_channel(Channel::new(name).unwrap(), *membership)
        };
        Arc::new(channels.iter().fold(entry, with))
    }

    fn by(entries: &[&Arc<ChangeEntry>]) -> BySequence {
        entries.iter().map(|entry| (entry.position(), (*entry).clone())).collect()
    }

    fn edits(plan: &Plan, channel: &str) -> Vec<(u32, Edit)> {
        let at = (Channel::new(channel).unwrap(), BlockIndex(0));
        plan.blocks.get(&at).into_iter().flatten().map(|(offset, edit)| (*offset, *edit)).collect()
    }

    const PLAIN: EntryFlags = EntryFlags(0);

    #[test]
    fn in_each_channel_the_newest_that_survives_is_shown_again() {
        let first = entry(3, 1, &[], &[("a", Membership::Present), ("b", Membership::Present)], PLAIN);
        let second = entry(5, 2, &[3], &[("a", Membership::Removed)], PLAIN);
        // 6 never came: only what is gone knows of it.
        let third = entry(7, 8, &[3, 5, 6], &[("a", Membership::Present), ("b", Membership::Present)], PLAIN);
        let plan = Plan::new(&by(&[&third]).into(), &by(&[&first, &second]), 100);
        assert_eq!(edits(&plan, "*"), [(5, Edit::Restore(Present)), (6, Edit::Clear), (7, Edit::Clear)]);
        assert_eq!(edits(&plan, "a"), [(5, Edit::Restore(Removal)), (6, Edit::Clear), (7, Edit::Clear)]);
        let restored = (3, Edit::Restore(Present));
        assert_eq!(edits(&plan, "b"), [restored, (5, Edit::Clear), (6, Edit::Clear), (7, Edit::Clear)]);
        assert_eq!(plan.restored, [first, second]);
        assert_eq!(plan.numbers, [Sequence(7), Sequence(6)]);
    }

    #[test]
    fn sequences_below_the_revision_that_survives_stay_accounted_for() {
        // A revision names its unused sequences in its metadata, and its entry does not: 4 is one.
        let first = entry(5, 1, &[3], &[("a", Membership::Present)], PLAIN);
        let gone = entry(9, 8, &[3, 4, 5, 7], &[("a", Membership::Present)], PLAIN);
        let plan = Plan::new(&by(&[&gone]).into(), &by(&[&first]), 100);
        assert_eq!(plan.numbers, [Sequence(9), Sequence(7)]);
    }

    #[test]
    fn a_mark_goes_where_the_superseded_entry_has_no_row() {
        let first = entry(3, 1, &[], &[("a", Membership::Present)], PLAIN);
        let second = entry(5, 2, &[3], &[("a", Membership::Present)], PLAIN);
        let third = entry(7, 8, &[3, 5], &[("a", Membership::Present), ("b", Membership::Present)], PLAIN);
        let plan = Plan::new(&by(&[&third]).into(), &by(&[&first, &second]), 100);
        assert_eq!(edits(&plan, "a"), [(5, Edit::Restore(Present)), (7, Edit::Clear)]);
        assert_eq!(edits(&plan, "b"), [(3, Edit::Clear), (5, Edit::Clear), (7, Edit::Clear)]);
    }

    #[test]
    fn what_is_shown_again_is_the_newest_revision_whatever_its_number() {
        let first = entry(5, 1, &[], &[("a", Membership::Present)], PLAIN);
        let second = entry(4, 2, &[5], &[("a", Membership::Present)], PLAIN);
        let third = entry(7, 8, &[4, 5], &[("a", Membership::Present)], PLAIN);
        let plan = Plan::new(&by(&[&third]).into(), &by(&[&first, &second]), 100);
        assert_eq!(edits(&plan, "a"), [(4, Edit::Restore(Present)), (7, Edit::Clear)]);
        assert_eq!(plan.restored, [second]);
    }

    #[test]
    fn a_later_revision_with_the_number_of_an_earlier_one_is_left_as_it_is() {
        let later = entry(5, 9, &[], &[("a", Membership::Present)], PLAIN);
        let gone = entry(7, 8, &[5], &[("a", Membership::Present)], PLAIN);
        let plan = Plan::new(&by(&[&gone]).into(), &by(&[&later]), 100);
        assert_eq!((edits(&plan, "a"), &plan.restored[..]), (vec![(7, Edit::Clear)], &[][..]));
    }

    #[test]
    fn a_row_of_another_document_is_left_as_it_is() {
        let other = ChangeEntry::new(Sequence(5), "e", "1-a", PLAIN).unwrap();
        let other = Arc::new(other.with_channel(Channel::new("a").unwrap(), Membership::Present));
        let gone = entry(7, 8, &[5], &[("a", Membership::Present), ("b", Membership::Present)], PLAIN);
        let plan = Plan::new(&by(&[&gone]).into(), &by(&[&other]), 100);
        assert_eq!((edits(&plan, "*"), edits(&plan, "a")), (vec![(7, Edit::Clear)], vec![(7, Edit::Clear)]));
        assert_eq!(edits(&plan, "b"), [(5, Edit::Clear), (7, Edit::Clear)]);
        assert_eq!((&plan.restored[..], &plan.numbers[..]), (&[][..], &[Sequence(7)][..]));
    }

    #[test]
    fn a_departure_goes_with_its_row_unless_it_makes_room_for_its_whole_revision() {
        let departure = entry(5, 9, &[3], &[("a", Membership::Removed)], EntryFlags::DEPARTURE);
        let teller = entry(7, 9, &[3, 5], &[("b", Membership::Present)], PLAIN);
        let both = Plan::new(&by(&[&departure, &teller]).into(), &BySequence::new(), 100);
        assert_eq!(edits(&both, "a"), [(3, Edit::Clear), (5, Edit::Clear)]);
        // The mutation that told of it may not be stored: another program's write.
        let alone = Plan::new(&by(&[&departure]).into(), &BySequence::new(), 100);
        assert_eq!(edits(&alone, "a"), [(3, Edit::Clear), (5, Edit::Clear)]);
        let room = Gone { entries: by(&[&departure]), room: [Sequence(5)].into() };
        let room = Plan::new(&room, &BySequence::new(), 100);
        assert_eq!((room.blocks.len(), &room.numbers[..]), (0, &[Sequence(5)][..]));
    }

    #[test]
    fn what_takes_the_place_of_another_has_its_own_states_only() {
        let edits = |before: &ChangeEntry, now: &ChangeEntry| {
            let edits = replaced(before, now, 100);
            edits.iter().map(|((channel, _), edits)| (channel.name().to_owned(), edits[&5])).collect::<Vec<_>>()
        };
        let all = |edits: &[(&str, Edit)]| edits.iter().map(|(name, edit)| ((*name).to_owned(), *edit)).collect::<Vec<_>>();
        let before = entry(5, 1, &[], &[("a", Membership::Present), ("b", Membership::Removed)], PLAIN);
        let now = entry(5, 2, &[3], &[("b", Membership::Present), ("c", Membership::Present)], PLAIN);
        let restored = Edit::Restore(Present);
        assert_eq!(edits(&before, &now), all(&[("a", Edit::Clear), ("b", restored)]), "later revisions have marked `*`");
        assert_eq!(edits(&before, &before), []);
        let other = ChangeEntry::new(Sequence(5), "e", "1-a", PLAIN).unwrap();
        let other = other.with_channel(Channel::new("b").unwrap(), Membership::Present);
        assert_eq!(edits(&before, &other), all(&[("*", restored), ("a", Edit::Clear), ("b", restored)]));
        let departure = entry(5, 1, &[], &[("b", Membership::Removed)], EntryFlags::DEPARTURE);
        assert_eq!(edits(&departure, &now), all(&[("*", restored), ("b", restored)]));
    }

    #[test]
    fn a_block_is_edited_only_where_it_must_be() {
        let mut block = Block::new(100);
        for (at, state) in [(1, Present), (2, Superseded), (3, Removal), (4, Superseded)] {
            block.raise(at, state);
        }
        let edits = Edits::from([(1, Edit::Clear), (2, Edit::Restore(Present)), (3, Edit::Restore(Present)), (9, Edit::Clear)]);
        let after = edited(&block, &edits).unwrap();
        assert_eq!(after.iter().collect::<Vec<_>>(), [(2, Present), (3, Removal), (4, Superseded)]);
        assert!(edited(&after, &edits).is_none(), "done twice, it changes nothing");
    }
}
