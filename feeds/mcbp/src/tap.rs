//! TAP: the feed of servers up to 4.6 (protocol, section 10).

use bytes::{Buf as _, Bytes};

use crate::body::{Body, Field, Parts, Writer};
use crate::error::Result;

flags! {
    /// What a TAP stream is to be (protocol, section 10.2). Each may bring data in the value, from the lowest bit upward.
    ConnectFlags: u32 {
        /// Begin with what there is: 8 bytes of time; in the future for nothing. Without it, with everything.
        BACKFILL = 0x001,
        /// End after that.
        DUMP = 0x002,
        /// Only these vbuckets: their number and they, 2 bytes each.
        LIST_VBUCKETS = 0x004,
        /// Take the vbuckets over. Never for clients.
        TAKEOVER_VBUCKETS = 0x008,
        /// The receiver acknowledges.
        SUPPORT_ACK = 0x010,
        /// Without values; usually ignored.
        KEYS_ONLY = 0x020,
        /// Resume behind checkpoints: their number, 2 bytes, and each as 2 bytes of vbucket and 8 of checkpoint.
        CHECKPOINT = 0x040,
        /// Keep the position while the receiver is away; 1 byte, which may be missing.
        REGISTERED_CLIENT = 0x080,
        /// Send item flags as they are stored.
        FIX_FLAG_BYTEORDER = 0x100,
    }
}

flags! {
    /// What holds for one TAP message (protocol, section 10.3).
    MessageFlags: u16 {
        /// Acknowledge it.
        ACK = 0x01,
        /// The value was left out.
        NO_VALUE = 0x02,
        /// The item's flags are as they are stored, not swapped.
        NETWORK_BYTE_ORDER = 0x04,
    }
}

codes! {
    /// Commands of a TAP opaque message (protocol, section 10.4).
    OpaqueCommand: u32 {
        /// The receiver may refuse messages for a while.
        EnableAutoNack = 0,
        /// The backfill of the vbucket begins: forget it.
        InitialVbucketStream = 1,
        /// There will be checkpoints.
        EnableCheckpointSync = 2,
        /// Nothing but open checkpoints is left.
        OpenCheckpoint = 3,
        /// The list of vbuckets was changed.
        CompleteVbFilterChange = 4,
        /// The sender ends.
        CloseTapStream = 7,
        /// The backfill of the vbucket is complete.
        CloseBackfill = 8,
    }
}

/// Begins a TAP stream. Nothing answers it unless it fails.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connect {
    /// What the stream is to be; none, as old clients do, is 0.
    pub flags: Option<ConnectFlags>,
    /// Name of the client.
    pub name: Bytes,
    /// Data of the flags, concatenated; see [`Options::encode`].
    pub options: Bytes,
}

/// The data of [`ConnectFlags`], each present if its flag is to be set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Of `BACKFILL`: seconds since 1970.
    pub backfill: Option<u64>,
    /// Of `LIST_VBUCKETS`.
    pub vbuckets: Option<Vec<u16>>,
    /// Of `CHECKPOINT`: vbuckets, each with the last checkpoint it had.
    pub checkpoints: Option<Vec<(u16, u64)>>,
    /// Of `REGISTERED_CLIENT`: whether it takes only closed checkpoints.
    pub closed_checkpoints_only: Option<bool>,
}

/// A TAP message about no document, or about a deleted one: all but [`Mutation`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// What holds for the message.
    pub flags: MessageFlags,
    /// How many hops it may still make.
    pub ttl: u8,
    /// Not used.
    pub reserved: [u8; 3],
    /// What the storage engine adds before the key.
    pub engine: Bytes,
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

/// A TAP message with item flags: a mutation, or the start or end of a checkpoint, whose value is its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mutation {
    /// What all messages have.
    pub item: Item,
    /// The item's flags, as sent; see [`Mutation::stored_flags`].
    pub item_flags: u32,
    /// When it expires, seconds since 1970; 0 for never.
    pub expiry: u32,
}

impl Options {
    /// The flags, and the data that belongs to them.
    pub fn encode(&self, flags: ConnectFlags) -> (ConnectFlags, Bytes) {
        let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
        let (mut flags, mut data) = (flags, Vec::new());
        if let Some(seconds) = self.backfill {
            flags = flags | ConnectFlags::BACKFILL;
            data.extend_from_slice(&seconds.to_be_bytes());
        }
        if let Some(vbuckets) = &self.vbuckets {
            flags = flags | ConnectFlags::LIST_VBUCKETS;
            data.extend_from_slice(&count(vbuckets.len()));
            data.extend(vbuckets.iter().flat_map(|vbucket| vbucket.to_be_bytes()));
        }
        if let Some(checkpoints) = &self.checkpoints {
            flags = flags | ConnectFlags::CHECKPOINT;
            data.extend_from_slice(&count(checkpoints.len()));
            for (vbucket, id) in checkpoints {
                data.extend_from_slice(&vbucket.to_be_bytes());
                data.extend_from_slice(&id.to_be_bytes());
            }
        }
        if let Some(closed_only) = self.closed_checkpoints_only {
            flags = flags | ConnectFlags::REGISTERED_CLIENT;
            data.push(closed_only.into());
        }
        (flags, data.into())
    }
}

impl Connect {
    /// The data of the flags; none if it is not what they ask for.
    pub fn options(&self) -> Option<Options> {
        let flags = self.flags.unwrap_or_default();
        let mut from = &self.options[..];
        let mut options = Options::default();
        if flags.contains(ConnectFlags::BACKFILL) {
            options.backfill = Some(from.try_get_u64().ok()?);
        }
        if flags.contains(ConnectFlags::LIST_VBUCKETS) {
            let count = from.try_get_u16().ok()?;
            options.vbuckets = Some((0..count).map(|_| from.try_get_u16().ok()).collect::<Option<_>>()?);
        }
        if flags.contains(ConnectFlags::CHECKPOINT) {
            let count = from.try_get_u16().unwrap_or(0);
            let mut checkpoint = || Some((from.try_get_u16().ok()?, from.try_get_u64().ok()?));
            options.checkpoints = Some((0..count).map(|_| checkpoint()).collect::<Option<_>>()?);
        }
        if flags.contains(ConnectFlags::REGISTERED_CLIENT) {
            options.closed_checkpoints_only = from.try_get_u8().ok().map(|byte| byte != 0);
        }
        from.is_empty().then_some(options)
    }
}

impl Item {
    /// The revision that a mutation or deletion has, if the engine says so.
    pub fn rev_seqno(&self) -> Option<u64> {
        self.engine.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// The command of an opaque message.
    pub fn opaque_command(&self) -> Option<OpaqueCommand> {
        self.engine.first_chunk().map(|bytes| u32::from_be_bytes(*bytes).into())
    }

    /// The state that a message about a vbucket's state has.
    pub fn vbucket_state(&self) -> Option<crate::dcp::VbucketState> {
        let code = u32::from_be_bytes(*self.engine.first_chunk()?);
        u8::try_from(code).ok().map(Into::into)
    }

    /// Bytes of the extras that all messages have.
    const EXTRAS: usize = 8;

    fn read(parts: Parts, extras_len: usize) -> Result<Item> {
        const WHAT: &str = "a TAP message has 8 bytes of extras, 16 with item flags, and room for what the engine adds";
        let mut extras = parts.extras();
        if extras.len() != extras_len {
            return Err(parts.malformed(WHAT));
        }
        let from = &mut extras;
        let engine_len = usize::from(u16::read(from));
        let (flags, ttl) = (MessageFlags::read(from), u8::read(from));
        let reserved = [u8::read(from), u8::read(from), u8::read(from)];
        if parts.value().len() < engine_len {
            return Err(parts.malformed(WHAT));
        }
        let (key_len, mut rest) = parts.into_rest();
        let (engine, key) = (rest.split_to(engine_len), rest.split_to(key_len));
        Ok(Item { flags, ttl, reserved, engine, key, value: rest })
    }

    fn write(&self, more_extras: &[u8], to: &mut Writer<'_>) {
        to.length(self.engine.len());
        to.field(&self.flags);
        to.field(&self.ttl);
        to.extras(&self.reserved);
        to.extras(more_extras);
        // Counted as a part of the value, it stands before the key.
        to.value(&self.engine);
        to.key(&self.key);
        to.value(&self.value);
    }
}

impl Mutation {
    /// The item's flags as they were written. A server on a little-endian machine swaps them, unless it says that it does not.
    pub fn stored_flags(&self) -> u32 {
        if self.item.flags.contains(MessageFlags::NETWORK_BYTE_ORDER) { self.item_flags } else { self.item_flags.swap_bytes() }
    }
}

impl Body for Item {
    fn decode(parts: Parts) -> Result<Self> {
        Item::read(parts, Item::EXTRAS)
    }

    fn encode(&self, to: &mut Writer<'_>) {
        self.write(&[], to);
    }
}

impl Body for Mutation {
    fn decode(parts: Parts) -> Result<Self> {
        let mut more = parts.extras().get(Item::EXTRAS..Item::EXTRAS + 8).unwrap_or(&[0; 8]);
        let (item_flags, expiry) = (u32::read(&mut more), u32::read(&mut more));
        Ok(Mutation { item: Item::read(parts, Item::EXTRAS + 8)?, item_flags, expiry })
    }

    fn encode(&self, to: &mut Writer<'_>) {
        let more = (u64::from(self.item_flags) << 32) | u64::from(self.expiry);
        self.item.write(&more.to_be_bytes(), to);
    }
}

impl Body for Connect {
    fn decode(parts: Parts) -> Result<Self> {
        let flags = match parts.extras() {
            [] => None,
            &[a, b, c, d] => Some(ConnectFlags(u32::from_be_bytes([a, b, c, d]))),
            _ => return Err(parts.malformed("TAP_CONNECT has 4 bytes of extras, or none")),
        };
        let (name, options) = parts.into_key_and_value();
        Ok(Connect { flags, name, options })
    }

    fn encode(&self, to: &mut Writer<'_>) {
        if let Some(flags) = &self.flags {
            to.field(flags);
        }
        to.key(&self.name);
        to.value(&self.options);
    }
}
