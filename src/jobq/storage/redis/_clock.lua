-- What every script begins with: its queue, and its clock.
--
-- KEYS[1]  the stem of the queue's keys, "<prefix>{<name>}:"; it is no key itself, and all keys share its slot
-- KEYS[2]  the channel of its events: no key either, but it is checked like one
-- ARGV[1]  wall clock in µs, ARGV[2] steady clock in µs; both empty: the server's own clock, which is the rule
-- ARGV[3]  PUBLISH, or SPUBLISH in a Cluster; a verb's own arguments follow

local stem, publish = KEYS[1], ARGV[3]
local wall, steady
if ARGV[1] == '' then
  local time = redis.call('TIME')
  wall = time[1] * 1000000 + time[2]
  steady = wall
else
  wall, steady = tonumber(ARGV[1]), tonumber(ARGV[2])
end
local now, steady_now = math.floor(wall / 1000), math.floor(steady / 1000) -- ms, as records and durations are
