-- The record of a job.
--
-- It is a packed string under "<stem>j:<id>". Names in capitals are put in by scripts.py; records.py says what the fields
-- are and how they are packed. (As local variables of Lua they would be bound anew by each function at each call, which
-- took longer than all the rest.)

local function decode(raw)
  local record = {struct.unpack(LAYOUT, raw)}
  if record[FORMAT] ~= 1 or record[STATE] < QUEUED or record[STATE] > CANCELLED then
    error('it is damaged, or of another version', 0)
  end
  record[PAYLOAD] = string.sub(raw, record[PAYLOAD]) -- What follows the last field; its position until here.
  return record
end

local function encode(r)
  return struct.pack(LAYOUT, r[FORMAT], r[CREATED], r[PLACE], r[TERM], r[STATE], r[CANCEL_ASKED], r[SETTLED_AS],
    r[HAS_OUTCOME], r[PRIORITY], r[ATTEMPTS], r[MAX_ATTEMPTS], r[RESULT_TTL], r[STARTED], r[FINISHED],
    #r[TOKEN], r[TOKEN], #r[WORKER], r[WORKER], #r[GENERATION], r[GENERATION], #r[SETTLED], r[SETTLED],
    #r[RECENT], r[RECENT], #r[REPLIES], r[REPLIES], #r[OUTCOME], r[OUTCOME]) .. r[PAYLOAD]
end

-- What waiters look at again and again is not large because a payload is: none of them wants that.
local function without_payload(raw, record)
  return string.sub(raw, 1, #raw - #record[PAYLOAD])
end

local records, found = {}, {}

-- Fetches the records of many ids with one command; a key that is no string reads as absent, and is overwritten.
local function fetch(ids)
  if #ids == 0 then
    return
  end
  local keys = {}
  for i, id in ipairs(ids) do
    keys[i] = stem .. 'j:' .. id
  end
  for i, raw in ipairs(redis.call('MGET', unpack(keys))) do
    found[ids[i]] = raw
  end
end

-- Fetches records until they are large together, since a script holds up everybody; returns of how many ids, one at least.
local function fetch_some(ids)
  local done, size = 0, 0
  while done < #ids and size < MOST_BYTES do
    local many = done == 0 and 4 or size < LARGE * done and 32 or 1
    local some = {unpack(ids, done + 1, math.min(#ids, done + many))}
    fetch(some)
    for _, id in ipairs(some) do
      size = size + #(found[id] or '')
    end
    done = done + #some
  end
  return done
end

local function unpack_start(raw)
  local format, _, _, term, state, cancel_asked, _, _, _, _, _, _, _, finished, token = struct.unpack(START, raw)
  if format ~= 1 or state < QUEUED or state > CANCELLED then
    error('it is damaged, or of another version', 0)
  end
  return term, state, cancel_asked, finished, token
end

-- Reads only the start of a record. Returns whether it can be read, and term, state, cancel_asked, finished, token; nothing
-- more if there is none. What the server refuses ends the script: it says nothing about this job.
local function start(id)
  local raw = redis.pcall('GETRANGE', stem .. 'j:' .. id, 0, START_SIZE - 1)
  if type(raw) == 'table' then
    if not string.find(raw.err, 'WRONGTYPE', 1, true) then
      error(raw)
    end
    return true
  end
  if raw == '' then
    return true
  end
  return pcall(unpack_start, raw)
end

-- Returns the record of an id that was fetched, as this script has left it so far; nil if there is none.
local function load(id)
  local record = records[id]
  if record == nil and found[id] then
    record = decode(found[id])
    records[id] = record
  end
  return record
end

local function waiting(record)
  return record[STATE] == QUEUED or record[STATE] == FAILING
end

local function ended(record)
  return record[STATE] >= COMPLETED
end

local function expired(term, state, finished)
  -- What expired as it ended is absent by whatever clock, should it have jumped back.
  return state >= COMPLETED and term <= math.max(now, finished)
end

local function absent(record)
  return expired(record[TERM], record[STATE], record[FINISHED])
end

-- The requests that this record has answered within the last LINGER: {nonce or token, answer, when}.
local function remembered(record)
  local requests = {}
  if record[RECENT] ~= '' then
    for _, request in ipairs(cmsgpack.unpack(record[RECENT])) do
      if request[3] > wall - LINGER then
        requests[#requests + 1] = request
      end
    end
  end
  return requests
end

local function answered(record, nonce)
  for _, request in ipairs(remembered(record)) do
    if request[1] == nonce then
      return request[2]
    end
  end
end

local function remember(record, nonce, answer)
  local requests = remembered(record)
  requests[#requests + 1] = {nonce, answer, wall}
  local packed = cmsgpack.pack(requests)
  while #packed > 60000 do -- Its length has two bytes; the oldest are the least likely to be sent again.
    for _ = 1, 100 do
      table.remove(requests, 1)
    end
    packed = cmsgpack.pack(requests)
  end
  record[RECENT] = packed
end

-- Notes who wants to be told how this job ends, and says whether that is news; there is room for some hundred.
local function note(record, address)
  local noted = record[REPLIES]
  if string.find(noted, address, 1, true) or #noted > 60000 then
    return false
  end
  local _, count = string.gsub(noted, ' ', ' ')
  if count >= MOST_ADDRESSES then -- The earliest is forgotten.
    noted = string.sub(noted, string.find(noted, ' ', 1, true) + 1)
  end
  record[REPLIES] = noted .. address .. ' '
  return true
end
