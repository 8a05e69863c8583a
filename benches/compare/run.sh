#!/usr/bin/env bash
# Ours beside what people use today, in one run. See usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec </dev/null

usage() {
  cat <<'USAGE'
benches/compare/run.sh [--seconds 10] [--rounds 3] [--json target/compare.json]

Starts Feast's Python feature server (2 workers, and 1), Django REST over Redis and MongoDB, and this feature store over
Redis and MongoDB; gives all of them the same data; checks that all of them answer it; measures them in turn, in rounds,
and prints a table: calls/s, rows/s, latency with one call in flight, the ratios, and Python's time from call to numpy
array. What it needs it gets into target/tools, from package registries. See benches/compare/README.md.

  --seconds N        how long each figure is measured in each round; the defaults take some 20 minutes
  --rounds N         each system in turn, so often; what is printed are medians over the rounds
  --json FILE        the same as JSON, with the figures of every round
  FEATURESTORE_BIN   in the environment: the binary to measure, instead of cargo build --release
  MONGOD_BIN         in the environment: the mongod to use
USAGE
}

seconds=10 rounds=3 json=target/compare.json
while (($#)); do
  case $1 in
    --seconds | --rounds | --json)
      [[ -n ${2:-} ]] || { usage >&2 && exit 64; }
      declare "${1#--}=$2" && shift
      ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 64 ;;
  esac
  shift
done
for number in "$seconds" "$rounds"; do
  [[ $number =~ ^[1-9][0-9]{0,3}$ ]] || { usage >&2 && exit 64; }
done

featurestore=${FEATURESTORE_BIN:-}
# The developer's own Redis and MongoDB are none of this run's business.
for name in $(compgen -e); do
  case $name in FEATURESTORE_* | REDIS_* | MONGO_* | OTEL_* | FEAST_*) unset "$name" ;; esac
done

export REQUIRE_BACKENDS=1
# shellcheck source=tests/tools.sh
source tests/tools.sh

install_generators() {
  unpack_debs "$tools/generators" wrk nghttp2-client &&
    wrap wrk "$tools/generators" && wrap h2load "$tools/generators" && h2load --version
}

install_compared() {
  rm -rf "$compared"
  python3 -m venv "$compared" &&
    "$compared/bin/pip" install --quiet --only-binary :all: -r benches/compare/requirements.txt
}

say "wrk and h2load: from PATH, else Debian's packages"
if ! command -v wrk >/dev/null || ! command -v h2load >/dev/null; then
  once generators install_generators || die "no wrk or h2load (Debian: apt-get install wrk nghttp2-client)"
fi

say "Feast and Django: benches/compare/requirements.txt"
compared="$tools/compare-venv"
once "compare-venv-$(stamp_of benches/compare/requirements.txt)" install_compared ||
  die "benches/compare/requirements.txt cannot be installed here"
"$compared/bin/python" examples/model_server/generate_stubs.py

if [[ -z $featurestore ]]; then
  say "cargo build --release"
  cargo build --release --locked
  featurestore="${CARGO_TARGET_DIR:-target}/release/featurestore"
fi

# From here on compare.py has this process's pid: what it starts, it ends, however it ends.
export PYTHONDONTWRITEBYTECODE=1
exec "$compared/bin/python" benches/compare/compare.py --seconds "$seconds" --rounds "$rounds" --json "$json" \
  --featurestore "$(realpath "$featurestore")" --mongod "$MONGOD_BIN"
