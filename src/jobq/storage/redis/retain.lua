#!lua flags=allow-oom
-- retain: completed, failed -> the same, with a new expiry
--
-- ARGV[4] id, ARGV[5] nonce, ARGV[6] ttl in ms
-- returns  the state found as a number, or 0; or {message} if the record cannot be read
-- again    the record remembers the nonce and the answer
-- uses: clock, news, record, effects, once

return once(ARGV[4], ARGV[5], function(_, record)
  if ended(record) then
    local ttl = tonumber(ARGV[6])
    -- By a clock that was set back, its end lies ahead; it must not count as expired when it ended.
    record[TERM] = math.max(expiry(ttl), record[FINISHED] + ttl)
  end
end)
