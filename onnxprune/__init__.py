"""Structured pruning of any ONNX model.

`prune`, `largest`, `finetune`, `inspect`, `compare`, `plan`, `apply` and `verify` take a path, bytes, an onnx
ModelProto or an onnx-graphsurgeon Graph; `sweep` takes a path. A plan is a `Plan` or a path. They are loaded at their
first use, so that importing the package and the command line's --help cost nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
logging.getLogger(__name__).addHandler(logging.NullHandler())  # whoever calls says where records go

if TYPE_CHECKING:
    from onnxprune.api import Result, apply, compare, inspect, largest, plan, prune, verify
    from onnxprune.errors import CheckFailed, NothingToPrune, OnnxPruneError, RuntimeFailure, UsageError
    from onnxprune.frameworks import apply_plan, renamed, shrink, sliced
    from onnxprune.options import Gates, Options
    from onnxprune.pipeline import finetune
    from onnxprune.planning import Plan
    from onnxprune.report import Report
    from onnxprune.sweeping import sweep

__all__ = [
    "CheckFailed", "Gates", "NothingToPrune", "OnnxPruneError", "Options", "Plan", "Report", "Result", "RuntimeFailure",
    "UsageError", "__version__", "apply", "apply_plan", "compare", "finetune", "inspect", "largest", "plan", "prune",
    "renamed", "shrink", "sliced", "sweep", "verify",
]  # fmt: skip

_HOME = (
    {
        "Gates": "options",
        "Options": "options",
        "Report": "report",
        "Plan": "planning",
        "sweep": "sweeping",
        "finetune": "pipeline",
    }
    | dict.fromkeys(("CheckFailed", "NothingToPrune", "OnnxPruneError", "RuntimeFailure", "UsageError"), "errors")
    | dict.fromkeys(("Result", "apply", "compare", "inspect", "largest", "plan", "prune", "verify"), "api")
    | dict.fromkeys(("apply_plan", "renamed", "shrink", "sliced"), "frameworks")
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
