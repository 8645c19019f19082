"""What the network is measured against, on the same prepared pairs and folds.

The majority class, a linear SVM on small flow images, and a small three-stream CNN.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own docs use

from model.spec import ModelSpec
from model.tensors import flow_tensor
from training.config import Method, RunConfig
from training.data.prepare import Prepared, PreparedRow
from training.metrics import IntArray

__all__ = ["SIDE", "FlowSvm", "StstNet", "baseline_config", "flow_features", "majority"]

SIDE = 28
"""Of the flow images that both baselines read, pixels: STSTNet's."""
FloatArray = NDArray[np.float32]


def majority(train_classes: IntArray, n: int, classes: int) -> NDArray[np.float64]:
    """Answer every clip with the classes' shares in training: (n, K).

    The likeliest class is then training's most frequent one, of equally frequent ones the first.
    Raises: ValueError where nothing is to train on.
    """
    counts = np.bincount(train_classes, minlength=classes)
    if not counts.sum():
        raise ValueError("no labelled pair is left to train on")
    return np.tile(counts / counts.sum(), (n, 1))


def flow_features(
    prepared: Prepared, rows: Sequence[PreparedRow], spec: ModelSpec, side: int = SIDE
) -> FloatArray:
    """Shrink the flow tensors of prepared pairs: (N, 3·side·side), u then v then strain.

    Each map is averaged over areas, after the spec's normalisation at full size.
    """
    features = np.empty((len(rows), 3, side, side), np.float32)
    for place, row in enumerate(rows):
        tensor = flow_tensor(prepared.arrays(row)[1], spec.normalisation)
        for channel, plane in enumerate(tensor):
            features[place, channel] = cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA)
    return features.reshape(len(rows), -1)


class FlowSvm:
    """A linear SVM, one class against the rest, on standardised features.

    Mean and deviation come from the rows that it is fitted to. C is 1 / F for F features, so that
    it means the same at any `side`: a standardised row has a mean squared length of F, and this is
    C = 1 on rows scaled to a length of about 1. It is fixed beforehand (ours) and never searched.
    The primal solver draws no random numbers: the same rows give the same answers.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._known = np.empty(0, np.int64)
        self._decide: Callable[[FloatArray], Any] | None = None

    def fit(self, features: FloatArray, y: IntArray) -> Self:
        """Fit to features (N, F) and classes (N,), not all of which need occur.

        Raises: ValueError where nothing is to train on.
        """
        if not len(y):
            raise ValueError("no labelled pair is left to train on")
        self._known = np.unique(y)
        self._decide = None
        if len(self._known) > 1:  # with one class there is nothing to tell apart
            svm = LinearSVC(C=1 / features.shape[1], dual=False, max_iter=10_000)
            self._decide = make_pipeline(StandardScaler(), svm).fit(features, y).decision_function
        return self

    def predict(self, features: FloatArray) -> NDArray[np.float64]:
        """Return (N, K): a softmax of the decision values, 0 for a class not seen in training.

        An SVM knows no probabilities and these are not calibrated: only their order means anything.
        """
        probabilities = np.zeros((len(features), self._classes))
        probabilities[:, self._known] = _softmax(self._decisions(features))
        return probabilities

    def _decisions(self, features: FloatArray) -> NDArray[np.float64]:
        """Decision value of each class seen in training: (N, known)."""
        if self._decide is None:
            return np.zeros((len(features), len(self._known)))
        values = np.asarray(self._decide(features), np.float64)
        # Of two classes scikit-learn gives one value, positive for the second.
        return values if values.ndim > 1 else np.stack([-values, values], axis=1)


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)


class StstNet(nn.Module):
    """Three shallow streams over one small flow image: about 1,700 weights.

    Each stream: 3 × 3 convolution with 3, 5 or 8 filters over u, v and strain → batch norm → ReLU
    → max-pool 3 × 3, stride 3 → dropout; then the streams side by side, mean-pool 2 × 2, and one
    linear layer. Source: Liong et al., "Shallow Triple Stream Three-dimensional CNN (STSTNet) for
    Micro-expression Recognition", FG 2019; batch norm and dropout are ours.
    """

    _FILTERS = (3, 5, 8)

    def __init__(self, classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.streams = nn.ModuleList(_stream(filters, dropout) for filters in self._FILTERS)
        side = (SIDE + 2 - 3) // 3 + 1
        self.head = nn.Linear(sum(self._FILTERS) * (side // 2) ** 2, classes)

    def forward(self, image: Tensor, flow: Tensor) -> Tensor:  # noqa: ARG002 - MFDAN's inputs
        """image, flow (b 3 s s) → logits (b classes). The image is passed over; s is any size."""
        # On the GPU only the backward of this pooling is not deterministic, and no gradient of
        # the flow is asked for.
        small = F.adaptive_avg_pool2d(flow, SIDE)
        joined = torch.cat([stream(small) for stream in self.streams], dim=1)  # (b 16 10 10)
        return cast("Tensor", self.head(F.avg_pool2d(joined, 2).flatten(start_dim=1)))


def _stream(filters: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, filters, 3, padding=1, bias=False),  # batch norm has one
        nn.BatchNorm2d(filters),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=3, padding=1),
        nn.Dropout(dropout),
    )


def baseline_config(config: RunConfig, method: Method) -> RunConfig:
    """Return the config under which a method runs on the data of `config`.

    Manifest, classes, labels, seeds, preprocessing and augmentation of the flow stay. The network
    keeps all else too; a baseline starts from nothing, whatever `init` says, and the CNN gets
    settings of its own, fixed beforehand (ours): AdamW at 3e-3 for 40 epochs of batches of 16,
    cross-entropy. It does not see the image, so nothing about it is drawn.
    """
    if method == "mfdan":
        return replace(config, method=method)
    if method != "ststnet":
        return replace(config, method=method, init="")
    return replace(
        config,
        method=method,
        init="",
        steps=None,
        epochs=40,
        batch_size=16,
        balanced=False,
        optimiser="adamw",
        learning_rate=3e-3,
        warmup_fraction=0.05,
        final_rate=0.01,
        weight_decay=0.01,
        max_gradient_norm=5.0,
        loss="cross_entropy",
        average_decay=0.99,
        bfloat16=False,
        alpha_min=0.0,
        alpha_max=0.0,
        brightness=0.0,
        image_noise=0.0,
    )
