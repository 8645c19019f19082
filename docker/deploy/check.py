"""Ask mfdan, Prometheus and Grafana whether all is well; one sentence for each thing that is not.

Status 1 where there is one. An alert that fires is told, and is no fault of the installation.
"""

from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from secret_files import Unreadable, read_secret

from mfdan.client import Client, ProblemError

JOB = "mfdan"
PATIENCE_S = 10.0
COMPOSE = "docker compose"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Wrong(Exception):
    """Something is not as it should be; the message says what, and what to do."""


@app.command()
def main(
    secrets: Annotated[Path, typer.Option(readable=False, help="Folder of keys and password.")],
    service: Annotated[str, typer.Option(help="Address of mfdan.")],
    prometheus: Annotated[str, typer.Option(help="Address of Prometheus.")],
    grafana: Annotated[str, typer.Option(help="Address of Grafana.")],
) -> None:
    """Ask each; exit with 1 where anything is wrong."""
    asked: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: look_at_service(service, secrets / "caller.key"),
        lambda: look_at_prometheus(prometheus),
        lambda: look_at_grafana(grafana, secrets / "grafana-password"),
    )
    wrong = 0
    for look in asked:
        try:
            for fine in look():
                typer.echo(f"ok     {fine}")
        except Wrong as error:
            wrong += 1
            typer.echo(f"wrong  {error}", err=True)
    raise typer.Exit(min(wrong, 1))


def look_at_service(url: str, key_file: Path) -> Iterator[str]:
    """Yield what is well with the service. Raises: Wrong."""
    ready = get("mfdan", f"{url}/health/ready", JOB)
    if not ready.is_success:
        raise Wrong(f"mfdan is not ready: {told(ready, 'detail')}; {COMPOSE} logs mfdan")
    yield f"mfdan is ready on {url}"
    key = read(
        key_file,
        f"put a key there that is in the file of keys (`mfdan keys new caller` makes both); "
        f"`{COMPOSE} up` makes one where there is no file of keys either",
    )
    try:
        with Client(url, api_key=key, timeout_s=PATIENCE_S) as client:
            names = ", ".join(card.name for card in client.models())
    except ProblemError as problem:
        raise Wrong(
            f"mfdan does not take the key in {key_file} ({problem.code}): it is not in the key "
            "file, or used up; put one there that is"
        ) from None
    except httpx2.TransportError as error:
        raise Wrong(f"mfdan stopped answering on {url} ({type(error).__name__})") from None
    yield f"it takes the key in {key_file.name}, and serves {names}"


def look_at_prometheus(url: str) -> Iterator[str]:
    """Yield what is well with Prometheus. Raises: Wrong."""
    targets = data(url, "targets?state=active")["activeTargets"]
    jobs = {target["labels"]["job"] for target in targets}
    if JOB not in jobs:
        raise Wrong(
            f"Prometheus scrapes no job {JOB}: is docker/prometheus/prometheus.yml mounted?"
        )
    for target in targets:
        address = target["scrapeUrl"]
        if target["health"] == "unknown":
            raise Wrong(f"Prometheus has not asked {address} yet: try again in some seconds")
        if target["health"] != "up":
            raise Wrong(
                f"Prometheus cannot reach {address}: {target['lastError']}. Does what it asks run? "
                f"{COMPOSE} ps --all"
            )
    yield f"Prometheus reaches {', '.join(sorted(jobs))}"
    rules = [rule for group in data(url, "rules")["groups"] for rule in group["rules"]]
    if not rules:
        raise Wrong("Prometheus has no rules: is docker/prometheus/rules mounted?")
    for rule in rules:
        if rule["health"] == "err":
            raise Wrong(f"Prometheus cannot evaluate {rule['name']}: {rule['lastError']}")
    firing = sorted(rule["name"] for rule in rules if rule.get("state") == "firing")
    yield f"it evaluates {len(rules)} rules; firing: {', '.join(firing) or 'none'}"


def look_at_grafana(url: str, password_file: Path) -> Iterator[str]:
    """Yield what is well with Grafana. Raises: Wrong."""
    health = get("Grafana", f"{url}/api/health", "grafana")
    if not health.is_success:
        raise Wrong(f"Grafana is not well ({health.status_code}): {COMPOSE} logs grafana")
    admin = ("admin", read(password_file, f"put it there, or let `{COMPOSE} up` make one"))
    source = get("Grafana", f"{url}/api/datasources/uid/prometheus/health", "grafana", admin)
    if source.status_code == HTTPStatus.UNAUTHORIZED:
        raise Wrong(
            f"Grafana does not take the password in {password_file}: it reads that at its first "
            f"start only. {COMPOSE} exec grafana grafana cli admin reset-admin-password NEW"
        )
    if not source.is_success:
        raise Wrong(
            f"Grafana cannot ask Prometheus ({source.status_code}): {told(source, 'message')}. Is "
            "docker/grafana/provisioning mounted, and does Prometheus run?"
        )
    yield "Grafana takes its password, and can ask Prometheus"
    found = get("Grafana", f"{url}/api/search?type=dash-db", "grafana", admin)
    titles = [dashboard["title"] for dashboard in found.json()] if found.is_success else []
    if not titles:
        raise Wrong("Grafana shows no dashboard: is docker/grafana/dashboards mounted?")
    yield f"it shows {', '.join(titles)}"


def data(url: str, question: str) -> Any:  # noqa: ANN401 - as Prometheus' API documents it
    """Return what Prometheus' API answers. Raises: Wrong."""
    answer = get("Prometheus", f"{url}/api/v1/{question}", "prometheus")
    if not answer.is_success:
        raise Wrong(
            f"Prometheus refuses {question} ({answer.status_code}): {told(answer, 'error')}"
        )
    return answer.json()["data"]


def get(
    name: str, url: str, container: str, auth: tuple[str, str] | None = None
) -> httpx2.Response:
    """Ask once. Raises: Wrong, where nobody answers."""
    try:
        return httpx2.get(url, timeout=PATIENCE_S, auth=auth)
    except httpx2.TransportError as error:
        raise Wrong(
            f"{name} does not answer on {url} ({type(error).__name__}): does it run? {COMPOSE} ps; "
            f"{COMPOSE} logs {container}"
        ) from None


def told(answer: httpx2.Response, member: str) -> str:
    """Return one member of a JSON answer, or what kind of answer it is instead."""
    try:
        return str(answer.json()[member])
    except (ValueError, KeyError, TypeError):
        return f"an answer of type {answer.headers.get('Content-Type', 'none')}"


def read(path: Path, otherwise: str) -> str:
    """Return what a file holds. Raises: Wrong, with what to do otherwise."""
    try:
        return read_secret(path)
    except Unreadable as error:
        raise Wrong(f"{error}: {otherwise}") from None


if __name__ == "__main__":
    app()
