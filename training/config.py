"""RunConfig: one frozen dataclass describes a training run; a TOML file holds it."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from model.network import MfdanConfig
from model.spec import (
    DEFAULT_FLOW,
    Alignment,
    FlowBackend,
    FlowMethod,
    ModelSpec,
    Normalisation,
    Provenance,
    check_backends,
)
from training.data.labels import Labels
from training.data.pairs import Holdout

__all__ = ["EITHER", "METHODS", "Method", "RunConfig", "Tuning", "load_config"]

Method = Literal["mfdan", "majority", "svm", "ststnet"]
METHODS: tuple[Method, ...] = ("mfdan", "majority", "svm", "ststnet")
"""The network, and the baselines it is measured against."""
Value = int | float | bool | str
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class Tuning:
    """The inner search of `loso --tune`, on the subjects of a fold's own training half."""

    grid: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Field of RunConfig → values to try, in every combination; `network.dropkey` reaches into a
    table."""
    folds: int = Field(default=3, ge=2)
    """Inner folds, grouped by subject."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class RunConfig:
    """Everything that decides the outcome of one run. Raises: ValueError naming each bad field.

    Optimiser, learning rate, batch size and loss are the paper's; the schedule, weight decay,
    augmentation and weight averaging are ours, since the paper does not give them.
    """

    name: str = "mfdan-synthetic"
    """Of the exported model."""
    version: str = "1"
    data: str
    """What the pairs are made from, for the spec's provenance."""
    licence: str
    """Under which the weights may be used, given that data."""
    classes: tuple[str, ...] = ("negative", "positive", "surprise")
    """In the order of the network's outputs."""
    label_map: Mapping[str, str] = field(default_factory=dict)
    """Label of the manifest → class, or "" to leave its clips out; a class's own name means
    itself. A label that is in neither is an error."""
    pairs: str = ""
    """Manifest, or folder with `pairs.csv`, where the command names none."""
    seed: int = 1
    """Of the initial weights, the order of samples, augmentation and dropout."""
    seeds: tuple[int, ...] = Field(default=(1, 2, 3, 4, 5), min_length=1)
    """Of `loso`, in place of `seed`: every fold is trained once with each."""
    method: Method = "mfdan"
    """What is trained; the baselines read the data, folds, classes and seeds of the config."""

    alignment: Alignment = field(default_factory=Alignment)
    flow: FlowMethod = DEFAULT_FLOW
    flow_backend: FlowBackend = "opencv-cpu"
    """Who computes the flow that is trained on; a machine that prepares pairs must have it."""
    normalisation: Normalisation = field(default_factory=Normalisation)
    magnification: float = Field(default=4.0, ge=0)
    """α outside training: the spec's. Ours: the paper gives no value."""
    network: MfdanConfig = field(default_factory=MfdanConfig)
    init: str = ""
    """ONNX file of `mfdan-train export` whose weights the network starts from; "" draws them."""

    split_seed: int = 1
    """Of the hash that sends each subject to training, calibration or test."""
    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of subjects kept for calibration; training never sees them."""
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of subjects kept for the reported scores; nothing is chosen on them."""

    steps: int | None = Field(default=None, ge=1)
    """Fixed beforehand: the last step is what is scored, never the best."""
    epochs: int | None = Field(default=None, ge=1)
    """In place of `steps`: so many passes over the pairs that are trained on."""
    batch_size: int = Field(default=16, ge=1)
    balanced: bool = False
    """Draw every class equally often (ours, an ablation: the paper draws clips as they come)."""
    optimiser: Literal["adan", "adamw"] = "adan"
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak of the schedule."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises linearly; then it falls along half a cosine to
    `final_rate` of the peak."""
    final_rate: float = Field(default=0.01, ge=0, le=1)
    weight_decay: float = Field(default=0.02, ge=0)
    """Adan's λ (proximal form), or AdamW's."""
    max_gradient_norm: float = Field(default=5.0, ge=0)
    """Gradients are scaled down to this global norm; 0 leaves them."""
    loss: Literal["focal", "cross_entropy"] = "focal"
    focal_gamma: float = Field(default=2.0, ge=0)
    average_decay: float = Field(default=0.998, ge=0, lt=1)
    """Of the running average of the weights, which is what is exported; 0 turns it off."""
    bfloat16: bool = False
    """Run matrix products in bfloat16 (autocast): on GPUs, and on CPUs with AVX512-BF16, twice as
    fast or more."""

    alpha_min: float = Field(default=1.0, ge=0)
    alpha_max: float = Field(default=8.0, ge=0)
    """Magnification factors in training are uniform between the two."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Of mirroring image and flow."""
    rotation_degrees: float = Field(default=0.0, ge=0, le=45)
    """Largest turn of image and flow together, either way."""
    zoom: float = Field(default=0.0, ge=0, lt=0.5)
    """Largest relative change of size of image and flow together, either way."""
    shift: float = Field(default=0.0, ge=0, lt=0.5)
    """Largest shift of the crop in x and in y, as a share of its side, either way."""
    brightness: float = Field(default=0.15, ge=0, lt=1)
    """Largest relative change of brightness, and of contrast, of the image."""
    image_noise: float = Field(default=0.0, ge=0, le=64)
    """Largest standard deviation of the image's noise, 8-bit levels; each clip draws its own."""
    flow_noise_px: float = Field(default=0.0, ge=0, le=2)
    """Likewise of smooth noise on the flow, pixels."""
    time_reversal_probability: float = Field(default=0.0, ge=0, le=1)
    """Of showing the expression fade: apex → onset. Off by default: fading is no micro-expression
    of the same class to every annotator."""

    evaluate_every: int = Field(default=400, ge=1)
    """Steps between scores on the calibration subjects (a log for people; nothing reads it)."""
    evaluate_pairs: int = Field(default=320, ge=1)
    """At most this many of their pairs, evenly spread."""
    checkpoint_every: int = Field(default=200, ge=1)
    loader_workers: int = Field(default=1, ge=0)
    """Processes that prepare samples beside the training process."""
    threads: int = Field(default=0, ge=0)
    """Of torch; 0 leaves the choice to it (and means 1 in each fold of `loso`)."""

    tune: Tuning = field(default_factory=Tuning)

    def __post_init__(self) -> None:
        """Refuse values that do not fit together."""
        if len(self.classes) != self.network.classes:
            raise ValueError(
                f"{len(self.classes)} classes are named, the network has {self.network.classes}"
            )
        if self.alpha_min > self.alpha_max:
            raise ValueError(f"alpha_min {self.alpha_min} is above alpha_max {self.alpha_max}")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction leave no subject to train on")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds repeat: {', '.join(map(str, self.seeds))}")
        Labels(self.classes, self.label_map)
        check_backends(self.flow, (self.flow_backend,))

    @property
    def labels(self) -> Labels:
        """What becomes of each label."""
        return Labels(self.classes, self.label_map)

    def manifest(self, given: Path | None = None) -> Path:
        """Return the manifest to read: the given one, or the config's.

        Raises: ValueError, FileNotFoundError.
        """
        if given is not None:
            return given
        if not self.pairs:
            raise ValueError("name a manifest: the config has no `pairs`")
        if not Path(self.pairs).exists():
            raise FileNotFoundError(
                f"{self.pairs}, the config's manifest, is not here: name a MANIFEST, or make it by "
                "`mfdan-train prepare --dataset NAME --root DIR` in this folder"
            )
        return Path(self.pairs)

    def steps_for(self, rows: int) -> int:
        """Return the steps of a run that trains on so many pairs."""
        if self.steps is not None:
            return self.steps
        return math.ceil((self.epochs or 0) * rows / self.batch_size)

    def spec(self, training_commit: str = "unknown", datasets: tuple[str, ...] = ()) -> ModelSpec:
        """Return the spec of the model that this run makes, without gates and scores."""
        return ModelSpec(
            name=self.name,
            version=self.version,
            classes=self.classes,
            input_size=self.network.image_size,
            alignment=self.alignment,
            flow=self.flow,
            flow_backends=(self.flow_backend,),
            normalisation=self.normalisation,
            magnification=self.magnification,
            provenance=Provenance(
                data=self.data,
                licence=self.licence,
                training_commit=training_commit,
                seed=self.seed,
                split_seed=self.split_seed,
                val_fraction=self.val_fraction,
                test_fraction=self.test_fraction,
                datasets=datasets,
            ),
        )

    @property
    def holdout(self) -> Holdout:
        """Who is kept from training."""
        return Holdout(seed=self.split_seed, val=self.val_fraction, test=self.test_fraction)

    def to_json(self) -> str:
        """Return the config as indented JSON, ending in a newline."""
        return _ADAPTER.dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """Parse what `to_json` wrote. Raises: ValueError."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise ValueError(f"not a run's config: {_faults(error)}") from None


_ADAPTER = TypeAdapter(RunConfig)


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a TOML file; entries of `overrides` that are not None replace its own.

    `network.dropkey` reaches into a table; `steps` takes the place of `epochs`, and the reverse.
    Raises: FileNotFoundError, ValueError (bad TOML, unknown or bad fields).
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return _ADAPTER.validate_python(_override(document, overrides or {}))
    except ValidationError as error:
        raise ValueError(f"{path}: {_faults(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _override(document: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in overrides.items():
        if value is None:
            continue
        *tables, name = key.split(".")
        place = document
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise ValueError(f"{table}: must be a table")  # noqa: TRY004 - the user's fault
        place[name] = value
        if name in EITHER:
            place.pop(EITHER[name], None)
    return document


EITHER = {"steps": "epochs", "epochs": "steps"}
"""Each field takes the other's place."""


def _faults(error: ValidationError) -> str:
    """Name each bad field, on one line."""
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
        for fault in error.errors()
    )
