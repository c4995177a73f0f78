//! What decides: no I/O, no clock, no randomness. Time comes in as a duration since the writer started; effects go out.

mod assembler;
mod sequencer;

pub use assembler::{Assembler, Prepared, WriterStats};
pub use sequencer::{Arrival, MAX_JUMP, Noted, PendingRun, Sequencer, SequencerConfig, SequencerState, SkippedRange};
