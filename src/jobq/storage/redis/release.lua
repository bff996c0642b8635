#!lua flags=allow-oom
-- release: frees a lock, if the owner holds it
--
-- ARGV[4] name, ARGV[5] owner
-- returns  1 freed, 0 it was not held by this owner
-- again    nothing is left to free
-- uses: clock

local key = stem .. 'lock:' .. ARGV[4]
local held = redis.call('GET', key)
local rest = held and string.match(held, '^(.*) %d+$')
if rest and (string.match(rest, '^(.*) %d+$') or rest) == ARGV[5] then
  return redis.call('DEL', key)
end
return 0
