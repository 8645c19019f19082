#!/usr/bin/env bash
# prepare-root.sh: makes the user that mfdan runs as, and the folders that are for volumes. A new
# volume takes over the folder's owner, so that this user can write to it. Needs root.
set -euo pipefail
groupadd --gid 10001 mfdan
useradd --uid 10001 --gid mfdan --home-dir /tmp --no-create-home --shell /usr/sbin/nologin mfdan
install --directory --owner mfdan --group mfdan --mode 0755 /models /run/mfdan
