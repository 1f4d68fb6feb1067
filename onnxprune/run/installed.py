"""The ONNX Runtime that is installed: any build of it that Python can import, whatever its distribution is called.

Distributions of ONNX Runtime (onnxruntime, onnxruntime-gpu, onnxruntime-directml, ...) write into the same folder: the
last one that is installed wins, and removing one takes files of the others along. So none of them is required here, and
what is there is used. Knows distributions and imports, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

from onnxprune.errors import RuntimeFailure

NAME = "onnxruntime"
CHOICE = "run pip install 'onnxprune[gpu]' ([cpu] is smaller, [cuda] brings CUDA), or install any other build of it"
"""What to do where there is no ONNX Runtime."""
BUILDS = {
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "DnnlExecutionProvider": "a build with oneDNN, of which PyPI has none",
    "XnnpackExecutionProvider": "a build with XNNPACK, of which PyPI has none",
}
"""Which build has a provider that the usual ones lack."""


def onnx_runtime() -> Any:
    """The module of ONNX Runtime. RuntimeFailure, which says how to get one, where there is none, or where it cannot be
    imported, or where it is what an uninstalled build has left."""
    try:
        import onnxruntime
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == NAME:
            raise RuntimeFailure(f"ONNX Runtime is not installed; {CHOICE}") from None
        raise _unusable(error) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise _unusable("files of it are missing, as where one build was installed over another and then removed")
    return onnxruntime


def _unusable(why: ImportError | str) -> RuntimeFailure:
    return RuntimeFailure(f"the installed ONNX Runtime cannot be used ({why}); {_removed(builds())}{CHOICE}")


def builds() -> list[str]:
    """The distributions whose files Python imports as ONNX Runtime: where there are several, they have overwritten each
    other."""
    return sorted(set(metadata.packages_distributions().get(NAME, ())))


def _removed(names: list[str]) -> str:
    return f"run 'pip uninstall -y {' '.join(names)}', then " if names else ""


def runtime_version() -> tuple[str, str]:
    """The name of the build, as it tells it itself, and its version. RuntimeFailure as `onnx_runtime` has it."""
    runtime = onnx_runtime()
    return getattr(runtime, "package_name", NAME), runtime.__version__


def how_to_get(built_in: bool, missing: Sequence[str] = ()) -> str:
    """What to do where providers are missing. built_in: whether the build has them, but not what they need."""
    names = builds()
    if built_in and len(names) <= 1:
        return "install what it needs ('onnxprune[cuda]' brings CUDA and cuDNN) on a machine with a supported device"
    build = next(
        (BUILDS[name] for name in missing if name in BUILDS), "a build that has it, such as 'onnxprune[cuda]' for CUDA"
    )
    return f"{_removed(names)}install {build}"
