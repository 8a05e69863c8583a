-- ARGV: permit, permit ms, pending ms, most permits -> GRANTED | OVERFLOW
local e = read()
local permit_ms, life = tonumber(ARGV[2]), tonumber(ARGV[3])
if e then
  local left = redis.call('PTTL', key)
  if e.value and not e.ends then e.ends = now + left end
  life = math.min(left, life)
else
  e = {floor = 0, permits = {}}
end
e.lease, e.lease_ends = nil, nil
e.permits[ARGV[1]] = now + permit_ms
local count = 0
for _ in pairs(e.permits) do count = count + 1 end
if count > tonumber(ARGV[4]) then
  redis.call('DEL', key)
  return 'OVERFLOW'
end
write(e, math.max(life, permit_ms))
return 'GRANTED'
