"""Small graphs that compute, whenever a model runs, what cannot be written into it: sizes and indices of that run.

Each takes the name of the tensor that it is to make, which nobody else has. Knows nodes and weights, no ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import Model, Weight


def overridden(
    model: Model, name: str, source: str, mask: NDArray[np.bool_], new: NDArray[np.int64]
) -> list[NodeProto]:
    """`source`, but `new` where `mask` is set."""
    _add(model, name, {"_mask": mask, "_new": new})
    return [helper.make_node("Where", [name + "_mask", name + "_new", source], [name], name=name)]


def scaled(model: Model, name: str, source: str, factors: Sequence[tuple[int, int]]) -> list[NodeProto]:
    """`source`, multiplied entry by entry by the fractions (numerator, denominator)."""
    above, below = zip(*factors, strict=True)
    _add(model, name, {"_by": np.array(above, np.int64), "_over": np.array(below, np.int64)})
    return [
        helper.make_node("Mul", [source, name + "_by"], [name + "_wide"], name=name + "_wide"),
        helper.make_node("Div", [name + "_wide", name + "_over"], [name], name=name),
    ]


def reindexed(
    model: Model, name: str, source: str, axis: int, kept: NDArray[np.int64], places: NDArray[np.int64], period: int
) -> list[NodeProto]:
    """Of the indices in `source` those that are `kept` along `axis`. They point into an axis that repeats
    `places.size` positions: position p of turn t moves to `places[p]` of that turn, of which each now has `period`."""
    values = {"_kept": kept, "_old": places.size, "_new": period, "_places": places}
    _add(model, name, {suffix: np.asarray(value, np.int64) for suffix, value in values.items()})
    steps: Sequence[tuple[str, list[str], str, dict[str, Any]]] = (
        ("Gather", [source, name + "_kept"], "_picked", {"axis": axis}),
        ("Cast", [name + "_picked"], "_long", {"to": TensorProto.INT64}),
        ("Mod", [name + "_long", name + "_old"], "_place", {}),
        ("Gather", [name + "_places", name + "_place"], "_moved", {}),
        ("Div", [name + "_long", name + "_old"], "_turn", {}),
        ("Mul", [name + "_turn", name + "_new"], "_start", {}),
        ("Add", [name + "_start", name + "_moved"], "", {}),
    )
    return [
        helper.make_node(op_type, inputs, [name + suffix], name=name + (suffix or "_sum"), **attributes)
        for op_type, inputs, suffix, attributes in steps
    ]


def picked(model: Model, name: str, source: str, axis: int, at: NDArray[np.int64]) -> NodeProto:
    """The positions `at` of `source` along an axis, as the tensor `name`; what is new is called after `source`."""
    _add(model, source, {"_at": at})
    return helper.make_node("Gather", [source, source + "_at"], [name], name=source, axis=axis)


def pinned(
    model: Model, name: str, source: str, base: str, mask: NDArray[np.bool_], old: NDArray[np.int64]
) -> NodeProto:
    """The tensor `name`: `source`, but `old` where `mask` is set; what is new is called after `base`."""
    _add(model, base, {"_mask": mask, "_old": old})
    return helper.make_node("Where", [base + "_mask", base + "_old", source], [name], name=base + "_where")


def _add(model: Model, name: str, constants: Mapping[str, ArrayLike]) -> None:
    """Constants called after a tensor."""
    model.weights |= {name + suffix: Weight.of(array) for suffix, array in constants.items()}
