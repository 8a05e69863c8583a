#!/usr/bin/env bash
# Checks the chart with the values it comes with and with each file of ci/: helm lint, helm template, and every manifest
# against the schemas of Kubernetes, the oldest that the chart allows and a new one. And that wrong values are refused.
# Needs helm and kubernetes-validate (requirements.txt) on PATH; ./test.sh runs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/featurestore"

versions=(1.27 1.36)
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

for values in values.yaml ci/*.yaml; do
  manifest="$rendered/$(basename "$values")"
  helm lint --strict --quiet . --values "$values" || fail "helm lint with $values"
  helm template release . --namespace features --values "$values" >"$manifest"
  for version in "${versions[@]}"; do
    told=$(kubernetes-validate --strict --kubernetes-version "$version" "$manifest" 2>&1) ||
      fail "$values makes what Kubernetes $version does not know: $told"
    # The operator's kinds are not Kubernetes' own; any other kind without a schema is misspelt, or too new.
    unknown=$(grep WARN <<<"$told" | grep -v 'monitoring.coreos.com/v1' || true)
    [[ -z $unknown ]] || fail "$values, Kubernetes $version: $unknown"
  done
done

refused() {
  if helm template release . --set "$1" >/dev/null 2>&1; then fail "values.schema.json lets $1 pass"; fi
}
refused replcias=3
refused tls.enable=true
refused networkPolicy.egress.port=1
refused mode=sharded
refused redis.url=redis://user:secret@cache
refused image.digest=sha256:abc
refused tokens.enabled=perhaps
