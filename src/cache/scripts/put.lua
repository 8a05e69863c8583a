-- ARGV: permit, packed value, ttl ms -> INSTALLED | DROPPED | KEPT | NONE
local e = read()
if not e then return 'NONE' end
local rev = revision(ARGV[2])
local permitted = e.permits[ARGV[1]]
if not permitted and rev <= e.floor then return 'KEPT' end
e.permits[ARGV[1]] = nil
local effect
if permitted and (rev > e.floor or (rev == e.floor and not e.value)) then
  e.lease, e.lease_ends = nil, nil
  effect = install(e, ARGV[2], ARGV[3])
else
  effect = raise(e, rev)
end
write(e)
return effect
