"""`mfdan-train`: make synthetic pairs, train, export."""

import typer

from training.commands import calibrate, evaluate, export, fit, prepare
from training.faults import told_in_one_line
from training.synthesis import synth

app = typer.Typer(
    name="mfdan-train",
    help="Make synthetic pairs, train MFDAN, export it to ONNX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Make synthetic pairs, train MFDAN, export it to ONNX."""


for command in (synth, prepare, fit, export, calibrate, evaluate):
    app.command()(told_in_one_line()(command))
