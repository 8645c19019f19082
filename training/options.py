"""Options that several commands of `mfdan-train` share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "BUNDLED_CONFIG",
    "ConfigOption",
    "DeviceOption",
    "InitOption",
    "ManifestArgument",
    "ModelOption",
    "OptionalManifest",
    "WorkersOption",
    "config_path",
]

_CONFIGS = Path(__file__).parent / "configs"
BUNDLED_CONFIG = _CONFIGS / "synthetic.toml"
"""Of the bundled model."""
_MANIFEST_HELP = "CSV of clips, or a folder that holds a pairs.csv."


def config_path(text: str) -> Path:
    """Return the file that a config's name means: a path, or the name of a shipped one.

    Raises: typer.BadParameter.
    """
    path, shipped = Path(text), _CONFIGS / text
    if path.is_file():
        return path
    if path.name == text and shipped.is_file():
        return shipped
    names = ", ".join(sorted(file.name for file in _CONFIGS.glob("*.toml")))
    raise typer.BadParameter(f"there is no file {text}, and shipped are {names}")


ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config",
        parser=config_path,
        metavar="FILE",
        show_default=False,
        help="TOML file of the run, or the name of a shipped one.",
    ),
]
ManifestArgument = Annotated[
    Path, typer.Argument(metavar="MANIFEST", exists=True, help=_MANIFEST_HELP)
]
OptionalManifest = Annotated[
    Path | None,
    typer.Argument(
        metavar="MANIFEST", exists=True, help=f"{_MANIFEST_HELP} Default: the config's `pairs`."
    ),
]
ModelOption = Annotated[
    Path, typer.Option("--model", exists=True, dir_okay=False, help="ONNX file, spec beside it.")
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")
]
InitOption = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="ONNX file whose weights to start from."),
]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")]
