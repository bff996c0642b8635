-- Lapsing: what becomes of jobs whose worker was silent for too long.
--
-- <stem>leases  ZSET of "<token><id>" by the steady ms at which the lease lapses; a token is 12 bytes

-- After the clock has jumped back, no lease may last longer than it is long.
local function set_back()
  local leases = redis.call('ZRANGE', stem .. 'leases', 0, -1, 'WITHSCORES')
  for i = 1, #leases, 2 do
    local fine, term, state = start(string.sub(leases[i], 13))
    local lapse = steady_now + (fine and state == PROCESSING and term or 0)
    if tonumber(leases[i + 1]) > lapse then
      redis.call('ZADD', stem .. 'leases', string.format('%.0f', lapse), leases[i])
    end
  end
  looked = steady
  redis.call('HSET', stem .. 'seq', 'looked', string.format('%.0f', looked))
end

local function end_lapsed(lease)
  local id = string.sub(lease, 13)
  local record = load(id)
  if not record or record[TOKEN] ~= string.sub(lease, 1, 12) then
    push(leases_out, lease) -- A lease without its job.
    return
  end
  release(id, record)
  if record[CANCEL_ASKED] == 1 then
    finish(id, record, CANCELLED, nil, 0)
  elseif record[ATTEMPTS] >= record[MAX_ATTEMPTS] then
    finish(id, record, FAILED, 'WORKER_LOST', record[RESULT_TTL])
  else
    record[STATE] = FAILING
    enqueue(id, record, 0)
  end
  return {id, record[GENERATION], record[STATE], record[ATTEMPTS]}
end

-- Ends at most `limit` lapsed leases, fewer of large jobs; returns {id, generation, state, attempts} of each job.
local function rescue(limit)
  if steady < looked then
    set_back()
  end
  local lapsed = redis.call('ZRANGE', stem .. 'leases', '-inf', string.format('%.0f', steady_now), 'BYSCORE', 'LIMIT', 0, limit)
  if #lapsed == 0 then
    return {}
  end
  local ids = {}
  for i, lease in ipairs(lapsed) do
    ids[i] = string.sub(lease, 13)
  end
  local rescued = {}
  for i = 1, fetch_some(ids) do
    local lease = lapsed[i]
    local fine, job = pcall(end_lapsed, lease)
    if fine and job then
      rescued[#rescued + 1] = job
    elseif not fine then
      push(leases_out, lease) -- The record is damaged: whoever reads it is told.
    end
  end
  apply()
  for _, job in ipairs(rescued) do
    announce(RESCUED_HINT, job[1], records[job[1]])
  end
  return rescued
end
