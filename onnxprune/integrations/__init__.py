"""Where users already are: ONNX Runtime's quantiser, Hugging Face folders, Olive, optimum-cli.

Each is the API in the shape that the other tool wants; nothing of theirs is imported before it is asked for. Knows what
the API takes and gives, no graph.
"""

from __future__ import annotations

from onnxprune.integrations.folders import FolderResult, check_output, models_in, prune_folder
from onnxprune.integrations.quantisation import CalibrationReader

__all__ = ["CalibrationReader", "FolderResult", "check_output", "models_in", "prune_folder"]
