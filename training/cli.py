"""`mfdan-train`: make synthetic pairs, train, export."""

import typer

app = typer.Typer(
    name="mfdan-train",
    help="Make synthetic pairs, train MFDAN, export it to ONNX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
