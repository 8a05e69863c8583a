-- The head of every script: reads the entry at KEYS[1], changes it, writes it back. cache/entry.rs
-- defines the operations; tests compare the two. Times are in ms of Redis's own clock. A script
-- writes at most once, with its last command, so a script that fails has changed nothing. An entry
-- that cannot be read makes the script fail.
local key = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- The revision of a packed value, after tag, version and checksum. Below 2^53, so a double holds
-- it.
local function revision(packed)
  return (struct.unpack('<I8', packed, 7))
end

-- {floor, value, ends (of the value), lease, lease_ends, permits: id -> end}, or nil if there is no
-- entry. A clean entry has no `ends`: it ends with its key.
local function read()
  local packed = redis.call('GET', key)
  if not packed then return nil end
  local tag = string.sub(packed, 1, 2)
  if tag == 'V\1' or tag == 'A\1' then
    return {floor = revision(packed), value = packed, permits = {}}
  end
  if tag ~= 'P\1' then error('unreadable entry') end
  local e = cmsgpack.unpack(string.sub(packed, 3))
  if type(e) ~= 'table' or type(e.floor) ~= 'number' or type(e.permits) ~= 'table' then error('unreadable entry') end
  if e.value and e.ends <= now then e.value, e.ends = nil, nil end
  if not e.value and not e.lease and not next(e.permits) then return nil end
  return e
end

-- Writes an entry back. Without a permit it is clean if it has a value, and removed if it has no
-- lease either. A pending one lives for `life` ms; nil keeps its end.
local function write(e, life)
  if next(e.permits) or (e.lease and not e.value) then
    local packed = 'P\1' .. cmsgpack.pack(e)
    if life then
      redis.call('SET', key, packed, 'PX', life)
    else
      redis.call('SET', key, packed, 'KEEPTTL')
    end
  elseif e.value then
    redis.call('SET', key, e.value, 'PX', e.ends - now)
  else
    redis.call('DEL', key)
  end
end

local function install(e, packed, ttl)
  e.floor, e.value, e.ends = revision(packed), packed, now + ttl
  return 'INSTALLED'
end

-- Raises the floor, and drops a value that is now below it.
local function raise(e, rev)
  if rev <= e.floor then return 'KEPT' end
  e.floor = rev
  if not e.value then return 'KEPT' end
  e.value, e.ends = nil, nil
  return 'DROPPED'
end

