#!lua flags=allow-oom
-- claim: queued, failing -> processing; lapsed leases end as in rescue
--
-- ARGV[4] worker label, ARGV[5] lease in ms, ARGV[6] limit, ARGV[7] session, ARGV[8] nonce, ARGV[9] random part of tokens, 5 bytes
-- returns  {µs until the next event or -1, {id, record, …}, {{id, generation, state, attempts}, …}, longest of seq}
-- again    "<stem>claims:<session>" keeps the nonce of the last request that took something, and {id, token, …}, for LINGER
-- <stem>wake is pushed again while work is left: one worker wakes the next, so that an add wakes no herd
-- uses: clock

local worker, lease, limit = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local last_key, mark, random = stem .. 'claims:' .. ARGV[7], struct.pack('>Bc0', #ARGV[8], ARGV[8]), ARGV[9]
local rescued = {}

-- µs until a delayed job is due or a lease lapses, whichever is first.
local later = redis.call('ZRANGE', stem .. 'later', 0, 0, 'WITHSCORES')[2]
local lapse = redis.call('ZRANGE', stem .. 'leases', 0, 0, 'WITHSCORES')[2]
local next_event = math.min(later and later * 1000 - wall or math.huge, lapse and lapse * 1000 - steady or math.huge)
local sequence = redis.call('HMGET', stem .. 'seq', 'count', 'longest', 'looked', 'format')
local last = redis.call('GET', last_key)
local resent = last and string.sub(last, 1, #mark) == mark

-- What is rare defines functions only when it is needed, since each of them costs every call.
if next_event <= 0 or resent or sequence[4] ~= '1' or steady < (tonumber(sequence[3]) or 0) then
  -- uses: news, record, effects, waiting, lapsing

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
    local ids, latest = {}, 0
    for i = 1, #due, 2 do
      ids[#ids + 1] = string.sub(due[i], 9)
    end
    for i = 1, 2 * fetch_some(ids), 2 do
      local id = ids[(i + 1) / 2]
      local fine, record = pcall(load, id)
      later_out[#later_out + 1] = due[i]
      if fine and record and waiting(record) and record[TERM] > 0 and member(id, record) == due[i] then
        latest = math.max(record[TERM] * 1000, latest + 1)
        make_ready(id, record, latest)
      end
    end
    apply()
  end

  if resent then
    local ready = redis.call('ZCARD', stem .. 'ready') > 0
    return {ready and 0 or next_in() or -1, still_standing(cmsgpack.unpack(string.sub(last, #mark + 1))), {},
      longest}
  end
  rescued = rescue(limit + 100)
  promote()
  save_count()
  next_event = next_in() or math.huge
  sequence[1] = counter
end

local place, taken, answer, sets, leases = tonumber(sequence[1]) or 0, {}, {}, {}, {}
if not (place < 2 ^ 53) then
  place = 0 -- What is no number that we could have written counts as absent.
end
local longest_sleep = tonumber(sequence[2]) or 0
if not (longest_sleep < 2 ^ 53) then
  longest_sleep = 0
end
local lapses = string.format('%.0f', steady_now + lease)

-- Takes one job. Only the head of its record is read, and the rest of it copied.
local function take(entry, id, key, raw)
  local format, created, from, due, state, _, as, has, priority, attempts, most, ttl, _, finished, _, _, rest =
    struct.unpack(HEAD, raw)
  if format ~= 1 or due > 0 or (state ~= QUEUED and state ~= FAILING) or from ~= struct.unpack('>I8', entry) then
    return -- An entry without its job.
  end
  place = math.max(place + 1, wall)
  local token, n = struct.pack('>I7c5', place, random), #taken
  raw = struct.pack(HEAD, 1, created, from, lease, PROCESSING, 0, as, has, priority, attempts + 1, most, ttl, now,
    finished, 12, token, #worker, worker) .. string.sub(raw, rest)
  sets[n + 1], sets[n + 2] = key, raw
  leases[n + 1], leases[n + 2] = lapses, token .. id
  taken[n + 1], taken[n + 2] = id, token
  answer[n + 1], answer[n + 2] = id, raw
end

local left, size, met = true, 0, 0
-- Some at a time, so that a queue of large payloads neither stops the server for long nor fills the claimer's memory or
-- its line, on which an answer must not take longer than it is waited for; and of entries without their jobs only so
-- many, since somebody may have removed the records of a million.
while left and #taken < 2 * limit and size < MOST_BYTES and met < limit + 2000 do
  local wanted = math.min(limit - #taken / 2, met == 0 and 4 or size < LARGE * met and 32 or 1)
  local entries = redis.call('ZRANGE', stem .. 'ready', 0, wanted)
  left = #entries > wanted
  entries[wanted + 1] = nil
  met = met + #entries
  if #entries > 0 then
    local ids, keys = {}, {}
    for i, entry in ipairs(entries) do
      ids[i] = string.sub(entry, 9)
      keys[i] = stem .. 'j:' .. ids[i]
    end
    local looked_at = 0
    for i, raw in ipairs(redis.call('MGET', unpack(keys))) do
      if size < MOST_BYTES then
        size, looked_at = size + #(raw or ''), i
        pcall(take, entries[i], ids[i], keys[i], raw) -- A damaged record loses its entry; whoever reads it is told.
      end
    end
    left = left or looked_at < #entries
    redis.call('ZREM', stem .. 'ready', unpack(entries, 1, looked_at))
  end
end
local wake = left
if #taken > 0 then
  wake = wake or lease < longest_sleep and lease * 1000 < next_event
  next_event = math.min(next_event, lease * 1000)
  redis.call('MSET', unpack(sets))
  redis.call('ZADD', stem .. 'leases', unpack(leases))
  redis.call('HSET', stem .. 'seq', 'count', string.format('%.0f', place), 'looked', string.format('%.0f', steady),
    'format', '1')
  redis.call('SET', last_key, mark .. cmsgpack.pack(taken), 'PX', LINGER / 1000)
end
if wake and redis.call('EXISTS', stem .. 'wake') == 0 then
  redis.call('LPUSH', stem .. 'wake', 1)
end
return {left and 0 or next_event < math.huge and math.max(0, next_event) or -1, answer, rescued,
  longest_sleep}
