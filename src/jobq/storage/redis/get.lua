#!lua flags=allow-oom
-- get: looks, notes who wants to be told, and mends
--
-- ARGV[4…] three for each job: id, generation or '', reply address or ''
-- returns  for each job: the record without its payload; '' absent; or {message} if it cannot be read. Of large jobs only the
--          first are answered, one at least: the caller asks for the others
-- again    an address is noted once
-- uses: clock, news, record, effects, waiting, mending

local ids, answers = {}, {}
for i = 4, #ARGV, 3 do
  ids[#ids + 1] = ARGV[i]
end

local function get(id, generation, reply_to)
  local record = load(id)
  if not record or (absent(record) and record[GENERATION] ~= generation) then
    return ''
  end
  if not ended(record) then
    mend(id, record)
    if reply_to ~= '' and note(record, reply_to) then
      changed[id] = record
    end
  end
  return without_payload(found[id], record)
end

for n = 1, fetch_some(ids) do
  local i = 3 * n + 1
  local fine, answer = pcall(get, ARGV[i], ARGV[i + 1], ARGV[i + 2])
  answers[#answers + 1] = fine and answer or {answer}
end
apply()
return answers
