#!/usr/bin/env bash
# install-mfdan.sh WHEELS PREFIX [ROOT]: installs the wheel in the folder WHEELS into the virtual
# environment PREFIX. With ROOT nothing but its own files is written, to ROOT/PREFIX: a layer of a
# few megabytes that changes with mfdan, on top of a large one that changes with its packages.
set -euo pipefail
wheels=${1:?say where the wheel is: install-mfdan.sh WHEELS PREFIX [ROOT]}
prefix=${2:?say where to: install-mfdan.sh WHEELS PREFIX [ROOT]}
root=${3:-/}

[[ -x $prefix/bin/python ]] || python3 -m venv "$prefix"
"$prefix/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --no-index \
  --no-warn-script-location --root "$root" "$wheels"/mfdan-*.whl
