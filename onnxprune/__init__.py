"""Structured pruning of any ONNX model.

`prune`, `largest`, `inspect`, `compare`, `plan`, `apply` and `verify` take a path, an onnx ModelProto or an
onnx-graphsurgeon Graph; `sweep` takes a path. They are loaded at their first use, so that importing the package and
the command line's --help cost nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import Result, apply, compare, inspect, largest, plan, prune, verify
    from .options import Options
    from .plan import Plan
    from .shrink import shrink
    from .sweep import sweep
    from .transfer import apply_plan, renamed, sliced

__all__ = [
    "Options", "Plan", "Result", "__version__", "apply", "apply_plan", "compare", "inspect", "largest", "plan", "prune",
    "renamed", "shrink", "sliced", "sweep", "verify",
]  # fmt: skip

_HOME = (
    {"Options": "options", "Plan": "plan", "shrink": "shrink", "sweep": "sweep"}
    | dict.fromkeys(("Result", "apply", "compare", "inspect", "largest", "plan", "prune", "verify"), "api")
    | dict.fromkeys(("apply_plan", "renamed", "sliced"), "transfer")
)


class _Package(ModuleType):
    """Keeps `onnxprune.plan` the function although a submodule bears the same name."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
