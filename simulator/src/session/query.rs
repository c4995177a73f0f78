//! Questions about vbuckets and collections (protocol, section 3.4).

use bytes::Bytes;
use sluicegate_mcbp::dcp::{GetAllVbSeqnos, Histories, ObservedSeqno, SeqnoList, VbSeqnos, VbucketState};
use sluicegate_mcbp::hello::Feature;
use sluicegate_mcbp::kv::{Id, Statistic};
use sluicegate_mcbp::{Command, Reply, Request, Status};

use super::Session;
use crate::state::State;

impl Session {
    /// The answer to whatever is no DCP command.
    pub(super) fn answer_other(&mut self, request: &Request, state: &mut State) -> (Status, Reply) {
        let opcode = request.command.opcode();
        if let Some(answer) = self.answer_kv(request, state) {
            return answer;
        }
        match &request.command {
            Command::GetAllVbSeqnos(asked) => self.all_seqnos(asked, state),
            Command::ObserveSeqno(asked) => self.observe(request.vbucket, asked.vbucket_uuid, state),
            Command::GetFailoverLog(_) => self.failover_log(request, state),
            Command::GetCollectionsManifest(_) if self.has(Feature::Collections) => {
                let manifest = state.bucket.manifest().to_json().to_string();
                (Status::Success, Reply::Plain(sluicegate_mcbp::Parts::from_value(opcode, manifest)))
            }
            Command::GetCollectionId(path) => {
                let path = String::from_utf8_lossy(&path.path);
                let manifest = state.bucket.manifest();
                match manifest.resolve(&path) {
                    Some(id) => (Status::Success, Reply::Id(Id { manifest_uid: manifest.uid, id })),
                    None => self.unknown(opcode, Status::UnknownCollection, state),
                }
            }
            Command::GetScopeId(path) => {
                let path = String::from_utf8_lossy(&path.path);
                let manifest = state.bucket.manifest();
                match manifest.scope(path.trim_end_matches('.')) {
                    Some(scope) => (Status::Success, Reply::Id(Id { manifest_uid: manifest.uid, id: scope.id })),
                    None => self.unknown(opcode, Status::UnknownScope, state),
                }
            }
            // The end of the statistics, of which there are none.
            Command::Stat(_) => (Status::Success, Reply::Statistic(Statistic { name: Bytes::new(), value: Bytes::new() })),
            _ => self.refuse(opcode, Status::UnknownCommand, "the simulator does not have this command"),
        }
    }

    pub(super) fn failover_log(&mut self, request: &Request, state: &State) -> (Status, Reply) {
        match (state.bucket.vbucket(request.vbucket), state.copy(request.vbucket, self.node)) {
            (Some(vbucket), Some(_)) => (Status::Success, Reply::FailoverLog(Histories { log: vbucket.failover_log().clone() })),
            _ => self.not_my_vbucket(request.command.opcode(), state),
        }
    }

    fn all_seqnos(&self, asked: &GetAllVbSeqnos, state: &State) -> (Status, Reply) {
        let has_collections = self.has(Feature::Collections);
        if let Some(collection) = asked.collection {
            let opcode = sluicegate_mcbp::Opcode::GetAllVbSeqnos;
            if !has_collections {
                return self.refuse(opcode, Status::InvalidArguments, "the connection has no collections");
            }
            if state.bucket.manifest().collection(collection).is_none() {
                return self.unknown(opcode, Status::UnknownCollection, state);
            }
        }
        let collection = asked.collection.or((!has_collections).then_some(0));
        let mut seqnos = Vec::new();
        for (id, vbucket) in state.bucket.vbuckets().iter().enumerate() {
            let Some(copy) = vbucket.copy(self.node) else { continue };
            let is_wanted = asked.state.is_none_or(|wanted| wanted == copy.state) && copy.state != VbucketState::Dead;
            if is_wanted {
                let high = copy.high_seqno;
                let last = |wanted| vbucket.last_seqno(0, high, |item| item.collection == wanted && !item.is_system());
                // Who is not told of durable writes would wait for ever for one that does not hold.
                let visible = if self.has_sync_writes() { high } else { vbucket.visible_seqno(high) };
                seqnos.push((id as u16, collection.map_or(visible, |wanted| last(wanted).unwrap_or(0))));
            }
        }
        (Status::Success, Reply::VbSeqnos(VbSeqnos { seqnos: SeqnoList(seqnos) }))
    }

    fn observe(&mut self, id: u16, vbucket_uuid: u64, state: &State) -> (Status, Reply) {
        let opcode = sluicegate_mcbp::Opcode::ObserveSeqno;
        let (Some(vbucket), Some(copy)) = (state.bucket.vbucket(id), state.copy(id, self.node)) else {
            return self.not_my_vbucket(opcode, state);
        };
        let log = &vbucket.failover_log().0;
        let Some(place) = log.iter().position(|entry| entry.vbucket_uuid == vbucket_uuid) else {
            return self.refuse(opcode, Status::KeyNotFound, "the history is not known");
        };
        // The end of a history is where the next newer one begins.
        let failed_over = place.checked_sub(1).map(|newer| (vbucket_uuid, log[newer].seqno));
        let observed = ObservedSeqno {
            vbucket: id,
            vbucket_uuid: vbucket.vbucket_uuid(),
            persisted: if state.config.is_ephemeral { 0 } else { copy.persisted_seqno },
            current: copy.high_seqno,
            failed_over,
        };
        (Status::Success, Reply::ObservedSeqno(observed))
    }
}
