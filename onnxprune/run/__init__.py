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
    deployed,
    first_line,
    open_session,
    usable,
    watched,
)
from onnxprune.run.whole import entire, in_one

__all__ = [
    "PROVIDERS", "SMALL", "Chain", "Session", "deployed", "entire", "first_line", "in_one", "onnx_runtime",
    "open_session", "opened", "runtime_version", "usable", "watched",
]  # fmt: skip
