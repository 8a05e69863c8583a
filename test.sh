#!/usr/bin/env bash
# Everything that must hold, in one command. See usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
exec </dev/null

usage() {
  cat <<'USAGE'
./test.sh [--quick] [-- ARGUMENTS OF cargo test]

Lints, builds, runs the example against a fresh server, and runs all tests against real Redis and MongoDB servers that
they start themselves. Needs Rust, Python 3.11 with pip, and the package registries; what else it needs it gets into
target/tools, once. It ends with cargo test's own lines; the exit code is 0 only if everything held.

  --quick              leave out the lints: fmt, clippy, the slim build, instruction counts, fuzz targets, cargo-deny, buf,
                       shellcheck, hadolint, the image's plan, the Helm chart, compose
  REQUIRE_BACKENDS=0   in the environment: a missing redis-server, mongod or valkey-server is announced instead of being an error
  MONGOD_BIN=...       the mongod to use
  VALKEY_BIN=...       the valkey-server to use
USAGE
}

quick=0
while (($#)); do
  case $1 in
    --quick) quick=1 ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) usage >&2 && exit 64 ;;
  esac
  shift
done

export REQUIRE_BACKENDS="${REQUIRE_BACKENDS:-1}"
# A failed test's message says what was wrong; the runtime's frames after it only push it out of a log's end.
export RUST_BACKTRACE=0
# Most tests wait for servers most of the time: with as many threads as a small machine has cores they take twice as long.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-4}"
# The developer's own Redis and MongoDB are none of the tests' business.
for name in $(compgen -e); do
  case $name in FEATURESTORE_* | REDIS_* | MONGO_* | OTEL_*) unset "$name" ;; esac
done

# shellcheck source=tests/tools.sh
source tests/tools.sh

# A check by a tool out of tests/tools.txt: lint PROGRAM ARGUMENT...
lint() {
  local package
  package=$(grep -o "^[a-z-]*${1}[^ ]*" tests/tools.txt)
  if once "$package" "$venv/bin/pip" install --quiet --only-binary :all: --no-deps "$package"; then
    say "$*"
    "$venv/bin/$1" "${@:2}"
  else
    left_out "$*: no package of it for this platform"
  fi
}

# Whether the hot path costs more instructions than its baseline says.
instruction_counts() {
  say "instruction counts, against benches/instructions/baseline.tsv"
  if command -v valgrind >/dev/null || once valgrind install_valgrind; then
    cargo bench --no-default-features --bench instructions --locked
  else
    left_out "the instruction counts: valgrind is not to be had"
  fi
}

# The Helm chart: what it renders, and whether Kubernetes would take it.
chart() {
  local stamp
  stamp=$(stamp_of deploy/helm/requirements.txt tests/python/requirements.txt examples/model_server/requirements.txt)
  say "helm lint, helm template, the schemas of Kubernetes"
  if [[ -n $HELM ]] && once "kubernetes-schemas-$stamp" install_kubernetes_schemas; then
    PATH="$(dirname "$HELM"):$venv/bin:$PATH" deploy/helm/check.sh
  else
    left_out "the checks of the Helm chart: helm or the schemas of Kubernetes are not to be had"
  fi
}

# The Dockerfile's steps that need no Docker.
image() {
  local chef
  chef=$(grep -o 'cargo-chef@[0-9.]*' deploy/Dockerfile)
  say "the image's plan, by $chef"
  if once "$chef" install_crate "$chef"; then
    deploy/check-image.sh
  else
    left_out "the check of the image's plan: $chef is not to be had"
  fi
}

# The kept inputs of the fuzz targets, and some made of them.
fuzz() {
  say "fuzz/run.sh"
  if command -v "${CXX:-c++}" >/dev/null; then
    fuzz/run.sh
  else
    left_out "the fuzz targets: there is no C++ compiler for libFuzzer (cargo test runs their kept inputs all the same)"
  fi
}

lints() {
  say "cargo fmt"
  cargo fmt --check
  say "cargo clippy"
  cargo clippy --all-targets --locked -- -D warnings
  say "cargo check, the slim build: no Redis, no MongoDB, no OpenTelemetry"
  cargo check --no-default-features --locked
  instruction_counts
  fuzz
  lint cargo-deny --locked check bans licenses sources
  lint buf lint
  lint shellcheck --external-sources test.sh tests/storm.sh tests/soak.sh benches/compare/run.sh benches/h2load.sh fuzz/run.sh \
    .ci/run deploy/helm/check.sh deploy/check-image.sh
  lint hadolint deploy/Dockerfile
  image
  chart

  say "docker-compose config"
  if docker compose version >/dev/null 2>&1; then
    docker compose config --quiet
  elif command -v docker-compose >/dev/null || once compose install_compose; then
    docker-compose config --quiet
  else
    left_out "the check of docker-compose.yml: neither docker compose nor Debian's docker-compose is to be had"
  fi
}

# The example as a user runs it, against a server as a user starts it: the embedded pair on a free port.
example() {
  local binary="${CARGO_TARGET_DIR:-target}/debug/featurestore" port admin_port
  scratch=$(mktemp -d)
  "$venv/bin/python" examples/model_server/generate_stubs.py
  read -r port admin_port < <("$venv/bin/python" -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))')
  (
    export FEATURESTORE_LISTEN="127.0.0.1:$port" FEATURESTORE_ADMIN_LISTEN="127.0.0.1:$admin_port"
    export FEATURESTORE_DATA_DIR="$scratch/data"
    exec "$binary" serve
  ) >"$scratch/log" 2>&1 &
  server=$!
  local end=$((SECONDS + 30))
  until FEATURESTORE_LISTEN="127.0.0.1:$port" "$binary" health featurestore.v1.FeatureStoreService >/dev/null 2>&1; do
    if ! kill -0 "$server" 2>/dev/null || ((SECONDS > end)); then
      tail -n 20 "$scratch/log" >&2
      die "the server for the example is not ready"
    fi
    sleep 0.1
  done
  if ! "$venv/bin/python" examples/model_server/main.py --target "127.0.0.1:$port"; then
    tail -n 20 "$scratch/log" >&2
    die "the example"
  fi
  clean_up
}

# The suites of L1 over Valkey: its contract, the scripts, clusters and sentinels, what it may lack, and some outages.
over_valkey() {
  if [[ -n $VALKEY_BIN ]]; then
    say "cargo test, the suites of L1 over Valkey"
    TEST_REDIS_SERVER="$VALKEY_BIN" cargo test --locked --test it -- \
      cache_contract:: lacking:: outages::l1_comes_back outages::failovers
  else
    left_out "the suites of L1 over Valkey: there is no valkey-server"
  fi
}

server='' scratch=''
clean_up() {
  [[ -z $server ]] || { kill -KILL "$server" && wait "$server"; } 2>/dev/null || true
  [[ -z $scratch ]] || rm -rf "$scratch"
  server='' scratch=''
}
trap clean_up EXIT

if ((quick)); then
  left_out "the lints, as asked by --quick"
else
  lints
fi

say "cargo build"
cargo build --locked
say "examples/model_server against a fresh server"
example

export FEATURESTORE_TEST_PYTHON="$venv/bin/python"
for name in MONGOD_BIN GRPCURL GRPC_HEALTH_PROBE PROMTOOL NODE_PACKAGES HELM; do
  if [[ -n ${!name} ]]; then export "${name?}"; else unset "$name"; fi
done
(($#)) || over_valkey
say "cargo test"
cargo test --locked "$@"
