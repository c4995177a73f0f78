//! Sluicegate.
pub mod compare;
