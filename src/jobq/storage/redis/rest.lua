#!lua flags=allow-oom
-- rest: says for how long a worker of this queue may sleep, at the longest, so that earlier events wake it
--
-- ARGV[4] ms
-- returns  µs until the next event that is known already, or -1
-- again    the longest stays the longest
-- uses: clock, news, record, effects, waiting

if tonumber(ARGV[4]) > longest then
  redis.call('HSET', stem .. 'seq', 'longest', ARGV[4], 'format', '1')
end
return redis.call('ZCARD', stem .. 'ready') > 0 and 0 or next_in() or -1
