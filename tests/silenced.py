"""An oracle of its own: is a pruned file its original without what the plan removes? Nothing of the package but the plan
takes part.

The slices of the plan are set to zero in the original, and both files are run at many sizes of their open dimensions.
Where nothing takes statistics over an axis that is cut, they must agree. Where something does, zeros are not the same as
nothing; then the two may differ, if what is removed really reaches the outputs by values of its own (`telling`).

Nodes must have names, as a plan names the uses of what several layers share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.planning import Plan, Removal

Array = NDArray[Any]
Feeds = dict[str, Array]
Verdict = Literal["agrees", "statistics", "never runs"]
SIZES = (1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 17, 24, 31)
BATCHES = (1, 2, 3, 4, 5, 7)
FRAME = 12
CLOSE = 1e-3
STATISTICS = {
    "Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization",
    "MeanVarianceNormalization", "RMSNormalization", "GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "LRN",
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSumExp", "ReduceSumSquare", "CumSum",
    "TopK", "ArgMax", "ArgMin",
}  # fmt: skip
"""Operators that look at many values of an axis at once. Products of two tensors that are no parameters do as well."""
COMPARISONS = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}


class Differs(AssertionError):
    """The pruned file is not the original without what was removed."""


@dataclass(frozen=True)
class Checked:
    """verdict: "statistics" where zeros are no removal; runs: how many assignments the original ran at and was compared."""

    verdict: Verdict
    runs: int


def check(dense: ModelProto, pruned: ModelProto, plan: Plan, count: int = 10, seed: int = 0) -> Checked:
    """Raises Differs. Wherever the original runs, the pruned file must run too, and give outputs of the same shapes."""
    before, after = session(dense), session(pruned)
    zeroed = session(silenced(dense, plan))
    compared, differs = 0, ""
    run: list[Feeds] = []
    differing: list[Feeds] = []
    for sizes in assignments(dense, count, seed):
        feeds = random_feeds(dense, sizes, seed + compared)
        expected = outputs(before, feeds)
        if expected is None:
            continue
        try:
            got = after.run(None, feeds)
        except Exception as error:
            raise Differs(f"at {sizes} the original runs, and the pruned file does not: {str(error)[:300]}") from error
        if [x.shape for x in got] != [x.shape for x in expected]:
            raise Differs(f"at {sizes} the shapes are {[x.shape for x in got]}, not {[x.shape for x in expected]}")
        for k, (x, y) in enumerate(zip(expected, got, strict=True)):
            if finite(x) and not finite(y):
                raise Differs(f"at {sizes} output {k} is no number, where the original's is one")
        compared += 1
        run.append(feeds)
        wanted = outputs(zeroed, feeds)
        if wanted is not None and not differs:
            for k, (x, y) in enumerate(zip(wanted, got, strict=True)):
                if (off := distance(x, y)) > CLOSE:
                    differs, differing = f"at {sizes} output {k} differs by {off:.1e}", [feeds]
                    break
    heard = run if _comparands(dense) else differing  # what tips a decision may cancel out at the size where it tips
    if differs and not (takes_statistics(dense) and any(telling(dense, plan, feeds, seed) for feeds in heard)):
        raise Differs(differs)
    return Checked("statistics" if differs else "agrees" if compared else "never runs", compared)


# -- running -------------------------------------------------------------------------------------------------------------


def session(model: ModelProto) -> ort.InferenceSession:
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 4
    quiet.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])


def outputs(run: ort.InferenceSession, feeds: Feeds) -> list[Array] | None:
    """None where a graph does not run at these sizes."""
    try:
        return [np.asarray(x) for x in run.run(None, feeds)]
    except Exception:
        return None


def runs(model: ModelProto, count: int = 10, seed: int = 0) -> bool:
    """Whether it runs at any of the sizes."""
    run = session(model)
    return any(outputs(run, random_feeds(model, sizes, seed)) is not None for sizes in assignments(model, count, seed))


def finite(x: Array) -> bool:
    return x.dtype.kind != "f" or bool(np.isfinite(x).all())


def distance(expected: Array, got: Array) -> float:
    """By the largest of what is expected; where that is no number, nothing is said."""
    there = np.isfinite(expected)
    if not there.any() or expected.dtype.kind != "f":
        return 0.0
    x, y = expected[there].astype(np.float64), got[there].astype(np.float64)
    return float(np.abs(np.nan_to_num(y, nan=np.inf) - x).max() / max(np.abs(x).max(), 1e-6))


def symbols(model: ModelProto) -> dict[str, bool]:
    """Open dimensions of the inputs by name; whether one comes first, as batches do."""
    held = {t.name for t in model.graph.initializer}
    found: dict[str, bool] = {}
    for i in model.graph.input:
        if i.name not in held:
            for axis, d in enumerate(i.type.tensor_type.shape.dim):
                if not d.dim_value:
                    name = d.dim_param or f"{i.name}.{axis}"
                    found[name] = found.get(name, False) or axis == 0
    return found


def assignments(model: ModelProto, count: int, seed: int = 0) -> Iterator[dict[str, int]]:
    """Sizes of every symbol: all apart, equal batches, all equal, ones, multiples; below clamps and beyond them."""
    rng = np.random.default_rng(seed)
    kinds = symbols(model)
    for k in range(count):
        way = k % 5
        batch, same = int(rng.choice(BATCHES)), int(rng.choice(SIZES))
        sizes = {}
        for name, first in kinds.items():
            any_size = int(rng.choice(BATCHES if first else SIZES))
            multiple = FRAME * int(rng.integers(1, 4))
            sizes[name] = (
                same if way == 2 else batch if first and way else 1 if way == 3 and rng.random() < 0.5 else
                any_size if first else multiple if way == 4 or rng.random() < 0.2 else any_size
            )  # fmt: skip
        yield sizes


def random_feeds(model: ModelProto, sizes: Mapping[str, int], seed: int) -> Feeds:
    rng = np.random.default_rng(seed)
    held = {t.name for t in model.graph.initializer}
    feeds = {}
    for i in model.graph.input:
        if i.name not in held:
            tensor = i.type.tensor_type
            dims = [d.dim_value or sizes[d.dim_param or f"{i.name}.{a}"] for a, d in enumerate(tensor.shape.dim)]
            kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            value = rng.standard_normal(dims) if kind.kind == "f" else rng.integers(0, 2, dims)
            feeds[i.name] = value.astype(kind)
    return feeds


# -- what is removed -----------------------------------------------------------------------------------------------------


def silenced(model: ModelProto, plan: Plan, loud: str = "", seed: int = 0) -> ModelProto:
    """The original with zeros where the plan removes. Those of the one parameter `loud` are random numbers instead, but
    for what another of its axes loses."""
    silent = ModelProto()
    silent.CopyFrom(model)
    rng = np.random.default_rng(seed)
    nodes = {n.name: n for n in every_node(silent.graph.node)}
    tensors = {t.name: t for t in silent.graph.initializer}
    for (name, use), removals in _by_use(plan).items():
        value = numpy_helper.to_array(tensors[name]).copy()
        places = [(nodes[node], int(i)) for node, i in (u.rsplit(":", 1) for u in use.split(",") if use)]
        read = places or [(n, i) for n in nodes.values() for i, x in enumerate(n.input) if x == name]
        divides = any(n.op_type == "Div" and i == 1 for n, i in read)
        masks = {r: _mask(r, value.shape) for r in removals}
        gone = np.any([*masks.values()], axis=0)
        value[gone] = 1 if divides else 0
        if name == loud:
            summed = [m for r, m in masks.items() if all(_summed(n, i, r) for n, i in read)]
            more = gone & ~np.any([np.zeros(value.shape, bool), *summed], axis=0)
            value[more] = rng.uniform(0.5, 1.5, int(more.sum()))
        tensor = numpy_helper.from_array(value.astype(value.dtype), name)
        if not places:
            tensors[name].CopyFrom(tensor)
            continue
        tensor.name = f"{name} at {use}"
        silent.graph.initializer.append(tensor)
        for node, i in places:
            node.input[i] = tensor.name
    return silent


def telling(model: ModelProto, plan: Plan, feeds: Feeds, seed: int) -> bool:
    """Whether some of what is removed says something by values of its own, all else that is removed being zero: then an
    operator looks at it beside what stays. What is compared counts as said: a decision need not tip."""
    model = _with_comparands(model)
    silent = outputs(session(silenced(model, plan)), feeds)
    for name in {name for name, _ in _by_use(plan)}:
        heard = outputs(session(silenced(model, plan, name, seed)), feeds)
        if silent is None or heard is None or any(distance(x, y) > CLOSE for x, y in zip(silent, heard, strict=True)):
            return True
    return False


def _with_comparands(model: ModelProto) -> ModelProto:
    """The model that also gives out what its comparisons read."""
    told = ModelProto()
    told.CopyFrom(model)
    given = {o.name for o in model.graph.output}
    read = sorted(_comparands(model) - given)
    told.graph.output.extend(helper.make_tensor_value_info(x, TensorProto.FLOAT, None) for x in read)
    return told


def _comparands(model: ModelProto) -> set[str]:
    """Computed tensors that comparisons of the main graph read."""
    made = {o for n in model.graph.node for o in n.output}
    return {x for n in model.graph.node if n.op_type in COMPARISONS for x in n.input if x in made}


def takes_statistics(model: ModelProto) -> bool:
    held = {t.name for t in model.graph.initializer}
    nodes = every_node(model.graph.node)
    made = {o for n in nodes for o in n.output}
    return any(
        n.op_type in STATISTICS
        or (n.op_type in ("MatMul", "Einsum", "Gemm") and all(i in made and i not in held for i in n.input[:2]))
        for n in nodes
    )


def _by_use(plan: Plan) -> dict[tuple[str, str], list[Removal]]:
    found: dict[tuple[str, str], list[Removal]] = defaultdict(list)
    for removals in plan.groups.values():
        for r in removals:
            found[r.parameter, r.use].append(r)
    return found


def _mask(r: Removal, shape: Sequence[int]) -> NDArray[np.bool_]:
    """Where a removal is in its parameter; positions of a first axis may stand for runs."""
    gone = np.zeros(int(np.prod(r.shape)), bool)
    gone[list(r.remove)] = True
    gone = gone.reshape(r.shape)
    for k, axis in enumerate(r.axes):
        gone = np.repeat(gone, shape[axis] // gone.shape[k], axis=k)
    order = np.argsort(r.axes)
    wide = [shape[a] if a in r.axes else 1 for a in range(len(shape))]
    return np.broadcast_to(gone.transpose(order).reshape(wide), shape)


def _summed(node: NodeProto, i: int, r: Removal) -> bool:
    """Whether the operator sums over this axis of the weight, so that a removal there is a column that reads."""
    axis, attribute = r.axes[-1], {a.name: helper.get_attribute_value(a) for a in node.attribute}
    match node.op_type:
        case "Conv":
            return i == 1 and axis == 1
        case "ConvTranspose":
            return i == 1 and axis == 0
        case "MatMul":
            return axis == 0 if i == 1 else axis > 0
        case "Gemm":
            return (i == 1 and axis == (1 if attribute.get("transB") else 0)) or (
                i == 0 and axis == (0 if attribute.get("transA") else 1)
            )
        case "LSTM" | "GRU" | "RNN":
            return i in (1, 2) and axis == 2
    return False


def every_node(nodes: Any) -> list[NodeProto]:
    found = []
    for node in nodes:
        found += [node, *(n for a in node.attribute if a.type == a.GRAPH for n in every_node(a.g.node))]
    return found
