//! Reading, the pure part: sequence ids, the merge of several channels into one answer, and the answer's JSON.
//!
//! Nothing here does I/O. A reader fetches the rows of each channel (ascending, one a document), gives them to [`merge`]
//! and takes as many answer rows as the request allows (semantics, sections 4 and 5).

mod answer;
mod id;
mod merge;

pub use answer::{Answer, AnswerRow, ChangesOptions, Delivery, LateCursor};
pub use id::{SequenceId, SequenceText};
pub use merge::{Merge, Row, Source, keep_newest, merge};
