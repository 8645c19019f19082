"""`mfdan-train`: make synthetic pairs, train, export."""

import typer

from training.commands import calibrate, evaluate, export, fit, prepare
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


app.command()(synth)
app.command()(prepare)
app.command()(fit)
app.command()(export)
app.command()(calibrate)
app.command()(evaluate)
