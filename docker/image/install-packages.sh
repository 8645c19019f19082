#!/usr/bin/env bash
# install-packages.sh cpu|gpu PREFIX [OPENCV]: makes the virtual environment PREFIX and installs
# there what mfdan needs, each file by its hash. OPENCV is a folder with a wheel that
# docker/build-opencv-cuda.sh made: it takes the place of PyPI's OpenCV, of the same version.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${1:?say for which target: install-packages.sh cpu|gpu PREFIX}
prefix=${2:?say where to: install-packages.sh cpu|gpu PREFIX}
opencv=${3:-}
requirements="$here/requirements-$target.txt"
if [[ ! -f $requirements ]]; then
  echo "there is no target $target: it is cpu or gpu" >&2
  exit 2
fi
wheels=("$opencv"/opencv_contrib_python_headless-*.whl)
if [[ $opencv && (${#wheels[@]} != 1 || ! -f ${wheels[0]}) ]]; then
  echo "$opencv must hold one wheel of opencv-contrib-python-headless, and no second one" >&2
  exit 2
fi

python3 -m venv "$prefix"
pip=("$prefix/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet --require-hashes --only-binary :all: --no-deps -r "$requirements"
if [[ $opencv ]]; then
  "${pip[@]}" install --quiet --force-reinstall --no-deps --no-index "${wheels[0]}"
fi
"${pip[@]}" check
