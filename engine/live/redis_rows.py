"""How Redis holds the rows of a person, and the scripts that take events there, each at once, and tell of people."""

from __future__ import annotations

import hashlib
from struct import Struct
from typing import Final, NamedTuple

from engine.live.today import DIGEST, HEAD, IMPRESSION

Row = tuple[bytes, bytes, bytes]  # digest, fixed part, texts
_ORDER = 8  # bytes of the order of arrival, before the fixed part
_FIXED = _ORDER + HEAD.itemsize
_RECEIVED = slice(_ORDER + 8, _ORDER + 16)
_SIZES_AT = _FIXED - 5
_sizes = Struct("<HBH").unpack_from

# KEYS: this writer's count, the order of arrival, nobody's digests now and before, then people.
# ARGV: the oldest `received` that counts, rows a person, milliseconds that the hours take, half of what is remembered of
# nobody, and of each event the place of its person among the people (0: nobody), digest, row.
# The field '' of a person is the oldest `received` of their rows.
_TAKE = """
local since, most, lasts, half = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local impression, few = IMPRESSION, 4
local count = (#ARGV - 4) / 3
local writes = redis.call('INCR', KEYS[1])
redis.call('PEXPIRE', KEYS[1], lasts)
local order = 0
if count > 0 then
  order = redis.call('INCRBY', KEYS[2], count) - count
  redis.call('PEXPIRE', KEYS[2], lasts)
end

local function before(a, b)
  if a[2] ~= b[2] then return a[2] end
  for by = 3, 5 do
    if a[by] ~= b[by] then return a[by] < b[by] end
  end
  return false
end

local function fit(key)
  local all, rows, gone, oldest = redis.call('HGETALL', key), {}, {}, nil
  for at = 1, #all, 2 do
    if all[at] ~= '' then
      local came, ts, received, _, event = struct.unpack('>I8<i8i8dB', all[at + 1])
      if received < since then
        gone[#gone + 1] = all[at]
      else
        rows[#rows + 1] = {all[at], event == impression, ts, received, came}
      end
    end
  end
  local excess = #rows - most
  if excess > few then
    table.sort(rows, before)
    for at = excess, 1, -1 do gone[#gone + 1] = table.remove(rows, at)[1] end
  else
    for _ = 1, excess do
      local first = 1
      for at = 2, #rows do
        if before(rows[at], rows[first]) then first = at end
      end
      gone[#gone + 1] = table.remove(rows, first)[1]
    end
  end
  for at = 1, #rows do
    if oldest == nil or rows[at][4] < oldest then oldest = rows[at][4] end
  end
  for at = 1, #gone, 500 do redis.call('HDEL', key, unpack(gone, at, math.min(at + 499, #gone))) end
  if oldest == nil then redis.call('DEL', key) else redis.call('HSET', key, '', string.format('%.0f', oldest)) end
end

local told, touched = {}, {}
for at = 1, count do
  local person, digest, row = tonumber(ARGV[2 + 3 * at]), ARGV[3 + 3 * at], ARGV[4 + 3 * at]
  if person == 0 then
    if redis.call('SISMEMBER', KEYS[3], digest) + redis.call('SISMEMBER', KEYS[4], digest) > 0 then
      told[at] = '0'
    else
      told[at] = '1'
      redis.call('SADD', KEYS[3], digest)
      redis.call('PEXPIRE', KEYS[3], lasts)
      if redis.call('SCARD', KEYS[3]) >= half then
        redis.call('UNLINK', KEYS[4]) -- freed beside, not here
        redis.call('RENAME', KEYS[3], KEYS[4])
      end
    end
  else
    local key = KEYS[4 + person]
    local _, received = struct.unpack('<i8i8', row)
    local held = redis.call('HGET', key, digest)
    if held and select(3, struct.unpack('>I8<i8i8', held)) >= since then
      told[at] = '0'
    elseif received < since then
      told[at] = '1'
    else
      told[at] = '1'
      local seen = touched[key]
      if seen == nil then
        local oldest = redis.call('HGET', key, '')
        seen = {oldest = oldest and tonumber(oldest) or received, latest = received}
        touched[key] = seen
      end
      redis.call('HSET', key, digest, struct.pack('>I8', order + at) .. row)
      seen.oldest, seen.latest = math.min(seen.oldest, received), math.max(seen.latest, received)
    end
  end
end
for key, seen in pairs(touched) do
  redis.call('HSET', key, '', string.format('%.0f', seen.oldest))
  if seen.oldest < since or redis.call('HLEN', key) > most + 1 then fit(key) end
  local wanted = math.floor((seen.latest - since) / 1000) + 1
  if redis.call('PTTL', key) < wanted then redis.call('PEXPIRE', key, string.format('%.0f', wanted)) end
end
return {writes, table.concat(told)}
"""
# KEYS: this writer's count, then people. Told: the count, and of each person digest, length and row, one after another.
_TELL = """
local told = {tonumber(redis.call('GET', KEYS[1]) or 0)}
for at = 2, #KEYS do
  local all, rows = redis.call('HGETALL', KEYS[at]), {}
  for field = 1, #all, 2 do
    local row = all[field + 1]
    if #all[field] == 8 and #row < 65536 then rows[#rows + 1] = all[field] .. struct.pack('<I2', #row) .. row end
  end
  told[at] = table.concat(rows)
end
return told
"""


class Script(NamedTuple):
    """A script, and how Redis names it once it has it."""

    text: str
    name: str

    @classmethod
    def of(cls, text: str) -> Script:
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


TAKE: Final = Script.of(_TAKE.replace("IMPRESSION", str(IMPRESSION)))
TELL: Final = Script.of(_TELL)


def rows_of(told: bytes) -> dict[bytes, Row]:
    """A person's rows in the order in which they came, by digest; what is not a row is passed over."""
    held, at = [], 0
    while at < len(told):
        start = at + DIGEST + 2
        end = start + told[start - 2] + 256 * told[start - 1]
        if end - start >= _FIXED:
            held.append((told[start:end], told[at : at + DIGEST]))
        at = end
    held.sort()
    return {
        digest: (digest, row[_ORDER:_FIXED], row[_FIXED:])
        for row, digest in held
        if sum(_sizes(row, _SIZES_AT)) == len(row) - _FIXED
    }


def still_counts(row: bytes | None, since: int) -> bool:
    return row is not None and len(row) >= _FIXED and int.from_bytes(row[_RECEIVED], "little", signed=True) >= since
