//! What a node says outside streams: answers to questions, and notices.

use bytes::Bytes;
use sluicegate_mcbp::client::{ClientError, ClientResult, read_cluster_map};
use sluicegate_mcbp::dcp;
use sluicegate_mcbp::errormap::Attribute;
use sluicegate_mcbp::{Datatype, Notice, Opcode, Reply, Response, ServerRequest, Status};

use crate::node::{Connection, Held, Question};
use crate::orders::Report;
use crate::resume::Histories;
use crate::status::VbucketState;
use crate::vbucket::Next;

impl Connection {
    /// A notice of the server outside DCP.
    pub(crate) fn on_notice(&mut self, notice: ServerRequest) {
        let Notice::ClusterMapChanged(changed) = notice.notice else {
            self.count_unknown("a notice");
            return;
        };
        if changed.bucket != self.node.target.connect.bucket {
            return;
        }
        let is_told = !changed.config.is_empty() && self.on_map(changed.config, notice.datatype);
        if !is_told && let Err(error) = self.ask_for_map() {
            tracing::warn!(node = %self.node.address, %error, "the cluster map cannot be asked for");
        }
    }

    /// A cluster map, if it is one.
    fn on_map(&mut self, value: Bytes, datatype: Datatype) -> bool {
        match read_cluster_map(value, datatype, &self.node.address.host) {
            Ok(Some(map)) => {
                let _ = self.node.reports.send(Report::Map { map, from: self.node.address.clone() });
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(node = %self.node.address, %error, "the node has sent a cluster map that is none");
                false
            }
        }
    }

    pub(crate) fn on_response(&mut self, response: Response) -> ClientResult<()> {
        let question = self.answered(response.opaque);
        match question {
            Some(Question::Stream(id)) => self.on_stream_answer(id, response),
            Some(Question::Log(id)) => {
                let Some(Some(held)) = self.held.get_mut(usize::from(id)) else { return Ok(()) };
                match response.reply {
                    Reply::FailoverLog(histories) => {
                        let was_resolved = !held.vbucket.wants_now();
                        held.vbucket.on_log(log_of(&histories.log), &mut self.out);
                        if !was_resolved {
                            self.resolved.push(id);
                        }
                        self.node.board.set_seqno(id, held.vbucket.seqno());
                        self.asking.push_back(id);
                        self.hold_back(id);
                        self.deliver();
                    }
                    _ => self.on_refusal(id, response),
                }
                Ok(())
            }
            Some(Question::Highs(left)) => self.on_highs(left, response),
            Some(Question::Map) => {
                if let Reply::Plain(parts) = response.reply {
                    self.on_map(parts.value(), response.datatype);
                }
                Ok(())
            }
            Some(Question::Lag) => {
                if let Reply::VbSeqnos(list) = response.reply {
                    for (id, high) in list.seqnos.0 {
                        if self.held.get(usize::from(id)).is_some_and(Option::is_some) {
                            self.node.board.set_high(id, high);
                        }
                    }
                }
                Ok(())
            }
            Some(Question::Close | Question::Alive) => Ok(()),
            // Some servers accept a stream of a dead vbucket, and refuse it with a second answer.
            None if response.opcode == Opcode::DcpStreamRequest && response.status != Status::Success => {
                let of_it = |held: &&Held| held.opaque == response.opaque;
                match self.held.iter().flatten().find(of_it).map(|held| held.vbucket.id()) {
                    Some(id) => self.on_refusal(id, response),
                    None => self.count_unknown("an answer to nothing"),
                }
                Ok(())
            }
            None => {
                self.count_unknown("an answer to nothing");
                Ok(())
            }
        }
    }

    fn on_stream_answer(&mut self, id: u16, response: Response) -> ClientResult<()> {
        let Some(Some(held)) = self.held.get_mut(usize::from(id)) else { return Ok(()) };
        if held.opaque != response.opaque {
            return Ok(());
        }
        match response.reply {
            Reply::FailoverLog(histories) => {
                let was_caught_up = held.vbucket.is_caught_up();
                held.vbucket.on_accepted(log_of(&histories.log), &mut self.out);
                self.caught_up += usize::from(!was_caught_up && held.vbucket.is_caught_up());
                if let Some(horizon) = &self.node.horizon {
                    horizon.set_history(id, held.vbucket.uuid());
                }
                self.node.board.set_state(id, VbucketState::Streaming);
                self.node.board.set_uuid(id, held.vbucket.uuid());
                self.node.board.set_seqno(id, held.vbucket.seqno());
                self.hold_back(id);
                Ok(())
            }
            Reply::Rollback(to) => {
                held.opaque = 0;
                tracing::info!(vbucket = id, to, seqno = held.vbucket.seqno(), node = %self.node.address, "the node asks to go back");
                self.node.tally.rolled_back(id);
                match held.vbucket.on_rollback(to, &mut self.out) {
                    Next::Ask => {
                        self.asking.push_back(id);
                        self.hold_back(id);
                    }
                    next => self.release(id, next, format!("the node asks to go back to {to}")),
                }
                Ok(())
            }
            _ if response.status == Status::KeyExists => {
                // A stream that we know nothing of: it goes, and ours comes.
                self.close_stream(id)?;
                self.again(id, "the connection has a stream of it already");
                Ok(())
            }
            _ => {
                self.on_refusal(id, response);
                Ok(())
            }
        }
    }

    /// A question about a vbucket was refused.
    fn on_refusal(&mut self, id: u16, response: Response) {
        let why = ClientError::refused("the stream", &response).to_string();
        if let (Status::NotMyVbucket, Reply::Failed(parts)) = (response.status, &response.reply) {
            self.on_map(parts.value(), response.datatype);
        }
        let code = response.status.code();
        let fetches_map = self.error_map.has(code, &Attribute::FetchConfig);
        let Some(Some(held)) = self.held.get_mut(usize::from(id)) else { return };
        held.opaque = 0;
        match held.vbucket.on_refused(response.status, &mut self.out) {
            Next::Ask => {
                self.asking.push_back(id);
                self.hold_back(id);
            }
            Next::Again { needs_map, is_permanent } => {
                let needs_map = needs_map || fetches_map;
                held.vbucket.on_lost();
                self.release(id, Next::Again { needs_map, is_permanent }, why);
            }
            Next::Done => self.release(id, Next::Done, why),
        }
    }

    fn on_highs(&mut self, left: usize, response: Response) -> ClientResult<()> {
        let Reply::VbSeqnos(list) = response.reply else {
            return Err(ClientError::refused("the question for seqnos", &response));
        };
        for (id, high) in list.seqnos.0 {
            let highest = self.highs.entry(id).or_default();
            *highest = high.max(*highest);
        }
        if left > 0 {
            return Ok(());
        }
        for id in std::mem::take(&mut self.asked_for_highs) {
            let Some(Some(held)) = self.held.get_mut(usize::from(id)) else { continue };
            match self.highs.get(&id) {
                Some(high) => {
                    let was_caught_up = held.vbucket.is_caught_up();
                    held.vbucket.on_high(*high, &mut self.out);
                    self.node.board.set_high(id, *high);
                    self.caught_up += usize::from(!was_caught_up && held.vbucket.is_caught_up());
                    self.asking.push_back(id);
                    self.hold_back(id);
                }
                None => self.again(id, "the node does not have its active copy"),
            }
        }
        self.deliver();
        Ok(())
    }
}

fn log_of(log: &dcp::FailoverLog) -> Histories {
    log.0.iter().map(|entry| (entry.vbucket_uuid, entry.seqno)).collect()
}
