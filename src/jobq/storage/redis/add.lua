#!lua
-- add: absent -> queued
--
-- ARGV[4…] six for each job: id, nonce, delay in ms, -priority, reply address or '', the record from STATE on, as records.tail packs it
-- returns  for each job: '' accepted; the record that holds the id, without its payload; or {message} if that cannot
--          be read
-- again    the nonce of an accepted add is the record's generation, or remembered by the record that replaced it
-- uses: clock

-- The plain case: no such id is stored, and nothing is delayed. It is a straight line and comes before all that defines
-- functions, since each of them costs every call.
local keys, seen, plain = {}, {}, true
for i = 4, #ARGV, 6 do
  local id = ARGV[i]
  plain = plain and ARGV[i + 2] == '0' and not seen[id]
  seen[id], keys[#keys + 1] = true, stem .. 'j:' .. id
end
local sequence = redis.call('HMGET', stem .. 'seq', 'count', 'format', 'looked')
if plain and sequence[2] == '1' and redis.call('EXISTS', unpack(keys)) == 0 then
  local place, sets, ready, accepted = tonumber(sequence[1]) or 0, {}, {}, {}
  if not (place < 2 ^ 53) then
    place = 0
  end
  for n, key in ipairs(keys) do
    local i = 6 * n - 2
    place = math.max(place + 1, wall)
    sets[2 * n - 1], sets[2 * n] = key, struct.pack('>BI6I7I6', 1, now, place, 0) .. ARGV[i + 5]
    ready[2 * n - 1], ready[2 * n] = ARGV[i + 3], struct.pack('>I8', place) .. ARGV[i]
    accepted[n] = ''
  end
  -- First what may be refused, by a key of another type or for want of a permission: then no job is stored.
  if redis.call('EXISTS', stem .. 'wake') == 0 then
    redis.call('LPUSH', stem .. 'wake', 1)
  end
  redis.call('ZADD', stem .. 'ready', unpack(ready))
  redis.call('MSET', unpack(sets))
  redis.call('HSET', stem .. 'seq', 'count', string.format('%.0f', place), 'looked',
    string.format('%.0f', math.max(tonumber(sequence[3]) or 0, steady)))
  return accepted
end
-- uses: news, record, effects, waiting, mending

local ids, answers = {}, {}
for i = 4, #ARGV, 6 do
  ids[#ids + 1] = ARGV[i]
end
fetch(ids)

local fresh = {}

local function add(id, nonce, delay, priority, reply_to, tail)
  local held, recent = load(id), nil
  if held then
    if held[GENERATION] == nonce or answered(held, nonce) then
      return ''
    end
    if not absent(held) then
      if not ended(held) then
        mend(id, held)
        if reply_to ~= '' and note(held, reply_to) then
          changed[id] = held
        end
      end
      return without_payload(encode(held), held)
    end
    if not answered(held, held[GENERATION]) then
      remember(held, held[GENERATION], ACCEPTED)
    end
    if held[SETTLED] ~= '' then
      remember(held, held[SETTLED], held[SETTLED_AS])
    end
    recent = held[RECENT]
  end
  local place = count()
  local due = delay > 0 and expiry(delay) or 0
  local raw = struct.pack('>BI6I7I6', 1, now, place, due) .. tail
  local entry = struct.pack('>I8', place) .. id
  if delay > 0 then
    push(later_in, string.format('%.0f', due), entry)
    wake_if_earlier(delay)
  else
    push(ready_in, priority, entry)
    wake = true
  end
  records[id], found[id], changed[id] = nil, raw, nil
  if recent then
    records[id] = decode(raw)
    records[id][RECENT] = recent
    changed[id] = records[id]
  else
    push(fresh, stem .. 'j:' .. id, raw)
  end
  return ''
end

for i = 4, #ARGV, 6 do
  local fine, answer = pcall(add, ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
  answers[#answers + 1] = fine and answer or {answer}
end
apply()
if #fresh > 0 then
  redis.call('MSET', unpack(fresh))
end
save_count()
return answers
