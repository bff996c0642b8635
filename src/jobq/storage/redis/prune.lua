#!lua flags=allow-oom
-- prune: removes records whose expiry is LINGER ago, should the server not have done so
--
-- ARGV[4…] ids
-- returns  how many were removed
-- uses: clock, record

local removed, ids = 0, {}
for i = 4, #ARGV do
  ids[#ids + 1] = ARGV[i]
end
fetch(ids)
for _, id in ipairs(ids) do
  local fine, record = pcall(load, id)
  if fine and record and ended(record) and record[TERM] + LINGER / 1000 <= now then
    removed = removed + redis.call('DEL', stem .. 'j:' .. id)
  end
end
return removed
