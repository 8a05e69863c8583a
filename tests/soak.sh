#!/usr/bin/env bash
# A soak: half of the maximal load for half an hour, with what a night brings, and a judge of every answer. See usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

usage() {
  cat <<'USAGE'
tests/soak.sh [--seconds 1800] [--seed 1] [--debug]

Starts two servers with TLS, tokens, traces (1 %) and metrics over a Redis and a MongoDB set of three of its own, measures
how many calls a second they can bear, and puts half of that on them. Meanwhile certificates are rotated, Redis is killed,
MongoDB elects and both servers are restarted one after the other; each twice from 120 s on. It ends with tables, and its
exit code is 0 only if no answer was wrong, no call failed but where docs/operations.md allows it, and memory stayed flat.
What it needs it gets as ./test.sh does.

  --seconds N   how long the load lasts; 60 at least; half a minute more to measure, and some minutes to build
  --seed N      the calls; the timing stays the machine's
  --debug       as the tests are built, instead of with --release
USAGE
}

seconds=1800 seed=1
# shellcheck source=tests/long.sh
source tests/long.sh
take_options "seconds seed" "$@"

prepare

export SOAK_SECONDS="$seconds" FEATURESTORE_TEST_SEED="$seed"
say "soak, seed $seed, $seconds s"
run_ignored soak::a_soak_answers_nothing_wrong_and_fails_only_where_operations_allows_it
