"""Run a graph piece by piece over many batches: what was computed stays, and weights ahead of it may still change.

Knows nodes and tensors, no importance. Reconstruction walks two graphs side by side this way, each node
running once per batch however many layers are looked at on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from onnx import helper

from onnxprune.errors import RuntimeFailure
from onnxprune.fit.codes import tensors
from onnxprune.fit.expressions import parameter
from onnxprune.model import Array, Model, Topology, fitted, traits
from onnxprune.run import first_line, on_host, open_session


class Walk(Topology):
    """`model` over `feeds` (one dict of inputs a batch). `types` gives the ONNX element type of a tensor. first: the
    number that the trace gives to the first node, that of a body among all nodes. values: of every tensor at hand, its
    value in every batch, which stays where it was made until it is read."""

    def __init__(
        self, model: Model, feeds: Sequence[Mapping[str, Array]], types: Callable[[str], int | None],
        providers: Sequence[str] = ("cpu",), first: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(model)
        self.first = first
        self.types, self.providers = types, providers
        own = [fitted(model.taken, feed) for feed in feeds]
        self.inputs = {name for feed in own for name in feed}
        self.batches = len(feeds)
        self.values: dict[str, list[Any]] = {n: [feed[n] for feed in own] for n in self.inputs}
        self.done: set[int] = set()
        self.taps: dict[int, str] = {}

    def tap(self, index: int) -> str:
        """The name of a node's first output; one that the graph gives no name gets one, for this walk only."""
        node = self.nodes[index]
        if node.output[0]:
            return str(node.output[0])
        if index not in self.taps:
            self.taps[index] = self.model.fresh_name(f"{self._named(index)}_tap")
            self.made_by[self.taps[index]] = index
        return self.taps[index]

    def _named(self, index: int) -> str:
        return next(str(o) for o in self.nodes[index].output if o)

    def makes(self, index: int) -> list[str]:
        """The tensors that a node makes."""
        return [*filter(None, self.nodes[index].output), *filter(None, [self.taps.get(index)])]

    def value(self, name: str) -> list[Array]:
        """The tensor's value in every batch, run for where it is not at hand."""
        if name in self.model.weights:
            return [self.model.weights[name].array()] * self.batches
        return [on_host(x) for x in self.unread(name)]

    def unread(self, name: str) -> list[Any]:
        """As `value` of a tensor that is no weight, where it was made: for another walk."""
        return self.all_unread([name])[name]

    def all_unread(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """The same of several tensors, run for together."""
        missing = [name for name in names if name not in self.values]
        if missing:
            self._run(missing)
        return {name: self.values[name] for name in names}

    def behind(self, name: str) -> list[str]:
        """What has to be at hand for `once`: the tensor, or what it is made of where no node reads it."""
        if not name or name in self.values or name not in self.made_by or self.readers[name] or name in self.codes:
            return [name]
        makers = self.makers
        return sorted(n for n in self.reads[self.made_by[name]] if parameter(n, self.model, makers) is None)

    def once(self, name: str) -> Iterable[Array]:
        """As `real`; what no node reads (the scores of a language model, which are large) is made batch by batch, and
        nothing of it is kept."""
        behind = self.behind(name)
        return self.real(name) if behind == [name] else self._one_by_one(name, {n: self.value(n) for n in behind})

    def _one_by_one(self, name: str, given: Mapping[str, list[Array]]) -> Iterator[Array]:
        piece = self._piece(sorted(self.ancestors([name], given)), [*given], [name])
        session = open_session(piece, self.providers)
        for b in range(self.batches):
            try:
                yield session.run([name], {n: values[b] for n, values in given.items()})[0]
            except Exception as error:
                raise RuntimeFailure(f"ONNX Runtime failed on calibration batch {b}: {first_line(error)}") from error

    def at(self, names: Sequence[str]) -> list[list[Array]]:
        """The values of several tensors, run for together."""
        self.all_unread([name for name in names if name not in self.model.weights])
        return [self.value(name) for name in names]

    @cached_property
    def codes(self) -> dict[str, tuple[str, str]]:
        """Of tensors of integers, the names of the scale and the zero point that say what they stand for."""
        return dict(tensors(self.nodes))

    def real(self, name: str) -> list[Array]:
        """The tensor's value in every batch; of integers, what they stand for."""
        values = self.value(name)
        if name not in self.codes or values[0].dtype.kind == "f":
            return values
        scales, zeros = (self.value(n) if n else [np.float32(0)] * len(values) for n in self.codes[name])
        each = zip(values, scales, zeros, strict=True)
        return [np.asarray((x.astype(np.float32) - np.float32(z)) * np.float32(s)) for x, s, z in each]

    def forget(self, nodes: Sequence[int], known: Container[int] = ()) -> set[int]:
        """What these nodes and all that follow them made is stale: their weights changed. Gives all of these that are
        not `known`. What follows a node that was not run was not run, either."""
        todo = list(nodes)
        while todo:
            k = todo.pop()
            if k in self.done:
                self.done.discard(k)
                for o in self.makes(k):
                    self.values.pop(o, None)
                    todo += self.readers[o]
        return self.followers(nodes, known)

    def release(self, keep: Iterable[str] = ()) -> None:
        """Let go of what no node that is still to run will read."""
        wanted = {*keep, *self.inputs}
        for name in list(self.values):
            if name not in wanted and not self._waiting(name):
                del self.values[name]

    @cached_property
    def _leading(self) -> set[int]:
        """The nodes that an output depends on. Others (a cut leaves Shapes behind whose sizes are constants now) are
        run for whoever asks, and for nobody else."""
        return self.ancestors(self.outputs)

    def _waiting(self, name: str) -> set[int]:
        """The nodes that are still to run and read a tensor."""
        return (self.readers[name] & self._leading) - self.done

    def _run(self, names: Sequence[str]) -> None:
        piece = sorted(self.ancestors(names, self.values))
        inside = set(piece)
        made = {o for k in piece for o in self.makes(k)}
        ins = sorted({n for k in piece for n in self.reads[k]} & (self.values.keys() - made))
        # What parameters make changes with them.
        lasting = {o for k in inside - self.expressions for o in self.makes(k)}
        crossing = {o for o in lasting if self._waiting(o) - inside}
        outs = sorted({n for n in (*names, *crossing) if n not in self.values})
        self.values |= self._computed(piece, ins, outs)
        self.done |= inside

    def _computed(self, nodes: Sequence[int], ins: Sequence[str], outs: Sequence[str]) -> dict[str, list[Any]]:
        """What these nodes make of the tensors `ins`, in every batch."""
        return self.through(self._piece(nodes, ins, outs), ins, outs)

    def through(self, piece: Model, ins: Sequence[str], outs: Sequence[str]) -> dict[str, list[Any]]:
        """What a piece makes of the tensors `ins`, which are at hand, in every batch, where it makes it."""
        session = open_session(piece, self.providers, one_of_many=True)
        kept: dict[str, list[Any]] = {o: [] for o in outs}
        for b in range(self.batches):
            for n in ins:
                self.values[n][b] = session.placed(self.values[n][b])
            try:
                results = session.made(outs, {n: self.values[n][b] for n in ins}, b + 1 == self.batches)
            except Exception as error:
                raise RuntimeFailure(f"ONNX Runtime failed on calibration batch {b}: {first_line(error)}") from error
            for o, x in zip(outs, results, strict=True):
                kept[o].append(x)
        del session
        for weight in piece.weights.values():
            weight.release()
        return kept

    def _piece(self, nodes: Sequence[int], ins: Sequence[str], outs: Sequence[str]) -> Model:
        model = self.piece(nodes, map(self.info, ins), map(self.info, outs))
        for k in self.taps.keys() & set(nodes):
            model.graph.node[nodes.index(k)].output[0] = self.taps[k]
        return model

    def info(self, name: str) -> Any:
        """How a piece declares a tensor that it is given or gives; RuntimeFailure where its type is not known."""
        for info in (*self.model.skeleton.graph.input, *self.model.skeleton.graph.output):
            if info.name == name and not info.type.HasField("tensor_type"):
                return info
        like = next((self._named(k) for k, tap in self.taps.items() if tap == name), name)
        kind = self.types(like)
        if kind is None:
            raise RuntimeFailure(f"tensor '{name}' has no known type, so the graph cannot be run piece by piece")
        values = self.values.get(name)  # the body of a Scan must know how many axes there are
        dims: list[int | None] | None = [None] * len(values[0].shape) if values else None
        if dims and any(self.nodes[k].op_type in traits.ASKING_WIDTHS for k in self.readers[name]):
            dims[-1] = (values or [])[0].shape[-1]  # without it ONNX Runtime makes up the width of what comes out
        return helper.make_tensor_value_info(name, kind, dims)
