#!/usr/bin/env bash
# image.sh [CACHE] [cpu|gpu] [OPENCV]: tries docker/Dockerfile where there is no Docker. Its own steps run in
# a clean Debian tree with Debian's Python 3.11, which stands in for python:3.11-slim-bookworm; what
# comes out serves a request as the image's user, with a read-only root, and is weighed. CACHE keeps
# the tree and pip's downloads for the next time. Needs root on Debian or Ubuntu, and their archive;
# where it has not got them it says so, and the same scripts install into a clean virtual
# environment instead. Of the target gpu it is tried that it is refused in one sentence where there is
# no GPU, and that all libraries are found but the driver's; it wants OPENCV, a folder with a wheel of
# docker/build-opencv-cuda.sh, and is left out without one, for that takes half an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
work=$(mktemp -d)
server=
cleanup() {
  if [[ -n $server ]]; then
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT
cache=${1:-$work/cache}
target=${2:-cpu}
opencv=${3:-}
tree="$cache/bookworm-python3.11.tar"
mkdir -p "$cache/pip"

# mmdebstrap is one script: taken out of its package, nothing has to be installed.
make_tree() {
  local tools="$work/tools" folder
  local -a leave_out=()
  mkdir "$tools"
  (cd "$tools" && { apt-get download mmdebstrap || {
    apt-get update && apt-get download mmdebstrap
  }; }) >"$work/log" 2>&1 || return 1
  dpkg -x "$tools"/mmdebstrap_*.deb "$tools"
  for folder in doc groff info lintian locale man; do
    leave_out+=("--dpkgopt=path-exclude=/usr/share/$folder/*")
  done
  PATH="$tools/usr/bin:$PATH" mmdebstrap --quiet --mode=root --variant=minbase \
    --hook-dir="$tools/usr/share/mmdebstrap/hooks/merged-usr" "${leave_out[@]}" \
    --include=python3,python3-venv,usr-is-merged \
    bookworm "$work/tree.tar" http://deb.debian.org/debian >"$work/log" 2>&1 || return 1
  mv "$work/tree.tar" "$tree"
}

# Prints why the Dockerfile cannot be followed here; nothing when it can.
hindrance() {
  if [[ $EUID != 0 ]]; then
    echo 'this is not root'
  elif ! unshare --mount --propagation private mount -t tmpfs tmpfs "$work" 2>/dev/null; then
    echo 'nothing may be mounted here'
  elif ! command -v apt-get >/dev/null; then
    echo 'there is no apt-get'
  elif [[ ! -f $tree ]] && ! make_tree; then
    echo "Debian's archive gave no tree: $(tail -n 1 "$work/log" 2>/dev/null)"
  fi
}

serve_from_environment() {
  local key port
  .venv/bin/python -m venv "$work/python"
  PATH="$work/python/bin:$PATH"
  docker/image/build-wheel.sh "$repository" "$work/wheels"
  docker/image/install-packages.sh cpu "$work/mfdan"
  docker/image/install-mfdan.sh "$work/wheels" "$work/mfdan"
  docker/image/trim.sh "$work/mfdan"
  "$work/mfdan/bin/mfdan" keys new ci >"$work/keys.toml" 2>"$work/key"
  key=$(grep -o 'mfdan_[^ ]*$' "$work/key")
  port=$(.venv/bin/python -c \
    'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  (cd "$work" && MFDAN_API_KEYS_FILE=keys.toml exec mfdan/bin/mfdan serve --port "$port") &
  server=$!
  MFDAN_API_KEY=$key .venv/bin/python .ci/ask.py "http://127.0.0.1:$port"
  MFDAN_PORT=$port "$work/mfdan/bin/python" docker/deploy/healthcheck.py
  echo "the image's scripts install what serves; no layer was weighed, no read-only root tried"
}

if [[ $target == gpu && ! $opencv ]]; then
  echo 'the GPU image is not tried: name a folder with a wheel of docker/build-opencv-cuda.sh'
  exit
fi
why=$(hindrance)
if [[ -n $why ]]; then
  echo "the Dockerfile is not followed, because $why; its scripts run without it"
  serve_from_environment
else
  mkdir "$work/tree"
  tar -C "$work/tree" -xf "$tree"
  unshare --mount --propagation private .venv/bin/python .ci/image.py --target "$target" \
    ${opencv:+--opencv-cuda "$opencv"} "$work/tree" "$work/stages" "$cache/pip"
fi
