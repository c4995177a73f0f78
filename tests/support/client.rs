//! A client that continues where its last answer ended.

#![allow(dead_code, reason = "each test program uses some of it")]

use sluicegate::changes::{ChangesOptions, Delivery};
use sluicegate::{Channel, ReaderNode, Result};
use sluicegate_testkit::observe::{Rows, rows};

/// What a client is told that asks for what came after its last answer, with what is late since.
#[derive(Debug)]
pub(crate) struct Client {
    reader: ReaderNode,
    channel: Channel,
    options: ChangesOptions,
}

impl Client {
    /// A client that has been told nothing. Its answers have at most `limit` rows.
    pub(crate) fn new(reader: &ReaderNode, channel: Channel, limit: usize) -> Client {
        let options = ChangesOptions::new().delivery(Delivery::Eager).late(reader.cut().late).limit(limit);
        Client { reader: reader.clone(), channel, options }
    }

    /// The channel that it follows.
    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Asks until there is no more. The reader is not refreshed.
    ///
    /// # Errors
    /// What the reader says.
    pub(crate) async fn told(&mut self) -> Result<Rows> {
        let mut all = Rows::new();
        loop {
            let answer = self.reader.changes(std::slice::from_ref(&self.channel), &self.options).await?.answer();
            self.options = self.options.clone().since(answer.last.sequence).late(answer.late);
            if answer.rows.is_empty() {
                return Ok(all);
            }
            all.extend(rows(&answer));
        }
    }
}
