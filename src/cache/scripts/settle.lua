-- ARGV: revision[, token, packed value, ttl ms] -> INSTALLED | DROPPED | KEPT | NONE
local e = read()
if not e then return 'NONE' end
local rev = tonumber(ARGV[1])
local leased = ARGV[2] and e.lease == ARGV[2]
if not leased and rev <= e.floor then return 'KEPT' end
if leased then e.lease, e.lease_ends = nil, nil end
local effect
if leased and rev >= e.floor then
  for permit, ends in pairs(e.permits) do
    if ends <= now then e.permits[permit] = nil end
  end
  effect = install(e, ARGV[3], ARGV[4])
else
  effect = raise(e, rev)
end
write(e)
return effect
