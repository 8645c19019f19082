"""`mfdan-train prepare` and `mfdan-train validate`: their options.

The work is imported inside each command, so that torch loads for those that need it only.
"""

# ruff: noqa: PLC0415 - see above

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from training.options import (
    BUNDLED_CONFIG,
    ManifestArgument,
    OptionalManifest,
    WorkersOption,
    config_path,
)

if TYPE_CHECKING:
    from model.spec import ModelSpec
    from training.data.datasets import Loaded

__all__ = ["prepare", "validate"]

SHEET_FILE = "contact_sheet.png"
"""Beside a data set's `pairs.csv`; of another manifest, in its prepared folder."""


def prepare(  # noqa: PLR0913 - one parameter for each option
    manifest: OptionalManifest = None,
    *,
    dataset: Annotated[
        str | None,
        typer.Option(help="Load this data set: casme2, samm, smic, casme3 or composite."),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that the data set was unpacked into.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for its pairs.csv; data/NAME when left out."),
    ] = None,
    annotation: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Its annotation, if not in the root."),
    ] = None,
    apexes: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="CSV clip,apex overruling the annotation."),
    ] = None,
    missing_apex: Annotated[
        Literal["drop", "middle"],
        typer.Option(help="What becomes of a clip without an apex: its middle frame, or none."),
    ] = "drop",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            parser=config_path,
            metavar="FILE",
            show_default=False,
            help="TOML file of the run that shall read the cache, or the name of a shipped one; "
            "the data set's own when left out, else the bundled model's.",
        ),
    ] = None,
    workers: WorkersOption = 0,
) -> None:
    """Align the clips and compute their flow, once, into a cache beside the manifest."""
    from training.config import load_config
    from training.data.datasets import DATASETS, load_dataset

    if config is None:
        config = config_path(f"{dataset}.toml") if dataset in DATASETS else BUNDLED_CONFIG
    run = load_config(config)
    if dataset is None:
        own = (("root", root), ("out", out), ("annotation", annotation), ("apexes", apexes))
        for name, value in own:
            if value is not None:
                raise typer.BadParameter(f"--{name} goes with --dataset")
        _prepare_manifest(run.manifest(manifest), run.spec(), workers)
        return
    if manifest is not None:
        raise typer.BadParameter("give a MANIFEST or --dataset, not both")
    if root is None:
        raise typer.BadParameter("--dataset needs --root, the folder it was unpacked into")
    loaded = load_dataset(
        dataset, root, annotation=annotation, apexes=apexes, missing_apex=missing_apex
    )
    _prepare_dataset(loaded, out or Path("data") / dataset, run.spec(), workers)


def _prepare_manifest(manifest: Path, spec: "ModelSpec", workers: int) -> None:
    from training.contact_sheet import prepared_sheet
    from training.data.prepare import prepared_folder
    from training.preparing import prepare_pairs_folder, summary_table

    prepared = prepare_pairs_folder(spec, manifest, workers, Console(stderr=True))
    sheet = prepared_folder(manifest, spec) / SHEET_FILE
    prepared_sheet(prepared, spec, sheet)
    console = Console()
    dropped = {"not prepared": _by_dataset(prepared.dropped)}
    console.print(summary_table([row.pair for row in prepared.rows], dropped))
    console.print(f"to look at: {sheet}", highlight=False, soft_wrap=True)


def _prepare_dataset(loaded: "Loaded", out: Path, spec: "ModelSpec", workers: int) -> None:
    from training.contact_sheet import prepared_sheet
    from training.preparing import (
        load_into,
        prepare_pairs_folder,
        summary_table,
        write_dropped,
    )

    log = Console(stderr=True)
    for note in loaded.notes:
        log.print(note, highlight=False, markup=False, soft_wrap=True)
    if loaded.dropped:
        log.print(f"not loaded: {len(loaded.dropped)}")
        for row in loaded.dropped:
            log.print(f"  {row.where}: {row.why}", highlight=False, markup=False, soft_wrap=True)
    manifest = load_into(out, loaded)
    prepared = prepare_pairs_folder(spec, manifest, workers, log)
    write_dropped(out, loaded, prepared.dropped)
    prepared_sheet(prepared, spec, out / SHEET_FILE)
    console = Console()
    left_out = {
        "not loaded": Counter(row.dataset for row in loaded.dropped),
        "not prepared": _by_dataset(prepared.dropped),
    }
    console.print(summary_table([row.pair for row in prepared.rows], left_out))
    for name in (manifest.name, "dropped.csv", SHEET_FILE):
        console.print(str(out / name), highlight=False, soft_wrap=True)


def _by_dataset(keys: "dict[str, str]") -> Counter[str]:
    return Counter(key.split("/")[0] for key in keys)


def validate(
    manifest: ManifestArgument,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            parser=config_path,
            metavar="FILE",
            help="Check the labels too: TOML file of a run, or the name of a shipped one.",
        ),
    ] = None,
    workers: WorkersOption = 0,
) -> None:
    """Name every row that cannot be trained on; exit 1 if there is any, else count the clips."""
    from training.config import load_config
    from training.data.validate import validate as check
    from training.preparing import ClipProgress, summary_table

    labels = None if config is None else load_config(config).labels
    with ClipProgress("validate", Console(stderr=True)) as progress:
        checked = check(manifest, labels, workers=workers, report=progress)
    console = Console()
    for row in checked.bad:
        console.print(str(row), highlight=False, markup=False, soft_wrap=True)
    if checked.bad:
        console.print(f"{len(checked.bad)} bad rows, {len(checked.good)} good ones")
        raise typer.Exit(1)
    console.print(summary_table(checked.good))
