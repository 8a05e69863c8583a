#!/usr/bin/env bash
# A long storm: clients, faults by seed, and a checker that judges every answer. See usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

usage() {
  cat <<'USAGE'
tests/storm.sh [--seconds 600] [--seed 1] [--tiers three-nodes] [--faults all] [--debug]
tests/storm.sh --scenario NAME [--seconds 600] [--seed 1] [--debug]

Starts two servers over Redis and MongoDB of its own, lets clients call them, breaks things by the seed, and judges every
answer afterwards. It ends with a table, writes the same to target/storm/<tiers>-<seed>.json, and its exit code is 0 only
if no answer broke the promise. What it needs it gets as ./test.sh does.

  --seconds N   how long things break; some minutes more to build, to recover and to judge
  --seed N      the schedule of the faults and the calls; the timing stays the machine's
  --tiers T     three-nodes: Redis and a MongoDB set of three; one-node: Redis and a set of one, with a line of its own from
                each server; embedded: no backends, one server
  --faults F    all, or one sort of them:
                servers: killed, frozen, restarted; over all tiers
                redis: killed, frozen, restarted with old data, full, flushed, its scripts flushed; a server's line to it
                cut, stalled, slow, replies lost; not with embedded
                mongodb: one-node: killed, frozen; a server's line to it cut, stalled, slow, replies lost; no elections
                three-nodes: the primary killed, frozen, stepping down; no lines; not with embedded
  --scenario S  instead of tiers and faults, one in which it matters which L1 counts, and for which L2:
                rolled-redis: servers are restarted one after the other with another Redis, and back
                led-elsewhere: the address of Redis comes to lead to another one, and back
                copied-database, copied-folder: a copy of L2 beside the original, over one Redis
                mixed-settings: two databases of Redis and an L1 in the process, over one MongoDB
                promoted-replica-embedded, promoted-replica-standalone: Redis fails over to a replica that is behind
  --debug       as the tests are built, instead of with --release
USAGE
}

seconds=600 seed=1 tiers=three-nodes faults=all scenario=
# shellcheck source=tests/long.sh
source tests/long.sh
take_options "seconds seed tiers faults scenario" "$@"

refuse() {
  printf 'tests/storm.sh: %s\n' "$1" >&2
  exit 64
}
case $tiers in
  three-nodes | one-node | embedded) ;;
  *) refuse "--tiers $tiers: three-nodes, one-node or embedded" ;;
esac
case $scenario in
  '' | rolled-redis | led-elsewhere | copied-database | copied-folder | mixed-settings) ;;
  promoted-replica-embedded | promoted-replica-standalone) ;;
  *) refuse "--scenario $scenario: there is none of this name; see --help" ;;
esac
case $faults in
  all | servers) ;;
  redis | mongodb) [[ $tiers != embedded ]] || refuse "--faults $faults: embedded has no backends; use all or servers" ;;
  *) refuse "--faults $faults: all, redis, mongodb or servers" ;;
esac

prepare

if [[ -n $scenario ]]; then
  export STORM_SECONDS="$seconds" STORM_SCENARIO="$scenario" FEATURESTORE_TEST_SEED="$seed"
  say "storm $scenario, seed $seed, $seconds s"
  run_ignored history::no_answer_lies_in_a_long_storm_over_many_l1
  exit
fi

export STORM_SECONDS="$seconds" STORM_TIERS="$tiers" STORM_FAULTS="$faults" FEATURESTORE_TEST_SEED="$seed"
say "storm over $tiers, faults: $faults, seed $seed, $seconds s"
run_ignored history::no_answer_lies_in_a_long_storm
