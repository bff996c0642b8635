#!lua
-- revive: failed -> queued, with a new generation
--
-- ARGV[4] id, ARGV[5] nonce, which becomes the generation
-- returns  the state found as a number, or 0; or {message} if the record cannot be read
-- again    the record remembers the nonce and the answer
-- uses: clock, news, record, effects, waiting, once

local state = once(ARGV[4], ARGV[5], function(id, record)
  if record[STATE] ~= FAILED then
    return
  end
  if not answered(record, record[GENERATION]) then
    remember(record, record[GENERATION], ACCEPTED)
  end
  record[GENERATION], record[STATE], record[ATTEMPTS] = ARGV[5], QUEUED, 0
  record[HAS_OUTCOME], record[OUTCOME], record[STARTED], record[FINISHED], record[TERM] = 0, '', 0, 0, 0
  enqueue(id, record, 0)
end)
save_count()
return state
