"""Try dashboards, rules and alerts on a live service, scraped by a real Prometheus.

    python .ci/watch.py [--tools FOLDER] [--seconds 60] [--save FILE.json] [--png FILE.png]

`promtool` checks the repository's configuration and rules first. Then `mfdan serve` is sent a
minute of everything, and every query of every dashboard, every rule and both sides of whatever an
alert compares must return something, but for what cannot on a healthy machine without a GPU
(EMPTY), and what KEDA would ask must see the load. At last the service is stopped: the alert that
it is down must speak, and the dashboard say that none is ready. Ends with status 1 and a line for
each fault. Needs no root, and no network once FOLDER holds Prometheus.
"""

import argparse
import asyncio
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import yaml

# First of ours: it puts the tests' folder, where the next two are, on the path.
from mixed_load import SETTINGS, Load, Materials, add_tiny_model  # isort: split

from key_files import stanza
from processes import Process, serving_process
from queries import (
    DOCKER,
    Panel,
    Query,
    annotations,
    dashboards,
    filled,
    label_values,
    operands,
    panels,
    rules,
    variables,
)

from service.keys import new_token

ROOT = Path(__file__).parents[1]
PROMETHEUS = DOCKER / "prometheus"
SCALED_OBJECT = DOCKER / "kubernetes/components/autoscale-keda/scaledobject.yaml"
POD = {"namespace": "mfdan", "pod": "mfdan-0"}
"""Labels that the Prometheus Operator gives to what it scrapes of a pod."""
READY = "Who is ready?"
"""The panel that must show that nobody is."""
SCRAPE_S = 2
"""In place of the configuration's interval, so that a minute shows what ten would."""
PATIENCE_S = 60.0
EMPTY = {
    r"\bDCGM_": "there is no GPU, so nothing exports its metrics",
    r"\bmfdan_gpu_": "there is no GPU whose memory could be told",
    r'job="dcgm"': "there is no GPU, so nothing exports its metrics",
}
"""What cannot return anything here, by a pattern of the expression, and why; a fault if it does."""
SPEAK = {
    "MfdanRejecting",
    "MfdanDeadlines",
    "MfdanModelRefused",
    "MfdanNoFaceDoubled",
    "MfdanUnauthorized",
}
"""Alerts that the load gives reason to."""
SILENT = {
    "MfdanBatchFailures",
    "MfdanGpuMemory",
    "MfdanLogLost",
    "MfdanOpenFiles",
    "MfdanProviderFallback",
    "MfdanWorkerDied",
}
"""Alerts that nothing gives reason to. The others depend on the machine."""


@dataclass(frozen=True)
class Series:
    """One line of an answer: its labels, and (time, value) in seconds since 1970."""

    labels: dict[str, str]
    values: list[tuple[float, float]]


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._client = httpx2.Client(base_url=f"{url}/api/v1", timeout=30)

    def over(self, text: str, start: float, end: float) -> list[Series]:
        """Return what an expression was between two moments. Raises: ValueError naming a fault."""
        asked = {"query": text, "start": start, "end": end, "step": SCRAPE_S}
        found = []
        for one in self._get("/query_range", **asked)["result"]:
            values = [(at, float(value)) for at, value in one["values"]]
            known = [pair for pair in values if not math.isnan(pair[1])]
            if known:
                found.append(Series(one["metric"], known))
        return found

    def now(self, text: str) -> list[dict[str, Any]]:
        """Return what an expression is. Raises: ValueError naming a fault."""
        found: list[dict[str, Any]] = self._get("/query", query=text)["result"]
        return found

    def values(self, label: str, series: str) -> list[str]:
        """Return the values that a label has in some series. Raises: ValueError."""
        found: list[str] = self._get(f"/label/{label}/values", **{"match[]": series})
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule as Prometheus has it, with its health."""
        groups = self._get("/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def until(self, text: str) -> None:
        """Wait until an expression returns something. Raises: SystemExit where it never does."""
        end = time.monotonic() + PATIENCE_S
        while not self.now(text):
            if time.monotonic() > end:
                raise SystemExit(f"Prometheus has seen nothing of {text} for {PATIENCE_S:.0f} s")
            time.sleep(0.2)

    def _get(self, path: str, **asked: object) -> Any:  # noqa: ANN401 - JSON
        answer = self._client.get(path, params=asked).json()
        if answer["status"] != "success":
            raise ValueError(answer["error"])
        return answer["data"]


def main() -> None:
    """Run it all; exit with 1 where there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tools", type=Path, help="folder that Prometheus is, or is put, in")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="keep what was recorded")
    parser.add_argument("--png", type=Path, metavar="FILE.png", help="draw the service's dashboard")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mfdan-watch-")))
        tools = (arguments.tools or folder / "tools").resolve()
        say("Prometheus")
        run(ROOT / ".ci" / "prometheus.sh", tools)
        promtool_checks(tools)
        faults, recorded = watch(stack, folder, tools, arguments.seconds)
    if arguments.save:
        arguments.save.write_text(json.dumps(recorded) + "\n")
    if arguments.png:
        from draw_dashboard import draw  # noqa: PLC0415 - matplotlib, only where it draws

        draw(recorded, arguments.png)
        say(f"drew {arguments.png}")
    if faults:
        sys.exit("\n".join(["", *faults, f"{len(faults)} faults"]))


def watch(
    stack: ExitStack, folder: Path, tools: Path, seconds: float
) -> tuple[list[str], list[dict[str, Any]]]:
    """Serve, scrape, send, ask. Returns the faults, and what the panels would have shown."""
    token = new_token()
    say("the service starts")
    served = stack.enter_context(service(folder, token))
    say("Prometheus starts")
    prometheus = stack.enter_context(scraped(folder, tools, served))
    served.wait_until_ready()
    prometheus.until('mfdan_ready{job="mfdan"} == 1')
    materials = Materials.drawn()
    start = time.time()
    say(f"{seconds:.0f} s of load")
    load = Load(served.url, token, folder / "models", seconds)
    asyncio.run(load.run(materials))
    say(f"answered: {', '.join(f'{n} x {status}' for status, n in sorted(load.statuses.items()))}")
    prometheus.until(f"timestamp(mfdan_ready) > {time.time() + SCRAPE_S}")
    end = time.time()
    faults = [*target_faults(prometheus), *rule_faults(prometheus, start, end)]
    faults += scaling_faults(prometheus, start, end)
    panel_faults, recorded = ask_panels(prometheus, start, end)
    faults += panel_faults
    say("the service stops")
    served.popen.send_signal(signal.SIGTERM)
    (down,) = (rule.text for rule in rules() if rule.name == "MfdanDown")
    prometheus.until(down)
    say("MfdanDown speaks")
    faults += readiness_faults(prometheus)
    return faults, recorded


def readiness_faults(prometheus: Prometheus) -> Iterator[str]:
    """Yield what the dashboard says of a service that has ended, where that is not: none is ready.

    What nothing is returned for would be shown as it last was, or not at all.
    """
    (query,) = (
        query
        for dashboard in dashboards()
        for panel in panels(dashboard)
        if panel.title == READY
        for query in panel.queries
    )
    found = prometheus.now(filled(query.text, {"instance": ".*"}))
    values = [one["value"][1] for one in found]
    if not query.instant or values != ["0"]:
        yield f"{query.where}: shows {values or 'nothing'} of a service that has ended, not 0"
    else:
        say(f"{READY} 0 %")


def say(what: str) -> None:
    """Tell how far it is."""
    print(what, flush=True)


def run(*command: object) -> None:
    """Run a program. Raises: SystemExit with what it says, where it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}".strip())


def promtool_checks(tools: Path) -> None:
    """Have `promtool` check configuration and rules, and run the rules' tests."""
    promtool = tools / "bin" / "promtool"
    run(promtool, "check", "config", PROMETHEUS / "prometheus.yml")
    run(promtool, "check", "rules", *sorted((PROMETHEUS / "rules").glob("*.yml")))
    run(promtool, "test", "rules", PROMETHEUS / "rules_test.yml")
    say("promtool: configuration, rules and their tests are fine")


@contextmanager
def service(folder: Path, token: str) -> Iterator[Process]:
    """Serve a copy of the bundled model, and a tiny one, with a key and a port for metrics."""
    models = folder / "models"
    models.mkdir()
    for path in (ROOT / "model" / "weights").glob("*.onnx*"):
        shutil.copy(path, models)
    add_tiny_model(models)
    keys = folder / "keys.toml"
    keys.write_text(stanza("watch", token))
    keys.chmod(0o600)
    variables = {"MFDAN_API_KEYS_FILE": str(keys), "MFDAN_METRICS_PORT": str(free_port())}
    with serving_process(models, subprocess.DEVNULL, **SETTINGS, **variables) as process:
        yield process


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def scraped(folder: Path, tools: Path, served: Process) -> Iterator[Prometheus]:
    """Run Prometheus with the repository's configuration, on the service's own address."""
    port = free_port()
    config = folder / "prometheus"
    # The GPU's targets are mounted by compose.gpu.yaml only.
    shutil.copytree(PROMETHEUS, config, ignore=shutil.ignore_patterns("gpu"))
    write_config(config, mfdan=served.metrics_url.split("/")[2], prometheus=f"127.0.0.1:{port}")
    remember_a_day(folder, tools)
    command = (
        tools / "bin" / "prometheus",
        f"--config.file={config / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    )
    log = folder / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen([*map(str, command)], stdout=output, stderr=output)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process, log)
            yield Prometheus(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def write_config(folder: Path, **targets: str) -> None:
    """Put this machine's targets, and a short interval, into a copy of the configuration."""
    path = folder / "prometheus.yml"
    config = yaml.safe_load(path.read_text())
    config["global"] |= {
        "scrape_interval": f"{SCRAPE_S}s",
        "scrape_timeout": f"{SCRAPE_S}s",
        "evaluation_interval": f"{SCRAPE_S}s",
    }
    for job in config["scrape_configs"]:
        if "static_configs" in job:
            labels = POD if job["job_name"] == "mfdan" else {}
            job["static_configs"] = [{"targets": [targets[job["job_name"]]], "labels": labels}]
    path.write_text(yaml.safe_dump(config))
    for rule_file in (folder / "rules").glob("*.yml"):
        document = yaml.safe_load(rule_file.read_text())
        for group in document["groups"]:
            group.pop("interval", None)
        rule_file.write_text(yaml.safe_dump(document, sort_keys=False))


def remember_a_day(folder: Path, tools: Path) -> None:
    """Give Prometheus yesterday's predictions, of which one in a hundred had no face.

    Without a day of history nothing is usual.
    """
    yesterday = int(time.time()) - 24 * 3600
    name = "mfdan:predictions:increase1h"
    counts = {"some": 396, "none": 4}
    lines = [
        f'{name}{{job="mfdan",faces="{faces}"}} {count} {yesterday + at}'
        for faces, count in counts.items()
        for at in range(-600, 1200, 30)
    ]
    history = folder / "history.txt"
    history.write_text("\n".join([f"# TYPE {name} gauge", *lines, "# EOF", ""]))
    data = folder / "data"
    run(tools / "bin" / "promtool", "tsdb", "create-blocks-from", "openmetrics", history, data)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for Prometheus. Raises: SystemExit with its log where it ends, or never is."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx2.get(f"{url}/-/ready").is_success:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"Prometheus does not get ready: {log.read_text()[-2000:]}")


def target_faults(prometheus: Prometheus) -> Iterator[str]:
    """Yield each target that cannot be scraped."""
    for one in prometheus.now("up"):
        if one["value"][1] != "1":
            yield f"not scraped: {one['metric']}"


def rule_faults(prometheus: Prometheus, start: float, end: float) -> Iterator[str]:
    """Yield what is wrong with a rule: its health, its series, or whether it spoke."""
    for rule in prometheus.rules():
        if rule["health"] != "ok":
            yield f"{rule['name']}: {rule.get('lastError') or rule['health']}"
    spoke = set()
    for rule in rules():
        asked = [*operands(rule.text)] if rule.alerts else [rule.name]
        for text in asked:
            yield from fault_of(rule.name, text, prometheus.over(text, start, end))
        if rule.alerts and prometheus.over(rule.text, start, end):
            spoke.add(rule.name)
    say(f"alerts with reason to speak: {', '.join(sorted(spoke))}")
    yield from (f"{name}: had reason to speak, and did not" for name in sorted(SPEAK - spoke))
    yield from (f"{name}: spoke without a reason" for name in sorted(SILENT & spoke))


def fault_of(where: str, text: str, found: Sequence[Series]) -> Iterator[str]:
    """Yield that an expression returned nothing and should have, or the other way round."""
    reason = next((why for pattern, why in EMPTY.items() if re.search(pattern, text)), None)
    if found and reason:
        yield f"{where}: returned something although {reason}: {text}"
    elif not found and not reason:
        yield f"{where}: returned nothing: {text}"
    elif text.endswith("or vector(0)") and not above_0(found):
        yield f"{where}: was never above 0, which says no more than nothing: {text}"


def scaling_faults(prometheus: Prometheus, start: float, end: float) -> Iterator[str]:
    """Yield where KEDA would not see the load, or take it for none that there are no metrics."""
    for trigger in yaml.safe_load(SCALED_OBJECT.read_text())["spec"]["triggers"]:
        where, text = f"KEDA: {trigger['name']}", trigger["metadata"]["query"]
        try:
            found = prometheus.over(text, start, end)
            before_any_metrics = prometheus.over(text, start - 3600, start - 1800)
        except ValueError as error:
            yield f"{where}: {error}: {text}"
            continue
        yield from fault_of(where, text, found)
        if len(found) > 1:
            yield f"{where}: KEDA takes one value, and there are {len(found)}: {text}"
        if found and found[0].values[0][0] > start + SCRAPE_S:
            yield f"{where}: returned nothing before the load: {text}"
        if found and not above_0(found):
            yield f"{where}: was never above 0 under load: {text}"
        if before_any_metrics:
            yield f"{where}: returned something where there were no metrics: {text}"
        say(f"{where}: up to {max((v for one in found for _, v in one.values), default=0):.2f}")


def above_0(found: Sequence[Series]) -> bool:
    """Whether a value is, at some time."""
    return any(value > 0 for one in found for _, value in one.values)


def ask_panels(
    prometheus: Prometheus, start: float, end: float
) -> tuple[list[str], list[dict[str, Any]]]:
    """Ask every query of every dashboard; return the faults and all that came back."""
    faults: list[str] = []
    recorded: list[dict[str, Any]] = []
    asked = 0
    for dashboard in dashboards():
        try:
            values = known_values(prometheus, dashboard)
        except ValueError as error:
            faults.append(f"{dashboard['title']}: {error}")
            continue
        ask = partial(ask_query, prometheus, values, start, end)
        for query in annotations(dashboard):
            faults += ask(query)[0]
        for panel in panels(dashboard):
            answers = []
            for query in panel.queries:
                asked += 1
                its_faults, found = ask(query)
                faults += its_faults
                answers.append({"legend": query.legend, "series": [vars_of(one) for one in found]})
            recorded.append(described(panel, answers))
    say(f"{asked} queries of {len(recorded)} panels and headings asked, {len(faults)} faults")
    return faults, recorded


def ask_query(
    prometheus: Prometheus, values: dict[str, str], start: float, end: float, query: Query
) -> tuple[list[str], list[Series]]:
    """Return what is wrong with a dashboard's query, and what came back."""
    try:
        text = filled(query.text, values)
        found = prometheus.over(text, start, end)
    except (KeyError, ValueError) as error:
        return [f"{query.where}: {error}: {query.text}"], []
    return [*fault_of(query.where, text, found)], found


def known_values(prometheus: Prometheus, dashboard: dict[str, Any]) -> dict[str, str]:
    """Return what Grafana would put in place of each variable, all values being chosen.

    Raises: ValueError for a variable that has none.
    """
    # The time between two points, and four scrapes: as Grafana has them on the shipped interval.
    values = {"__interval": f"{SCRAPE_S}s", "__rate_interval": f"{4 * SCRAPE_S}s", "__range": "1m"}
    for name, query in variables(dashboard).items():
        series, label = label_values(filled(query, values))
        found = prometheus.values(label, series)
        if not found:
            raise ValueError(f"the variable {name} has no values: {query}")
        values[name] = f"({'|'.join(map(re.escape, found))})".replace("\\", "\\\\")
    return values


def vars_of(series: Series) -> dict[str, Any]:
    """Return a series as JSON has it."""
    return {"labels": series.labels, "values": series.values}


def described(panel: Panel, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a panel and its answers as JSON has them."""
    return {
        "dashboard": panel.dashboard,
        "title": panel.title,
        "kind": panel.kind,
        "unit": panel.unit,
        "place": panel.place,
        "answers": answers,
    }


if __name__ == "__main__":
    main()
