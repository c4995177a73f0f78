//! What decides: no I/O, no clock, no randomness. Time comes in as a duration since the writer started; effects go out.

mod arrived;
mod assembler;
mod lists;
mod sequencer;

pub use arrived::ArrivedSet;
pub use assembler::{Assembler, Prepared, WriterStats};
#[cfg(feature = "runtime")]
pub(crate) use assembler::{MAX_MARKS, departure_entry};
#[cfg(feature = "runtime")]
pub(crate) use lists::LIST_CHANGES;
pub use sequencer::{Arrival, MAX_JUMP, Noted, PendingRun, Sequencer, SequencerConfig, SequencerState, SkippedRange};
