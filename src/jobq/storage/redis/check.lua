#!lua flags=allow-oom
-- check: tries every command that scripts use, so that a missing permission is told at the start and not in the middle
--
-- KEYS[1]  the stem of no queue
-- ARGV[1]  and ARGV[2] are given, so that TIME is tried here as well
-- returns  '', or what the server said to the first command that it refused
-- again    nothing is left behind, whatever was refused
-- uses: clock

local key = stem .. 'check'
local commands = {
  {'TIME'}, {'DEL', key},
  {'SET', key, '1', 'PX', '1000'}, {'GET', key}, {'GETRANGE', key, '0', '1'}, {'MSET', key, '1'}, {'MGET', key}, {'EXISTS', key},
  {'PEXPIRE', key, '1000'}, {'DEL', key},
  {'HSET', key, 'a', '1'}, {'HMGET', key, 'a'}, {'DEL', key},
  {'ZADD', key, '1', 'a'}, {'ZRANGE', key, '0', '0'}, {'ZSCORE', key, 'a'}, {'ZCARD', key}, {'ZREM', key, 'a'},
  {'LPUSH', key, '1'}, {'DEL', key}, {publish, KEYS[2], ''},
}
for _, command in ipairs(commands) do
  local answer = redis.pcall(unpack(command))
  if type(answer) == 'table' and answer.err then
    redis.pcall('DEL', key)
    return command[1] .. ' ' .. (command[2] or '') .. ': ' .. answer.err
  end
end
return ''
