"""What crashes or never returns does so in a helper, and whose fault it is that a model does not run.

Knows processes and the runtime, nothing of how a model is pruned.
"""

from __future__ import annotations

from onnxprune.rehearsal.blame import blame_model, blaming
from onnxprune.rehearsal.helpers import begun

__all__ = ["begun", "blame_model", "blaming"]
