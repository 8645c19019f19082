"""What a prediction is: every step from bytes to verdict, framework-free but for network.py."""

import os

# ONNX Runtime else reports to its makers, and reads this as it is imported: so here, which every
# module of ours that imports it imports first. Whoever wants the reports sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
