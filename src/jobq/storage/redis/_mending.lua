-- Mending: a job that was touched gets back the entries that somebody has taken from it, for it would never run without.

local function mend(id, record)
  local state = record[STATE]
  if state == PROCESSING then
    local lease = record[TOKEN] .. id
    if not redis.call('ZSCORE', stem .. 'leases', lease) then
      push(leases_in, string.format('%.0f', steady_now + record[TERM]), lease)
    end
  elseif waiting(record) then
    if record[TERM] > 0 then
      if not redis.call('ZSCORE', stem .. 'later', member(id, record)) then
        push(later_in, string.format('%.0f', record[TERM]), member(id, record))
        wake = true
      end
    elseif not redis.call('ZSCORE', stem .. 'ready', member(id, record)) then
      push(ready_in, -record[PRIORITY], member(id, record))
      wake = true
    end
  end
end
