-- ARGV: token, lease ms, pending ms -> {HIT | LEASE | NOFILL, packed value or nil}
local e, life = read(), nil
if not e then
  e, life = {floor = 0, permits = {}}, ARGV[3]
elseif e.value and not next(e.permits) then
  return {'HIT', e.value}
else
  local live = e.lease and now < e.lease_ends
  for _, ends in pairs(e.permits) do live = live or now < ends end
  if live then return {'NOFILL', e.value or false} end
end
e.lease, e.lease_ends = ARGV[1], now + ARGV[2]
write(e, life)
return {'LEASE', e.value or false}
