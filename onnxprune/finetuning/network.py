"""An ONNX graph that torch runs node by node, so that its weights can be trained under their own names.

Everything that is a float is float32 here. What torch has no form of is run by ONNX Runtime where no gradient has to
pass; where one has to, the network cannot be trained, and the operator is named. Knows graphs and tensors, no data.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, NodeProto, numpy_helper

from onnxprune.errors import NothingToPrune, OnnxPruneError, RuntimeFailure
from onnxprune.finetuning.by_runtime import Runtime
from onnxprune.finetuning.operators import FORMS, LIMITS, Call, Form, NoTorchForm, dequantize, quantize
from onnxprune.finetuning.parameters import trained
from onnxprune.model import Array, Model, Weight, attribute, attributes, bodies, fitted, needs

Tensor = Any
Values = MutableMapping[str, Tensor]
RESIZING = {"Resize", "Upsample"}


@dataclass(frozen=True)
class Step:
    """One node, what it is done by, its bodies, and the tensors that nobody reads after it."""

    node: NodeProto
    call: Call
    form: Form | None
    bodies: Mapping[str, Steps]
    last: tuple[str, ...]


@dataclass(frozen=True)
class Steps:
    """A graph in order: what it takes and gives by name, and constants of its own."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()


class Network:
    """A normalised model in torch. `leaves`: the parameters that are trained, by name, codes as real numbers."""

    def __init__(self, model: Model, names: Collection[str] = (), device: str = "cpu") -> None:
        self.model, self.device = model, device
        self.opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.skeleton.opset_import}
        self.runtime = Runtime(self.opsets)
        self.trained = trained(model, names)
        self.values = {
            name: tensor(w.array(), device) for name, w in model.weights.items() if w.dtype.kind not in "OUS"
        }
        self.leaves: dict[str, Tensor] = {n: self.values[n].clone() for n in self.trained.floats}
        for name, node in self.trained.codes.items():
            scale, zero = self._scale(node)
            self.leaves[name] = dequantize(self._call(node), self.values[name], scale, zero)
        for leaf in self.leaves.values():
            leaf.requires_grad_()
        self._plans: dict[tuple[str, ...], Steps] = {}

    def __call__(self, feed: Mapping[str, Array | Tensor], names: Sequence[str]) -> list[Tensor]:
        """The tensors of these names for one feed. NothingToPrune where an operator cannot be trained through."""
        wanted = tuple(names)
        if wanted not in self._plans:
            self._plans[wanted] = self._steps(self.model.graph, wanted)
        own = fitted(self.model.taken, feed)
        given: Values = {n: x if isinstance(x, torch.Tensor) else tensor(x, self.device) for n, x in own.items()}
        values = ChainMap(given, self.leaves, self.values)
        return self._run(self._plans[wanted], values)

    def weights(self) -> dict[str, Weight]:
        """The parameters as they are now, in the types of the model."""
        found = {}
        for name, leaf in self.leaves.items():
            kind = self.model.weights[name].onnx_type
            node = self.trained.codes.get(name)
            with torch.no_grad():
                values = leaf if node is None else quantize(self._call(node), leaf, *self._scale(node), kind=kind)
            found[name] = Weight.of(values.detach().cpu().numpy(), kind)
        return found

    def _scale(self, node: NodeProto) -> tuple[Tensor, Tensor | None]:
        zero = self.values[node.input[2]].float() if len(node.input) > 2 and node.input[2] else None
        return self.values[node.input[1]], zero

    def _call(self, node: NodeProto) -> Call:
        said = attributes(node, *(name for name, _ in bodies(node)))
        texts = {k: v.decode() if isinstance(v, bytes) else v for k, v in said.items()}
        texts |= {
            k: [x.decode() for x in v]
            for k, v in texts.items()
            if isinstance(v, list) and v and isinstance(v[0], bytes)
        }
        domain = "" if node.domain == "ai.onnx" else node.domain
        return Call(node.op_type, texts, len(node.output), self.opsets.get(domain, 1))

    def _steps(self, graph: GraphProto, wanted: Sequence[str]) -> Steps:
        """What has to be run for these tensors, in order."""
        needed, order = set(wanted), list[NodeProto]()
        for node in reversed(graph.node):
            if needed.intersection(node.output):
                order.append(node)
                needed.update(needs(node))
        order.reverse()
        last: dict[str, int] = {}
        for k, node in enumerate(order):
            last |= dict.fromkeys((*needs(node), *node.output), k)
        kept = {*wanted, *self.values}
        steps = []
        for k, node in enumerate(order):
            read = dict.fromkeys((*needs(node), *node.output))
            steps.append(self._step(node, tuple(n for n in read if last[n] == k and n not in kept)))
        own = {} if graph is self.model.graph else self._constants(graph)
        return Steps(tuple(i.name for i in graph.input), tuple(wanted), own, tuple(steps))

    def _constants(self, graph: GraphProto) -> dict[str, Tensor]:
        """What a body has beside the weights of the main graph."""
        tensors = [t for t in graph.initializer if t.name not in self.values]
        return {t.name: tensor(numpy_helper.to_array(t), self.device) for t in tensors}

    def _step(self, node: NodeProto, last: tuple[str, ...]) -> Step:
        key = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        inner = {name: self._steps(body, [o.name for o in body.output]) for name, body in bodies(node)}
        return Step(node, self._call(node), FORMS.get(key), inner, last)

    def _run(self, plan: Steps, values: Values) -> list[Tensor]:
        values.update(plan.constants)
        for step in plan.steps:
            for name, value in zip(step.node.output, self._outputs(step, values), strict=False):
                if name:
                    values[name] = value
            for name in step.last:
                values.pop(name, None)
        return [values[name] for name in plan.outputs]

    def _outputs(self, step: Step, values: Values) -> Sequence[Tensor]:
        node = step.node
        try:
            if step.bodies:
                return list(CONTROL[node.op_type](self, step, values))
            if node.op_type == "DequantizeLinear" and node.input[0] in self.trained.codes:
                return [self._dequantized(step, values)]
            given = self._together([values[n] if n else None for n in node.input])
            if node.op_type in RESIZING:
                return [self._resized(node, given)]
            if step.form is None:
                return self._by_runtime(node, given)
            found = step.form(step.call, *given)
            return found if isinstance(found, tuple) else (found,)
        except OnnxPruneError:
            raise
        except Exception as why:  # torch's errors share no base class
            what = str(why).strip().splitlines()
            raise refused(node, what[0] if what else type(why).__name__) from why

    def _together(self, given: list[Tensor | None]) -> list[Tensor | None]:
        """All on one device: sizes are computed on the CPU."""
        if self.device == "cpu" or all(x is None or x.device.type == "cpu" for x in given):
            return given
        return [x if x is None else x.to(self.device) for x in given]

    def _dequantized(self, step: Step, values: Values) -> Tensor:
        """A weight as the codes that it will be written as give it."""
        name = step.node.input[0]
        kind = self.model.weights[name].onnx_type
        scale, zero = self._scale(step.node)
        codes = quantize(step.call, values[name], scale, zero, kind if kind in LIMITS else 3)
        return dequantize(step.call, codes, scale, zero)

    def _by_runtime(self, node: NodeProto, given: Sequence[Tensor | None]) -> list[Tensor]:
        arrays = [None if x is None else x.detach().cpu().numpy() for x in given]
        try:
            found = [tensor(x, self.device) for x in self.runtime.run(node, arrays)]
        except RuntimeFailure:
            raise refused(node, "it has no form in torch") from None
        if any(x is not None and x.requires_grad for x in given) and any(x.is_floating_point() for x in found):
            raise refused(node, "it has no derivative here")
        return found

    def _resized(self, node: NodeProto, given: Sequence[Tensor | None]) -> Tensor:
        """Axis by axis, by the matrix that ONNX Runtime's own Resize is."""
        x = given[0]
        assert x is not None
        for axis, scale, size in self._resizes(node, x, given):
            if scale != 1 and size != x.shape[axis]:
                matrix = self.runtime.resizing(node, x.shape[axis], scale, size)
                x = _applied(torch.from_numpy(matrix).to(x.device), x, axis)
        return x

    def _resizes(
        self, node: NodeProto, x: Tensor, given: Sequence[Tensor | None]
    ) -> Iterator[tuple[int, float | None, int | None]]:
        """(axis, scale, size) of every axis; a scale or a size."""
        if attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
            raise NoTorchForm("a region")
        if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
            raise NoTorchForm("a fixed aspect ratio")
        first = 1 if node.op_type == "Upsample" or self.opsets[""] < 11 else 2
        scales, sizes = [*given, None, None, None, None][first : first + 2]
        axes = attribute(node, "axes") or range(x.dim())
        if sizes is not None:
            yield from ((axis, None, int(n)) for axis, n in zip(axes, sizes.tolist(), strict=True))
        else:
            listed = attribute(node, "scales") if scales is None else scales.tolist()
            yield from ((axis, float(s), None) for axis, s in zip(axes, listed, strict=True))


def _applied(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """matrix [out, in] along one axis; where every row picks one entry, by picking."""
    if bool(((matrix == 0) | (matrix == 1)).all()) and bool((matrix.sum(1) == 1).all()):
        return x.index_select(axis, matrix.argmax(1))
    return (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)


def tensor(array: Array, device: str = "cpu") -> Tensor:
    """An array as a tensor of its own: floats as float32, and what torch has no type for as a wider one."""
    kind = array.dtype.kind
    if kind in "fV" or array.dtype.name.startswith(("bfloat", "float")):
        array = array.astype(np.float32)
    elif array.dtype.name in ("int4", "uint4", "int2", "uint2"):
        array = array.astype(np.int8 if array.dtype.name.startswith("i") else np.uint8)
    elif kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int32 if array.dtype.itemsize == 2 else np.int64)
    return torch.from_numpy(np.array(array, order="C")).to(device)


def refused(node: NodeProto, why: str) -> NothingToPrune:
    """The error for an operator that cannot be trained through."""
    return NothingToPrune(f"the model cannot be fine-tuned: {node.op_type} '{node.name}': {why}")


def _if(network: Network, step: Step, values: Values) -> list[Tensor]:
    branch = step.bodies["then_branch" if bool(values[step.node.input[0]].reshape(-1)[0]) else "else_branch"]
    return network._run(branch, ChainMap({}, values))


def _loop(network: Network, step: Step, values: Values) -> list[Tensor]:
    node, body = step.node, step.bodies["body"]
    limit = int(values[node.input[0]].reshape(-1)[0]) if node.input[0] else None
    on = values[node.input[1]] if len(node.input) > 1 and node.input[1] else torch.tensor(True)
    state: list[Tensor] = [values[n] for n in node.input[2:]]
    scans: list[list[Tensor]] = [[] for _ in body.outputs[1 + len(state) :]]
    turn = 0
    while (limit is None or turn < limit) and bool(on.reshape(-1)[0]):
        inner: Values = ChainMap(dict(zip(body.inputs, (torch.tensor(turn), on, *state), strict=True)), values)
        on, *rest = network._run(body, inner)
        state = rest[: len(state)]
        for scan, value in zip(scans, rest[len(state) :], strict=True):
            scan.append(value)
        turn += 1
    if any(not scan for scan in scans):
        raise NoTorchForm("no turn of the loop, so that nothing is known of what it collects")
    return [*state, *(torch.stack(scan) for scan in scans)]


def _scan(network: Network, step: Step, values: Values) -> list[Tensor]:
    node, body, call = step.node, step.bodies["body"], step.call
    count = call("num_scan_inputs")
    if any(any(call(name) or ()) for name in ("scan_input_axes", "scan_output_axes", "scan_output_directions")):
        raise NoTorchForm("axes or directions other than the first and forward")
    state: list[Tensor] = [values[n] for n in node.input[: len(node.input) - count]]
    turned = call("scan_input_directions") or [0] * count
    given = [values[n].flip(0) if back else values[n] for n, back in zip(node.input[len(state) :], turned, strict=True)]
    scans: list[list[Tensor]] = [[] for _ in body.outputs[len(state) :]]
    for rows in zip(*given, strict=True):
        inner: Values = ChainMap(dict(zip(body.inputs, (*state, *rows), strict=True)), values)
        found = network._run(body, inner)
        state = found[: len(state)]
        for scan, value in zip(scans, found[len(state) :], strict=True):
            scan.append(value)
    return [*state, *(torch.stack(scan) for scan in scans)]


CONTROL: Mapping[str, Callable[[Network, Step, Values], list[Tensor]]] = {"If": _if, "Loop": _loop, "Scan": _scan}
