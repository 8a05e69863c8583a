-- ARGV: permit -> KEPT | NONE
local e = read()
if not e then return 'NONE' end
if e.permits[ARGV[1]] then
  e.permits[ARGV[1]] = nil
  write(e)
end
return 'KEPT'
