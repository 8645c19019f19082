"""`mfdan-train`: from clips or synthetic pairs to an evaluated, served model."""

import typer

from training.agreement_command import agree, halve
from training.commands import export, fit
from training.evaluate_command import calibrate, evaluate
from training.faults import told_in_one_line
from training.loso_command import loso
from training.prepare_command import prepare, validate
from training.report_command import report
from training.synth_clips_command import synth_clips
from training.synthesis import synth

app = typer.Typer(
    name="mfdan-train",
    help="Prepare clips, train MFDAN, evaluate it honestly, export it to ONNX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Prepare clips, train MFDAN, evaluate it honestly, export it to ONNX."""


for command in (
    *(synth, synth_clips, validate, prepare),
    *(loso, report),
    *(fit, export, calibrate, evaluate, agree, halve),
):
    app.command()(told_in_one_line()(command))
