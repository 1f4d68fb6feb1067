"""Two proofs that a rewriting is right: re-trace and masked equivalence. With `validate`, all that runs ONNX Runtime.

The masked original is the original in which every reduction over a labelled axis sees kept positions only: sums are
masked with zeros, statistics are taken over gathered positions and scattered back. Activations stay what they were, so
no mask can produce a NaN; what a removed channel holds no longer matters once nothing sums over it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from onnxprune.editor import Editor, fresh_name
from onnxprune.errors import CheckFailed, RuntimeFailure
from onnxprune.groups import Groups
from onnxprune.labels import Block, Kept, Mask, kept_shape, positions
from onnxprune.model import Model, Weight
from onnxprune.options import Options, Proof
from onnxprune.rewrite import Rewritten
from onnxprune.rules import RULES
from onnxprune.shapes import Shapes
from onnxprune.trace import Trace

FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
TOLERANCE = {TensorProto.FLOAT16: 1e-2, TensorProto.BFLOAT16: 5e-2}


def retrace(trace: Trace, groups: Groups, kept: Mask, after: Rewritten, shapes: Shapes) -> int:
    """Trace the rewritten graph with the original's ids: the number of couplings compared. CheckFailed if one differs."""
    labels = Kept(trace.labels, groups.classes, kept)
    again = Trace(after.model, shapes, labels, trace.structures, after.aliases, retraced=True)
    again.run(RULES)
    if labels.faults:
        why, text = labels.faults[0]
        raise CheckFailed(f"the re-trace differs at {why.op_type} '{why.node}': {text}; please report this model")
    return labels.couplings


def masked(trace: Trace, kept: Mask, probe: int = 0) -> Model:
    """The masked original (see the module's text), for the sizes of one probe."""
    sizes = trace.shapes.probe[probe]

    def at(name: str, block: Block) -> Block:
        static = trace.shapes.static(name) or ()
        run = sizes.get(name) or ()
        return block.at([n if k is None else None for k, n in zip(static, run, strict=True)])

    model = trace.model.copy()
    nodes = list(model.proto.graph.node)
    before: dict[int, list[NodeProto]] = defaultdict(list)
    after: dict[int, list[NodeProto]] = defaultdict(list)
    done: set[int] = set()
    edits: dict[int, list[Any]] = defaultdict(list)
    for index, edit in trace.edits:
        edits[index].append(edit)
    for r in trace.reductions:
        node = nodes[r.node]
        if r.kind == "sum":
            assert r.block is not None
            if not kept[r.block.ids].all():
                name = trace.model.proto.graph.node[r.node].input[r.operand]
                mask = _mask(trace, name, at(name, r.block), kept, sizes.get(name) or ())
                node.input[r.operand] = _masked(trace, model, node.input[r.operand], name, mask, r.fill, before[r.node])
            continue
        if all(kept[b.ids].all() for _, b in (*r.ins, *r.outs)):
            continue
        for i, block in r.ins:
            block = at(trace.model.proto.graph.node[r.node].input[i], block)
            node.input[i] = _gathered(model, node.input[i], block, kept, before[r.node])
        for o, block in r.outs:
            name = node.output[o]
            node.output[o] = fresh_name(model, name + "_kept")
            _scattered(model, node.output[o], name, at(name, block), kept, after[r.node])
        if r.node not in done:
            done.add(r.node)
            attributes = Editor(trace, kept, model, r.node, node, [], [])
            for edit in edits[r.node]:
                edit(attributes)
    ordered = [n for k, node in enumerate(nodes) for n in (*before[k], node, *after[k])]
    copies = [NodeProto.FromString(n.SerializeToString()) for n in ordered]
    del model.proto.graph.node[:]
    model.proto.graph.node.extend(copies)
    del model.proto.graph.value_info[:]
    return model


def _add(model: Model, base: str, array: NDArray[Any], onnx_type: int | None = None) -> str:
    name = fresh_name(model, base)
    model.weights[name] = Weight.of(array, onnx_type)
    return name


def _mask(trace: Trace, name: str, block: Block, kept: Mask, dims: Sequence[int | None]) -> Mask:
    """The kept positions of a block, broadcastable to its tensor."""
    mask = kept[block.ids]
    weight = trace.model.weights.get(name)
    sizes = weight.shape if weight is not None else dims
    for k, axis in enumerate(block.axes):  # a coarse axis: runs of positions
        n = sizes[axis]
        if n is not None and n != mask.shape[k]:
            mask = np.repeat(mask, n // mask.shape[k], axis=k)
    shape = [1] * len(sizes)
    for k, axis in enumerate(block.axes):
        shape[axis] = mask.shape[k]
    return mask.transpose(np.argsort(block.axes)).reshape(shape)


def _masked(trace: Trace, model: Model, source: str, name: str, mask: Mask, fill: str, before: list[NodeProto]) -> str:
    out = fresh_name(model, name + "_masked")
    kind = trace.shapes.dtype(name) or TensorProto.FLOAT
    if kind in FLOATS and not fill:
        held = _add(model, out + "_mask", mask.astype(helper.tensor_dtype_to_np_dtype(kind)), kind)
        before.append(helper.make_node("Mul", [source, held], [out], name=out))
        return out
    fill = fill or _add(model, out + "_zero", np.zeros((), helper.tensor_dtype_to_np_dtype(kind)), kind)
    held = _add(model, out + "_mask", mask)
    before.append(helper.make_node("Where", [held, source, fill], [out], name=out))
    return out


def _gathered(model: Model, name: str, block: Block, kept: Mask, nodes: list[NodeProto]) -> str:
    for axis, where in zip(block.axes, positions(block.ids, kept), strict=True):
        name = _pick(model, name, axis, block.axes, where, nodes)
    return name


def _pick(model: Model, name: str, axis: int, axes: Sequence[int], where: NDArray[Any], nodes: list[NodeProto]) -> str:
    """Positions `where` along `axis`: the same in every row (Gather), or row by row (GatherElements)."""
    rows = where.reshape(-1, where.shape[-1]).astype(np.int64)
    out = fresh_name(model, f"{name}_at{axis}")
    same = bool((rows == rows[0]).all())
    gathered = out if same else out + "_like"
    at = _add(model, out + "_index", rows[0])
    nodes.append(helper.make_node("Gather", [name, at], [gathered], name=gathered, axis=axis))
    if not same:  # the Gather above only lends its shape to the indices
        own = [*axes[: where.ndim - 1], axis]
        order = sorted(range(where.ndim), key=lambda k: own[k])
        spread = where.astype(np.int64).transpose(order)
        for k in range(max(own) + 1):
            if k not in own:
                spread = np.expand_dims(spread, k)
        rank = _add(model, out + "_rows", spread)
        shape, index = out + "_shape", out + "_at"
        nodes += [
            helper.make_node("Shape", [gathered], [shape], name=shape),
            *_trailing(model, rank, spread.ndim, shape, out, nodes),
            helper.make_node("Expand", [out + "_wide", shape], [index], name=index),
            helper.make_node("GatherElements", [name, index], [out], name=out, axis=axis),
        ]
    return out


def _trailing(model: Model, rows: str, rank: int, shape: str, out: str, nodes: list[NodeProto]) -> list[NodeProto]:
    """Give the index array trailing axes of size one, up to the rank of the data."""
    own = _add(model, out + "_own", np.array(model.weights[rows].shape, np.int64))
    start = _add(model, out + "_from", np.array([rank], np.int64))
    end = _add(model, out + "_to", np.array([1 << 31], np.int64))
    tail, ones, full = out + "_tail", out + "_ones", out + "_full"
    return [
        helper.make_node("Slice", [shape, start, end], [tail], name=tail),
        helper.make_node("Div", [tail, tail], [ones], name=ones),
        helper.make_node("Concat", [own, ones], [full], name=full, axis=0),
        helper.make_node("Reshape", [rows, full], [out + "_wide"], name=out + "_wide"),
    ]


def _scattered(model: Model, source: str, target: str, block: Block, kept: Mask, nodes: list[NodeProto]) -> None:
    """Give kept positions back their places; what stands at removed places does not matter."""
    mask = kept[block.ids]
    shape = kept_shape(block.ids, kept)
    assert shape is not None
    name = source
    for k in reversed(range(mask.ndim)):
        alive = np.asarray(mask.any(axis=tuple(range(k + 1, mask.ndim))))
        if k:
            rows = mask.any(axis=tuple(range(k, mask.ndim)))
            alive = alive[rows].reshape(*shape[:k], mask.shape[k])
        back = np.maximum(np.cumsum(alive, axis=-1) - 1, 0)
        name = _pick(model, name, block.axes[k], block.axes, back, nodes)
    nodes.append(helper.make_node("Identity", [name], [target], name=target + "_back"))


@dataclass
class Session:
    """One ONNX Runtime session and the providers it really uses."""

    model: Model
    providers: Sequence[str]

    def __post_init__(self) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        names = {
            "cuda": "CUDAExecutionProvider",
            "cpu": "CPUExecutionProvider",
            "tensorrt": "TensorrtExecutionProvider",
        }
        wanted = [names.get(p, p) for p in self.providers]
        if "CUDAExecutionProvider" in wanted:
            ort.preload_dlls()
        try:
            self.run_ = ort.InferenceSession(self.model.session_source(), options, providers=wanted)
        except Exception as e:
            raise RuntimeFailure(f"ONNX Runtime cannot load the model: {_first_line(e)}") from e
        self.used = tuple(self.run_.get_providers())
        missing = [p for p in wanted if p not in self.used]
        if missing:
            raise RuntimeFailure(f"{missing[0]} is not available here; ONNX Runtime offers {', '.join(self.used)}")

    def run(self, feeds: dict[str, NDArray[Any]]) -> list[Any]:
        return list(self.run_.run(None, feeds))


def _first_line(e: Exception) -> str:
    return str(e).strip().splitlines()[0][:300] if str(e).strip() else type(e).__name__


def random_inputs(
    model: Model, shapes: dict[str, tuple[int, ...]], seed: int, high: int = 2
) -> dict[str, NDArray[Any]]:
    """Normal floats, integers in [0, high), true booleans: one array for each real input."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, NDArray[Any]] = {}
    for info in model.proto.graph.input:
        if info.name in model.weights:
            continue
        kind = info.type.tensor_type.elem_type
        shape = shapes.get(info.name, ())
        if kind in FLOATS:
            dtype = ml_dtypes.bfloat16 if kind == TensorProto.BFLOAT16 else helper.tensor_dtype_to_np_dtype(kind)
            feeds[info.name] = rng.standard_normal(shape).astype(dtype)
        elif kind == TensorProto.BOOL:
            feeds[info.name] = np.ones(shape, bool)
        elif kind == TensorProto.STRING:
            feeds[info.name] = np.full(shape, "a", dtype=object)
        else:
            feeds[info.name] = rng.integers(0, high, shape).astype(helper.tensor_dtype_to_np_dtype(kind))
    return feeds


def difference(a: Any, b: Any) -> float:
    """Largest difference relative to the largest finite magnitude of `a`; infinite where shapes or NaNs differ."""
    if isinstance(a, list):
        return max((difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0) if len(a) == len(b) else np.inf
    if not isinstance(a, np.ndarray) or a.dtype == object:
        return 0.0 if np.array_equal(a, b) else np.inf
    if a.shape != b.shape:
        return np.inf
    x, y = a.astype(np.float64), b.astype(np.float64)
    fine = np.isfinite(x)
    if (fine != np.isfinite(y)).any():
        return np.inf
    if not fine.any():
        return 0.0
    return float(np.abs(x[fine] - y[fine]).max() / max(float(np.abs(x[fine]).max()), 1e-6))


def equivalence(trace: Trace, kept: Mask, after: Model, options: Options) -> Proof:
    """Run the masked original and the rewritten model on the same random inputs, at both probes' sizes."""
    pruned = Session(after, options.providers)
    worst, batches = 0.0, []
    tolerance = options.check_rtol or tolerance_of(trace)
    probes = [dict(p) for p in trace.shapes.inputs]
    for k, shapes in enumerate(probes if probes[0] != probes[1] else probes[:1]):
        reference = Session(masked(trace, kept, k), options.providers)
        feeds, expected = _run_original(reference, trace.model, shapes, options.seed + k)
        try:
            got = pruned.run(feeds)
        except Exception as e:
            raise CheckFailed(f"the pruned model does not run: {_first_line(e)}") from e
        error = difference(expected, got)
        worst = max(worst, error)
        batches.append(next((int(s[0]) for s in shapes.values() if s), 1))
        largest = max((float(np.abs(x.astype(np.float64)).max()) for x in expected
                       if isinstance(x, np.ndarray) and x.size and x.dtype.kind in "fiu"), default=0.0)  # fmt: skip
        if error > tolerance and error * largest > options.check_atol:
            where = _parting(trace, kept, after, feeds, tolerance, options, k)
            raise CheckFailed(
                f"the pruned model differs from the masked original by {error:.1e} (allowed {tolerance:.0e}){where}"
            )
    return Proof(0, worst, tolerance, tuple(batches), pruned.used)


def _run_original(session: Session, model: Model, shapes: Any, seed: int) -> tuple[dict[str, Any], list[Any]]:
    """Inputs on which the masked original runs: small integers, then zeros, then ones."""
    last: Exception | None = None
    for high in (2, 1):
        feeds = random_inputs(model, shapes, seed, high)
        try:
            return feeds, session.run(feeds)
        except Exception as e:
            last = e
    raise RuntimeFailure(f"ONNX Runtime cannot run the model on random inputs: {_first_line(last or Exception())}")


def tolerance_of(trace: Trace) -> float:
    """By the coarsest number format in the graph; a quantised model may differ by a few of its steps."""
    kinds = {w.onnx_type for w in trace.model.weights.values()} | {trace.shapes.dtype(n) for n in trace.blocks}
    if any(n.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm")
           for n in trace.model.proto.graph.node):  # fmt: skip
        return 4 / 127
    return max((t for k, t in TOLERANCE.items() if k in kinds), default=1e-5)


def _parting(
    trace: Trace, kept: Mask, after: Model, feeds: Any, tolerance: float, options: Options, probe: int
) -> str:  # fmt: skip
    """The first node, in order, at whose output the two models part."""
    ours = {o for n in after.proto.graph.node for o in n.output}
    names = [o for n in trace.model.proto.graph.node for o in n.output
             if o in ours and (trace.shapes.dtype(o) in FLOATS)]  # fmt: skip
    try:
        a, b = masked(trace, kept, probe), after.copy()
        for m in (a, b):
            have = {o.name for o in m.proto.graph.output}
            m.proto.graph.output.extend(
                helper.make_tensor_value_info(n, trace.shapes.dtype(n) or 1, None) for n in names if n not in have
            )
        x, y = Session(a, options.providers), Session(b, options.providers)
        left = dict(zip([o.name for o in x.run_.get_outputs()], x.run(feeds), strict=True))
        right = dict(zip([o.name for o in y.run_.get_outputs()], y.run(feeds), strict=True))
    except Exception:
        return ""
    producer = {o: n for n in trace.model.proto.graph.node for o in n.output}
    for name in names:
        if name in left and name in right:
            value = left[name]
            for block in trace.blocks.get(name, ()):
                if block.ids.ndim == 1 and value.shape[block.axes[0]] == block.ids.size:
                    value = np.take(value, np.flatnonzero(kept[block.ids]), axis=block.axes[0])
            if value.shape == right[name].shape and difference(value, right[name]) > tolerance:
                return f"; they part at {producer[name].op_type} '{producer[name].name}'"
    return ""
