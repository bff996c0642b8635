-- News: who is told of which end. An item is {addresses, kind of hint, id, generation, size of the outcome}.

local news = {}

-- Tells those who asked for these jobs: one message to each address, with its secret and all its news.
local function tell(raws)
  local letters, order, known = {}, {}, {}
  for _, item in ipairs(news) do
    local id, raw = item[3], raws[item[3]]
    local small = item[5] <= PUSHED_RESULT_LIMIT and #raw <= 2 * PUSHED_RESULT_LIMIT
    local line = {item[2], id, item[4], small and raw or ''}
    local readers = known[item[1]]
    if not readers then -- Most jobs of a batch have the same one.
      readers = {}
      for address in string.gmatch(item[1], '[^ ]+') do
        if not letters[address] then
          letters[address] = {}
          order[#order + 1] = address
        end
        readers[#readers + 1] = letters[address]
      end
      known[item[1]] = readers
    end
    for _, letter in ipairs(readers) do
      letter[#letter + 1] = line
    end
  end
  for _, address in ipairs(order) do
    local channel, secret = string.match(address, '^(.-)%.(.*)$')
    if channel then
      redis.call(publish, stem .. 'reply:' .. channel, cmsgpack.pack({secret, letters[address]}))
    end
  end
end
