"""A graph laid open: tensors inside it become outputs. Knows names and element types, no ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx import helper

from onnxprune.model import Model

Types = Callable[[str], int | None]
"""The element type (of `onnx.TensorProto`) of a tensor by its name; None where it is not known."""


def with_outputs(types: Types, model: Model, names: Sequence[str]) -> Model:
    """A copy of the model that gives these tensors, too."""
    model = model.copy()
    have = {o.name for o in model.skeleton.graph.output}
    made = (helper.make_tensor_value_info(n, types(n) or 1, None) for n in names if n not in have)
    model.skeleton.graph.output.extend(made)
    return model
