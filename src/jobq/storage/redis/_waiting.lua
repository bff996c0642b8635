-- Waiting: the order of jobs that are ready, the times of those that are not, and the marker that wakes a sleeper.
--
-- <stem>ready  ZSET of "<place><id>" by -priority; a place is 8 bytes, so equals are in the order of their places
-- <stem>later  ZSET of the same by due time in ms
-- <stem>seq    HASH: count (places and tokens), longest (ms that a worker may sleep), looked (steady clock), format

local seq = redis.call('HMGET', stem .. 'seq', 'count', 'longest', 'looked', 'format')
if seq[4] and seq[4] ~= '1' then
  return redis.error_reply('JOBQFORMAT this queue has the format ' .. seq[4] .. ', and this version of jobq knows 1')
end
-- What is no number that we could have written counts as absent, and is written anew.
local counter, longest, looked = tonumber(seq[1]) or 0, tonumber(seq[2]) or 0, tonumber(seq[3]) or 0
if not (counter < 2 ^ 53) then
  counter = 0
end
if not (longest < 2 ^ 53) then
  longest = 0
end
local counted = counter

-- Strictly increasing, and never behind the clock: it rises after a fail-over or a restart without data as well.
local function count()
  counter = math.max(counter + 1, wall)
  return counter
end

local function save_count()
  if counter > counted then
    -- A clock that jumped back stays behind what was seen before, until `rescue` has set the leases back.
    redis.call('HSET', stem .. 'seq', 'count', string.format('%.0f', counter), 'looked',
      string.format('%.0f', math.max(looked, steady)), 'format', '1')
  end
end

local function make_ready(id, record, place)
  record[PLACE], record[TERM] = place, 0
  push(ready_in, -record[PRIORITY], member(id, record))
  changed[id] = record
end

-- µs until a delayed job is due or a lease lapses, whichever is first; nil if there is neither.
local function next_in()
  local due = redis.call('ZRANGE', stem .. 'later', 0, 0, 'WITHSCORES')[2]
  local lapse = redis.call('ZRANGE', stem .. 'leases', 0, 0, 'WITHSCORES')[2]
  due, lapse = due and due * 1000 - wall, lapse and lapse * 1000 - steady
  if due and lapse then
    return math.max(0, math.min(due, lapse))
  end
  return (due or lapse) and math.max(0, due or lapse)
end

local earliest -- What `next_in` told, or math.huge; looked up when it is first needed.

-- Wakes a sleeper if none will be awake when `delay` ms have passed. Whoever sleeps wakes after `longest` at the latest, and
-- whoever knows of something earlier will find this as well.
local function wake_if_earlier(delay)
  if delay < longest then
    earliest = earliest or next_in() or math.huge
    wake = wake or delay * 1000 < earliest
    earliest = math.min(earliest, delay * 1000)
  end
end

local function leave_waiting(id, record)
  push(record[TERM] > 0 and later_out or ready_out, member(id, record))
end

local function enqueue(id, record, delay)
  if delay > 0 then
    record[PLACE], record[TERM] = count(), expiry(delay)
    push(later_in, string.format('%.0f', record[TERM]), member(id, record))
    changed[id] = record
    wake_if_earlier(delay)
  else
    make_ready(id, record, count())
    wake = true
  end
end
