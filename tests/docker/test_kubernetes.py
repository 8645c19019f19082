"""The manifests of docker/kubernetes: rendered, held to Kubernetes' schemas, and to the service."""

import copy
import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import kubernetes_validate
import promql_parser
import pytest
import yaml
from key_files import ALICE, BOB, stanza
from kubernetes_files import (
    LOAD_MODELS,
    OVERLAYS,
    ROOT,
    Resource,
    build,
    container,
    environment,
    kubectl,
    one,
    pod_template,
    pods,
    ports,
    rendered,
    selects,
    service_pod,
    together,
)
from pod_security import faults
from processes import serving_process
from serving import wait_for
from tiny_model import write_tiny_model

from service.settings import MAX_CANDIDATES, MAX_FACES, Settings

OLDEST, NEWEST = "1.31", kubernetes_validate.latest_version()
"""Versions of Kubernetes: before 1.31 a budget knows no unhealthyPodEvictionPolicy for good."""
CUSTOM = {"InferenceService", "PrometheusRule", "ScaledObject", "ServiceMonitor"}
"""Kinds that Kubernetes itself does not know: .ci/kubernetes.sh holds them to their own models."""
SIZES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def size(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w+)", quantity).groups()
    return int(number) * SIZES[unit]


def settings_of(pod: Resource) -> Settings:
    """Return what the service would make of a pod's variables."""
    own = {name: v for name, v in environment(pod).items() if name.startswith("MFDAN_")}
    values = {name.removeprefix("MFDAN_").lower(): v for name, v in own.items()}
    return Settings(**values, worker_threads=int(container(pod)["resources"]["limits"]["cpu"]))


@pytest.fixture(params=OVERLAYS)
def resources(request: pytest.FixtureRequest) -> tuple[Resource, ...]:
    return rendered(request.param)


def is_valid(resource: Resource) -> None:
    _is_valid(json.dumps(resource))


@cache  # most resources are those of every overlay
def _is_valid(resource: str) -> None:
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(json.loads(resource), version, strict=True)


def test_every_resource_is_one_of_kubernetes(resources: tuple[Resource, ...]) -> None:
    for resource in resources:
        if resource["kind"] not in CUSTOM:
            is_valid(resource)


def test_pods_that_kserve_makes_are_pods_of_kubernetes() -> None:
    pod = service_pod(rendered("kserve"))
    metadata = {"name": "mfdan", "labels": pod["labels"]}
    is_valid({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]})


def test_everything_is_in_one_namespace(resources: tuple[Resource, ...]) -> None:
    namespace = one(resources, "Namespace")["metadata"]["name"]
    for each in resources:
        assert each["kind"] == "Namespace" or each["metadata"].get("namespace") == namespace


def test_a_field_that_kubernetes_does_not_know_is_seen() -> None:
    deployment = copy.deepcopy(one(rendered("cpu"), "Deployment"))
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePull"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePull"):
        is_valid(deployment)


def test_no_pod_may_more_than_it_needs(resources: tuple[Resource, ...]) -> None:
    for pod in (*pods(resources), pod_template(yaml.safe_load(LOAD_MODELS.read_text()))):
        assert faults(pod["spec"]) == []
    labels = one(resources, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def changed(change: Callable[[Any], object]) -> Resource:
    spec = copy.deepcopy(service_pod(rendered("cpu"))["spec"])
    change(spec)
    return spec


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: s.update(hostNetwork=True), "hostNetwork"),
        (
            lambda s: s["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
            "volume hostPath",
        ),
        (lambda s: s["securityContext"].update(runAsUser=0), "root"),
        (lambda s: s["securityContext"].pop("seccompProfile"), "seccomp"),
        (lambda s: s.pop("automountServiceAccountToken"), "token"),
        (lambda s: s["containers"][0].pop("securityContext"), "escalation"),
        (lambda s: s["containers"][0]["securityContext"].update(privileged=True), "privileged"),
        (lambda s: s["containers"][0]["securityContext"].pop("capabilities"), "capabilities"),
        (lambda s: s["containers"][0]["ports"][0].update(hostPort=1), "hostPort"),
        (lambda s: s.update(initContainers=[{"name": "x"}]), "writable root"),
    ],
)
def test_a_pod_that_may_more_is_seen(change: Callable[[Any], object], fault: str) -> None:
    assert fault in faults(changed(change))


def test_whatever_selects_pods_selects_those_that_serve(resources: tuple[Resource, ...]) -> None:
    pod = service_pod(resources)
    for resource in resources:
        spec = resource.get("spec", {})
        match resource["kind"]:
            case "Service":
                assert selects({"matchLabels": spec["selector"]}, pod["labels"])
                assert {each["targetPort"] for each in spec["ports"]} <= ports(pod).keys()
            case "PodDisruptionBudget" | "Deployment":
                assert selects(spec["selector"], pod["labels"])
            case "NetworkPolicy":
                assert selects(spec["podSelector"], pod["labels"])
    spread = pod["spec"]["topologySpreadConstraints"]
    assert all(selects(each["labelSelector"], pod["labels"]) for each in spread)


@pytest.mark.parametrize(
    ("overlay", "kind"),
    [("autoscale-hpa", "HorizontalPodAutoscaler"), ("autoscale-keda", "ScaledObject")],
)
def test_an_autoscaler_alone_says_how_many_pods_there_are(overlay: str, kind: str) -> None:
    target = one(rendered(overlay), kind)["spec"]["scaleTargetRef"]
    deployment = one(rendered(overlay), target["kind"], target["name"])
    assert target["apiVersion"] == deployment["apiVersion"]
    assert "replicas" not in deployment["spec"]
    assert one(rendered("cpu"), "Deployment")["spec"]["replicas"] == 2
    assert one(rendered("gpu"), "Deployment")["spec"]["replicas"] == 1


@pytest.mark.parametrize("autoscaler", ["autoscale-hpa", "autoscale-keda"])
def test_an_autoscaler_says_how_many_gpus_there_are_in_whatever_order(
    tmp_path: Path, autoscaler: str
) -> None:
    for first, then in (("gpu", autoscaler), (autoscaler, "gpu")):
        resources = build(together(tmp_path, then, overlay=first))
        assert settings_of(service_pod(resources)).device == "cuda"
        assert "replicas" not in one(resources, "Deployment")["spec"], f"{then} after {first}"


def test_what_scales_is_asked_of_this_namespace_and_job() -> None:
    keda = one(rendered("autoscale-keda"), "ScaledObject")
    of = f'job="mfdan",namespace="{keda["metadata"]["namespace"]}"'
    for trigger in keda["spec"]["triggers"]:
        query = trigger["metadata"]["query"]
        series = re.findall(r"\b(mfdan_\w+|up)\b(\{[^}]*\})?", query)
        assert series
        assert all(selector.startswith(f"{{{of}") for _, selector in series), series
        assert trigger["metricType"] == "AverageValue"
        promql_parser.parse(query)


def test_no_metrics_are_not_taken_for_no_load() -> None:
    """.ci/watch.py asks these queries of a Prometheus without metrics, and of one with them."""
    for trigger in one(rendered("autoscale-keda"), "ScaledObject")["spec"]["triggers"]:
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert not re.search(r"or vector\(\d+\)\s*$", trigger["metadata"]["query"])


def test_both_autoscalers_go_up_and_down_alike() -> None:
    hpa = one(rendered("autoscale-hpa"), "HorizontalPodAutoscaler")["spec"]
    keda = one(rendered("autoscale-keda"), "ScaledObject")["spec"]
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    bounds = (keda["minReplicaCount"], keda["maxReplicaCount"])
    assert bounds == (hpa["minReplicas"], hpa["maxReplicas"])


def test_probes_ask_where_the_service_answers(resources: tuple[Resource, ...]) -> None:
    pod = service_pod(resources)
    settings = settings_of(pod)
    assert ports(pod) == {"http": settings.port, "metrics": settings.metrics_port}
    asked = {key: each["httpGet"] for key, each in container(pod).items() if "Probe" in key}
    assert asked == {
        "startupProbe": {"path": "/health/live", "port": "http"},
        "livenessProbe": {"path": "/health/live", "port": "http"},
        "readinessProbe": {"path": "/health/ready", "port": "http"},
    }


def test_whoever_was_admitted_is_answered_before_the_pod_is_killed(
    resources: tuple[Resource, ...],
) -> None:
    pod = service_pod(resources)
    settings = settings_of(pod)
    grace_s = pod["spec"]["terminationGracePeriodSeconds"]
    assert grace_s == math.ceil(settings.drain_s) + 20
    probe = container(pod)["readinessProbe"]
    seen_s = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert seen_s <= settings.drain_grace_s < settings.drain_s


def test_pods_run_the_image_as_it_was_built(resources: tuple[Resource, ...]) -> None:
    dockerfile = (ROOT.parent / "Dockerfile").read_text()
    pod = service_pod(resources)
    context = pod["spec"]["securityContext"]
    assert f"\nUSER {context['runAsUser']}:{context['runAsGroup']}\n" in dockerfile
    assert f"\nEXPOSE {ports(pod)['http']} {ports(pod)['metrics']}\n" in dockerfile
    assert '\nENTRYPOINT ["/opt/mfdan/bin/mfdan"]\nCMD ["serve"]\n' in dockerfile
    assert not {"command", "args", "workingDir"} & container(pod).keys()


def test_links_to_services_do_not_set_the_port(resources: tuple[Resource, ...]) -> None:
    pod = service_pod(resources)
    assert pod["spec"]["enableServiceLinks"] is False
    assert environment(pod)["MFDAN_PORT"] == "8000"


def test_the_limit_of_memory_is_what_the_settings_can_need(resources: tuple[Resource, ...]) -> None:
    pod = service_pod(resources)
    settings = settings_of(pod)
    limits = container(pod)["resources"]["limits"]
    # The sums of docs/operations.md, "Settings".
    uploads = settings.max_requests * settings.max_body_bytes * 9 / 8
    pairs = (settings.workers - settings.clips_at_once) * settings.max_image_pixels * 20
    clips = settings.clips_at_once * settings.max_clip_pixels * 109
    waiting = (settings.queue_items + settings.clips_at_once * MAX_FACES * MAX_CANDIDATES) * 1.8e6
    process = 2.5e9 if settings.device == "cuda" else 0.75e9
    tmp = next(each["emptyDir"] for each in pod["spec"]["volumes"] if each["name"] == "tmp")
    needed = uploads + pairs + clips + waiting + process + size(tmp["sizeLimit"])
    assert needed <= size(limits["memory"])
    assert container(pod)["resources"]["requests"]["memory"] == limits["memory"]


def test_keys_come_by_file_and_change_in_a_running_pod(resources: tuple[Resource, ...]) -> None:
    pod = service_pod(resources)
    (mount,) = (each for each in container(pod)["volumeMounts"] if each["name"] == "keys")
    (volume,) = (each for each in pod["spec"]["volumes"] if each["name"] == "keys")
    assert settings_of(pod).api_keys_file == Path(mount["mountPath"], "keys.toml")
    assert "subPath" not in mount
    assert not volume["secret"]["defaultMode"] & 0o027
    assert not any(each["kind"] == "Secret" for each in resources)


class Policy:
    """Who may talk to whom, by one NetworkPolicy."""

    def __init__(self, spec: Resource) -> None:
        self._spec = spec
        assert set(spec["policyTypes"]) == {"Ingress", "Egress"}

    def admits(self, port: int, namespace: str, **labels: str) -> bool:
        """Whether a pod with these labels, of that namespace, may connect."""
        return self._allows("ingress", {"port": port, "protocol": "TCP"}, namespace, labels)

    def lets_out(self, port: int, protocol: str, namespace: str, **labels: str) -> bool:
        """Whether mfdan may connect to such a pod."""
        return self._allows("egress", {"port": port, "protocol": protocol}, namespace, labels)

    def _allows(self, way: str, port: Resource, namespace: str, labels: Mapping[str, str]) -> bool:
        return any(
            port in rule["ports"] and any(self._is(each, namespace, labels) for each in peers)
            for rule in self._spec[way]
            for peers in [rule["from" if way == "ingress" else "to"]]
        )

    def _is(self, peer: Resource, namespace: str, labels: Mapping[str, str]) -> bool:
        assert peer.keys() <= {"namespaceSelector", "podSelector"}  # no address
        names = {"kubernetes.io/metadata.name": namespace}
        if namespace == "gateway":
            names["mfdan-caller"] = "true"
        return selects(peer["namespaceSelector"], names) and selects(
            peer.get("podSelector", {}), {name.replace("_", "-"): v for name, v in labels.items()}
        )


def test_callers_and_prometheus_come_in_and_only_names_and_traces_go_out(
    resources: tuple[Resource, ...],
) -> None:
    policy = Policy(one(resources, "NetworkPolicy")["spec"])
    assert policy.admits(8000, "shop", mfdan_caller="true")
    assert policy.admits(8000, "gateway")
    assert policy.admits(9000, "monitoring")
    assert not policy.admits(8000, "shop")
    assert not policy.admits(8000, "mfdan")
    assert not policy.admits(8000, "monitoring")
    assert not policy.admits(9000, "gateway")
    assert not policy.admits(9000, "shop", mfdan_caller="true")
    assert policy.lets_out(53, "UDP", "kube-system", k8s_app="kube-dns")
    assert policy.lets_out(4318, "TCP", "monitoring")
    assert not policy.lets_out(443, "TCP", "kube-system")
    assert not policy.lets_out(53, "UDP", "shop")
    assert all(rule["to"] for rule in one(resources, "NetworkPolicy")["spec"]["egress"])


def test_a_gpu_is_asked_for_and_never_replaced() -> None:
    pod = service_pod(rendered("gpu"))
    settings = settings_of(pod)
    assert (settings.device, settings.strict_gpu) == ("cuda", True)
    assert container(pod)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container(pod)["image"] == "mfdan:gpu"


def test_kserve_makes_the_same_pods(tmp_path: Path) -> None:
    def but_for_kserve(pod: Resource) -> Resource:
        env = {name: v for name, v in environment(pod).items() if name != "PROTOCOL"}
        only = {**container(pod), "name": None, "env": env}
        return {**pod, "spec": {**pod["spec"], "containers": [only]}}

    kserve = service_pod(rendered("kserve"))
    assert container(kserve)["name"] == "kserve-container"
    assert environment(kserve)["PROTOCOL"] == "v2"
    assert but_for_kserve(kserve) == but_for_kserve(service_pod(rendered("cpu")))
    with_gpu = build(together(tmp_path, "gpu", overlay="kserve"))
    assert but_for_kserve(service_pod(with_gpu)) == but_for_kserve(service_pod(rendered("gpu")))
    predictor = one(rendered("kserve"), "InferenceService")["spec"]["predictor"]
    strategy = one(rendered("cpu"), "Deployment")["spec"]["strategy"]
    assert predictor["deploymentStrategy"] == strategy
    predictor = one(with_gpu, "InferenceService")["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (1, 1)


def test_all_parts_go_together_and_the_image_is_named_once(tmp_path: Path) -> None:
    image = {"name": "mfdan", "newName": "registry.example.org/mfdan", "newTag": "0.1.0-gpu"}
    folder = together(tmp_path, "gpu", "own-models", "monitoring", "autoscale-keda", images=[image])
    resources = build(folder)
    pod = service_pod(resources)
    assert container(pod)["image"] == "registry.example.org/mfdan:0.1.0-gpu"
    assert settings_of(pod).models_dir == Path("/models")
    assert faults(pod["spec"]) == []
    for resource in resources:
        if resource["kind"] not in CUSTOM:
            is_valid(resource)


def test_the_kustomization_of_the_docs_is_one(tmp_path: Path) -> None:
    page = (ROOT.parents[1] / "docs" / "deploy.md").read_text()
    (text,) = re.findall(r"```yaml\n# my-mfdan/kustomization.yaml\n(.+?)```", page, re.DOTALL)
    here = os.path.relpath(ROOT, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(text.replace("../mfdan/docker/kubernetes", here))
    resources = build(tmp_path)
    assert container(service_pod(resources))["image"] == "registry.example.org/mfdan:0.1.0-cpu"
    assert one(resources, "ServiceMonitor")["metadata"]["namespace"] == "mfdan"


@pytest.mark.parametrize("overlay", ["cpu", "kserve"])
def test_the_pod_that_fills_the_volume_fills_the_one_that_is_read(
    tmp_path: Path, overlay: str
) -> None:
    loader = yaml.safe_load(LOAD_MODELS.read_text())
    is_valid(loader)
    resources = build(together(tmp_path, "own-models", overlay=overlay))
    claim = one(resources, "PersistentVolumeClaim", "mfdan-models")
    pod = service_pod(resources)
    for spec in (loader["spec"], pod["spec"]):
        (volume,) = (each for each in spec["volumes"] if each["name"] == "models")
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert loader["metadata"]["namespace"] == claim["metadata"]["namespace"]
    (mount,) = (each for each in container(pod)["volumeMounts"] if each["name"] == "models")
    assert mount == {"name": "models", "mountPath": "/models", "readOnly": True}
    assert settings_of(pod).models_dir == Path("/models")
    assert not pod["labels"].items() <= loader["metadata"]["labels"].items()


def test_the_pod_that_fills_the_volume_gets_its_image_by_the_command_of_the_docs() -> None:
    page = (ROOT.parents[1] / "docs" / "deploy.md").read_text()
    (text,) = re.findall(r"^kubectl (set image .+) \| kubectl apply -f -$", page, re.MULTILINE)
    command = text.replace("mfdan/docker/kubernetes/load-models.yaml", str(LOAD_MODELS)).split()
    loader = yaml.safe_load(kubectl(*command))
    is_valid({key: each for key, each in loader.items() if key != "status"})
    pod = pod_template(loader)
    assert container(pod)["image"] == "registry.example.org/mfdan:0.1.0-cpu"
    assert faults(pod["spec"]) == []


def test_prometheus_finds_every_pod_under_the_job_of_the_rules() -> None:
    resources = rendered("monitoring")
    monitor = one(resources, "ServiceMonitor")["spec"]
    labels = {
        each["metadata"]["name"]: each["metadata"]["labels"]
        for each in resources
        if each["kind"] == "Service"
    }
    assert [name for name, own in labels.items() if selects(monitor["selector"], own)] == [
        "mfdan-metrics"
    ]
    service = one(resources, "Service", "mfdan-metrics")
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert [each["port"] for each in monitor["endpoints"]] == [
        each["name"] for each in service["spec"]["ports"]
    ]
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "mfdan"


def flat(value: object) -> object:
    """Return it with every white space as one blank: kustomize breaks long lines elsewhere."""
    match value:
        case dict():
            return {key: flat(each) for key, each in value.items()}
        case list():
            return [flat(each) for each in value]
        case str():
            return " ".join(value.split())
        case _:
            return value


def test_the_operators_rules_are_those_of_prometheus() -> None:
    rules = ROOT.parent / "prometheus" / "rules" / "mfdan.yml"
    of_the_operator = one(rendered("monitoring"), "PrometheusRule")["spec"]
    assert flat(of_the_operator) == flat(yaml.safe_load(rules.read_text())), "run `make rules`"


def test_grafana_gets_every_dashboard() -> None:
    files = (ROOT.parent / "grafana" / "dashboards").glob("*.json")
    given = [
        each
        for each in rendered("monitoring")
        if each["kind"] == "ConfigMap" and each["metadata"]["labels"]["grafana_dashboard"] == "1"
    ]
    data = {name: text for each in given for name, text in each["data"].items()}
    assert data == {file.name: file.read_text() for file in files}


def test_the_operators_rules_are_what_their_script_makes(tmp_path: Path) -> None:
    made = tmp_path / "docker" / "kubernetes" / "components" / "monitoring"
    made.mkdir(parents=True)
    (tmp_path / "docker" / "prometheus").symlink_to(ROOT.parent / "prometheus")
    script = made / "prometheusrule.sh"
    committed = ROOT / "components" / "monitoring"
    script.write_text((committed / script.name).read_text())
    subprocess.run(["/bin/bash", script], check=True)  # noqa: S603 - the repository's own
    name = "prometheusrule.yaml"
    assert (made / name).read_text() == (committed / name).read_text(), "run `make rules`"


def test_a_service_with_the_pods_variables_serves(tmp_path: Path) -> None:
    """Keys are laid as the kubelet lays them: a link to a folder that is swapped as a whole."""
    models, mount = tmp_path / "models", tmp_path / "run"
    models.mkdir()
    write_tiny_model(models)
    lay_secret(mount, "first", stanza("alice", ALICE))
    pod = service_pod(rendered("autoscale-keda"))
    here = {
        "MFDAN_HOST": "127.0.0.1",
        "MFDAN_PORT": "0",
        "MFDAN_METRICS_HOST": "127.0.0.1",
        "MFDAN_METRICS_PORT": "0",
        "MFDAN_API_KEYS_FILE": str(mount / "keys.toml"),
        "MFDAN_DRAIN_GRACE_S": "0.5",
        "MFDAN_RELOAD_S": "0.05",
    }
    assert here.keys() - {"MFDAN_RELOAD_S"} <= environment(pod).keys()
    with serving_process(models, **{**environment(pod), **here}) as process:
        process.wait_until_ready()
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = container(pod)[probe]["httpGet"]["path"]
            assert httpx2.get(process.url + path).is_success
        metrics = httpx2.get(process.metrics_url).text
        for trigger in one(rendered("autoscale-keda"), "ScaledObject")["spec"]["triggers"]:
            asked = re.findall(r"mfdan_\w+", trigger["metadata"]["query"])
            assert asked
            assert all(f"\n{name}{{" in metrics or f"\n{name} " in metrics for name in asked)
        assert status_of(process.url, ALICE) == 200
        assert status_of(process.url, BOB) == 401
        lay_secret(mount, "second", stanza("bob", BOB))
        wait_for(lambda: status_of(process.url, BOB) == 200)
        assert status_of(process.url, ALICE) == 401
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0


def lay_secret(mount: Path, version: str, text: str) -> None:
    folder, link = mount / f"..{version}", mount / "..data"
    folder.mkdir(parents=True)
    (folder / "keys.toml").write_text(text)
    (folder / "keys.toml").chmod(0o440)
    fresh = mount / "..data_tmp"
    fresh.symlink_to(folder.name)
    fresh.replace(link)
    if not (mount / "keys.toml").is_symlink():
        (mount / "keys.toml").symlink_to("..data/keys.toml")


def status_of(url: str, key: str) -> int:
    return httpx2.get(f"{url}/models", headers={"X-API-Key": key}).status_code
