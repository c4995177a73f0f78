//! What runs inside the server. Sent whole each time (a few hundred bytes): the server knows it by its hash, and nothing need be loaded
//! again after a restart or a flush.

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

/// The same for one field of a hash. KEYS: the hash. ARGV: field, version, bytes.
pub(crate) const REPLACE_FIELD: &str = r"
local old = redis.call('HGET', KEYS[1], ARGV[1])
if not old or old:sub(1, 8) ~= ARGV[2] then return 1 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 0";

/// Removes a document of a version. KEYS: it. ARGV: the version.
pub(crate) const REMOVE: &str = r"
if redis.call('GETRANGE', KEYS[1], '0', '7') ~= ARGV[1] then return 1 end
redis.call('DEL', KEYS[1])
return 0";

/// The same for one field of a hash. KEYS: the hash. ARGV: field, version.
pub(crate) const REMOVE_FIELD: &str = r"
local old = redis.call('HGET', KEYS[1], ARGV[1])
if not old or old:sub(1, 8) ~= ARGV[2] then return 1 end
redis.call('HDEL', KEYS[1], ARGV[1])
return 0";

/// Writes a block over a version. KEYS: it. ARGV: the version, and the bytes to write. Answers as [`REPLACE`].
pub(crate) const REPLACE_BLOCK: &str = r"
local old = redis.call('GET', KEYS[1])
if not old or redis.sha1hex(old):sub(1, 16) ~= ARGV[1] then return 1 end
redis.call('SET', KEYS[1], ARGV[2])
return 0";

/// Removes a block of a version. KEYS: it. ARGV: the version.
pub(crate) const REMOVE_BLOCK: &str = r"
local old = redis.call('GET', KEYS[1])
if not old or redis.sha1hex(old):sub(1, 16) ~= ARGV[1] then return 1 end
redis.call('DEL', KEYS[1])
return 0";

/// Tells the numbers of the blocks in which nothing is live. KEYS: the blocks. ARGV: `b` for a byte a state or `p` for four states a byte.
pub(crate) const EMPTY: &str = r"
local live = ARGV[1] == 'b' and '[^%z\3]' or '[^%z\3\12\15\48\51\60\63\192\195\204\207\240\243\252\255]'
local empty = {}
for i, key in ipairs(KEYS) do
  local block = redis.call('GET', key)
  if not block or not block:find(live, 9) then empty[#empty + 1] = i end
end
return empty";
