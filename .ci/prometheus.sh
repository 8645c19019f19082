#!/usr/bin/env bash
# Puts `prometheus` and `promtool` into FOLDER/bin: those of this machine where it has both, otherwise Debian's,
# unpacked without root, without a daemon, and without a change to the machine. A second call finds them there.
set -euo pipefail
folder=${1:?say where to put them: .ci/prometheus.sh FOLDER}
mkdir -p "$folder/bin"
cd "$folder"
programs=(prometheus promtool)

if ! [[ -x bin/prometheus && -x bin/promtool ]]; then
  if command -v "${programs[0]}" >/dev/null && command -v "${programs[1]}" >/dev/null; then
    for program in "${programs[@]}"; do
      ln -sf "$(command -v "$program")" bin/
    done
  elif command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
    # The archive moves on, so what apt knows of it may be old, or nothing.
    apt-get --quiet --quiet download prometheus ||
      { [[ $EUID == 0 ]] && apt-get --quiet --quiet update && apt-get --quiet --quiet download prometheus; } || {
      echo 'the package prometheus cannot be fetched: run apt-get update as root once, or install Prometheus' >&2
      exit 1
    }
    dpkg --extract prometheus_*.deb unpacked
    rm prometheus_*.deb
    for program in "${programs[@]}"; do
      ln -sf "../unpacked/usr/bin/$program" bin/
    done
  else
    echo 'Prometheus is not installed, and this is no Debian to fetch it from: install prometheus and promtool' >&2
    exit 1
  fi
fi
bin/promtool --version | head -n 1
