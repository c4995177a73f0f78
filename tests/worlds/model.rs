//! What a world is: settings of the writers, and everything that happens.

use sluicegate::WriterConfig;
use sluicegate::pointer::Supersession;
use sluicegate_testkit::{CrashPoint, Step};

/// Partitions of the bucket. Each document has its own.
pub(crate) const PARTITIONS: u16 = 3;

/// Documents of the bucket.
pub(crate) const DOCUMENTS: u16 = 3;

/// Channels to which the gateway assigns documents, by bit.
pub(crate) const CHANNELS: [&str; 2] = ["a", "b"];

/// A world, from an empty bucket and an empty cache on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) events: Vec<Event>,
}

impl World {
    /// The world as Rust, for a test in `directed.rs`.
    pub(crate) fn as_rust(&self) -> String {
        format!("{self:?}").replace(": [", ": vec![")
    }
}

/// The settings of all writers, and what holds for the whole bucket.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) supersession: Supersession,
    pub(crate) hold_first_read: bool,
    pub(crate) max_batch: usize,
    pub(crate) max_in_flight: usize,
    pub(crate) checkpoint_interval_ms: u64,
    pub(crate) max_wait_ms: u64,
    pub(crate) codec: &'static str,
    /// Whether the feed may leave out a mutation that is followed by another one of its key.
    pub(crate) leaves_out: bool,
    /// Whether the metadata of documents list the stays in channels.
    pub(crate) has_stays: bool,
}

impl Settings {
    /// The settings that make a world easy to understand.
    pub(crate) const fn simple(supersession: Supersession) -> Settings {
        Settings {
            supersession,
            hold_first_read: false,
            max_batch: 100,
            max_in_flight: 1,
            checkpoint_interval_ms: 1,
            max_wait_ms: 5_000,
            codec: "two-bit",
            leaves_out: true,
            has_stays: false,
        }
    }

    pub(crate) fn config(&self) -> WriterConfig {
        let mut config = WriterConfig::default().with_supersession(self.supersession).with_batch(self.max_batch);
        config.hold_first_read = self.hold_first_read;
        config.max_in_flight = self.max_in_flight;
        config.checkpoint_interval_ms = self.checkpoint_interval_ms;
        config.max_wait_ms = self.max_wait_ms;
        self.codec.clone_into(&mut config.codec);
        config.max_pending = 12;
        config.ring = 8;
        config.gather_rollbacks_ms = 0;
        config.gather_purges_ms = 0;
        config.block_capacity = 64;
        config.give_up_after_ms = 2_000;
        config
    }
}

/// What happens in a world.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// The gateway writes a revision of a document, which is in the channels of these bits.
    Write { document: u16, channels: u8 },
    /// Another program writes over a document.
    Overwrite { document: u16 },
    /// A document is purged.
    Purge { document: u16 },
    /// The gateway allocates a sequence and does not use it.
    Skip,
    /// The gateway allocates a sequence, and releases it with a marker in this partition.
    Release { partition: u16 },
    /// A partition loses its last mutations: as many as `lost`, but no purge.
    FailOver { partition: u16, lost: u64 },
    /// The gateway loses its counter: sequences above those of all documents are allocated again.
    LoseCounter,
    /// A writer takes over and reads the feed to its end, unless a fault stops it.
    Term(Term),
    /// The writers that are held go on.
    Resume,
}

/// One term of a writer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Term {
    /// Determines the order in which the feed delivers what there is.
    pub(crate) seed: u64,
    pub(crate) fault: Fault,
    /// What happens to the bucket while the feed is read.
    pub(crate) meanwhile: Vec<Event>,
    /// Whether the feed reports all rollbacks before it delivers new mutations.
    pub(crate) rollbacks_first: bool,
}

/// What goes wrong in a term.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    Healthy,
    /// The writer is cut off from its store. Writes count from the take-over or from its end.
    Crash { from_take_over: bool, point: CrashPoint },
    /// The `nth` write of a step after the take-over is held; if `all`, so are those after it.
    Hold { step: Step, nth: u64, all: bool, then: Then },
}

/// What becomes of a writer that is held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Then {
    /// It is killed, and what is held is never written.
    Killed,
    /// It goes on at the next [`Event::Resume`].
    UntilResume,
    /// It goes on in the next term, after so many yields.
    IntoNext(u32),
}
