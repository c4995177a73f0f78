//! What is to go wrong.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use sluicegate_mcbp::{Opcode, Status};

/// What goes wrong on connections, from when it is set. Nothing is reordered: the connections are TCP.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Faults {
    /// In how many of a hundred writes a connection's bytes are cut at a random place, so that frames arrive in pieces.
    pub split_percent: u8,
    /// How long each write waits.
    pub delay: Duration,
    /// After how many bytes sent a connection is cut.
    pub cut_after: Option<u64>,
    /// What is never answered.
    pub unanswered: HashSet<Opcode>,
    /// What the next stream requests are answered instead of being served, each once: of this vbucket, or of any.
    pub stream_answers: VecDeque<(Option<u16>, Status)>,
}

impl Faults {
    /// The answer planned for a stream request of this vbucket, if one is.
    pub(crate) fn take_stream_answer(&mut self, vbucket: u16) -> Option<Status> {
        let place = self.stream_answers.iter().position(|(wanted, _)| wanted.is_none_or(|wanted| wanted == vbucket))?;
        self.stream_answers.remove(place).map(|(_, status)| status)
    }
}
