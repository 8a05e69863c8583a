#!/usr/bin/env bash
# Builds the fuzz targets and runs them from the kept corpus. See usage below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null

usage() {
  cat <<'USAGE'
fuzz/run.sh [--seconds N] [--minimize] [TARGET...]

Runs each fuzz target (all of fuzz/fuzz_targets, unless some are named) under libFuzzer from the inputs in fuzz/corpus: first
each of them, then 20,000 that are made of them, which takes some seconds in all. It needs a C++ compiler, but no nightly Rust;
all it writes is in target/fuzz. An input that a target fails on goes to target/fuzz/artifacts and is shown; put it into
fuzz/corpus/TARGET, where `cargo test fuzzing` runs it without libFuzzer.

  --seconds N   run each target so long instead; inputs that reach new code are collected in target/fuzz/corpus
  --minimize    then make fuzz/corpus the fewest inputs that reach all that it and what was collected reach
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
build=(cargo build --locked --release --manifest-path fuzz/Cargo.toml --target-dir target/fuzz --target "$host")
if ! RUSTFLAGS="$flags" "${build[@]}"; then
  echo "If fuzz/Cargo.lock is behind Cargo.lock: cp Cargo.lock fuzz && cargo update -w --manifest-path fuzz/Cargo.toml" >&2
  exit 1
fi

mkdir -p target/fuzz/artifacts
for target in "${targets[@]}"; do
  kept="fuzz/corpus/$target" found="target/fuzz/corpus/$target" log="target/fuzz/$target.log"
  mkdir -p "$kept" "$found"
  # 10 s for an input, and this memory, are far more than any needs.
  options=(-artifact_prefix="target/fuzz/artifacts/$target-" -print_final_stats=1)
  options+=(-timeout=10 -rss_limit_mb=2048 -max_len=4096)
  if ((seconds)); then options+=(-max_total_time="$seconds"); else options+=(-runs="$runs" -seed=1); fi
  if ! "$built/$target" "${options[@]}" "$found" "$kept" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "FAILED: the fuzz target $target; the input is in target/fuzz/artifacts" >&2
    exit 1
  fi
  echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, none of them fails"
  if ((minimize)); then
    rm -rf "$kept.new" && mkdir "$kept.new"
    "$built/$target" -set_cover_merge=1 -use_counters=0 -max_len=4096 "$kept.new" "$kept" "$found" >>"$log" 2>&1
    rm -rf "$kept" && mv "$kept.new" "$kept"
    echo "$target: $(find "$kept" -type f | wc -l) inputs kept, $(du -sh --apparent-size "$kept" | cut -f1)"
  fi
done
