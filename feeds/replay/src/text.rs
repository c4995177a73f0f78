//! What the gateway's metadata is written with: lists, compare-and-swap values and times, these from a simulated clock.

use std::io::Write as _;

/// Where simulated time starts: 2026-01-01T00:00:00Z, in nanoseconds since 1970.
const EPOCH: u64 = 1_767_225_600_000_000_000;

/// The `n`th compare-and-swap value: a hybrid logical clock, whose lowest 16 bits count within a moment.
pub(crate) fn cas(n: u64) -> u64 {
    ((EPOCH >> 16) + n) << 16
}

/// Appends `cas` as the metadata has it: hexadecimal, lowest byte first.
pub(crate) fn put_cas(out: &mut Vec<u8>, cas: u64) {
    out.extend_from_slice(b"0x");
    for byte in cas.to_le_bytes() {
        for digit in [byte >> 4, byte & 15] {
            out.push(b"0123456789abcdef"[usize::from(digit)]);
        }
    }
}

/// Appends the time of `cas` as the metadata has it: RFC 3339, nanoseconds without trailing zeros.
pub(crate) fn put_time(out: &mut Vec<u8>, cas: u64) {
    let (seconds, mut nanos) = (cas / 1_000_000_000, cas % 1_000_000_000);
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    // Writing into memory cannot fail.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if nanos > 0 {
        let mut width = 9;
        while nanos % 10 == 0 {
            (nanos, width) = (nanos / 10, width - 1);
        }
        let _ = write!(out, ".{nanos:0width$}");
    }
    out.push(b'Z');
}

/// Appends items with commas between them.
pub(crate) fn put_list<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    put: impl Fn(&mut Vec<u8>, T) -> std::io::Result<()>,
) {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        // Writing into memory cannot fail.
        let _ = put(out, item);
    }
}

/// Appends the checksum of `body` as the metadata has it: CRC-32C, hexadecimal.
pub(crate) fn put_checksum(out: &mut Vec<u8>, checksum: u32) {
    // Writing into memory cannot fail.
    let _ = write!(out, "0x{checksum:08x}");
}

/// CRC-32C of `bytes`, a byte at a time.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut crc, mut bit) = (byte as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0x82f6_3b78 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc: u32, byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// Year, month and day of a day since 1970 (Hinnant's algorithm: years begin in March, so that the leap day is the last).
fn civil(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, date)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(put: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        put(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn times_and_values_are_written_as_the_gateway_writes_them() {
        // From a recording: the value, how its metadata has it, and a moment before it.
        assert_eq!(text(|out| put_cas(out, 1_795_307_729_942_020_096)), "0x0000b551de36ea18");
        assert_eq!(text(|out| put_time(out, 1_795_307_729_941_902_216)), "2026-11-22T00:35:29.941902216Z");
        assert_eq!(text(|out| put_time(out, 1_795_307_729_900_000_000)), "2026-11-22T00:35:29.9Z");
        assert_eq!(text(|out| put_time(out, 1_795_307_729_000_000_010)), "2026-11-22T00:35:29.00000001Z");
        assert_eq!(text(|out| put_time(out, 0)), "1970-01-01T00:00:00Z");
        assert_eq!(text(|out| put_time(out, 951_782_400_000_000_000)), "2000-02-29T00:00:00Z");
        assert_eq!(text(|out| put_time(out, 4_107_542_400_000_000_000)), "2100-03-01T00:00:00Z");
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(br#"{"channels":["ch000"],"n":5,"v":"islet ember"}"#), 0xa199_80db);
        assert!(cas(1) > cas(0));
        assert_eq!(cas(9) & 0xffff, 0);
    }
}
