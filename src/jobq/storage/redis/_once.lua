-- Once: a change of one job that is asked for with a nonce, and made once.

-- Returns the state that was found, 0 if the job is absent, or {message} if its record cannot be read.
local function once(id, nonce, change)
  fetch({id})
  local fine, record, before = pcall(function()
    local held = load(id)
    local answer = held and answered(held, nonce)
    if answer and answer < QUEUED then
      error('it remembers an answer that there is not', 0)
    end
    return held, answer
  end)
  if not fine then
    return {record}
  end
  if not record then
    return 0
  end
  if before and before <= CANCELLED then
    return before
  end
  if absent(record) then
    return 0
  end
  local state = record[STATE]
  change(id, record)
  remember(record, nonce, state)
  changed[id] = record
  apply()
  return state
end
