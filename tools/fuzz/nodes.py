"""Every node test of the onnx wheel between two layers with weights: input -> MatMul or Conv -> the node -> MatMul or
Conv -> output. Each is pruned by half in a fork of its own, and what comes out is compared with an oracle that knows
nothing of how the package masks: the wrapped model whose own slices are zeroed by hand.

The slices are found in the written file: weights are random, so a column is where its values are.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import sandbox
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))
import written_file

from onnxprune import api, errors

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
BYTES = (TensorProto.UINT8, TensorProto.INT8)
CASTS = (TensorProto.BOOL, TensorProto.INT32, TensorProto.INT64, TensorProto.INT16)
WIDTH, SECONDS, MEMORY = 3, 10.0, 4 << 30
DRAWN = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
BAD = ("traceback", "unproven", "runtime", "usage", "invalid", "oracle", "slow", "crash")


@dataclass
class Wrapped:
    """A node test between layers: the model, what stands before and behind the node, inputs as the test has them."""

    name: str
    model: ModelProto
    producers: list[tuple[str, str, int]] = field(default_factory=list)
    """(weight, bias, axis of the weight that the node reads)"""
    consumers: list[tuple[str, int]] = field(default_factory=list)
    direct: set[str] = field(default_factory=set)
    """Tensors of the test that come from a layer with nothing in between: where a channel is zero, so are they."""
    feeds: dict[str, NDArray[Any]] = field(default_factory=dict)


class _Wrap:
    """Builds one `Wrapped`: `conv` puts convolutions along axis 1 instead of products along the last axis."""

    def __init__(self, case: Any, name: str, conv: bool, every: bool, fed: bool) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(case.model)
        self.out = Wrapped(name, self.model)
        self.conv = conv
        self.random = np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.after: list[NodeProto] = []
        self._inputs(case, every, fed)
        self._outputs(case)
        graph = self.model.graph
        inner = [*self.nodes, *graph.node, *self.after]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(inner)

    def _inputs(self, case: Any, every: bool, fed: bool) -> None:
        graph = self.model.graph
        values = dict(zip([i.name for i in graph.input], case.data_sets[0][0], strict=False))
        kept: list[ValueInfoProto] = []
        wanted = _chosen(graph.input, self.conv)[: None if every else 1]
        for info in graph.input:
            value = values.get(info.name)
            if info.name in wanted and isinstance(value, np.ndarray) and value.size:
                kept.append(self._produce(info, value))
            elif fed or not isinstance(value, np.ndarray) or value.dtype == object:
                kept.append(info)
                if value is not None:
                    self.out.feeds[info.name] = value
            else:
                tensor = numpy_helper.from_array(value, info.name)
                graph.initializer.append(tensor)
        del graph.input[:]
        graph.input.extend(kept)

    def _produce(self, info: ValueInfoProto, value: NDArray[Any]) -> ValueInfoProto:
        """A layer whose output has the shape of `info`, about where the test's own values lie."""
        name, kind = info.name, info.type.tensor_type.elem_type
        shape, axis = [*value.shape], 1 if self.conv else value.ndim - 1
        width = shape[axis]
        shape[axis] = WIDTH
        real = value.astype(np.float32) if kind in FLOATS else np.zeros(value.shape, np.float32)
        middle = float(np.nan_to_num(real).mean()) if real.size else 0.0
        spread = min(float(np.nan_to_num(real).std()) if real.size else 1.0, 10.0) or 1.0
        ends = [width, WIDTH, *[1] * (value.ndim - 2)] if self.conv else [WIDTH, width]
        weight = self._weight(name, spread * self.random.standard_normal(ends) / np.sqrt(WIDTH))
        bias = self._weight(name + "_bias", middle + 0.3 * spread * self.random.standard_normal(width))
        source, base = f"{name}_given", f"{name}_made"
        direct = kind == TensorProto.FLOAT
        last = name if direct else f"{base}_float"
        if self.conv:
            self.nodes.append(helper.make_node("Conv", [source, weight, bias], [last], name=base))
        else:
            self.nodes += [
                helper.make_node("MatMul", [source, weight], [base], name=base),
                helper.make_node("Add", [base, bias], [last], name=base + "_sum"),
            ]
        if direct:
            self.out.direct.add(name)
        else:
            self.nodes.append(self._cast(last, name, kind))
        self.out.producers.append((weight, bias, 0 if self.conv else 1))
        self.out.feeds[source] = self.random.standard_normal(shape).astype(np.float32)
        return helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)

    def _cast(self, source: str, target: str, kind: int) -> NodeProto:
        if kind in BYTES:
            scale = self._weight(target + "_step", np.full((), 0.05))
            zero = numpy_helper.from_array(np.array(120 if kind == TensorProto.UINT8 else 3).astype(
                helper.tensor_dtype_to_np_dtype(kind)), self._free(target + "_zero"))  # fmt: skip
            self.model.graph.initializer.append(zero)
            return helper.make_node("QuantizeLinear", [source, scale, zero.name], [target], name=target + "_as")
        if kind == TensorProto.BOOL:
            none = self._weight(target + "_none", np.zeros(()))
            return helper.make_node("Greater", [source, none], [target], name=target + "_as")
        return helper.make_node("Cast", [source], [target], name=target + "_as", to=kind)

    def _outputs(self, case: Any) -> None:
        graph = self.model.graph
        kept: list[ValueInfoProto] = []
        given = {t.name for t in graph.initializer} | {i.name for i in graph.input}
        for info, value in zip(graph.output, case.data_sets[0][1], strict=False):
            kind = info.type.tensor_type.elem_type
            fits = isinstance(value, np.ndarray) and value.ndim >= (3 if self.conv else 1)
            if not fits or kind not in (*FLOATS, *BYTES, *CASTS) or info.name in given:
                kept.append(info)
                continue
            kept.append(self._consume(info.name, kind, value.shape))
        del graph.output[:]
        graph.output.extend(kept)

    def _consume(self, name: str, kind: int, shape: Sequence[int]) -> ValueInfoProto:
        axis = 1 if self.conv else len(shape) - 1
        ends = [WIDTH, shape[1], *[1] * (len(shape) - 2)] if self.conv else [shape[axis], WIDTH]
        weight = self._weight(name + "_read", self.random.standard_normal(ends) / np.sqrt(max(shape[axis], 1)))
        source = name
        if kind != TensorProto.FLOAT:
            source = name + "_float"
            self.after.append(helper.make_node("Cast", [name], [source], name=source, to=TensorProto.FLOAT))
        made = self._free(name + "_end")
        self.after.append(helper.make_node("Conv" if self.conv else "MatMul", [source, weight], [made], name=made))
        self.out.consumers.append((weight, 1 if self.conv else 0))
        out = [*shape]
        out[axis] = WIDTH
        return helper.make_tensor_value_info(made, TensorProto.FLOAT, None)

    def _weight(self, name: str, array: NDArray[Any]) -> str:
        name = self._free(name + "_w")
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def _free(self, name: str) -> str:
        taken = {x for n in self.model.graph.node for x in [*n.input, *n.output]}
        while name in taken:
            name += "_"
        return name


def _chosen(inputs: Sequence[ValueInfoProto], conv: bool) -> list[str]:
    """The inputs that get a layer: floats of rank two at least (three for a convolution), or, without any, others."""
    for kinds in (FLOATS, (*BYTES, *CASTS)):
        names = [i.name for i in inputs if i.type.tensor_type.elem_type in kinds
                 and (len(i.type.tensor_type.shape.dim) >= 3 if conv else len(i.type.tensor_type.shape.dim) >= 2)
                 and i.type.tensor_type.shape.dim[1 if conv else -1].dim_value > 1]  # fmt: skip
        if names:
            return names
    return []


def wrapped(only: str = "") -> Iterator[Wrapped]:
    """Every node test, in up to six wrappings: products or convolutions, before one input or all; the other inputs are
    constants or stay inputs."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        if only not in case.name:
            continue
        graph = case.model.graph
        for conv in (False, True):
            many = len(_chosen(graph.input, conv))
            ways = [(False, False), (False, True), (True, False)]
            for every, fed in ways if many else ():
                if (every and many < 2) or (fed and len(graph.input) < 2):
                    continue
                name = f"{case.name}-{'conv' if conv else 'matmul'}{'-all' if every else ''}{'-fed' if fed else ''}"
                one = _Wrap(case, name, conv, every, fed).out
                if one.producers:
                    yield one


# ---- in the fork


def judge(one: Wrapped, folder: Path) -> dict[str, Any]:
    """What became of one, as JSON: how, detail, seconds."""
    before, after = folder / "in.onnx", folder / "out.onnx"
    onnx.save(one.model, before)
    start = time.perf_counter()

    def told(how: str, detail: object = "") -> dict[str, Any]:
        return {"how": how, "detail": str(detail)[:300], "seconds": time.perf_counter() - start}

    try:
        result = api.prune(str(before), ratio=0.5, fast=True, residual=True)
    except errors.NothingToPrune as error:
        return told("nothing", error)
    except errors.CheckFailed as error:
        return told("unproven", error)
    except (errors.RuntimeFailure, errors.UsageError) as error:
        fine = all(dense(one, random=k) is not None for k in range(3))
        how = "runtime" if isinstance(error, errors.RuntimeFailure) else "usage"
        return told(how if fine else "does not run", error)
    done = told("proven")
    result.model.save(after)
    try:
        written_file.check(before, after, None)
    except written_file.Invalid as error:
        return told("invalid", error)
    if done["seconds"] > SECONDS:
        return done | {"how": "slow"}
    return done | _oracle(one, onnx.load(after), api.trace(str(before), residual=True))


def dense(one: Wrapped, zeroed: ModelProto | None = None, random: int = 0) -> list[Any] | None:
    """What ONNX Runtime makes of the inputs of the test, or of others for its floats; None where it takes none such."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        model = (one.model if zeroed is None else zeroed).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(random)
        feeds = {i.name: one.feeds[i.name] for i in session.get_inputs()}
        for name in [n for n, x in feeds.items() if random and getattr(x, "dtype", np.dtype(bool)).kind == "f"]:
            feeds[name] = rng.standard_normal(feeds[name].shape).astype(feeds[name].dtype)
        return list(session.run(None, feeds))
    except Exception:
        return None


def _oracle(one: Wrapped, after: ModelProto, trace: Any) -> dict[str, Any]:
    """The outputs of the written model against those of the wrapped one with its slices zeroed by hand."""
    held = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    zeroed = ModelProto()
    zeroed.CopyFrom(one.model)
    tensors = {t.name: t for t in zeroed.graph.initializer}
    where = dict(one.consumers) | {w: axis for w, _, axis in one.producers}
    gone = {name: _gone(numpy_helper.to_array(tensors[name]), held.get(name), axis) for name, axis in where.items()}
    if any(g is None for g in gone.values()):
        return {"oracle": "a weight is no slice of the original"}
    if any(n.op_type in DRAWN or (n.op_type == "Dropout" and len(n.input) > 2) for n in one.model.graph.node):
        return {"oracle": "draws at random"}
    own = {name for n in [*one.model.graph.node] for name in n.output if n.name.endswith(("_made", "_end", "_sum"))}
    inner = [r for r in trace.reductions if trace.nodes[r.node].output[0] not in own]
    if any(r.kind != "sum" or trace.nodes[r.node].input[r.operand] not in one.direct for r in inner):
        return {"oracle": "statistics"}
    for name, axis in one.consumers:
        _zero(tensors[name], axis, gone[name])
    for weight, bias, axis in one.producers if inner else ():
        _zero(tensors[weight], axis, gone[weight])
        _zero(tensors[bias], 0, gone[weight])
    want, got = dense(one, zeroed), dense(one, after)
    if want is None:
        return {"oracle": "does not run on these inputs"}
    if got is None:
        return {"how": "oracle", "detail": "the pruned model does not run on the inputs of the test"}
    full = dense(one)
    assert full is not None
    compared = 0
    for x, y, z in zip(want, got, full, strict=True):
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or not np.isfinite(z).all():
            continue
        if not np.isfinite(x).all():
            return {"oracle": "zero times infinity"}
        near = 1e-4 * max(1.0, float(np.abs(x).max(initial=0)))
        if x.shape != y.shape or not np.allclose(x, y, rtol=1e-3, atol=near):
            error = float(np.abs(x - y).max()) if x.shape == y.shape else f"{x.shape} and {y.shape}"
            return {"how": "oracle", "detail": f"differs by {error}"}
        compared += 1
    return {"oracle": "agrees" if compared else "nothing finite to compare"}


def _gone(old: NDArray[Any], new: NDArray[Any] | None, axis: int) -> list[int] | None:
    """The positions of `axis` whose values are in the old array and not in the new one; None where it is no slice."""
    if new is None:
        return None
    a, b = np.moveaxis(old, axis, 0), np.moveaxis(new, axis, 0)
    if a.shape[1:] != b.shape[1:]:
        return None
    kept: list[int] = []
    for row in b:
        at = next((k for k in range(kept[-1] + 1 if kept else 0, len(a)) if np.array_equal(a[k], row)), None)
        if at is None:
            return None
        kept.append(at)
    return sorted(set(range(len(a))) - set(kept))


def _zero(tensor: TensorProto, axis: int, positions: Sequence[int] | None) -> None:
    value = np.moveaxis(numpy_helper.to_array(tensor).copy(), axis, 0)
    value[list(positions or ())] = 0
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(np.moveaxis(value, 0, axis)), tensor.name))


# ---- in the parent process


def run(args: Namespace) -> int:
    count: Counter[str] = Counter()
    oracle: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    longest, bad = (0.0, ""), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for k, one in enumerate(wrapped(args.only)):
            if k < args.first or (args.count and k >= args.first + args.count):
                continue
            end = _in_a_fork(one, folder)
            count[end["how"]] += 1
            longest = max(longest, (end["seconds"], one.name))
            if end["how"] == "proven":
                oracle[end.get("oracle", "")] += 1
            if end["how"] == "nothing":
                reasons[end["detail"].partition("; see")[0].partition("(")[0]] += 1
            if end["how"] in BAD:
                bad.append(one.name)
                print(f"{one.name}: {end['how']}: {end['detail']}", flush=True)
                if args.out:
                    args.out.mkdir(parents=True, exist_ok=True)
                    onnx.save(one.model, args.out / f"{one.name}.onnx")
    for title, table in (("models", count), ("of the proven ones, the oracle", oracle), ("nothing to prune", reasons)):
        print(f"{title}: " + "; ".join(f"{n} {what}" for what, n in table.most_common(12)))
    print(f"longest {longest[0]:.1f} s ({longest[1]}); {len(bad)} failed")
    return int(bool(bad))


def _in_a_fork(one: Wrapped, folder: Path) -> dict[str, Any]:
    def job() -> int:
        print("\n" + json.dumps(judge(one, folder)))
        return 0

    end = sandbox.run(job, folder, 3 * SECONDS, MEMORY)
    try:
        found: dict[str, Any] = json.loads(end.out.splitlines()[-1])
        if end.how == "exit" and not end.code:
            return found
    except (IndexError, ValueError):
        pass
    if end.how == "signal" and sandbox.run(lambda: int(dense(one) is None), folder, SECONDS, MEMORY).how == "signal":
        return {"how": "does not run", "detail": "ONNX Runtime dies of it", "seconds": end.seconds}
    how = {"exit": "traceback", "timeout": "slow"}.get(end.how, "crash")
    return {"how": how, "detail": " ".join(end.err.splitlines()[-1:])[:300] or end.how, "seconds": end.seconds}
