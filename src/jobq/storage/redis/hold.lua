#!lua flags=allow-oom
-- hold: takes or renews a lock
--
-- ARGV[4] name, ARGV[5] owner, ARGV[6] ttl in ms
-- returns  1 held, 0 while another owner holds it
-- again    the owner's own lock is renewed
-- <stem>lock:<name> is "<owner> <ttl> <instant at which it lapses>"
-- uses: clock

local key = stem .. 'lock:' .. ARGV[4]

local function keep(owner, ttl)
  local value = string.format('%s %.0f %.0f', owner, ttl, steady_now + ttl)
  redis.call('SET', key, value, 'PX', string.format('%.0f', math.max(1, ttl)))
end

local held = redis.call('GET', key)
if held then
  local rest, lapses = string.match(held, '^(.*) (%d+)$')
  local owner, ttl = string.match(rest or '', '^(.*) (%d+)$') -- An earlier jobq wrote no ttl.
  lapses, ttl = tonumber(lapses), tonumber(ttl)
  local ours = lapses and lapses < 2 ^ 53 and (not ttl or ttl < 2 ^ 53) -- As no jobq has written it, it counts as absent.
  if ours and (owner or rest) ~= ARGV[5] and lapses > steady_now then
    if ttl and lapses > steady_now + ttl then
      keep(owner, ttl) -- The clock has jumped back: like a lease, it lasts no longer than it is long.
    end
    return 0
  end
end
keep(ARGV[5], tonumber(ARGV[6]))
return 1
