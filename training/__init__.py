"""From faces to a served model: synthetic pairs, training, export, calibration, scores."""

import model  # noqa: F401 - sets what ONNX Runtime reads when it is imported
