"""From faces to a served model: synthetic pairs, training, export, calibration, scores."""
