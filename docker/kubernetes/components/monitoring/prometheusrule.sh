#!/usr/bin/env bash
# Writes the rules of docker/prometheus as the resource that the Prometheus Operator takes them in:
# prometheusrule.yaml, beside this script. Kustomize reads no file outside its folder as YAML, hence
# a copy; tests/docker/test_kubernetes.py fails where it is not of the rules as they are.
set -euo pipefail
cd "$(dirname "$0")"

{
  cat <<'HEAD'
# Made by prometheusrule.sh from docker/prometheus/rules/mfdan.yml: change that, and run `make rules`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: mfdan
  labels:
    app.kubernetes.io/name: mfdan
spec:
HEAD
  sed -e '/^#/d' -e 's/^./  &/' ../../../prometheus/rules/mfdan.yml
} >prometheusrule.yaml
