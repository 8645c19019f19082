#!/usr/bin/env bash
# Holds the resources of docker/kubernetes that Kubernetes itself does not know to the models of those
# who brought them: KEDA, the Prometheus Operator, KServe. They need libraries that mfdan does not, so
# they are installed into an environment of their own. Everything else is in tests/docker.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m venv "$work/venv"
install=("$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${install[@]}" -c constraints.txt cloudcoil==0.6.0 cloudcoil-models-keda==2.16.1.0 \
  cloudcoil-models-prometheus-operator==0.80.1.0 httpx==0.28.1 httpcore==1.0.9 pyyaml
# Only its models are read, as text: what its server needs would be another 60 packages.
"${install[@]}" --no-deps kserve==0.21.0

for overlay in docker/kubernetes/overlays/*/; do
  .venv/bin/kubectl kustomize "$overlay" >"$work/$(basename "$overlay").yaml"
done
"$work/venv/bin/python" .ci/custom_resources.py "$work"/*.yaml
