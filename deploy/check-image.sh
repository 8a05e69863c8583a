#!/usr/bin/env bash
# The image's build as far as it goes without Docker: the files that .dockerignore leaves, cargo-chef's plan of them, and
# whether cargo takes the skeleton that the dependencies are built from, and then the files themselves.
# Needs cargo-chef, as the Dockerfile names it, on PATH; ./test.sh runs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/context" "$folder/skeleton"
grep '^!' .dockerignore | cut -c2- | xargs cp -r -t "$folder/context"

# A fetch reads the manifest as strictly as a build does; cargo metadata does not.
is_taken() { cargo fetch --quiet --locked --target "$(rustc -vV | sed -n 's/^host: //p')"; }

(cd "$folder/context" && cargo chef prepare --recipe-path "$folder/skeleton/recipe.json" --bin featurestore)
(cd "$folder/skeleton" && cargo chef cook --no-build --locked --recipe-path recipe.json --bin featurestore && is_taken)
cd "$folder/context" && is_taken
