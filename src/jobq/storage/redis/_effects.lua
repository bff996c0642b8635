-- Effects: a verb first looks and decides, job by job, and `apply` then writes everything. So a job whose record cannot be
-- read changes nothing, and what the verb touches is written once.

local changed = {}
local ready_in, ready_out, later_in, later_out, leases_in, leases_out = {}, {}, {}, {}, {}, {}
local wake = false

local function push(list, one, two)
  local last = #list
  list[last + 1] = one
  list[last + 2] = two
end

local function member(id, record)
  return struct.pack('>I8', record[PLACE]) .. id
end

-- The ms at which a duration that begins now is over: not before it, and at once if it is none.
local function expiry(ttl)
  return ttl > 0 and math.ceil(wall / 1000) + ttl or now
end

-- Ends a job; its record expires after `ttl` ms, and lingers a little longer.
local function finish(id, record, state, outcome, ttl)
  record[STATE], record[TERM], record[FINISHED] = state, expiry(ttl), now
  record[HAS_OUTCOME], record[OUTCOME] = outcome and 1 or 0, outcome or ''
  record[CANCEL_ASKED] = 0
  if state ~= FAILED then
    record[PAYLOAD] = ''
  end
  if record[REPLIES] ~= '' then
    local kind = state == CANCELLED and CANCELLED_HINT or SETTLED_HINT
    push(news, {record[REPLIES], kind, id, record[GENERATION], #record[OUTCOME]})
    record[REPLIES] = ''
  end
  changed[id] = record
end

local function release(id, record)
  push(leases_out, record[TOKEN] .. id)
  record[TOKEN] = ''
end

-- Tells every watch of the queue.
local function announce(kind, id, record)
  redis.call(publish, KEYS[2], cmsgpack.pack({kind, id, record[GENERATION], record[ATTEMPTS]}))
end

-- Makes one command of a list, and returns an empty one.
local function write(command, key, list)
  if #list == 0 then
    return list
  end
  redis.call(command, stem .. key, unpack(list))
  return {}
end

-- Writes what was decided; returns the records as they are stored now. First comes the marker, then new entries, then old
-- ones go: if one of their keys is of another type, or a permission is missing, it refuses before a record is written, and
-- no job has lost the entry by which it is found.
local function apply()
  if wake and redis.call('EXISTS', stem .. 'wake') == 0 then
    redis.call('LPUSH', stem .. 'wake', 1)
  end
  ready_in = write('ZADD', 'ready', ready_in)
  later_in = write('ZADD', 'later', later_in)
  leases_in = write('ZADD', 'leases', leases_in)
  ready_out = write('ZREM', 'ready', ready_out)
  later_out = write('ZREM', 'later', later_out)
  leases_out = write('ZREM', 'leases', leases_out)
  local raws, lasting = {}, {}
  for id, record in pairs(changed) do
    local raw, key = encode(record), stem .. 'j:' .. id
    raws[id] = raw
    if ended(record) then
      local left = record[TERM] + LINGER / 1000 - now
      redis.call('SET', key, raw, 'PX', left > 0 and string.format('%.0f', left) or 1)
    else
      push(lasting, key, raw)
    end
  end
  if #lasting > 0 then
    redis.call('MSET', unpack(lasting))
  end
  if #news > 0 then
    tell(raws)
    news = {}
  end
  changed, wake = {}, false
  return raws
end
