"""`mfdan-train agree` and `halve`: their options. The work is imported inside each."""

# ruff: noqa: PLC0415 - see above

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from training.options import ManifestArgument, ModelOption

if TYPE_CHECKING:
    from training.candidates import Measured

__all__ = ["agree", "halve"]

_Device = Annotated[
    Literal["cpu", "cuda"],
    typer.Option(help="Where what is measured runs its network; what it is held to runs on a CPU."),
]


def agree(
    model: ModelOption,
    manifest: ManifestArgument,
    *,
    backend: Annotated[
        Literal["opencv-cpu", "opencv-cuda", "onnx"],
        typer.Option(help="Who shall compute the flow instead of the spec's first backend."),
    ],
    device: _Device = "cpu",
    write_spec: Annotated[
        bool, typer.Option("--write-spec", help="If it passes, allow it in the model's spec.")
    ] = False,
) -> None:
    """Measure whether another flow backend gives the same answers, on people never seen."""
    from training.agreement import check_passed
    from training.candidates import measure_backend
    from training.evaluate import write_spec as store

    measured = measure_backend(model, manifest, backend, device, Console(stderr=True))
    console = Console()
    _show(measured, console)
    check_passed(measured.results)
    if write_spec:
        store(model, measured.spec)
        console.print(f"{measured.spec.name} may have its flow from {backend}")
    _warn(measured, console)


def halve(
    model: ModelOption,
    manifest: ManifestArgument,
    *,
    out: Annotated[Path, typer.Option(dir_okay=False, help="ONNX file to write.")],
    device: _Device = "cpu",
) -> None:
    """Write a model in half precision, if it gives the same answers on people never seen."""
    from training.agreement import check_passed
    from training.candidates import measure_half
    from training.onnx_file import write_model

    measured = measure_half(model, manifest, device, Console(stderr=True))
    console = Console()
    _show(measured, console)
    check_passed(measured.results)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_model(measured.proto, measured.spec, out)
    console.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB", soft_wrap=True)
    _warn(measured, console)


def _show(measured: "Measured", console: Console) -> None:
    from training.agreement import LEAST_SHARE, TOLERANCE

    for key, why in sorted(measured.left_out.items()):
        console.print(f"left out: {key}: {why}", markup=False, highlight=False, soft_wrap=True)
    for name, found in measured.results.items():
        console.print(
            f"{name}: {found.share:.2%} of {found.pairs} pairs of {found.people} people keep every "
            f"probability within {TOLERANCE} (95 %: {found.low:.2%} to {found.high:.2%}); "
            f"{LEAST_SHARE:.0%} must",
            highlight=False,
            soft_wrap=True,
        )
        console.print(
            f"  largest difference {found.largest:.2g}; likeliest class changed: "
            f"{found.labels_changed}; answer changed, abstentions included: "
            f"{found.answers_changed}",
            highlight=False,
            soft_wrap=True,
        )


def _warn(measured: "Measured", console: Console) -> None:
    """Say last what was not measured."""
    if measured.caution:
        console.print(measured.caution, highlight=False, soft_wrap=True)
