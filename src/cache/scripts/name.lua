-- Gives an L1 its id if KEYS[1] holds ARGV[1] ('': nothing). ARGV: held, id, ttl ms -> the id in
-- use.
local held = redis.call('GET', KEYS[1]) or ''
if held ~= ARGV[1] then return held end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return ARGV[2]
