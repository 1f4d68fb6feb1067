"""Running models: sessions of ONNX Runtime, graphs in pieces, and what is drawn at random held still.

Knows models, no sizes and no stage.
"""

from __future__ import annotations

from onnxprune.run.chain import Chain, opened
from onnxprune.run.runtime import PROVIDERS, SMALL, Session, deployed, first_line, open_session, threads, watched

__all__ = [
    "PROVIDERS",
    "SMALL",
    "Chain",
    "Session",
    "deployed",
    "first_line",
    "open_session",
    "opened",
    "threads",
    "watched",
]  # fmt: skip
