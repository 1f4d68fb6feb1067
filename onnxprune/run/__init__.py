"""Running models: sessions of ONNX Runtime, graphs in pieces, and what is drawn at random held still.

Knows models, no sizes and no stage.
"""

from __future__ import annotations

from onnxprune.run.chain import Chain, opened
from onnxprune.run.installed import onnx_runtime, runtime_version
from onnxprune.run.runtime import (
    PROVIDERS,
    SMALL,
    Session,
    check_kernels,
    deployed,
    first_line,
    open_session,
    usable,
    without_kernel,
)
from onnxprune.run.stand_ins import may_lack, with_stand_ins
from onnxprune.run.tensors import DEVICES, Crossings, Tensor, crossings, on_host
from onnxprune.run.watched import watched
from onnxprune.run.whole import entire, in_one

__all__ = [
    "DEVICES", "PROVIDERS", "SMALL", "Chain", "Crossings", "Session", "Tensor", "check_kernels", "crossings",
    "deployed", "entire", "first_line", "in_one", "may_lack", "on_host", "onnx_runtime", "open_session", "opened",
    "runtime_version", "usable", "watched", "with_stand_ins", "without_kernel",
]  # fmt: skip
