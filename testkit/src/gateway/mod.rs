//! Documents as a gateway writes them: attributes, body, and what it keeps of each document's past.

mod kept;

use serde_json::{Value, json};
use sluicegate_core::Mutation;
use sluicegate_core::decode::attributes;
use sluicegate_core::feed::{Datatype, MutationKind};

pub use kept::{Kept, Standing, Stay};

/// The gateway that current versions name.
const SOURCE: &str = "c2NlbmFyaW8gc291cmNl";

impl Kept {
    /// The document as the gateway writes it: a deletion, without the body, if the revision is a
    /// tombstone. `cas` is what its metadata say that its CAS is.
    pub fn mutation(&self, id: &str, cas: u64, body: &[u8]) -> Mutation {
        let (kind, body): (_, &[u8]) = if self.deleted { (MutationKind::Deletion, b"") } else { (MutationKind::Mutation, body) };
        let version = text_of(cas);
        let revision = json!({"rev": self.revision, "src": SOURCE, "ver": version});
        let metadata = self.metadata(revision, &version, &checksum(body, self.deleted));
        let version = json!({"cvCas": version, "src": SOURCE, "ver": version});
        with_attributes(id, kind, &metadata, Some(&version), body)
    }
}

/// Whether a document's attribute `_sync` says that the gateway wrote it as it is: of this CAS, or
/// with this body.
pub fn is_gateways_write(metadata: &[u8], cas: u64, body: &[u8], is_deletion: bool) -> bool {
    let Ok(metadata) = serde_json::from_slice::<Value>(metadata) else { return false };
    metadata["cas"] == text_of(cas) || metadata["value_crc32c"] == checksum(body, is_deletion)
}

/// A document with these attributes.
pub(crate) fn with_attributes(id: &str, kind: MutationKind, metadata: &Value, version: Option<&Value>, body: &[u8]) -> Mutation {
    let mut pairs = vec![("_sync", metadata.to_string())];
    pairs.extend(version.map(|version| ("_vv", version.to_string())));
    // Fails only for a section of some megabytes.
    let value = attributes::encode(pairs, body).unwrap_or_default();
    let datatype = match kind {
        MutationKind::Mutation => Datatype(Datatype::JSON | Datatype::XATTR),
        _ => Datatype(Datatype::XATTR),
    };
    Mutation { kind, datatype, ..Mutation::new(id.to_owned(), value) }
}

/// A number as the metadata have CAS values and versions: its bytes from the lowest on, in
/// hexadecimal.
pub(crate) fn text_of(number: u64) -> String {
    format!("0x{:016x}", number.swap_bytes())
}

/// The checksum of a body as the metadata have it.
pub(crate) fn checksum(body: &[u8], is_deletion: bool) -> String {
    format!("0x{:08x}", if is_deletion { 0 } else { crc32c(body) })
}

/// CRC-32C.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0x82f6_3b78 })
    };
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_a_recorded_gateway() {
        assert_eq!(checksum(br#"{"x":1}"#, false), "0xbda3d084");
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_kept_is_read_back_from_what_is_written() {
        let mut kept = Kept::default();
        let channels = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (sequence, members, deleted) in [
            (1, channels(&["a", "b"]), false),
            (2, channels(&["b"]), false),
            (5, channels(&[]), true),
            (6, channels(&["a"]), false),
        ] {
            kept.write("x", sequence, &[sequence + 100], &members, deleted, false);
            let mutation = kept.mutation("d", 77, b"{}");
            let metadata = attributes::find(&mutation.value, "_sync").ok().flatten();
            assert_eq!(metadata.and_then(Kept::read), Some(kept.clone()));
            let is_own = |cas, body: &[u8]| is_gateways_write(metadata.unwrap_or_default(), cas, body, deleted);
            assert!(is_own(77, b"{ }") && is_own(78, b"{}") && (deleted || !is_own(78, b"{ }")));
        }
        assert_eq!(kept.channels["b"], Standing::Left { sequence: 5, revision: "3-x".to_owned(), deletion: true });
    }
}
