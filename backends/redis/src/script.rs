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

/// ORs bits into blocks. KEYS: the blocks. ARGV: `b` for a byte a state or `p` for four states a byte; the length of a block; the version to
/// give; then per key its spans, which are read and written at once: offset, length and number of runs of each; and per run offset within the
/// span, length, and that many bytes to OR in. All numbers are four bytes, lowest first.
///
/// Answers a list: the numbers of the keys in which nothing is live afterwards; or only the negative number of the first key that cannot be a block,
/// and then has written nothing.
///
/// Numbers go to commands as text: the server would print them as floats, which takes longer than the command.
pub(crate) const MERGE: &str = r"
local bytes, limit, version = ARGV[1] == 'b', tonumber(ARGV[2]), ARGV[3]
local live = bytes and '[^%z\3]' or '[^%z\3\12\15\48\51\60\63\192\195\204\207\240\243\252\255]'
local bor, pack, unpack, text = bit.bor, struct.pack, struct.unpack, string.format
local words = '<I4I4I4I4I4I4I4I4'
local function either(old, new)
  if old == new or not old:find('[^%z]') then return new end
  local out, at, size = {}, 1, #new
  while size - at >= 31 do
    local a, b, c, d, e, f, g, h = unpack(words, old, at)
    local i, j, k, l, m, n, o, p = unpack(words, new, at)
    out[#out + 1] = pack(words, bor(a, i), bor(b, j), bor(c, k), bor(d, l), bor(e, m), bor(f, n), bor(g, o), bor(h, p))
    at = at + 32
  end
  while at <= size do
    out[#out + 1] = string.char(bor(old:byte(at), new:byte(at)))
    at = at + 1
  end
  return table.concat(out)
end
local sizes, empty = {}, {}
for i = 1, #KEYS do
  local size = redis.pcall('STRLEN', KEYS[i])
  if type(size) ~= 'number' then return {-i} end
  if size ~= 0 and (size < 8 or size > 8 + limit or bytes and size ~= 8 + limit) then return {-i} end
  sizes[i] = size
end
for i = 1, #KEYS do
  local key, spans, at, changed, alive = KEYS[i], ARGV[3 + i], 1, false, false
  if sizes[i] == 0 then
    if bytes then redis.call('SETRANGE', key, text('%d', 7 + limit), '\0') end
    changed = true
  end
  while at <= #spans do
    local offset, length, runs
    offset, length, runs, at = unpack('<I4I4I4', spans, at)
    local start = text('%d', 8 + offset)
    local old = redis.call('GETRANGE', key, start, text('%d', 7 + offset + length))
    if #old < length then old = old .. string.rep('\0', length - #old) end
    local parts, done = {}, 0
    for _ = 1, runs do
      local from, size
      from, size, at = unpack('<I4I4', spans, at)
      local run = either(old:sub(from + 1, from + size), spans:sub(at, at + size - 1))
      at = at + size
      if from > done then parts[#parts + 1] = old:sub(done + 1, from) end
      parts[#parts + 1] = run
      done = from + size
      alive = alive or run:find(live)
    end
    local new = table.concat(parts)
    if new ~= old then
      redis.call('SETRANGE', key, start, new)
      changed = true
    end
  end
  if changed then redis.call('SETRANGE', key, '0', version) end
  if not alive and not redis.call('GET', key):find(live, 9) then empty[#empty + 1] = i end
end
return empty";
