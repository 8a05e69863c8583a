# shellcheck shell=bash
# Sourced by tests/storm.sh and tests/soak.sh, which give each option its default and have a function `usage`.

# --debug empties it.
release=(--release)

# take_options "NAME..." [ARGUMENT...]: sets the variables of these names.
take_options() {
  local names=" $1 "
  shift
  while (($#)); do
    case $1 in
      --debug) release=() ;;
      -h | --help) usage && exit 0 ;;
      *)
        [[ $1 == --* && $names == *" ${1#--} "* && -n ${2:-} ]] || { usage >&2 && exit 64; }
        declare -g "${1#--}=$2" && shift
        ;;
    esac
    shift
  done
}

# Gets the real servers, and leaves nothing in the environment that a server would take for a setting.
prepare() {
  local name
  export REQUIRE_BACKENDS="${REQUIRE_BACKENDS:-1}"
  for name in $(compgen -e); do
    case $name in FEATURESTORE_* | REDIS_* | MONGO_* | OTEL_*) unset "$name" ;; esac
  done
  # shellcheck source=tests/tools.sh
  source tests/tools.sh
  export MONGOD_BIN
}

# run_ignored TEST: one of the tests that are too long for each run.
run_ignored() {
  cargo test --locked "${release[@]}" --test it -- --ignored --exact --nocapture "$1"
}
