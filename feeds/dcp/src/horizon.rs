//! How far each vbucket is on the disks of all its nodes: what lies beyond could still be lost (protocol, section 5.5).

use std::collections::BTreeMap;

use parking_lot::Mutex;
use sluicegate_mcbp::config::Address;
use tokio::sync::watch;

/// How far the vbuckets are on disk.
#[derive(Debug)]
pub(crate) struct Horizon {
    cells: Vec<Mutex<Cell>>,
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Cell {
    /// The history of the stream that is open.
    uuid: u64,
    /// Whether something waits for it.
    is_wanted: bool,
    /// For each node that has a copy, how far it is on disk.
    copies: BTreeMap<Address, u64>,
}

impl Horizon {
    pub(crate) fn new(vbuckets: usize) -> Self {
        let cells = std::iter::repeat_with(Mutex::default).take(vbuckets).collect();
        Horizon { cells, version: watch::Sender::new(0) }
    }

    fn with<T>(&self, vbucket: u16, change: impl FnOnce(&mut Cell) -> T) -> Option<T> {
        self.cells.get(usize::from(vbucket)).map(|cell| change(&mut cell.lock()))
    }

    /// The nodes that have a copy now. What the others have said does not count any more.
    pub(crate) fn set_copies(&self, vbucket: u16, copies: Vec<Address>) {
        self.with(vbucket, |cell| {
            let mut known = std::mem::take(&mut cell.copies);
            cell.copies = copies.into_iter().map(|node| (node.clone(), known.remove(&node).unwrap_or(0))).collect();
        });
        self.changed();
    }

    /// The history that is streamed now. What was said of another one does not count any more.
    pub(crate) fn set_history(&self, vbucket: u16, uuid: u64) {
        self.with(vbucket, |cell| {
            if cell.uuid != uuid {
                cell.uuid = uuid;
                cell.copies.values_mut().for_each(|persisted| *persisted = 0);
            }
        });
    }

    /// Whether something waits for a vbucket: the others are not asked for.
    pub(crate) fn set_wanted(&self, vbucket: u16, is_wanted: bool) {
        self.with(vbucket, |cell| cell.is_wanted = is_wanted);
    }

    /// What to ask a node: vbuckets of which it has a copy, and their histories.
    pub(crate) fn questions(&self, node: &Address) -> Vec<(u16, u64)> {
        let cells = (0..=u16::MAX).zip(&self.cells);
        let question = |(id, cell): (u16, &Mutex<Cell>)| {
            let cell = cell.lock();
            (cell.is_wanted && cell.uuid != 0 && cell.copies.contains_key(node)).then_some((id, cell.uuid))
        };
        cells.filter_map(question).collect()
    }

    /// A node's answer: how far its copy is on disk, in which history. Another history than ours counts as nothing.
    pub(crate) fn observe(&self, vbucket: u16, node: &Address, uuid: u64, persisted: u64) {
        self.with(vbucket, |cell| {
            let is_ours = cell.uuid == uuid;
            if let Some(known) = cell.copies.get_mut(node) {
                *known = if is_ours { persisted } else { 0 };
            }
        });
    }

    /// Tells those who wait to look again.
    pub(crate) fn changed(&self) {
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Notices what [`changed`](Self::changed) tells.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The last seqno that all nodes have on disk.
    pub(crate) fn limit(&self, vbucket: u16) -> u64 {
        self.with(vbucket, |cell| cell.copies.values().copied().min().unwrap_or(0)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(port: u16) -> Address {
        Address { host: "a".to_owned(), port }
    }

    #[test]
    fn the_node_that_is_least_far_decides() {
        let horizon = Horizon::new(4);
        horizon.set_copies(2, vec![node(1), node(2)]);
        horizon.set_history(2, 0xa);
        assert_eq!(horizon.questions(&node(1)), [], "nothing waits");
        horizon.set_wanted(2, true);
        assert_eq!((horizon.questions(&node(1)), horizon.questions(&node(3))), (vec![(2, 0xa)], vec![]));
        horizon.observe(2, &node(1), 0xa, 9);
        assert_eq!(horizon.limit(2), 0, "one has not answered");
        horizon.observe(2, &node(2), 0xa, 7);
        horizon.observe(2, &node(3), 0xa, 1);
        assert_eq!(horizon.limit(2), 7);
        horizon.observe(2, &node(2), 0xb, 99);
        assert_eq!(horizon.limit(2), 0, "another history");
        horizon.set_copies(2, vec![node(1)]);
        assert_eq!(horizon.limit(2), 9, "the other copy is gone");
        horizon.set_history(2, 0xc);
        assert_eq!((horizon.limit(2), horizon.limit(77)), (0, 0));
    }
}
