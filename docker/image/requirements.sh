#!/usr/bin/env bash
# requirements.sh UV: writes requirements-*.txt beside it: exact versions, those of constraints.txt,
# each with the hashes of its files on the index. Run by `make requirements` after any change of a
# pin. CUDA and cuDNN are pinned in requirements-gpu.txt alone: no developer installs them.
set -euo pipefail
uv=${1:?say where uv is: requirements.sh UV}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

compile() {
  local out=$1
  shift
  "$uv" pip compile --quiet --constraints constraints.txt --generate-hashes --only-binary :all: \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-index-url \
    --custom-compile-command 'make requirements' --no-annotate \
    --output-file "$here/$out" "$@"
}

for target in cpu gpu; do
  compile "requirements-$target.txt" --extra "$target" --extra client --extra traces \
    pyproject.toml
done
echo 'setuptools>=80' | compile requirements-build.txt -
