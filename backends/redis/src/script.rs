//! What runs inside the server. Sent whole each time (a few hundred bytes): so nothing need be
//! loaded again after a restart or a flush. One that is sent very often is sent by its hash, and
//! whole where the server does not know it.

use std::sync::OnceLock;

use redis::{Cmd, cmd};
use sha1::{Digest as _, Sha1};

/// How a script is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// By its hash. The server runs it if it has run it since it was started.
    Hash,
    /// By its text. The server then knows the hash.
    Whole,
}

/// A script that is sent by its hash.
pub(crate) struct Hashed {
    text: &'static str,
    hash: OnceLock<String>,
}

impl Hashed {
    const fn new(text: &'static str) -> Self {
        Hashed { text, hash: OnceLock::new() }
    }

    /// What runs it, without its arguments.
    pub(crate) fn command(&self, sent: Sent, keys: &[&str]) -> Cmd {
        let mut command = match sent {
            Sent::Hash => cmd("EVALSHA").arg(self.hash.get_or_init(|| hexadecimal(&Sha1::digest(self.text)))).take(),
            Sent::Whole => cmd("EVAL").arg(self.text).take(),
        };
        command.arg(keys.len()).arg(keys).take()
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a document over a version. KEYS: it. ARGV: the eight bytes of the version, and the bytes to write. Answers 0, or 1 if it holds something else.
pub(crate) const REPLACE: &str = r"
if redis.call('GETRANGE', KEYS[1], '0', '7') ~= ARGV[1] then return 1 end
redis.call('SET', KEYS[1], ARGV[2])
return 0";

/// Writes several documents, all or none, and tells readers. KEYS: the documents, and the list of proofs. ARGV: per document what must be there (`""` for
/// nothing, else a version), and the bytes to write; the command that tells readers, and its channel; then the proofs that must be in the list.
///
/// Answers 0; or the number of the first document that holds something else; or -1 if a proof is missing.
pub(crate) const PUBLISH: &str = r"
local count = #KEYS - 1
for i = 1, count do
  if redis.call('GETRANGE', KEYS[i], '0', '7') ~= ARGV[2 * i - 1] then return i end
end
for i = 2 * count + 3, #ARGV do
  if not redis.call('LPOS', KEYS[#KEYS], ARGV[i]) then return -1 end
end
for i = 1, count do redis.call('SET', KEYS[i], ARGV[2 * i]) end
redis.call(ARGV[2 * count + 1], ARGV[2 * count + 2], '')
return 0";

/// Removes a document of a version. KEYS: it. ARGV: the version.
pub(crate) const REMOVE: &str = r"
if redis.call('GETRANGE', KEYS[1], '0', '7') ~= ARGV[1] then return 1 end
redis.call('DEL', KEYS[1])
return 0";

/// Writes a block over a version. KEYS: it. ARGV: the version, and the bytes to write. Answers as
/// [`REPLACE`].
pub(crate) static REPLACE_BLOCK: Hashed = Hashed::new(
    r"
local old = redis.call('GET', KEYS[1])
if not old or redis.sha1hex(old):sub(1, 16) ~= ARGV[1] then return 1 end
redis.call('SET', KEYS[1], ARGV[2])
return 0",
);

/// Writes a block over a version. KEYS: it. ARGV: the version, and the pieces of which the new
/// block consists, as [`patch`](crate::patch::patch) makes them. Answers as [`REPLACE`].
pub(crate) static PATCH_BLOCK: Hashed = Hashed::new(
    r"
local old, patch = redis.call('GET', KEYS[1]), ARGV[2]
if not old or redis.sha1hex(old):sub(1, 16) ~= ARGV[1] then return 1 end
local pieces, at = {}, 1
while at <= #patch do
  local from, alike, literal = struct.unpack('>I4I4I4', patch, at)
  pieces[#pieces + 1] = old:sub(from + 1, from + alike)
  pieces[#pieces + 1] = patch:sub(at + 12, at + 11 + literal)
  at = at + 12 + literal
end
redis.call('SET', KEYS[1], table.concat(pieces))
return 0",
);

/// Removes a block of a version. KEYS: it. ARGV: the version.
pub(crate) const REMOVE_BLOCK: &str = r"
local old = redis.call('GET', KEYS[1])
if not old or redis.sha1hex(old):sub(1, 16) ~= ARGV[1] then return 1 end
redis.call('DEL', KEYS[1])
return 0";

/// Writes a page anew, of records that count. KEYS: the page. ARGV: a place, or none to change nothing else; the version that must be there, `""` for
/// no document there, or `*` for whatever is there; its new record, or `""` for none.
///
/// Answers the new length; or -1 if there is another version; or -2 if some of the page cannot be read, which only a removal of whatever is there
/// removes, as it does a value of another type.
pub(crate) const PAGE: &str = r"
local place, expected, record = tonumber(ARGV[1]), ARGV[2], ARGV[3] or ''
local page = redis.pcall('GET', KEYS[1]) or ''
if type(page) == 'table' then
  if expected ~= '*' then return page end
  redis.call('DEL', KEYS[1])
  return 0
end
local kept, seen, version, at = {}, {}, '', 1
while at + 12 <= #page do
  local where, length = struct.unpack('>BI4', page, at)
  local last = at + 4 + length
  if where > 7 or length < 8 or last > #page then break end
  if not seen[where] then
    seen[where] = true
    if where == place then version = page:sub(at + 5, at + 12) else kept[#kept + 1] = page:sub(at, last) end
  end
  at = last + 1
end
if at <= #page and expected ~= '*' then return -2 end
if place and expected ~= '*' and version ~= expected then return -1 end
kept[#kept + 1] = record
local new = table.concat(kept)
if new == '' then redis.call('DEL', KEYS[1]) elseif new ~= page then redis.call('SET', KEYS[1], new) end
return #new";

/// ORs bytes into a block. KEYS: the block, and one that is not there. ARGV: the length that the block is to have, at least; where the bytes go, and
/// they; then what to ask the block's bits afterwards. Answers as `BITFIELD`.
pub(crate) const OR: &str = r"
local block, mask = KEYS[1], KEYS[2]
redis.call('SETRANGE', mask, ARGV[1] - 1, '\0')
redis.call('SETRANGE', mask, ARGV[2], ARGV[3])
local done = redis.pcall('BITOP', 'OR', block, block, mask)
redis.call('DEL', mask)
if type(done) == 'table' and done.err then return done end
return redis.call('BITFIELD', block, unpack(ARGV, 4))";
