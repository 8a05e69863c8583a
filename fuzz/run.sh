#!/usr/bin/env bash
# Builds the fuzz targets and runs them from the kept corpus. See usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

usage() {
  cat <<'USAGE'
fuzz/run.sh [--seconds N] [--minimize] [TARGET...]

Runs each fuzz target (all of fuzz/fuzz_targets, unless some are named) under libFuzzer from the inputs in fuzz/corpus: first
all of them, then what is made of them, for a few seconds in all. It needs a C++ compiler and a stable Rust; the targets are
built into target/fuzz. What a target fails on is written to target/fuzz/artifacts; run that file again by
`target/fuzz/TARGET FILE`. `cargo fuzz run --sanitizer none TARGET` does the same where cargo-fuzz is installed.

  --seconds N   how long each target runs; new inputs that reach new code are collected in target/fuzz/corpus
  --minimize    afterwards, make fuzz/corpus the fewest inputs that reach all the code reached by it and by what was collected
USAGE
}

runs=20000 seconds=0 minimize=0 targets=()
while (($#)); do
  case $1 in
    --seconds) seconds=$2 && shift ;;
    --minimize) minimize=1 ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 64 ;;
    *) targets+=("$1") ;;
  esac
  shift
done
if ((${#targets[@]} == 0)); then
  for file in fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

# What cargo-fuzz passes, but for a sanitizer: there is no unsafe code here to be watched, and sanitizers need a nightly Rust.
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-simplifycfg-branch-fold-threshold=0"
for coverage in level=4 inline-8bit-counters pc-table trace-compares stack-depth; do
  flags+=" -Cllvm-args=-sanitizer-coverage-$coverage"
done
# With a target named, the flags are not for build scripts and macros.
host=$(rustc -vV | sed -n 's/^host: //p')
built="target/fuzz/$host/release"
if ! RUSTFLAGS="$flags" cargo build --manifest-path fuzz/Cargo.toml --target-dir target/fuzz --target "$host" --release --locked; then
  echo "If it is the lock file that needs an update: cargo update --workspace --manifest-path fuzz/Cargo.toml" >&2
  exit 1
fi

mkdir -p target/fuzz/artifacts
for target in "${targets[@]}"; do
  kept="fuzz/corpus/$target" found="target/fuzz/corpus/$target" log="target/fuzz/$target.log"
  mkdir -p "$kept" "$found"
  # A few MiB of memory and 10 s for one input are far more than any needs.
  options=(-artifact_prefix="target/fuzz/artifacts/$target-" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1)
  if ((seconds)); then options+=(-max_total_time="$seconds"); else options+=(-runs="$runs" -seed=1); fi
  [[ -e fuzz/$target.dict ]] && options+=(-dict="fuzz/$target.dict")
  if ! "$built/$target" "${options[@]}" "$found" "$kept" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "FAILED: the fuzz target $target; the input is in target/fuzz/artifacts" >&2
    exit 1
  fi
  echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, none of them fails"
  if ((minimize)); then
    rm -rf "$kept.new" && mkdir "$kept.new"
    "$built/$target" -merge=1 "$kept.new" "$kept" "$found" >>"$log" 2>&1
    rm -rf "$kept" && mv "$kept.new" "$kept"
    echo "$target: $(find "$kept" -type f | wc -l) inputs kept, $(du -sh --apparent-size "$kept" | cut -f1)"
  fi
done
