"""Make what `docker compose up` needs and nobody gave: API keys, Grafana's password, models.

What somebody gave is used, once it was tried here: where a file cannot be read, a model does not
load or a GPU is not there, one sentence says so, and Compose starts nothing.
"""

import os
import shutil
import stat
from pathlib import Path
from secrets import token_urlsafe
from typing import Annotated

import typer
from secret_files import Unreadable, read_secret

from model.errors import MfdanError
from service.command_line import failed, read_settings
from service.engine import open_sessions
from service.keys import KeysInvalid, digest_of, new_token, read_keys, stanza_of
from service.settings import Settings
from service.tracing import Tracing, TracingRefused

CALLERS = ("caller", "demo")
"""Who gets a key of their own: whoever runs this, and the example caller."""
GENERATED = "models"
"""The volume of Compose's own. Only that one is filled: an empty folder is a mistyped one."""
OWNER_ONLY, GROUP_TOO = 0o600, 0o640
ROOT_GROUP = 0
"""Grafana's own group; Compose adds ours."""
NO_GPU = (
    ". Is there a GPU here (nvidia-smi), and NVIDIA's container toolkit? Without, leave out "
    "compose.gpu.yaml (unset COMPOSE_FILE)"
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Refused(Exception):
    """What is there will not do; the message says what to do."""


@app.command()
def main(
    secrets: Annotated[Path, typer.Option(readable=False, help="Folder of keys and password.")],
    service: Annotated[str, typer.Option(help="Where callers will find mfdan.")],
    prometheus: Annotated[str, typer.Option(help="Where they will find Prometheus.")],
    grafana: Annotated[str, typer.Option(help="Where they will find Grafana.")],
    models: Annotated[str, typer.Option(help="The volume or folder that models come from.")],
) -> None:
    """Make what is missing, try all of it, and say what to do next."""
    settings = read_settings()
    try:
        make_keys(secrets, settings.api_keys_file or secrets / "keys.toml")
        make_password(secrets / "grafana-password")
        fill_models(settings.models_dir, models)
        served = ", ".join(open_sessions(settings))
        Tracing()
    except OSError as error:  # of a model's files
        why = f"{error.filename} cannot be read ({error.strerror}): may {_us()} read it?"
        raise failed(f"not prepared: {why}") from None
    except (Refused, MfdanError, TracingRefused) as error:
        hint = NO_GPU if isinstance(error, MfdanError) and settings.device != "cpu" else ""
        raise failed(f"not prepared: {error}{hint}") from None
    typer.echo(
        f"""prepared: {served}
  mfdan       {service}/docs, in some seconds
  your key    {where_the_key_is(secrets / "caller.key")}
  dashboards  {grafana}
  to edit     as admin: docker compose exec grafana cat {secrets}/grafana-password
  Prometheus  {prometheus}/alerts
  all well?   docker compose run --rm check"""
    )


def where_the_key_is(path: Path) -> str:
    """Return how to see the caller's key, or that there is none."""
    if path.exists():
        return f"docker compose exec mfdan cat {path}"
    return f"none is in {path}; `check` asks with that one, `mfdan keys new caller` makes one"


def make_keys(folder: Path, keys_file: Path) -> None:
    """Make the file of hashed keys and a key for each of CALLERS, unless the file is there.

    Raises: Refused.
    """
    kept = {name: folder / f"{name}.key" for name in CALLERS}
    if os.path.lexists(keys_file):
        known = digests_in(keys_file)
        for path in kept.values():
            if os.path.lexists(path) and digest_of(read(path)) not in known:
                raise Refused(
                    f"the key in {path} is not in {keys_file}: add it there (`mfdan keys new` "
                    f"prints both), or remove {path}"
                )
        return
    tokens = {name: read(path) if path.exists() else new_token() for name, path in kept.items()}
    for name, token in tokens.items():
        write(kept[name], token, OWNER_ONLY)
    # At last: a file that is there is a file that fits the keys.
    stanzas = (stanza_of(name, token) for name, token in tokens.items())
    write(keys_file, "\n\n".join(stanzas), OWNER_ONLY)


def digests_in(keys_file: Path) -> set[bytes]:
    """Return the hashes in a file of keys. Raises: Refused."""
    try:
        return {key.digest for key in read_keys(keys_file)}
    except KeysInvalid as error:
        raise Refused(
            f"{error}. {_us().capitalize()} must be able to read it; `mfdan keys new` makes what "
            "belongs into it"
        ) from None


def make_password(path: Path) -> None:
    """Make a password, unless it is there. Raises: Refused, where Grafana could not read it."""
    if not os.path.lexists(path):
        write(path, token_urlsafe(24), GROUP_TOO)
    if not read(path):
        raise Refused(f"{path} is empty: write a password into it, or remove it for a new one")
    found = path.stat()
    ours = found.st_gid in {ROOT_GROUP, os.getgid()} and found.st_mode & stat.S_IRGRP
    if not (ours or found.st_mode & stat.S_IROTH):
        raise Refused(f"Grafana may not read {path}: chgrp {os.getgid()} and chmod g+r it")


def fill_models(folder: Path, source: str) -> None:
    """Copy the packaged models into the volume of Compose's own while it has none.

    source: the volume or folder that is mounted there. Raises: Refused.
    """
    if folder.suffix == ".onnx":
        return
    if not folder.is_dir():
        raise Refused(
            f"there is no folder {folder}: MFDAN_MODELS must name a volume, or a folder that exists"
        )
    if any(folder.glob("*.onnx")):
        return
    if source != GENERATED:
        raise Refused(
            f"no model is in {source}, which is {folder} here: does MFDAN_MODELS name the folder "
            f"of your *.onnx files, and may {_us()} read it?"
        )
    packaged: Path = Settings.model_fields["models_dir"].default
    try:
        for path in packaged.glob("*.onnx*"):
            half = folder / f"{path.name}.tmp"
            shutil.copyfile(path, half)
            half.replace(folder / path.name)
    except OSError as error:
        raise Refused(
            f"no model is in the volume {source}, and none can be put there ({error.strerror}): "
            f"may {_us()} write to it? docker volume rm mfdan_{source} has it made anew"
        ) from None


def read(path: Path) -> str:
    """Return what a file holds, less the white space around it. Raises: Refused."""
    try:
        return read_secret(path)
    except Unreadable as error:
        raise Refused(f"{error}: may {_us()} read it?") from None


def write(path: Path, text: str, mode: int) -> None:
    """Write a file whole or not at all. Raises: Refused."""
    half = path.with_name(f"{path.name}.tmp")
    try:
        half.unlink(missing_ok=True)
        half.touch(OWNER_ONLY)
        half.write_text(f"{text}\n")
        half.chmod(mode)
        half.replace(path)
    except OSError as error:
        raise Refused(
            f"{path} cannot be written ({error.strerror}): is there a volume, and may {_us()} write"
            " to it? A folder of your own is given with chown"
        ) from None


def _us() -> str:
    return f"user {os.getuid()}"


if __name__ == "__main__":
    app()
