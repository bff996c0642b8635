#!lua flags=allow-oom
-- cancel: queued, failing -> cancelled; processing -> processing, and its worker is asked to stop
--
-- ARGV[4] id, ARGV[5] nonce, ARGV[6] '1' to stop a running job as well
-- returns  the state found as a number, or 0; or {message} if the record cannot be read
-- again    the record remembers the nonce and the answer
-- uses: clock, news, record, effects, waiting, mending, once

local asked

local state = once(ARGV[4], ARGV[5], function(id, record)
  if waiting(record) then
    leave_waiting(id, record)
    finish(id, record, CANCELLED, nil, 0)
  elseif record[STATE] == PROCESSING then
    mend(id, record)
    if ARGV[6] == '1' then
      record[CANCEL_ASKED], asked = 1, record
    end
  end
end)
if asked then
  announce(CANCEL_ASKED_HINT, ARGV[4], asked)
end
return state
