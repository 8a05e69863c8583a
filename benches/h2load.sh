#!/usr/bin/env bash
# An independent check of the bench: the same floor and server under h2load. See usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'USAGE'
benches/h2load.sh [--rounds 5] [--seconds 2] [--json target/performance.json]

Starts floor and server as the bench does, lets h2load (Debian's nghttp2-client) call them in turn, for 1 and for 100
entities that L1 in the process holds, and prints the ratios beside those that the bench wrote to the JSON file. h2load does not
look at grpc-status: the bench does, before it hands the servers over. What it needs it gets as ./test.sh does.
USAGE
}

rounds=5 seconds=2 json=target/performance.json
while (($#)); do
  case $1 in
    --rounds | --seconds | --json)
      [[ -n ${2:-} ]] || { usage >&2 && exit 64; }
      declare "${1#--}=$2" && shift
      ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 64 ;;
  esac
  shift
done

export REQUIRE_BACKENDS=0
# shellcheck source=tests/tools.sh
source tests/tools.sh

install_h2load() {
  unpack_debs "$tools/nghttp2" nghttp2-client && wrap h2load "$tools/nghttp2" && h2load --version
}

say "h2load: from PATH, else Debian's package"
command -v h2load >/dev/null || once nghttp2 install_h2load || die "no h2load: install Debian's nghttp2-client"

scratch=$(mktemp -d)
bench=''
clean_up() {
  # The bench ends with its standard input, and its servers with it.
  exec 4>&- 2>/dev/null || true
  [[ -z $bench ]] || wait "$bench" 2>/dev/null || true
  rm -rf "$scratch"
}
trap clean_up EXIT

say "floor and server"
mkfifo "$scratch/input"
cargo bench --bench performance --no-run
cargo bench --bench performance -- --serve "$scratch" <"$scratch/input" >"$scratch/servers" 2>"$scratch/log" &
bench=$!
exec 4>"$scratch/input"
end=$((SECONDS + 120))
until grep -q '^ready$' "$scratch/servers"; do
  if ! kill -0 "$bench" 2>/dev/null || ((SECONDS > end)); then
    tail -n 20 "$scratch/log" >&2
    die "the servers did not start"
  fi
  sleep 0.2
done

# call NAME IN_FLIGHT: calls per second.
call() {
  local url file
  read -r url file < <(awk -v name="$1" '$1 == name { print $2, $3 }' "$scratch/servers")
  h2load --duration "$seconds" --warm-up-time 1 --clients 4 --max-concurrent-streams "$(($2 / 4))" --threads 1 \
    --window-bits 22 --connection-window-bits 24 --data "$file" \
    --header 'content-type: application/grpc' --header 'te: trailers' "$url" >"$scratch/h2load" 2>&1 ||
    { tail -n 5 "$scratch/h2load" >&2 && return 1; }
  # Its own word on whether all was answered.
  grep -q ' 0 failed, 0 errored' "$scratch/h2load" || { grep -E '^(requests|status)' "$scratch/h2load" >&2 && return 1; }
  sed -nE 's/^finished in .*, ([0-9.]+) req\/s.*/\1/p' "$scratch/h2load"
}

for entities in 1 100; do
  in_flight=$((entities == 1 ? 128 : 32))
  for ((round = 0; round < rounds; round++)); do
    floor=$(call "floor-$entities" "$in_flight") ours=$(call "ours-$entities" "$in_flight")
    printf '%s %s %s\n' "$entities" "$floor" "$ours" | tee -a "$scratch/rounds"
  done
done

python3 - "$scratch/rounds" "$json" <<'PYTHON'
import json, statistics, sys

rounds = [line.split() for line in open(sys.argv[1])]
try:
    rows = {row["name"]: row for row in json.load(open(sys.argv[2]))["rows"]}
except OSError:
    rows = {}
print(f"{'L1 in process':<16}{'h2load: floor /s':>18}{'ours /s':>12}{'ratio':>8}{'the bench says':>16}")
for entities in ("1", "100"):
    mine = [(float(floor), float(ours)) for count, floor, ours in rounds if count == entities]
    ratio = statistics.median(ours / floor for floor, ours in mine)
    floor, ours = (statistics.median(side) for side in zip(*mine))
    compared = rows.get(f"memory hit {entities}", {}).get("compared")
    told = f"{compared['ratio']['per_second']['median']:.2f}" if compared else "-"
    print(f"{entities + ' entities':<16}{floor:>18,.0f}{ours:>12,.0f}{ratio:>8.2f}{told:>16}")
PYTHON
