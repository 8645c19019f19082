"""`mfdan keys`: make an API key, check the file of keys."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.command_line import BAD_USAGE, failed, read_settings
from service.keys import KeysInvalid, new_token, read_keys, stanza_of

__all__ = ["keys_app"]

keys_app = typer.Typer(help="Make API keys and check their file.", no_args_is_help=True)


@keys_app.command()
def new(
    name: Annotated[str, typer.Argument(help="Of whoever will use it; logs and metrics show it.")],
    rate_per_minute: Annotated[
        int | None, typer.Option(help="Requests in a minute; default: any number.")
    ] = None,
    quota_per_day: Annotated[
        int | None, typer.Option(help="Requests in a day; default: any number.")
    ] = None,
) -> None:
    """Make a key: shown once, on standard error; what the file needs goes to standard output.

    So `mfdan keys new alice >> keys.toml` adds it to the file.
    """
    token = new_token()
    try:
        stanza = stanza_of(
            name, token, rate_per_minute=rate_per_minute, quota_per_day=quota_per_day
        )
    except KeysInvalid as error:
        raise failed(str(error), status=BAD_USAGE) from None
    typer.echo(f"{stanza}\n")
    typer.echo(f"the key of {name}, which is kept nowhere: {token}", err=True)


@keys_app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(help="The file of keys; default: MFDAN_API_KEYS_FILE.")
    ] = None,
) -> None:
    """List the keys of a file as the service would take them; exit with 1 when it would not."""
    path = file or read_settings().api_keys_file
    if path is None:
        raise failed("name a file, or set MFDAN_API_KEYS_FILE", status=BAD_USAGE)
    table = Table("key", "requests a minute", "requests a day")
    try:
        for key in read_keys(path):
            limits = (key.rate_per_minute, key.quota_per_day)
            table.add_row(key.name, *(str(limit or "any number") for limit in limits))
    except KeysInvalid as error:
        raise failed(str(error)) from None
    Console().print(table)
