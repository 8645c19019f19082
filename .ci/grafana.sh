#!/usr/bin/env bash
# Holds the dashboards to Grafana's own schema: the types of @grafana/schema, of the Grafana that .env names, by the
# TypeScript compiler. A field that Grafana does not know, or a value that it does not take, fails. Needs npm.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v npm >/dev/null || {
  echo 'npm is not installed: install Node.js, whose packages hold the schema of Grafana (nodejs.org, or apt-get install npm)' >&2
  exit 1
}
version=$(sed -n 's/^GRAFANA_IMAGE=[^:]*:\([0-9.]*\).*/\1/p' .env)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

npm install --prefix "$work" --silent --no-fund --no-audit "@grafana/schema@$version" typescript@5.9.3
check() {
  "$work/node_modules/.bin/tsc" --noEmit --strict --skipLibCheck --module esnext --moduleResolution bundler "$1"
}

node .ci/grafana_types.mjs "$work/node_modules/@grafana/schema" docker/grafana/dashboards/*.json >"$work/check.ts"
check "$work/check.ts"

# What is wrong must not pass.
sed 's/"unit":"s"/"unitt":"s"/' "$work/check.ts" >"$work/wrong.ts"
if check "$work/wrong.ts" >"$work/said"; then
  echo 'the types let a wrong field pass: .ci/grafana_types.mjs checks nothing' >&2
  exit 1
fi
grep -q unitt "$work/said"
echo "$(grep -c '^export const' "$work/check.ts") parts of the dashboards fit the schema of Grafana $version"
