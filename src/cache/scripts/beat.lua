-- Renews a marker: KEYS[1] holds ARGV[1] ('': nothing). ARGV: held, what goes before the time, ttl ms -> OK, or what it holds
-- instead. The time is Redis's own, in ms.
local held = redis.call('GET', KEYS[1]) or ''
if held ~= ARGV[1] then return held end
local clock = redis.call('TIME')
local now = string.format('%s%03d', clock[1], math.floor(clock[2] / 1000))
return redis.call('SET', KEYS[1], ARGV[2] .. now, 'PX', ARGV[3])
