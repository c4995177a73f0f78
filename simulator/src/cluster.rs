//! The running cluster, and what a test does to it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustls::ServerConfig;
use sluicegate_mcbp::dcp::{Durability, EndReason, FailoverLog};
use sluicegate_mcbp::{Datatype, Status};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bucket::{Content, DocumentKey, Item, Stored, Write};
use crate::config::{ClusterConfig, Load};
use crate::doors::Doors;
use crate::faults::Faults;
use crate::state::{Node, State};
use crate::tls::TlsConfig;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    /// Counts changes, for whoever waits for one.
    pub(crate) changes: watch::Sender<u64>,
}

impl Shared {
    /// Wakes the connections.
    pub(crate) fn notify(&self) {
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }
}

/// A running cluster. It is gone when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
    nodes: Mutex<Vec<Option<JoinHandle<()>>>>,
    tls: Option<Arc<ServerConfig>>,
}

impl Cluster {
    /// Starts a cluster on the loopback interface, within the current Tokio runtime.
    ///
    /// # Errors
    /// If a port cannot be had, the configuration has no node or no vbucket, a certificate is none, or the password is not allowed in
    /// SCRAM.
    pub async fn start(config: ClusterConfig) -> io::Result<Cluster> {
        if config.nodes == 0 || config.vbuckets == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a cluster has at least one node and one vbucket"));
        }
        let tls = config.tls.as_ref().map(TlsConfig::server_config).transpose()?;
        let mut doors = Vec::with_capacity(config.nodes);
        for node in 0..config.nodes {
            let port = if config.port == 0 { 0 } else { config.port.saturating_add(node as u16) };
            doors.push(Doors::open(config.host, (port, tls.is_some().then_some(0)), tls.clone()).await?);
        }
        let ports = doors.iter().map(Doors::ports).collect::<io::Result<Vec<_>>>()?;
        let state = State::new(config, &ports).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let shared = Arc::new(Shared { state: Mutex::new(state), changes: watch::Sender::new(0) });
        let nodes = doors.into_iter().enumerate().map(|(node, doors)| Some(doors.serve(node, &shared))).collect();
        Ok(Cluster { shared, nodes: Mutex::new(nodes), tls })
    }

    /// Where clients begin: `couchbase://` with the addresses of all nodes that belong to the cluster.
    pub fn connection_string(&self) -> String {
        format!("couchbase://{}", self.members(|node| Some(node.port)))
    }

    /// The same with TLS: `couchbases://`, and no addresses if the cluster has none.
    pub fn tls_connection_string(&self) -> String {
        format!("couchbases://{}", self.members(|node| node.tls_port))
    }

    fn members(&self, port: impl Fn(&Node) -> Option<u16>) -> String {
        let state = self.shared.state.lock();
        let ports = state.nodes.iter().filter(|node| node.is_member).filter_map(port);
        let addresses: Vec<String> = ports.map(|port| SocketAddr::new(state.config.host, port).to_string()).collect();
        addresses.join(",")
    }

    /// The address of each node.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let state = self.shared.state.lock();
        state.nodes.iter().map(|node| SocketAddr::new(state.config.host, node.port)).collect()
    }

    /// The address of each node with TLS; none if the cluster has none.
    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        let state = self.shared.state.lock();
        let ports = state.nodes.iter().filter_map(|node| node.tls_port);
        ports.map(|port| SocketAddr::new(state.config.host, port)).collect()
    }
}

/// Documents.
impl Cluster {
    /// Writes a document of the default collection.
    ///
    /// # Errors
    /// As [`Bucket::store`](crate::bucket::Bucket::store).
    pub fn set(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Stored, Status> {
        let value = value.into();
        let datatype = if crate::session::is_json(&value) { Datatype::JSON } else { Datatype::default() };
        self.write(0, key, Content { value, datatype, ..Content::default() })
    }

    /// Writes a document of any collection, with whatever it is to have.
    ///
    /// # Errors
    /// As [`Bucket::store`](crate::bucket::Bucket::store).
    pub fn write(&self, collection: u32, key: impl Into<Bytes>, content: Content) -> Result<Stored, Status> {
        let key = key.into();
        self.change(|state| {
            let vbucket = state.bucket.vbucket_of(&key);
            state.bucket.store(vbucket, DocumentKey { collection, key }, Write::Set, content, 0)
        })
    }

    /// Writes a document of any collection whose content names its own compare-and-swap value, as
    /// by a client that has the server put it in; or deletes it and leaves the content in its
    /// place.
    ///
    /// # Errors
    /// As [`Bucket::store`](crate::bucket::Bucket::store).
    pub fn write_naming(
        &self,
        collection: u32,
        key: impl Into<Bytes>,
        is_deletion: bool,
        content: impl FnOnce(u64) -> Content,
    ) -> Result<Stored, Status> {
        let key = key.into();
        self.change(|state| {
            let (vbucket, cas) = (state.bucket.vbucket_of(&key), state.bucket.identity().cas());
            let (key, content) = (DocumentKey { collection, key }, Content { cas, ..content(cas) });
            match is_deletion {
                true => state.bucket.delete_with(vbucket, key, content),
                false => state.bucket.store(vbucket, key, Write::Set, content, 0),
            }
        })
    }

    /// The last change of a document of any collection, which may be its removal; none if there was
    /// none, or it is gone.
    pub fn last_change(&self, collection: u32, key: impl Into<Bytes>) -> Option<Item> {
        let key = DocumentKey { collection, key: key.into() };
        let state = self.shared.state.lock();
        state.bucket.vbucket(state.bucket.vbucket_of(&key.key))?.find(&key).cloned()
    }

    /// The last change of each document, removals among them, vbucket by vbucket in the order of
    /// positions.
    pub fn last_changes(&self) -> Vec<Item> {
        let state = self.shared.state.lock();
        let all = state.bucket.vbuckets().iter().flat_map(|vbucket| vbucket.after(0));
        all.filter(|item| item.superseded_by == u64::MAX && item.document().is_some()).cloned().collect()
    }

    /// Begins to write a document of the default collection durably; the position is that of the beginning. It holds once enough nodes
    /// have it.
    ///
    /// # Errors
    /// As [`Bucket::prepare`](crate::bucket::Bucket::prepare).
    pub fn set_durably(&self, key: impl Into<Bytes>, value: impl Into<Bytes>, level: Durability) -> Result<Stored, Status> {
        let (key, value) = (key.into(), value.into());
        let datatype = if crate::session::is_json(&value) { Datatype::JSON } else { Datatype::default() };
        let content = Content { value, datatype, ..Content::default() };
        self.change(|state| {
            let vbucket = state.bucket.vbucket_of(&key);
            state.bucket.prepare(vbucket, DocumentKey { collection: 0, key }, level, Write::Set, content, 0)
        })
    }

    /// Deletes a document of the default collection.
    ///
    /// # Errors
    /// As [`Bucket::delete`](crate::bucket::Bucket::delete).
    pub fn delete(&self, key: impl Into<Bytes>) -> Result<Stored, Status> {
        self.delete_from(0, key)
    }

    /// Deletes a document of any collection.
    ///
    /// # Errors
    /// As [`Bucket::delete`](crate::bucket::Bucket::delete).
    pub fn delete_from(&self, collection: u32, key: impl Into<Bytes>) -> Result<Stored, Status> {
        let key = key.into();
        self.change(|state| {
            let vbucket = state.bucket.vbucket_of(&key);
            state.bucket.delete(vbucket, DocumentKey { collection, key }, 0)
        })
    }

    /// Deletes a document of any collection and leaves `content` in its place.
    ///
    /// # Errors
    /// As [`Bucket::delete_with`](crate::bucket::Bucket::delete_with).
    pub fn delete_with(&self, collection: u32, key: impl Into<Bytes>, content: Content) -> Result<Stored, Status> {
        let key = key.into();
        self.change(|state| {
            let vbucket = state.bucket.vbucket_of(&key);
            state.bucket.delete_with(vbucket, DocumentKey { collection, key }, content)
        })
    }

    /// Writes many documents, and lets them leave the memory.
    ///
    /// # Errors
    /// `UnknownCollection`.
    pub fn load(&self, load: &Load) -> Result<(), Status> {
        let filler: String = ('a'..='z').cycle().take(load.value_len).collect();
        self.change(|state| {
            for number in 0..load.documents {
                let key = Bytes::from(format!("{}{number:07}", load.prefix).into_bytes().into_boxed_slice());
                let head = format!(r#"{{"number":{number},"group":{},"text":""#, number % 100);
                let text = &filler[..load.value_len.saturating_sub(head.len() + 2)];
                // Without the spare room that text being put together has.
                let value = Bytes::from(format!(r#"{head}{text}"}}"#).into_bytes().into_boxed_slice());
                let content = Content { value, datatype: Datatype::JSON, ..Content::default() };
                let vbucket = state.bucket.vbucket_of(&key);
                state.bucket.store(vbucket, DocumentKey { collection: load.collection, key }, Write::Set, content, 0)?;
            }
            for vbucket in 0..state.bucket.num_vbuckets() {
                state.bucket.vbucket_mut(vbucket).into_iter().for_each(|vbucket| vbucket.evict());
            }
            Ok(())
        })
    }

    /// Advances the cluster's clock, and removes what expires by that; how many documents.
    pub fn advance_clock(&self, seconds: u64) -> usize {
        self.change(|state| {
            state.bucket.identity().advance(seconds);
            state.bucket.expire()
        })
    }

    /// The vbucket of a key.
    pub fn vbucket_of(&self, key: &[u8]) -> u16 {
        self.shared.state.lock().bucket.vbucket_of(key)
    }

    /// The last position of a vbucket; 0 if there is no such vbucket.
    pub fn high_seqno(&self, vbucket: u16) -> u64 {
        self.shared.state.lock().bucket.vbucket(vbucket).map_or(0, |vbucket| vbucket.high_seqno())
    }

    /// Of each vbucket of which streams were opened since this was last asked, the lowest position at which one began: nothing at or below it was
    /// sent again.
    pub fn take_lowest_starts(&self) -> BTreeMap<u16, u64> {
        std::mem::take(&mut self.shared.state.lock().lowest_starts)
    }

    /// The histories of a vbucket, newest first.
    pub fn failover_log(&self, vbucket: u16) -> FailoverLog {
        let state = self.shared.state.lock();
        state.bucket.vbucket(vbucket).map_or_else(FailoverLog::default, |vbucket| vbucket.failover_log().clone())
    }

    /// Creates a scope, and gives its number; none if there is one of this name.
    pub fn create_scope(&self, name: &str) -> Option<u32> {
        self.change(|state| state.bucket.create_scope(name))
    }

    /// Creates a collection, and gives its number; none if there is no such scope, or one of this name in it.
    pub fn create_collection(&self, scope: &str, name: &str, max_ttl: Option<u32>) -> Option<u32> {
        self.change(|state| state.bucket.create_collection(scope, name, max_ttl))
    }

    /// Changes how long documents of a collection live at most; whether there is one.
    pub fn modify_collection(&self, collection: u32, max_ttl: Option<u32>) -> bool {
        self.change(|state| state.bucket.modify_collection(collection, max_ttl))
    }

    /// Drops a collection with its documents; whether there was one.
    pub fn drop_collection(&self, collection: u32) -> bool {
        self.change(|state| state.bucket.drop_collection(collection))
    }

    /// Drops a scope with its collections; whether there was one.
    pub fn drop_scope(&self, scope: u32) -> bool {
        self.change(|state| state.bucket.drop_scope(scope))
    }
}

/// Disks and replicas.
impl Cluster {
    /// Lets everything that is on disk leave the memory: streams from before it get it from disk, de-duplicated.
    pub fn evict(&self) {
        self.each_vbucket(|vbucket| vbucket.evict());
    }

    /// Removes the deletions up to a position of a vbucket: whoever was away since before it must begin anew.
    pub fn purge(&self, vbucket: u16, seqno: u64) {
        self.change(|state| state.bucket.vbucket_mut(vbucket).into_iter().for_each(|vbucket| vbucket.purge(seqno)));
    }

    /// Holds back what a node writes to disk of a vbucket, or lets it go on.
    pub fn hold_persistence(&self, vbucket: u16, node: usize, is_held: bool) {
        self.change(|state| {
            state.bucket.vbucket_mut(vbucket).into_iter().for_each(|vbucket| vbucket.hold_persistence(node, is_held));
        });
    }

    /// Holds back what a node's replica of a vbucket receives, or lets it go on.
    pub fn hold_replication(&self, vbucket: u16, node: usize, is_held: bool) {
        self.change(|state| {
            state.bucket.vbucket_mut(vbucket).into_iter().for_each(|vbucket| vbucket.hold_replication(node, is_held));
        });
    }

    /// Lets durable writes of a vbucket stay incomplete although enough nodes have them, or lets them be committed.
    pub fn hold_durable_writes(&self, vbucket: u16, is_held: bool) {
        self.change(|state| state.bucket.vbucket_mut(vbucket).into_iter().for_each(|vbucket| vbucket.hold_prepared(is_held)));
    }

    /// Gives up the durable writes of a vbucket that are not complete, as after their time; how many.
    pub fn abort_durable_writes(&self, vbucket: u16) -> usize {
        self.change(|state| state.bucket.vbucket_mut(vbucket).map_or(0, |vbucket| vbucket.abort_prepared()))
    }

    fn each_vbucket(&self, mut each: impl FnMut(&mut crate::bucket::Vbucket)) {
        self.change(|state| {
            for vbucket in 0..state.bucket.num_vbuckets() {
                state.bucket.vbucket_mut(vbucket).into_iter().for_each(&mut each);
            }
        });
    }
}

/// Topology.
impl Cluster {
    /// The node that has the active copy of a vbucket.
    pub fn owner(&self, vbucket: u16) -> Option<usize> {
        *self.shared.state.lock().bucket.vbucket(vbucket)?.chain().first()?
    }

    /// Kills a node: soon nobody listens on its port, and its connections are gone. Its vbuckets are, too, until it is revived or failed
    /// over.
    pub fn kill_node(&self, node: usize) {
        if let Some(Some(listener)) = self.nodes.lock().get(node) {
            listener.abort();
        }
        self.change(|state| state.nodes.get_mut(node).into_iter().for_each(|node| node.is_up = false));
    }

    /// Starts a killed node again on its ports. It has lost what it did not have on disk, and its active vbuckets begin new histories.
    ///
    /// # Errors
    /// If somebody else has one of its ports, or there is no such node.
    pub async fn revive_node(&self, node: usize) -> io::Result<()> {
        let (host, ports) = {
            let state = self.shared.state.lock();
            let there = state.nodes.get(node).ok_or(io::ErrorKind::NotFound)?;
            if there.is_up {
                return Ok(());
            }
            (state.config.host, (there.port, there.tls_port))
        };
        let before = self.nodes.lock()[node].take();
        if let Some(before) = before {
            // Its end frees the ports.
            before.abort();
            drop(before.await);
        }
        let mut tries = 0;
        let doors = loop {
            match Doors::open(host, ports, self.tls.clone()).await {
                // Somebody's connection has the port at its own end, which is soon over.
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && tries < 100 => tries += 1,
                opened => break opened?,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        self.change(|state| {
            state.recover(node);
            (state.nodes[node].is_up, state.nodes[node].life) = (true, state.nodes[node].life + 1);
        });
        self.nodes.lock()[node] = Some(doors.serve(node, &self.shared));
        Ok(())
    }

    /// Takes a node out of the cluster. Of each of its active vbuckets the first replica takes over with what it has, less the last
    /// `lose` positions, and begins a new history; where there is none the vbucket has no node any more.
    pub fn fail_over(&self, node: usize, lose: u64) {
        self.change(|state| {
            if node < state.nodes.len() {
                state.fail_over(node, lose);
            }
        });
    }

    /// A vbucket loses what is above position `keep`, as by a failover of the same node, and begins a new history.
    pub fn fail_over_vbucket(&self, vbucket: u16, keep: u64) {
        self.change(|state| state.bucket.fail_over(vbucket, keep));
    }

    /// Moves vbuckets to other nodes: their streams end with `StateChanged`, and the new map is pushed. A node that was failed over
    /// belongs to the cluster again if something moves there.
    pub fn rebalance(&self, moves: &[(u16, usize)]) {
        self.change(|state| {
            for &(vbucket, node) in moves {
                if let Some(there) = state.nodes.get_mut(node) {
                    there.is_member = true;
                    state.move_vbucket(vbucket, node);
                }
            }
            state.revision += 1;
        });
    }

    /// Empties the bucket: all histories begin anew, the bucket has another identity, and connections to it are closed. Its collections
    /// stay.
    pub fn flush_bucket(&self) {
        self.change(|state| {
            state.bucket.flush();
            state.revision += 1;
        });
    }

    /// Drops the bucket and creates it again: as [`flush_bucket`](Cluster::flush_bucket), and the collections are gone, too.
    pub fn recreate_bucket(&self) {
        self.change(|state| {
            state.bucket.recreate();
            state.revision += 1;
        });
    }

    /// Pushes the cluster map as if something had changed.
    pub fn announce_map(&self) {
        self.change(|state| state.revision += 1);
    }
}

/// Faults.
impl Cluster {
    /// Changes what is to go wrong.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        self.change(|state| change(&mut state.faults));
    }

    /// Closes all connections.
    pub fn drop_connections(&self) {
        self.change(|state| state.oldest_connection = state.next_connection);
    }

    /// Lets nothing be read or sent until [`resume`](Cluster::resume). Connections stay open.
    pub fn pause(&self) {
        self.change(|state| state.is_paused = true);
    }

    /// Ends a [`pause`](Cluster::pause).
    pub fn resume(&self) {
        self.change(|state| state.is_paused = false);
    }

    /// Answers the next stream request of a vbucket, or of any, with `status` instead of serving it.
    pub fn refuse_stream(&self, vbucket: Option<u16>, status: Status) {
        self.change(|state| state.faults.stream_answers.push_back((vbucket, status)));
    }

    /// Ends the streams that are open of a vbucket.
    pub fn end_streams(&self, vbucket: u16, reason: EndReason) {
        self.change(|state| {
            let until = state.next_stream;
            state.endings.insert(vbucket, (reason, until));
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.shared.state.lock());
        self.shared.notify();
        result
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for listener in self.nodes.get_mut().iter().flatten() {
            listener.abort();
        }
        self.shared.state.lock().oldest_connection = u64::MAX;
        self.shared.notify();
    }
}
