-- Renews a marker: KEYS[1] holds ARGV[1] ('': nothing), and KEYS[2] the id of this L1, ARGV[4].
-- ARGV: held value, what precedes the time, ttl ms, id -> OK, ID (there is another id, or none), or
-- what the marker holds instead. The time is that of Redis, in ms.
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[4] then return 'ID' end
local held = redis.call('GET', KEYS[1]) or ''
if held ~= ARGV[1] then return held end
local clock = redis.call('TIME')
local now = string.format('%s%03d', clock[1], math.floor(clock[2] / 1000))
redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[3])
return redis.call('SET', KEYS[1], ARGV[2] .. now, 'PX', ARGV[3])
