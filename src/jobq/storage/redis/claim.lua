#!lua flags=allow-oom
-- claim: queued, failing -> processing; lapsed leases end as in rescue
-- uses: record, effects, waiting, lapsing
--
-- ARGV[4] worker label, ARGV[5] lease in µs, ARGV[6] limit, ARGV[7] session, ARGV[8] nonce, ARGV[9] random part of tokens, 6 bytes
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
  local due = redis.call('ZRANGE', stem .. 'later', '-inf', string.format('%.0f', wall), 'BYSCORE', 'WITHSCORES',
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
      last = math.max(record[TERM], last + 1)
      make_ready(id, record, last)
    end
  end
  apply()
end

local taken, lapse = {}, string.format('%.0f', steady + lease)

local function take(entry, id)
  push(ready_out, entry)
  local record = load(id)
  if not record or not waiting(record) or record[TERM] > 0 or member(id, record) ~= entry then
    return -- An entry without its job.
  end
  local token = struct.pack('>I8', count()) .. random
  record[STATE], record[ATTEMPTS] = PROCESSING, record[ATTEMPTS] + 1
  record[TOKEN], record[WORKER], record[TERM], record[STARTED] = token, worker, lease, wall
  changed[id] = record
  push(leases_in, lapse, token .. id)
  push(taken, id, token)
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
local answer, left = {}, true
while left and #taken < 2 * limit do
  local entries = redis.call('ZRANGE', stem .. 'ready', 0, limit - #taken / 2)
  left = #entries > limit - #taken / 2
  local ids = {}
  for i = 1, #entries - (left and 1 or 0) do
    ids[i] = string.sub(entries[i], 9)
  end
  fetch(ids)
  local before = #taken
  for i, id in ipairs(ids) do
    pcall(take, entries[i], id) -- A damaged record loses its entry; whoever reads it is told.
  end
  if #taken > before then
    wake_if_earlier(lease)
  end
  local raws = apply()
  for i = before + 1, #taken, 2 do
    push(answer, taken[i], raws[taken[i]])
  end
end
save_count()
if #taken > 0 then
  redis.call('SET', last_key, cmsgpack.pack({nonce, taken}), 'PX', LINGER / 1000)
end
local left_in = left and 0 or next_in()
if left_in == 0 then
  wake = true
  apply()
end
return {left_in or -1, answer, rescued}
