#!lua flags=allow-oom
-- extend: processing -> processing
--
-- ARGV[4] lease in ms; ARGV[5…] two for each claim: id, token
-- returns  for each claim: 0 lost, 1 held, 2 held and a cancel was asked for; or {message} if the record cannot be read
-- again    a deadline only moves forward, so twice is once
-- uses: clock, news, record, effects

local lease, answers = tonumber(ARGV[4]), {}

-- It happens to all that runs, again and again: so no payload is read, unless the length of the lease is another.
local function extend(id, token)
  local fine, term, _, cancel_asked, _, holder = start(id)
  if not fine then
    return {term}
  end
  if not term or token == '' or holder ~= token then
    return 0
  end
  if term ~= lease then
    fetch({id})
    local readable, record = pcall(load, id)
    if not readable then
      return {record}
    end
    record[TERM] = lease
    changed[id] = record
  end
  push(leases_in, string.format('%.0f', steady_now + lease), token .. id)
  return cancel_asked == 1 and 2 or 1
end

for i = 5, #ARGV, 2 do
  answers[#answers + 1] = extend(ARGV[i], ARGV[i + 1])
end
if #leases_in > 0 then
  redis.call('ZADD', stem .. 'leases', 'GT', unpack(leases_in))
end
leases_in = {}
apply()
return answers
