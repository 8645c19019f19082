#!/usr/bin/env bash
# build-wheel.sh SOURCE OUT: makes the wheel of mfdan from the tree SOURCE in the folder OUT.
# A tree in which somebody works is left as it is, and what lies in its build folder stays out.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=${1:?say where the source is: build-wheel.sh SOURCE OUT}
out=${2:?say where the wheel goes: build-wheel.sh SOURCE OUT}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/source"
for part in LICENSE README.md pyproject.toml mfdan model service training; do
  cp -r "$source/$part" "$work/source/"
done
python3 -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet --require-hashes --only-binary :all: \
  -r "$here/requirements-build.txt"
"${pip[@]}" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$out" "$work/source"
