"""The HTTP service and the command line of mfdan."""

import model  # noqa: F401 - sets what ONNX Runtime reads when it is imported
