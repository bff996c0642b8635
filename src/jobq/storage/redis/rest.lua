#!lua flags=allow-oom
-- rest: says for how long a worker of this queue may sleep, at the longest
-- uses: record
--
-- ARGV[4] µs
-- returns  the longest of all, in µs
-- again    the longest stays the longest

local longest = math.max(tonumber(redis.call('HGET', stem .. 'seq', 'longest') or 0), tonumber(ARGV[4]))
redis.call('HSET', stem .. 'seq', 'longest', string.format('%.0f', longest))
return longest
