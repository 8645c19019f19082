"""The paper's ablations, and ours, one flag each; `fit` and `loso` take the same ones."""

from typing import Annotated, Any

import typer

__all__ = [
    "AdamW",
    "Balanced",
    "CrossEntropy",
    "NoAverage",
    "NoDropkey",
    "NoFlowAttention",
    "ablations",
    "ablations_named",
]

NoFlowAttention = Annotated[
    bool, typer.Option("--no-flow-attention", help="Ablation: attend by the image alone.")
]
NoDropkey = Annotated[bool, typer.Option("--no-dropkey", help="Ablation: drop no keys.")]
CrossEntropy = Annotated[
    bool, typer.Option("--cross-entropy", help="Ablation: cross-entropy, not the focal loss.")
]
AdamW = Annotated[bool, typer.Option("--adamw", help="Ablation: AdamW, not Adan.")]
Balanced = Annotated[bool, typer.Option("--balanced", help="Draw every class equally often.")]
NoAverage = Annotated[
    bool, typer.Option("--no-average", help="Score the last weights, not their average.")
]
_OVERRIDES: dict[str, dict[str, Any]] = {
    "no_flow_attention": {"network.flow_attention": False},
    "no_dropkey": {"network.dropkey": 0.0},
    "cross_entropy": {"loss": "cross_entropy"},
    "adamw": {"optimiser": "adamw"},
    "balanced": {"balanced": True},
    "no_average": {"average_decay": 0.0},
}


def ablations(**flags: bool) -> dict[str, Any]:
    """Return the overrides for `load_config` of the flags that are set: `no_dropkey=True`, …."""
    return {
        field: value
        for flag, is_set in flags.items()
        if is_set
        for field, value in _OVERRIDES[flag].items()
    }


def ablations_named(**flags: bool) -> str:
    """Return the flags that are set as the end of a run's name: "-no-dropkey-adamw"."""
    return "".join("-" + flag.replace("_", "-") for flag, is_set in flags.items() if is_set)
