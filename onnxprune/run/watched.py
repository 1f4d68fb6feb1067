"""Sessions whose runs are bounded in time, where a process is guarded, and whose tensors may stay where they are made.

Knows sessions; of a model what it takes of its feeds, and which outputs lie in the memory of an input.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any

from onnx import GraphProto

from onnxprune import guard
from onnxprune.model import Taken, fitted, traits
from onnxprune.run.arena import giving_back
from onnxprune.run.installed import onnx_runtime
from onnxprune.run.tensors import DEVICES, HOST, Tensor, apart, copied, on_host, placed, were_given, were_read

RUNNING = "running the model in ONNX Runtime"
WHOLE: Taken = {}
"""What a session takes of its feeds where nothing else is said: all of it."""


def in_place(graph: GraphProto) -> dict[str, str]:
    """By tensor, the input of the graph in whose memory an operator writes it (`traits.IN_PLACE`)."""
    inputs = {i.name for i in graph.input}
    pairs = (
        (node.output[o], node.input[i])
        for node in graph.node
        if (kind := f"{node.domain}::{node.op_type}") in traits.IN_PLACE
        for i, o in traits.REMEMBERING[kind].items()
        if i < len(node.input) and o < len(node.output)
    )
    return {made: read for made, read in pairs if made and read in inputs}


@cache
def watched() -> Any:
    """Their class. taken: of a graph that takes less than the original, what it takes of the feeds. in_place: by
    output, the input in whose memory it lies; these are bound to copies, as the feeds are others'. beside: outputs that
    are there to be bound, and given only to whom asks for them. shares: whether its memory is that of `arena`; packs:
    whether it has weights of its own."""
    session: Any = onnx_runtime().InferenceSession

    class Watched(session):  # type: ignore[misc]
        taken = WHOLE
        in_place: Mapping[str, str] = MappingProxyType({})
        beside: Collection[str] = ()
        shares = False
        packs = False

        def run(self, names: Any, feeds: Mapping[str, Any], *args: Any, **kw: Any) -> Any:
            if self.in_place:
                return [on_host(value) for value in self.made(names, feeds)]
            return self._run(names, feeds, *args, **kw)

        def _run(self, names: Any, feeds: Mapping[str, Any], *args: Any, **kw: Any) -> Any:
            given = fitted(self.taken, feeds)
            with guard.bounded(RUNNING):
                made = super().run(names, given, *args, **kw)
            were_given(given.values())
            were_read(made)
            return made

        def placed(self, value: Any) -> Any:
            """What `made` is given, where it is read from: an array is brought there once."""
            return placed(value, self._device)

        def made(self, names: Sequence[str] | None, feeds: Mapping[str, Any], last: bool = False) -> list[Any]:
            """As `run`, but each output stays where it is made, as a `Tensor`, and `feeds` may be such, too. What is no
            tensor of numbers comes as Python has it. last: no other run follows that takes as much memory."""
            outputs = [n for n in self._kinds if n not in self.beside] if names is None else [*names]
            values = {n: self.placed(x) for n, x in fitted(self.taken, feeds).items()}
            if not all(isinstance(x, Tensor) for x in values.values()) or not all(map(self._bindable, outputs)):
                return list(self._run(outputs, {n: on_host(x) for n, x in values.items()}))
            binding = self.bound(values, outputs)
            with guard.bounded(RUNNING):
                self.run_with_iobinding(binding, giving_back() if last and self.shares else None)
            made, kept = zip(outputs, binding.get_outputs(), strict=False), apart if self._holds_more else Tensor
            return [binding.held[self.in_place[n]] if n in self.in_place else kept(value) for n, value in made]

        def bound(self, values: Mapping[str, Tensor], outputs: Sequence[str]) -> Any:
            """A binding of these inputs, and of `outputs` first, on the session's device. held: the inputs themselves,
            as whose memory is the outputs', too."""
            binding, read = self.io_binding(), {*self.in_place.values()}
            binding.held = own = {n: copied(x, self._device) if n in read else x for n, x in values.items()}
            for name, tensor in own.items():
                binding.bind_ortvalue_input(name, tensor.value)
            for name in dict.fromkeys((*outputs, *self.in_place)):
                if name in self.in_place:
                    binding.bind_ortvalue_output(name, own[self.in_place[name]].value)
                else:
                    binding.bind_output(name, HOST if self._kinds[name] == "tensor(bfloat16)" else self._device)
            return binding

        @property
        def _holds_more(self) -> bool:
            """Whether what a tensor of its lies in keeps more than that tensor."""
            return self.shares or (self.packs and self._device == HOST)

        @cached_property
        def _device(self) -> str:
            return DEVICES.get(self.get_providers()[0], HOST)

        @cached_property
        def _kinds(self) -> dict[str, str]:
            return {o.name: o.type for o in self.get_outputs()}

        def _bindable(self, name: str) -> bool:
            kind = self._kinds.get(name, "")
            return kind.startswith("tensor(") and kind != "tensor(string)"

    return Watched
