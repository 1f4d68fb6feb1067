"""What ONNX Runtime computes in the middle of a torch graph: operators that no gradient goes through, and the matrices
of a Resize, which is linear and works axis by axis. Knows single nodes, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from onnxprune.model import Array, Model, attributes
from onnxprune.run import open_session

IR = 10
"""Of the file format: old enough for any runtime that is allowed, new enough for any operator set."""
FEW = 16


class Runtime:
    """Runs nodes one by one, in the operator sets of a model; sessions are kept."""

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self.opsets = dict(opsets)
        self._sessions: dict[Any, Any] = {}
        self._matrices: dict[Any, Array] = {}

    def run(self, node: NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
        """All outputs of a node for what it reads, None for what it leaves out. Where that is a few numbers, such as
        sizes, a session is for these only."""
        given = {n: a for n, a in zip(node.input, arrays, strict=True) if n and a is not None}
        fixed = {n: a for n, a in given.items() if a.ndim == 1 and a.size <= FEW}
        key = (node.SerializeToString(), *((n, a.dtype.str, a.ndim) for n, a in given.items()),
               *((n, a.tobytes()) for n, a in fixed.items()))  # fmt: skip
        if key not in self._sessions:
            self._sessions[key] = open_session(Model.load(self._alone(node, given, fixed)))
        names = [o for o in node.output if o]
        fed = {n: a for n, a in given.items() if n not in fixed}
        found = dict(zip(names, self._sessions[key].run(names, fed), strict=True))
        return [found.get(o) for o in node.output]  # type: ignore[misc]

    def _alone(self, node: NodeProto, given: Mapping[str, Array], fixed: Mapping[str, Array]) -> ModelProto:
        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim)
            for n, a in given.items()
            if n not in fixed
        ]
        constants = [numpy_helper.from_array(a, n) for n, a in fixed.items()]
        outputs = [ValueInfoProto(name=o) for o in node.output if o]
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        return helper.make_model(
            helper.make_graph([node], "one", inputs, outputs, constants), opset_imports=opsets, ir_version=IR
        )

    def resizing(self, node: NodeProto, size: int, scale: float | None, wanted: int | None) -> Array:
        """[out, size]: what a Resize or Upsample does to one axis, found by resizing an identity matrix."""
        kept = attributes(node, "axes", "keep_aspect_ratio_policy")
        key = (repr(sorted(kept.items())), size, scale, wanted)
        if key not in self._matrices:
            arrays: list[Array | None]
            x = np.eye(size, dtype=np.float32)[None, None]
            if node.op_type == "Upsample":
                alone = helper.make_node("Upsample", ["x", "scales"], ["y"], **kept)
                arrays = [x, np.array([1, 1, 1, scale], np.float32)]
            elif wanted is None:
                alone = helper.make_node("Resize", ["x", "", "scales"], ["y"], **kept)
                arrays = [x, None, np.array([1, 1, 1, scale], np.float32)]
            else:
                alone = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **kept)
                arrays = [x, None, None, np.array([1, 1, size, wanted], np.int64)]
            self._matrices[key] = np.ascontiguousarray(self.run(alone, arrays)[0][0, 0].T)
        return self._matrices[key]
