"""docker-compose.yml and its override for a GPU: what they say."""

import json
import re
from pathlib import Path

import yaml
from composed import FILES, ROOT, compose
from dotenv import dotenv_values

from service.settings import Settings

ONCE = {"prepare", "check"}
"""Services that end by themselves."""


def everything() -> dict:
    return compose(*FILES)["services"]


def test_every_published_port_is_on_loopback_only() -> None:
    ports = [port for service in everything().values() for port in service.get("ports", ())]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_service_is_bounded_and_can_do_no_more_than_it_must() -> None:
    for name, service in everything().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"memory", "pids"} <= service["deploy"]["resources"]["limits"].keys(), name
        assert service["logging"]["options"]["max-size"], name
        assert service.get("restart") == (None if name in ONCE else "unless-stopped"), name
        assert service.get("read_only") or name == "dcgm-exporter", name


def test_every_variable_is_in_the_file_of_variables_and_every_one_of_that_is_used() -> None:
    text = "".join((ROOT / name).read_text() for name in FILES)
    used = set(re.findall(r"\$\{(\w+)", text))
    assert used == dotenv_values(ROOT / ".env").keys() - {"COMPOSE_PROFILES"}


def test_images_are_named_by_version() -> None:
    theirs = {one["image"] for one in everything().values() if not one["image"].startswith("mfdan")}
    assert len(theirs) == 4
    assert all(re.search(r":v?\d+\.\d+\.\d+", image) for image in theirs)


def test_all_that_is_mounted_from_the_repository_is_there() -> None:
    services = [*compose()["services"].values(), *everything().values()]
    mounts = [one for service in services for one in service.get("volumes", ())]
    files = {mount.split(":")[0] for mount in mounts if mount.startswith(".")}
    assert len(files) == 8
    assert [path for path in files if not (ROOT / path).exists()] == []


def test_a_volume_is_declared_or_a_folder() -> None:
    merged = compose(*FILES)
    mounts = [one for service in merged["services"].values() for one in service.get("volumes", ())]
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith((".", "/"))}
    assert named == merged["volumes"].keys()


def test_folders_of_ones_own_take_the_place_of_volumes() -> None:
    services = compose(MFDAN_SECRETS="./mine", MFDAN_MODELS="/srv/models")["services"]
    assert services["mfdan"]["volumes"] == ["./mine:/run/mfdan:ro", "/srv/models:/models:ro"]
    assert services["prepare"]["volumes"] == ["./mine:/run/mfdan", "/srv/models:/models"]


def test_the_service_is_given_as_long_to_stop_as_it_may_take() -> None:
    drain_s = Settings().drain_s
    assert everything()["mfdan"]["stop_grace_period"] == f"{drain_s + 20:g}s"


def test_the_gpu_is_asked_for_by_the_override_alone_and_refused_where_it_is_not_there() -> None:
    plain, gpu = compose()["services"], everything()
    assert "cuda" not in json.dumps(plain)
    for name in ("prepare", "mfdan"):
        assert gpu[name]["environment"]["MFDAN_DEVICE"] == "cuda"
        assert gpu[name]["environment"]["MFDAN_STRICT_GPU"] == "true"
        (device,) = gpu[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        # What was said before still holds.
        assert gpu[name]["environment"].items() >= plain[name]["environment"].items()
        assert gpu[name]["deploy"]["resources"]["limits"]
    ours = [service for service in gpu.values() if service["image"].startswith("mfdan")]
    assert {service["image"] for service in ours} == {"mfdan:gpu"}
    build = compose(*FILES, OPENCV_CUDA_ARCH="9.0")["services"]["prepare"]["build"]
    args = {"OPENCV_CUDA_ARCH": "9.0"}
    assert build == {**plain["prepare"]["build"], "target": "gpu", "args": args}
    assert "ARG OPENCV_CUDA_ARCH\n" in (ROOT / "docker/Dockerfile").read_text()


def test_cuda_gets_memory_of_its_own() -> None:
    plain, gpu = compose()["services"], everything()
    for name in ("prepare", "mfdan"):
        without, within = (
            int(services[name]["deploy"]["resources"]["limits"]["memory"].removesuffix("g"))
            for services in (plain, gpu)
        )
        assert within - without >= 2.5, name


def test_each_image_of_ours_is_built_by_one_service_and_looked_for_in_no_registry() -> None:
    for services in (compose()["services"], everything()):
        ours = [name for name, one in services.items() if one["image"].startswith("mfdan:")]
        assert len({services[name]["image"] for name in ours}) == 1
        # A build of a tag that another one makes at the same moment fails.
        assert [name for name in ours if "build" in services[name]] == ["prepare"]
        others = [name for name in ours if name != "prepare"]
        assert {services[name].get("pull_policy") for name in others} == {"never"}
        # Compose would look for a registry's, and never build.
        assert "pull_policy" not in services["prepare"]


def test_nothing_is_started_that_stays_before_prepare_found_all_well() -> None:
    services = everything()
    for name, service in services.items():
        if name in ONCE:
            continue
        first = service["depends_on"]
        if name == "demo":
            assert first == {"mfdan": {"condition": "service_healthy"}}
        else:
            assert first == {"prepare": {"condition": "service_completed_successfully"}}, name


def test_onnx_runtime_may_start_a_thread_for_each_core_of_a_large_machine() -> None:
    services = everything()
    for name in ("prepare", "mfdan"):
        assert services[name]["deploy"]["resources"]["limits"]["pids"] >= 1024


def test_prometheus_looks_for_a_gpu_in_a_folder_that_is_there_and_has_no_target() -> None:
    (mount,) = [
        volume
        for volume in compose()["services"]["prometheus"]["volumes"]
        if volume.endswith(":/etc/prometheus/gpu:ro")
    ]
    folder = ROOT / mount.split(":")[0]
    assert folder.is_dir()
    assert not list(folder.glob("*.yml"))
    volumes = everything()["prometheus"]["volumes"]
    assert [volume for volume in volumes if "/etc/prometheus/gpu" in volume] == [
        "./docker/prometheus/gpu:/etc/prometheus/gpu:ro"
    ]


def test_prometheus_knows_every_job_that_dashboards_and_alerts_name() -> None:
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs.keys() == {"mfdan", "prometheus", "dcgm"}
    services = everything()
    port = services["mfdan"]["environment"]["MFDAN_METRICS_PORT"]
    assert jobs["mfdan"]["static_configs"] == [{"targets": [f"mfdan:{port}"]}]
    (found,) = jobs["dcgm"]["file_sd_configs"][0]["files"]
    (targets,) = sorted((ROOT / "docker/prometheus").glob(found))
    assert f"./docker/prometheus/{found.split('/')[0]}:" in str(services["prometheus"]["volumes"])
    (group,) = yaml.safe_load(targets.read_text())
    assert [target.split(":")[0] in services for target in group["targets"]] == [True]


def test_grafana_goes_by_the_interval_of_prometheus_and_looks_where_the_dashboards_are() -> None:
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    folder = ROOT / "docker/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["uid"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((folder / "dashboards/mfdan.yml").read_text())["providers"]
    grafana = everything()["grafana"]
    inside = provider["options"]["path"]
    assert f"./docker/grafana/dashboards:{inside}:ro" in grafana["volumes"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == inside
    assert (ROOT / "docker/grafana/dashboards" / home.name).is_file()


def test_spans_go_to_the_collectors_port() -> None:
    collector = yaml.safe_load((ROOT / "docker/otel/collector.yaml").read_text())
    port = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    assert "otel" in everything()
    assert f"http://otel:{port}" in (ROOT / ".env").read_text()
    assert f"http://otel:{port}" in (ROOT / "docs/deploy.md").read_text()
