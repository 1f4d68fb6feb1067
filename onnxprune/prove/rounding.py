"""What rounding does to a model: how far it moves the outputs, and which decisions hang on it.

Sums in another order differ in the last places. An operator that turns floats into integers or booleans (TopK, a
comparison, NonMaxSuppression) makes a decision of such a difference where two values are close, and what follows is
another result, not a less exact one; nearly so where floats are positions to look at. So a model with decisions is
compared in two parts: what they are made from, and what follows from the same decisions. Knows types and values, no
importance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.model import FLOATS, Derived, Model, Weight, bodies, captured, needs, renamed, traits
from onnxprune.prove.outputs import Types

Array = NDArray[Any]
NUDGED = (np.float16, np.float32, np.float64)
LEAST_NUDGED = 8
"""Elements of the smallest weight that is nudged."""
POOL = 100_003
"""Random numbers that are drawn for an array; a larger one repeats them. A prime, so that no two rows are alike."""
DECIDED = {TensorProto.BOOL, TensorProto.INT32, TensorProto.INT64}


def nudged(model: Model, feeds: Mapping[str, Array], seed: int) -> tuple[Model, dict[str, Array]]:
    """Every float that goes in, and of every weight, off by some units in the last place, as sums of hundreds of
    terms in another order are. Short vectors stay, which may be factors that sizes are made of."""
    rng = np.random.default_rng(seed)
    moved = {n: _nudge(x, rng) for n, x in feeds.items()}
    model = model.copy()
    for name, weight in sorted(model.weights.items()):
        if weight.dtype in NUDGED and weight.size >= LEAST_NUDGED:
            own = int(rng.integers(1 << 32))
            model.weights[name] = Weight(weight.onnx_type, weight.shape, Derived(weight, partial(_reseeded, seed=own)))
    return model, moved


def _reseeded(x: Array, seed: int) -> Array:
    return _nudge(x, np.random.default_rng(seed))


def _nudge(x: Array, rng: np.random.Generator) -> Array:
    if x.dtype not in NUDGED:
        return x
    moves = np.resize(rng.standard_normal(min(x.size, POOL), np.float32), x.shape)
    out: Array = (x * (1 + 8 * np.finfo(x.dtype).eps * moves)).astype(x.dtype)
    return out


def deciding(types: Types, original: Model, after: Model, also: Collection[str] = ()) -> list[str]:
    """The float tensors that decisions are made from, where the pruned model has them; `also`: operators that round."""
    made = {o for n in after.skeleton.graph.node for o in n.output}
    nodes = original.skeleton.graph.node
    return [
        i for i in dict.fromkeys(i for n in nodes for i in decides_from(types, n, also))
        if i in made and types(i) in FLOATS
    ]  # fmt: skip


def fed_name(name: str) -> str:
    """The input that stands for a tensor where decisions are made from it."""
    return f"{name}_fed"


def with_decisions_fed(types: Types, model: Model, values: Mapping[str, Array], also: Collection[str] = ()) -> Model:
    """The model with its decisions made from inputs (`fed_name`) of the shapes of `values`, instead of its own
    values: where a runtime knows no shape, it may take sizes that are decided for none at all."""
    model = model.copy()
    names = {n: fed_name(n) for n in values}
    for node in model.skeleton.graph.node:
        here = {i: names[i] for i in decides_from(types, node, also) if i in names}
        node.input[:] = [here.get(i, i) for i in node.input]
        for _, body in bodies(node):
            renamed(body, {i: new for i, new in here.items() if i in captured(body)})
    model.skeleton.graph.input.extend(
        helper.make_tensor_value_info(names[n], types(n) or TensorProto.FLOAT, value.shape)
        for n, value in values.items()
    )
    return model


def decides_from(types: Types, node: NodeProto, also: Collection[str] = ()) -> Iterable[str]:
    """What a node reads to decide: of one with bodies what they read from outside, where they decide for others."""
    if node.op_type in traits.SAMPLING:
        return list(node.input)[1:2]
    if node.op_type in also or node.op_type in traits.JUMPING:
        return list(node.input)[:1]
    decides = node.op_type != "Shape" and any(types(o) in DECIDED for o in node.output if o)
    return needs(node) if decides else ()
