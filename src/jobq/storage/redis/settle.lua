#!lua flags=allow-oom
-- settle: processing -> completed, failed, failing, queued; cancelled where that was asked for
--
-- ARGV[4…] seven for each claim: id, token, state (number), ttl in ms, delay in ms, '1' if it has a result or an error, that
-- returns  for each claim: SETTLED_LOST, SETTLED_APPLIED or SETTLED_CANCELLED; or {message} if the record cannot be read
-- again    the record keeps the token that settled it last, and what was answered; the one before is remembered
-- uses: clock, news

-- The plain case: completed by whoever holds the job, and nobody asked to cancel it. It is a straight line and comes before
-- all that defines functions, since each of them costs every call.
local keys, answers, seen, leases, raws = {}, {}, {}, {}, {}
local kept, px -- Most jobs of a batch are kept equally long, and wording a number takes longer than comparing two.
for n = 1, (#ARGV - 3) / 7 do
  keys[n] = stem .. 'j:' .. ARGV[7 * n - 3]
end
for n, raw in ipairs(redis.call('MGET', unpack(keys))) do
  local i = 7 * n - 3
  local id, token, ttl = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 3])
  local fine, format, created, place, _, state, cancel_asked, _, _, priority, attempts, most, result_ttl, started, _, holder,
    worker, generation, settled, recent, replies = pcall(struct.unpack, LAYOUT, raw or '')
  if fine and format == 1 and state == PROCESSING and token ~= '' and holder == token and cancel_asked == 0 and settled == ''
    and tonumber(ARGV[i + 2]) == COMPLETED and not seen[id] then
    local has = ARGV[i + 5] == '1' and 1 or 0
    local outcome = has == 1 and ARGV[i + 6] or ''
    local term = ttl > 0 and math.ceil(wall / 1000) + ttl or now
    raw = struct.pack(LAYOUT, 1, created, place, term, COMPLETED, 0, SETTLED_APPLIED, has, priority, attempts, most,
      result_ttl, started, now, 0, '', #worker, worker, #generation, generation, #token, token, #recent, recent, 0, '',
      #outcome, outcome)
    if ttl ~= kept then
      kept, px = ttl, string.format('%.0f', term + LINGER / 1000 - now)
    end
    redis.call('SET', keys[n], raw, 'PX', px)
    leases[#leases + 1] = token .. id
    if replies ~= '' then
      news[#news + 1] = {replies, SETTLED_HINT, id, generation, #outcome}
      raws[id] = raw
    end
    answers[n] = SETTLED_APPLIED
  end
  seen[id] = true -- Of two settlements of one job the first decides, also if it is not a plain one.
end
if #leases > 0 then
  redis.call('ZREM', stem .. 'leases', unpack(leases))
end
if #news > 0 then
  tell(raws)
  news = {}
end
if #leases == #keys then
  return answers
end
-- uses: record, effects, waiting

local ids = {}
for n = 1, #keys do
  if not answers[n] then
    ids[#ids + 1] = ARGV[7 * n - 3]
  end
end
fetch(ids)

local function give_back(id, record)
  record[ATTEMPTS] = record[ATTEMPTS] - 1
  record[STATE] = record[ATTEMPTS] == 0 and QUEUED or FAILING
  make_ready(id, record, record[PLACE])
  wake = true
end

local function settle(id, token, state, ttl, delay, outcome)
  local record = load(id)
  if not record or token == '' then
    return SETTLED_LOST
  end
  if record[TOKEN] ~= token then
    if record[SETTLED] == token then
      return record[SETTLED_AS]
    end
    local answer = answered(record, token)
    return (answer == SETTLED_APPLIED or answer == SETTLED_CANCELLED) and answer or SETTLED_LOST
  end
  if record[SETTLED] ~= '' then
    remember(record, record[SETTLED], record[SETTLED_AS]) -- First: it may raise, and then nothing may have changed.
  end
  release(id, record)
  record[SETTLED], record[SETTLED_AS] = token, SETTLED_APPLIED
  if record[CANCEL_ASKED] == 1 then
    record[SETTLED_AS] = SETTLED_CANCELLED
    finish(id, record, CANCELLED, nil, 0)
  elseif state == QUEUED then
    give_back(id, record)
  elseif state == FAILING then
    record[STATE], record[HAS_OUTCOME], record[OUTCOME] = FAILING, outcome and 1 or 0, outcome or ''
    enqueue(id, record, delay)
  else
    finish(id, record, state, outcome, ttl)
  end
  return record[SETTLED_AS]
end

for n = 1, #keys do
  if not answers[n] then
    local i = 7 * n - 3
    local outcome = ARGV[i + 5] == '1' and ARGV[i + 6] or nil
    local fine, answer = pcall(settle, ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]),
      tonumber(ARGV[i + 4]), outcome)
    answers[n] = fine and answer or {answer}
  end
end
apply()
save_count()
return answers
