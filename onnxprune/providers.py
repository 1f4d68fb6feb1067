"""Sessions of ONNX Runtime: providers by their short names, one line for whatever goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RuntimeFailure

if TYPE_CHECKING:
    from .model import Model

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


def open_session(
    model: Model, providers: Sequence[str] = ("cpu",), folder: str | Path | None = None, basic: bool = False
) -> Any:
    """An InferenceSession that really uses all of `providers`, or a RuntimeFailure that says how to mend it.

    `folder` takes the file of a model that is too large for memory; `basic` leaves out fusions."""
    import onnxruntime as ort

    wanted = [PROVIDERS.get(name.lower(), name) for name in providers]
    missing = [name for name in wanted if name not in ort.get_available_providers()]
    if not missing:
        if set(wanted) - {PROVIDERS["cpu"]}:
            ort.set_default_logger_severity(4)  # a provider that does not load is one line of ours, not pages of theirs
        if PROVIDERS["cuda"] in wanted and hasattr(ort, "preload_dlls"):
            with redirect_stdout(StringIO()):
                ort.preload_dlls()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if basic:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        chosen = list(dict.fromkeys((*wanted, PROVIDERS["cpu"])))
        try:
            session = ort.InferenceSession(model.session_source(folder), options, providers=chosen)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise RuntimeFailure(f"ONNX Runtime cannot load the model: {first_line(error)}") from error
        missing = [name for name in wanted if name not in session.get_providers()]
    if missing:
        raise RuntimeFailure(f"{', '.join(missing)} cannot be used here; {_mend()}, or use --providers cpu")
    return session


def first_line(error: Exception) -> str:
    """What ONNX Runtime says, without the pages that may follow."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _mend() -> str:
    """How to get a missing provider: the two distributions of ONNX Runtime overwrite each other."""
    names = {str(found.metadata["Name"]).lower() for found in metadata.distributions()}
    if {"onnxruntime", "onnxruntime-gpu"} <= names:
        return "run 'pip uninstall -y onnxruntime onnxruntime-gpu', then 'pip install onnxruntime-gpu'"
    return "run 'pip install onnxprune[cuda]' on a machine with a supported device"
