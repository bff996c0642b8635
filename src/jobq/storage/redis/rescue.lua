#!lua flags=allow-oom
-- rescue: lapsed lease -> failing and due at once; failed (WORKER_LOST); cancelled where that was asked for
--
-- ARGV[4] limit
-- returns  {µs until the next lease lapses or -1, {{id, generation, state, attempts}, …}}
-- again    a lease ends once; whoever asks again finds it gone
-- uses: clock, news, record, effects, waiting, lapsing

local rescued = rescue(tonumber(ARGV[4]))
save_count()
local lapse = redis.call('ZRANGE', stem .. 'leases', 0, 0, 'WITHSCORES')[2]
return {lapse and math.max(0, lapse * 1000 - steady) or -1, rescued}
