//! Failing a case with words.

use std::fmt::Debug;

use sluicegate_core::{Error, ErrorKind, Result};

/// What a case says when something is not as it should be.
pub(crate) trait Expect<T> {
    /// The value; the case fails if there is none.
    #[track_caller]
    fn must(self, what: &str) -> T;
}

impl<T> Expect<T> for Result<T> {
    #[track_caller]
    fn must(self, what: &str) -> T {
        match self {
            Ok(value) => value,
            Err(e) => panic!("must {what}: {e:?}"),
        }
    }
}

impl<T> Expect<T> for Option<T> {
    #[track_caller]
    fn must(self, what: &str) -> T {
        match self {
            Some(value) => value,
            None => panic!("must {what}: there is none"),
        }
    }
}

/// The error; the case fails if there is none, or if it is of another kind.
#[track_caller]
pub(crate) fn refused<T: Debug>(result: Result<T>, kind: ErrorKind, what: &str) -> Error {
    match result {
        Err(e) if e.kind() == kind => e,
        other => panic!("{what} must be refused as {kind:?}, and gave {other:?}"),
    }
}

/// As [`refused`], and the error must name `thing`.
#[track_caller]
pub(crate) fn refused_naming<T: Debug>(result: Result<T>, kind: ErrorKind, thing: impl std::fmt::Display, what: &str) {
    let error = refused(result, kind, what);
    let text = error.to_string();
    assert!(text.contains(&thing.to_string()), "{what}: the error must name {thing}: {text}");
}
