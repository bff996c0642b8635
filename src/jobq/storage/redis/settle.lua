#!lua flags=allow-oom
-- settle: processing -> completed, failed, failing, queued; cancelled where that was asked for
-- uses: record, effects, waiting
--
-- ARGV[4…] seven for each claim: id, token, state (number), ttl in ms, delay in ms, '1' if it has a result or an error, that
-- returns  for each claim: SETTLED_LOST, SETTLED_APPLIED or SETTLED_CANCELLED; or {message} if the record cannot be read
-- again    the record keeps the token that settled it last, and what was answered

local ids, answers = {}, {}
for i = 4, #ARGV, 7 do
  ids[#ids + 1] = ARGV[i]
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

for i = 4, #ARGV, 7 do
  local outcome = ARGV[i + 5] == '1' and ARGV[i + 6] or nil
  local fine, answer = pcall(settle, ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]),
    tonumber(ARGV[i + 4]), outcome)
  answers[#answers + 1] = fine and answer or {answer}
end
apply()
save_count()
return answers
