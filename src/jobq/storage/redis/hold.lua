#!lua flags=allow-oom
-- hold: takes or renews a lock
--
-- ARGV[4] name, ARGV[5] owner, ARGV[6] ttl in ms
-- returns  1 held, 0 while another owner holds it
-- again    the owner's own lock is renewed
-- uses: clock

local key = stem .. 'lock:' .. ARGV[4]
local held = redis.call('GET', key)
if held then
  local owner, lapses = string.match(held, '^(.*) (%d+)$')
  if owner and owner ~= ARGV[5] and tonumber(lapses) > steady_now then
    return 0
  end
end
local ttl = tonumber(ARGV[6])
redis.call('SET', key, ARGV[5] .. string.format(' %.0f', steady_now + ttl), 'PX', string.format('%.0f', math.max(1, ttl)))
return 1
