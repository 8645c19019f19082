"""What the restricted Pod Security Standard of Kubernetes forbids, and what mfdan needs not."""

from collections.abc import Iterator
from typing import Any

from kubernetes_files import Resource

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SECCOMP = {"RuntimeDefault", "Localhost"}


def faults(spec: Resource) -> list[str]:
    """Return all in which a pod's spec is less strict than it has to be."""
    return [*_of_the_pod(spec), *(fault for each in _containers(spec) for fault in each)]


def _of_the_pod(spec: Resource) -> Iterator[str]:
    context = spec.get("securityContext", {})
    for shared in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(shared):
            yield shared
    for volume in spec.get("volumes", ()):
        yield from (f"volume {kind}" for kind in volume.keys() - {"name"} - _VOLUMES)
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 0) == 0:
        yield "root"
    if context.get("seccompProfile", {}).get("type") not in _SECCOMP:
        yield "seccomp"
    if context.get("sysctls"):
        yield "sysctls"
    # Beyond the standard:
    if spec.get("automountServiceAccountToken") is not False:
        yield "token"


def _containers(spec: Resource) -> Iterator[Iterator[str]]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from (_of_a_container(each) for each in spec.get(kind, ()))


def _of_a_container(container: Resource) -> Iterator[str]:
    context: dict[str, Any] = container.get("securityContext", {})
    capabilities = context.get("capabilities", {})
    if context.get("allowPrivilegeEscalation") is not False:
        yield "escalation"
    if context.get("privileged"):
        yield "privileged"
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield "capabilities"
    if context.get("runAsNonRoot") is False or context.get("runAsUser") == 0:
        yield "root"
    if context.get("seccompProfile", {"type": "RuntimeDefault"})["type"] not in _SECCOMP:
        yield "seccomp"
    if context.get("procMount", "Default") != "Default":
        yield "procMount"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "hostPort"
    # Beyond the standard:
    if context.get("readOnlyRootFilesystem") is not True:
        yield "writable root"
    if not container.get("resources", {}).get("limits", {}).keys() >= {"cpu", "memory"}:
        yield "no limits"
