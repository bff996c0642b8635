#!lua flags=allow-oom
-- claim: queued, failing -> processing; lapsed leases end as in rescue
-- uses: record, effects, waiting, lapsing
--
-- ARGV[4] worker label, ARGV[5] lease in ms, ARGV[6] limit, ARGV[7] session, ARGV[8] nonce, ARGV[9] random part of tokens, 5 bytes
-- returns  {µs until the next event or -1, {id, record, …}, {{id, generation, state, attempts}, …}}
-- again    "<stem>claims:<session>" keeps the last request that took something, with what it took, for LINGER
-- <stem>wake is pushed again while work is left: one worker wakes the next, so that an add wakes no herd

local worker, lease, limit = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local last_key, nonce, random = stem .. 'claims:' .. ARGV[7], ARGV[8], ARGV[9]

local function still_standing(claims)
  local standing, ids = {}, {}
  for i = 1, #claims, 2 do
    ids[#ids + 1] = claims[i]
  end
  fetch(ids)
  for i = 1, #claims, 2 do
    local fine, record = pcall(load, claims[i])
    if fine and record and record[TOKEN] == claims[i + 1] then
      push(standing, claims[i], found[claims[i]])
    end
  end
  return standing
end

local function promote()
  local due = redis.call('ZRANGE', stem .. 'later', '-inf', string.format('%.0f', now), 'BYSCORE', 'WITHSCORES',
    'LIMIT', 0, limit + 100)
  if #due == 0 then
    return
  end
  local ids, last = {}, 0
  for i = 1, #due, 2 do
    ids[#ids + 1] = string.sub(due[i], 9)
  end
  fetch(ids)
  for i = 1, #due, 2 do
    local id = ids[(i + 1) / 2]
    local fine, record = pcall(load, id)
    later_out[#later_out + 1] = due[i]
    if fine and record and waiting(record) and record[TERM] > 0 and member(id, record) == due[i] then
      last = math.max(record[TERM] * 1000, last + 1)
      make_ready(id, record, last)
    end
  end
  apply()
end

local taken, answer, sets, leases, lapse = {}, {}, {}, {}, string.format('%.0f', steady_now + lease)

-- Takes one job. Every job comes this way, so only the head of the record is read, and the rest of it copied.
local function take(entry, id, raw)
  local format, created, place, due, state, _, as, has, priority, attempts, most, ttl, _, finished, _, _, rest =
    struct.unpack(HEAD, raw)
  if format ~= 1 or due > 0 or (state ~= QUEUED and state ~= FAILING) or struct.pack('>I8', place) .. id ~= entry then
    return -- An entry without its job.
  end
  local token = struct.pack('>I7', count()) .. random
  raw = struct.pack(HEAD, 1, created, place, lease, PROCESSING, 0, as, has, priority, attempts + 1, most, ttl, now,
    finished, 12, token, #worker, worker) .. string.sub(raw, rest)
  push(sets, stem .. 'j:' .. id, raw)
  push(leases, lapse, token .. id)
  push(taken, id, token)
  push(answer, id, raw)
end

local last = redis.call('GET', last_key)
if last then
  local request = cmsgpack.unpack(last)
  if request[1] == nonce then
    local ready = redis.call('ZCARD', stem .. 'ready') > 0
    return {ready and 0 or next_in() or -1, still_standing(request[2]), {}}
  end
end

local rescued = rescue(limit + 100)
promote()
local left, size = true, 0
-- Some at a time, so that a queue of large payloads neither stops the server for long nor fills the claimer's memory.
while left and #taken < 2 * limit and size < CLAIM_BYTES do
  local wanted = math.min(limit - #taken / 2, 32)
  local entries = redis.call('ZRANGE', stem .. 'ready', 0, wanted)
  left = #entries > wanted
  entries[wanted + 1] = nil
  local keys = {}
  for i, entry in ipairs(entries) do
    keys[i] = stem .. 'j:' .. string.sub(entry, 9)
  end
  local raws = #keys > 0 and redis.call('MGET', unpack(keys)) or {}
  for i, entry in ipairs(entries) do
    size = size + #(raws[i] or '')
    pcall(take, entry, string.sub(entry, 9), raws[i]) -- A damaged record loses its entry; whoever reads it is told.
  end
  write('ZREM', 'ready', entries)
end
if #taken > 0 then
  wake_if_earlier(lease)
  redis.call('MSET', unpack(sets))
  write('ZADD', 'leases', leases)
end
save_count()
if #taken > 0 then
  redis.call('SET', last_key, cmsgpack.pack({nonce, taken}), 'PX', LINGER / 1000)
end
local left_in = left and 0 or next_in()
wake = wake or left_in == 0
apply()
return {left_in or -1, answer, rescued}
