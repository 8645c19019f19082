#!/usr/bin/env bash
# install-packages.sh cpu|gpu PREFIX: makes the virtual environment PREFIX and installs there what
# mfdan needs, each file by its hash.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${1:?say for which target: install-packages.sh cpu|gpu PREFIX}
prefix=${2:?say where to: install-packages.sh cpu|gpu PREFIX}
requirements="$here/requirements-$target.txt"
if [[ ! -f $requirements ]]; then
  echo "there is no target $target: it is cpu or gpu" >&2
  exit 2
fi

python3 -m venv "$prefix"
pip=("$prefix/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet --require-hashes --only-binary :all: --no-deps -r "$requirements"
"${pip[@]}" check
