"""The manifests of docker/kubernetes, as `kubectl apply -k` would send them."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1] / "docker" / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in ROOT.glob("overlays/*/kustomization.yaml"))
LOAD_MODELS = ROOT / "load-models.yaml"

Resource = Mapping[str, Any]


@cache
def rendered(overlay: str) -> tuple[Resource, ...]:
    """Return the resources of one overlay."""
    return build(ROOT / "overlays" / overlay)


def build(folder: Path) -> tuple[Resource, ...]:
    """Return the resources of a folder with a kustomization; fail with what kustomize says."""
    return tuple(yaml.safe_load_all(kubectl("kustomize", folder)))


def kubectl(*arguments: str | Path) -> str:
    """Return what it prints; fail with what it says."""
    run = subprocess.run(  # noqa: S603 - a command of the tests' own making
        [Path(sys.executable).with_name("kubectl"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.defpath, "HOME": str(ROOT)},  # no cluster is configured there
    )
    # A warning would be of a field that the next kustomize no longer takes.
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return run.stdout


def together(folder: Path, *components: str, overlay: str = "cpu", **fields: object) -> Path:
    """Write a kustomization of an operator's own into a folder; return the folder."""
    parts = Path(os.path.relpath(ROOT, folder.resolve()))
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(parts / "overlays" / overlay)],
        "components": [str(parts / "components" / name) for name in components],
        **fields,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def one(resources: tuple[Resource, ...], kind: str, name: str = "mfdan") -> Resource:
    """Return the one resource of that kind and name."""
    (found,) = (
        each for each in resources if (each["kind"], each["metadata"]["name"]) == (kind, name)
    )
    return found


def pod_template(resource: Resource) -> Resource | None:
    """Return labels and spec of the pods that a resource brings about, as a Pod has them."""
    match resource["kind"]:
        case "Pod":
            return {"labels": resource["metadata"]["labels"], "spec": resource["spec"]}
        case "Deployment":
            template = resource["spec"]["template"]
            return {"labels": template["metadata"]["labels"], "spec": template["spec"]}
        case "InferenceService":
            predictor = dict(resource["spec"]["predictor"])
            labels = predictor.pop("labels")
            kserves = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
            spec = {
                key: value
                for key, value in predictor.items()
                if key not in kserves | {"deploymentStrategy"}
            }
            return {"labels": labels, "spec": spec}
        case _:
            return None


def pods(resources: tuple[Resource, ...]) -> Iterator[Resource]:
    """Yield labels and spec of all pods."""
    return (pod for each in resources if (pod := pod_template(each)) is not None)


def service_pod(resources: tuple[Resource, ...]) -> Resource:
    """Return labels and spec of the pods that serve."""
    (pod,) = pods(resources)
    return pod


def container(pod: Resource) -> Resource:
    """Return the only container of a pod."""
    (only,) = pod["spec"]["containers"]
    return only


def environment(pod: Resource) -> dict[str, str]:
    """Return the variables of its container."""
    return {each["name"]: each["value"] for each in container(pod)["env"]}


def ports(pod: Resource) -> dict[str, int]:
    """Return the ports of its container by name."""
    return {each["name"]: each["containerPort"] for each in container(pod)["ports"]}


def selects(selector: Resource, labels: Mapping[str, str]) -> bool:
    """Whether a label selector, of matchLabels only, means these labels."""
    assert selector.keys() <= {"matchLabels"}, selector
    return selector.get("matchLabels", {}).items() <= labels.items()
