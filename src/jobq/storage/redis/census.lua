#!lua flags=no-writes
-- census: the states of many jobs
--
-- ARGV[4…] ids
-- returns  for each job: its state as a number, 0 if it is absent
-- uses: clock, record

local ids, states = {}, {}
for i = 4, #ARGV do
  ids[#ids + 1] = ARGV[i]
end
fetch(ids)
for i, id in ipairs(ids) do
  local fine, record = pcall(load, id)
  states[i] = fine and record and not absent(record) and record[STATE] or 0
end
return states
