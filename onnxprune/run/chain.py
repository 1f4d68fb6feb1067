"""A graph run in consecutive pieces, so that the weights of one piece at a time are in memory: for proofs.

Pieces are cut where all tensors that cross have a known type, in the order of the nodes; what crosses is carried from
piece to piece. What comes out is what the whole graph computes, however many pieces there are. Knows nodes and tensors,
no ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto, helper

from onnxprune.heap import give_back
from onnxprune.model import Array, Model, Topology, Weight, fitted, set_nodes, sorted_nodes
from onnxprune.options import Options
from onnxprune.run import repeatable
from onnxprune.run.runtime import Session
from onnxprune.run.tensors import largest_first, on_host

BLOCK = 16 << 20
"""Bytes of weights in a piece, where single nodes do not hold more."""
NODES = 500
"""In a piece: the time that a runtime takes to open a graph grows faster than its nodes."""
SHARE = 16
"""A piece takes at most this part of the memory."""
CARRIED = {
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL,
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
}  # fmt: skip
"""Types that numpy has, too."""
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Piece:
    """Nodes by index, what they are given and what others want of what they make."""

    nodes: range
    ins: Sequence[str]
    outs: Sequence[str]


@dataclass
class _Run:
    """One feed on its way through the pieces. values: the tensors that somebody still waits for, which stay where the
    pieces run; asked: the outputs that are wanted of it; weights: in the place of the model's own."""

    values: dict[str, Any]
    asked: Sequence[str]
    weights: Mapping[str, Weight]

    def through(self, session: Session, piece: Piece, model: Model, waiting: Mapping[str, int], last: bool) -> None:
        """Run a piece, of which `model` holds the weights, as far as somebody wants what it makes."""
        others = {n: self.weights[n] for n in self.weights.keys() & model.weights.keys()}
        if not session.holds(others):  # an operator takes some of them as constants only
            own = Model(model.skeleton, {**model.weights, **others})
            session, others = Session(own, session.wanted), {}
        outs = [n for n in session.outputs if waiting[n] or n in self.asked]
        if outs:
            self.values |= {n: session.placed(self.values[n]) for n in piece.ins}
            weights = {n: weight.array() for n, weight in others.items()}
            made = session.made({n: self.values[n] for n in piece.ins}, outs, weights, last)
            self.values |= zip(outs, made, strict=True)

    def forget(self, waiting: Mapping[str, int]) -> None:
        """Let go of what no piece waits for."""
        for name in [n for n in self.values if not waiting[n] and n not in self.asked]:
            del self.values[name]


class Chain:
    """A model in pieces of at most `most` bytes of weights. `types` gives the element type of a tensor, or None. used:
    the providers, known once something was run. The nodes of `model` are put in order."""

    def __init__(self, model: Model, providers: Sequence[str], types: Callable[[str], int | None], most: int) -> None:
        self.model, self.providers, self.types = model, providers, types
        set_nodes(model.graph, sorted_nodes(model.graph.node))
        self.topology = Topology(model)
        self.outputs = [o.name for o in model.skeleton.graph.output]
        self.infos = {i.name: i for i in (*model.skeleton.graph.input, *model.skeleton.graph.output)}
        self.pieces = self._cut(most)
        self.used: tuple[str, ...] = ()
        self.blocks = len(self.pieces)

    def run(self, feeds: Feeds, names: Sequence[str] | None = None) -> list[Any]:
        """All outputs, or those of `names`."""
        return self.run_all([feeds], None if names is None else [names])[0]

    def run_all(
        self, feeds: Sequence[Feeds], names: Sequence[Sequence[str]] | None = None,
        weights: Sequence[Mapping[str, Weight]] = (),
    ) -> list[list[Any]]:  # fmt: skip
        """The outputs for each of several feeds; `names`: which ones of each, `weights`: others in the place of the
        model's own, for the last of the feeds. Every piece is opened once."""
        others: list[Mapping[str, Weight]] = [{}] * (len(feeds) - len(weights)) + list(weights)
        asked = [self.outputs] * len(feeds) if names is None else names
        runs = [_Run(fitted(self.model.taken, f), n, w) for f, n, w in zip(feeds, asked, others, strict=True)]
        waiting = Counter(name for piece in self.pieces for name in piece.ins)
        try:
            for piece in self.pieces:
                waiting.subtract(piece.ins)
                self._pass(piece, runs, waiting)
                for run in runs:
                    run.forget(waiting)
        except Exception:
            for run in runs:
                run.values.clear()  # else they stay as long as somebody holds the error
            raise
        return [[self._value(name, run.values) for name in run.asked] for run in runs]

    def _pass(self, piece: Piece, runs: Sequence[_Run], waiting: Mapping[str, int]) -> None:
        """Open a piece, take every run through it, and let go of it and of the weights that it read."""
        ins = [self._info(n, [getattr(run.values[n], "shape", ()) for run in runs]) for n in piece.ins]
        model = self.topology.piece(piece.nodes, ins, map(self._info, piece.outs))
        session = Session(model, self.providers, {n for run in runs for n in run.weights})
        self.used = session.used
        order = largest_first([[run.values[n] for n in piece.ins] for run in runs])
        for k in order:
            runs[k].through(session, piece, model, waiting, k == order[-1])
        del session
        for weight in model.weights.values():
            weight.release()
        give_back()

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        return on_host(values[name]) if name in values else self.model.weights[name].array()

    def _cut(self, most: int) -> list[Piece]:
        """Pieces of at most `most` bytes of weights, where everything that crosses can be carried."""
        nodes, reads, weights = self.topology.nodes, self.topology.reads, self.model.weights
        last = {name: k for k, names in enumerate(reads) for name in names}
        last |= dict.fromkeys(self.outputs, len(nodes))
        starts, held, size = [0], set[str](), 0
        uncarriable = 0  # how many of the tensors that live here cannot be carried
        for k, node in enumerate(nodes):
            own = reads[k] & weights.keys()
            full = (size and size + self._bytes(own - held) > most) or k - starts[-1] >= NODES
            if full and not uncarriable:
                starts.append(k)
                held, size = set(), 0
            size += self._bytes(own - held)
            held |= own
            uncarriable += sum(last.get(o, -1) > k and self._uncarriable(o) for o in node.output)
            uncarriable -= sum(last[n] == k and n in self.topology.made_by and self._uncarriable(n) for n in reads[k])
        return self._used([*starts, len(nodes)], last)

    def _bytes(self, names: Collection[str]) -> int:
        return sum(self.model.weights[n].nbytes for n in names)

    def _used(self, cuts: Sequence[int], last: Mapping[str, int]) -> list[Piece]:
        """Nodes of which nothing is used stay with others: they are not run, but have to load."""
        pieces: list[Piece] = []
        start = 0
        for end in cuts[1:]:
            piece = self._between(start, end, last)
            while not piece.outs and end == len(self.topology.nodes) and pieces:
                start = pieces.pop().nodes.start
                piece = self._between(start, end, last)
            if piece.outs:
                pieces.append(piece)
                start = end
        return pieces

    def _uncarriable(self, name: str) -> bool:
        return self.types(name) not in CARRIED

    def _between(self, start: int, end: int, last: Mapping[str, int]) -> Piece:
        """The piece of these nodes; `last`: which node reads a tensor last."""
        inside = range(start, end)
        made = [o for k in inside for o in self.topology.nodes[k].output if o]
        read = {n for k in inside for n in self.topology.reads[k]}
        ins = sorted(read - set(made) - self.model.weights.keys())
        return Piece(inside, ins, [o for o in made if last.get(o, -1) >= end])

    def _info(self, name: str, shapes: Sequence[tuple[int, ...]] = ()) -> Any:
        """`shapes`: in every feed. Where they differ, equal sizes get one name: a runtime takes long over nameless
        ones."""
        known = self.infos.get(name)
        if known is not None:
            return known
        dims: list[Any] | None = None
        if shapes and len({len(shape) for shape in shapes}) == 1:
            sizes = zip(*shapes, strict=True)
            dims = [n[0] if len(set(n)) == 1 else "or".join(map(str, n)) for n in sizes]
        return helper.make_tensor_value_info(name, self.types(name) or 0, dims)


def opened(
    model: Model, options: Options, types: Callable[[str], int | None], free: Collection[str] = ()
) -> Session | Chain:
    """What runs a model for a proof: in pieces where its weights or nodes are many, with nothing drawn at random. free:
    weights in whose place a session may be given others."""
    model = repeatable.settled(model, types)
    most = min(BLOCK, options.memory_limit // SHARE)
    small = len(model.graph.node) <= NODES and sum(w.nbytes for w in model.weights.values()) <= most
    if small or model.graph.sparse_initializer:
        return Session(model, options.providers, free)
    return Chain(model, options.providers, types, most)
