//! The parts of a mutation's value.

use super::{invalid, refused};
use crate::decode::provenance::is_unchanged;
use crate::decode::{Invalid, attributes};
use crate::feed::{Mutation, MutationKind};

/// A mutation's value, with its encoding.
pub(super) struct Value<'a> {
    bytes: &'a [u8],
    has_attributes: bool,
}

impl<'a> Value<'a> {
    #[inline]
    pub(super) fn of(mutation: &'a Mutation) -> Result<Self, Invalid> {
        // A feed without values may still set the encoding.
        let bytes = &mutation.value[..];
        if mutation.datatype.is_compressed() && !bytes.is_empty() {
            return Err(invalid("a compressed value that cannot be decompressed"));
        }
        Ok(Value { bytes, has_attributes: mutation.datatype.has_attributes() && !bytes.is_empty() })
    }

    #[inline]
    pub(super) fn attribute(&self, name: &str) -> Result<Option<&'a [u8]>, Invalid> {
        if self.has_attributes { attributes::find(self.bytes, name).map_err(refused) } else { Ok(None) }
    }

    #[inline]
    pub(super) fn body(&self) -> Result<&'a [u8], Invalid> {
        if self.has_attributes { attributes::body(self.bytes).map_err(refused) } else { Ok(self.bytes) }
    }

    /// Whether the document is as the gateway wrote it, although its CAS is not the one in
    /// `metadata`. A deletion has no body.
    #[cold]
    pub(super) fn is_unchanged(&self, kind: MutationKind, metadata: &[u8]) -> Result<bool, Invalid> {
        let body = if kind == MutationKind::Mutation { self.body()? } else { &[] };
        Ok(is_unchanged(metadata, attributes::iter(self.bytes).map_err(refused)?, body))
    }
}
