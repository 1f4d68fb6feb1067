"""The proofs that a rewriting is right: re-trace, slices, equivalence.

Knows the trace and what was kept, not how that was chosen.
"""

from __future__ import annotations

from onnxprune.prove.finiteness import check_finite
from onnxprune.prove.masking import masked
from onnxprune.prove.outputs import with_outputs
from onnxprune.prove.places import Places
from onnxprune.prove.proofs import equivalence, retrace

__all__ = ["Places", "check_finite", "equivalence", "masked", "retrace", "with_outputs"]
