//! Whether the gateway wrote a document whose CAS is not the one in its metadata.
//!
//! A touch, or an attribute of another program, changes the CAS and leaves the document as the
//! gateway wrote it. Gateways since 2.1 recognize that, and never import such a document, so no
//! later event shows its revision. Only documents with a changed CAS come here.

use std::borrow::Cow;

use super::attributes;
use super::json::{Result, Scanner};

/// The attribute in which gateways since 4.0 and servers keep a document's version.
const VERSION: &[u8] = b"_vv";

/// The first byte of all attributes of the server and of the gateway. The attribute that users
/// configure does not begin with it.
const SYSTEM: u8 = b'_';

/// The checksums and the version in the gateway's metadata. Absent fields are empty.
#[derive(Debug, Default)]
struct Written<'a> {
    body: Cow<'a, [u8]>,
    user_attribute: Cow<'a, [u8]>,
    version: Version<'a>,
}

/// The version of a document: its source and its number.
#[derive(Debug, Default)]
struct Version<'a> {
    source: Cow<'a, [u8]>,
    number: Cow<'a, [u8]>,
}

impl Version<'_> {
    fn is_empty(&self) -> bool {
        self.source.is_empty() && self.number.is_empty()
    }

    /// The case of the number's digits does not matter.
    fn is(&self, other: &Version<'_>) -> bool {
        self.source == other.source && self.number.eq_ignore_ascii_case(&other.number)
    }
}

impl<'a> Written<'a> {
    fn read(metadata: &'a [u8]) -> Result<Self> {
        let mut written = Written::default();
        let w = &mut written;
        Scanner::new(metadata).object(|s, key| {
            match key {
                b"value_crc32c" => w.body = s.bytes()?,
                b"user_xattr_value_crc32c" => w.user_attribute = s.bytes()?,
                b"rev" if s.peek()? == b'{' => w.version = version(s)?,
                _ => s.skip()?,
            }
            Ok(())
        })?;
        Ok(written)
    }
}

fn version<'a>(scanner: &mut Scanner<'a>) -> Result<Version<'a>> {
    let mut version = Version::default();
    scanner.object(|s, key| {
        match key {
            b"src" => version.source = s.bytes()?,
            b"ver" => version.number = s.bytes()?,
            _ => s.skip()?,
        }
        Ok(())
    })?;
    Ok(version)
}

/// Whether the document is as the gateway wrote it, and only its CAS has changed: the checksums of
/// its body and of the user attribute, and its version, are those in `metadata`.
///
/// `section` has all attributes. The metadata do not name the user attribute: it is unchanged if
/// some attribute has its checksum. If the metadata have no such checksum, there was no user
/// attribute. The version counts only if both the metadata and the document have one.
pub(super) fn is_unchanged(metadata: &[u8], section: attributes::Attributes<'_>, body: &[u8]) -> bool {
    let Ok(written) = Written::read(metadata) else { return false };
    if !is_checksum(&written.body, body) {
        return false;
    }
    let mut has_user_attribute = written.user_attribute.is_empty();
    for pair in section {
        let Ok((name, value)) = pair else { return false };
        if name == VERSION {
            // A version that cannot be read is ignored, as in the gateway.
            let current = version(&mut Scanner::new(value)).unwrap_or_default();
            if !written.version.is_empty() && !current.is_empty() && !current.is(&written.version) {
                return false;
            }
        }
        has_user_attribute |= name.first() != Some(&SYSTEM) && is_checksum(&written.user_attribute, value);
    }
    has_user_attribute
}

/// Whether `text` is the checksum of `bytes` as the gateway writes it: CRC-32C, as `0x` and eight
/// digits. The checksum of no bytes is zero.
fn is_checksum(text: &[u8], bytes: &[u8]) -> bool {
    let digits = text.strip_prefix(b"0x").filter(|digits| digits.len() == 8 && digits.iter().all(u8::is_ascii_hexdigit));
    let number =
        digits.and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    number.is_some_and(|number| number == crc32c::crc32c(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"x":1}"#;
    const SUM: &str = r#""value_crc32c":"0xbda3d084""#;

    fn is(metadata: &str, others: &[(&str, &str)], body: &[u8]) -> bool {
        let pairs = others.iter().copied().chain([("_sync", metadata)]);
        let value = attributes::encode(pairs, body).unwrap();
        is_unchanged(metadata.as_bytes(), attributes::iter(&value).unwrap(), body)
    }

    #[test]
    fn the_body_is_known_by_its_checksum() {
        assert!(is(&format!("{{{SUM}}}"), &[], BODY));
        assert!(is(r#"{"value_crc32c":"0xBDA3D084"}"#, &[("_eventing", "{}"), ("txn", "{}")], BODY));
        assert!(!is(&format!("{{{SUM}}}"), &[], br#"{"x":2}"#));
        assert!(!is(&format!("{{{SUM}}}"), &[], b""));
        assert!(is(r#"{"value_crc32c":"0x00000000"}"#, &[], b""));
        assert!(!is(r#"{"value_crc32c":"0x00000000"}"#, &[], BODY));
        for broken in
            ["{}", r#"{"value_crc32c":""}"#, r#"{"value_crc32c":"bda3d084"}"#, r#"{"value_crc32c":"0x+da3d084"}"#, "{", "[]"]
        {
            assert!(!is(broken, &[], BODY), "{broken}");
        }
    }

    #[test]
    fn the_user_attribute_must_be_unchanged() {
        // The checksum of `"abc"`, quotes included.
        let sum = format!("0x{:08x}", crc32c::crc32c(br#""abc""#));
        let metadata = format!(r#"{{{SUM},"user_xattr_value_crc32c":"{sum}"}}"#);
        assert!(is(&metadata, &[("channel", r#""abc""#)], BODY));
        assert!(is(&metadata, &[("other", "1"), ("channel", r#""abc""#)], BODY));
        assert!(!is(&metadata, &[("channel", r#""abd""#)], BODY));
        assert!(!is(&metadata, &[("_channel", r#""abc""#)], BODY));
        assert!(!is(&metadata, &[], BODY));
    }

    #[test]
    fn the_version_must_be_the_same_where_both_have_one() {
        let metadata = format!(r#"{{{SUM},"rev":{{"rev":"1-a","src":"s","ver":"0x00002a48de36ea18"}}}}"#);
        let is = |metadata: &str, vv: &str| is(metadata, &[("_vv", vv)], BODY);
        assert!(is(&metadata, r#"{"cvCas":"0x01","src":"s","ver":"0x00002A48de36ea18","pv":["x"]}"#));
        assert!(!is(&metadata, r#"{"src":"s","ver":"0x00002a48de36ea19"}"#));
        assert!(!is(&metadata, r#"{"src":"t","ver":"0x00002a48de36ea18"}"#));
        assert!(is(&metadata, "{}"));
        assert!(is(&metadata, "broken"));
        assert!(is(&format!(r#"{{{SUM},"rev":"1-a"}}"#), r#"{"src":"s","ver":"0x00002a48de36ea18"}"#));
    }
}
