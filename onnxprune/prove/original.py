"""Inputs and sizes at which a model runs, and the masked original run on them.

Knows models and what goes in and comes out; what it is compared with, `verify` knows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from onnxprune.data import RANGES, random_inputs
from onnxprune.errors import RuntimeFailure
from onnxprune.model import Model, Weight
from onnxprune.options import Options
from onnxprune.prove.masking import masked
from onnxprune.prove.outputs import Types, with_outputs
from onnxprune.run import Chain, Session, first_line, opened
from onnxprune.shapes import footprint, infer, symbol_name
from onnxprune.trace import Dims, Mask, Trace

LISTED = 3
"""Inputs whose sizes a line says; of more it says how many they are."""
TRIAL_LIMIT = 1 << 29
"""Bytes of activations at sizes that are only tried because the likely ones do not run."""


@dataclass(frozen=True)
class Run:
    """One run of the masked original: what went in, what came out by name, the sizes of all tensors, and those of the
    open dimensions in words. blocks: pieces in which it was run. deep: with all that is compared inside the graph."""

    feeds: dict[str, NDArray[Any]]
    values: dict[str, Any]
    sizes: Mapping[str, Dims]
    open_sizes: str
    blocks: int
    deep: bool = False

    @property
    def batch(self) -> int:
        """How many samples went in: the first axis of the first input that has one."""
        return next((int(x.shape[0]) for x in self.feeds.values() if x.ndim), 1)

    def with_gain(self, gain: float) -> Run:
        """The same to be run on floats so many times as large."""
        feeds = {n: (x * gain).astype(x.dtype) if x.dtype.kind == "f" else x for n, x in self.feeds.items()}
        return replace(self, feeds=feeds, values={})


@dataclass
class Original:
    """The masked original, to be run at several sizes.

    taps: tensors that are outputs of deep runs, too. transform: what is done to the graph before it is run; types: the
    element types of its tensors then. free: weights that may be given in the place of its own. first_session: by the
    `id` of the sizes of the first run. free_runs: the first one with the free weights, where it came with others."""

    trace: Trace
    kept: Mask
    taps: Sequence[str]
    options: Options
    transform: Callable[[Model], Model]
    types: Types
    free: Mapping[str, Weight] = field(default_factory=dict)
    first_session: dict[int, Session | Chain] = field(default_factory=dict)
    free_runs: list[Run] = field(default_factory=list)

    def at(self, sizes: Mapping[str, Dims]) -> Model:
        """The graph for a run in which the tensors have these sizes."""
        return self.transform(masked(self.trace, self.kept, sizes))

    def runs(self, ks: Sequence[int], deep: bool = False) -> Iterator[list[Run]]:
        """At the sizes of those of the assignments `ks` at which it runs, the first of these deep; where it runs at
        none, at some near the first one. In lists of those that are run at once. RuntimeFailure where it does not run
        there, either."""
        shapes, ran = self.trace.shapes, False
        failed: RuntimeFailure | None = None
        for same in self._sharing_a_graph(ks):
            try:
                session = self._opened(shapes.probe[same[0]])
                for some in self._run_together(session, same, deep and not ran):
                    ran = True
                    yield some
            except RuntimeFailure as why:
                failed = failed or why
        if not ran:
            found = _runnable(self, shapes.inputs[ks[0]])
            if found is None:
                raise failed or RuntimeFailure("ONNX Runtime cannot run the model at any size that was tried")
            sizes = infer(self.trace.model, found).probe[0]
            yield [self._run(self._opened(sizes), ks[0], found, sizes, deep)]

    def again(self, run: Run, lent: Session | None = None, weights: Mapping[str, NDArray[Any]] | None = None) -> Run:
        """On the inputs of an earlier run, deep; with other weights in a session that is lent. RuntimeFailure where it
        does not run on these."""
        names = self._names(True)
        session = lent or self._opened(run.sizes)
        try:
            got = lent.run(run.feeds, names, weights) if lent is not None else session.run(run.feeds, names)
        except Exception as e:
            raise RuntimeFailure(first_line(e)) from e
        return Run(run.feeds, dict(zip(names, got, strict=True)), run.sizes, run.open_sizes, session.blocks, True)

    def _opened(self, sizes: Mapping[str, Dims]) -> Session | Chain:
        model = self.at(sizes)
        session = opened(with_outputs(self.types, model, self.taps), self.options, self.types, self.free)
        if not self.first_session:
            self.first_session[id(sizes)] = session
        return session

    def _sharing_a_graph(self, ks: Sequence[int]) -> list[list[int]]:
        """The assignments in lists for which one masked graph serves: it differs where a block is repeated along an
        axis of open size."""
        shapes, found = self.trace.shapes, dict[Any, list[int]]()
        names = {
            name for r in self.trace.reductions
            for name in (*self.trace.nodes[r.node].input, *self.trace.nodes[r.node].output)
            if any((shapes.static(name) or ())[a] is None for b in self.trace.blocks.get(name, ()) for a in b.axes)
        }  # fmt: skip
        for k in ks:
            found.setdefault(tuple(shapes.probe[k].get(name) for name in sorted(names)), []).append(k)
        return list(found.values())

    def _run_together(self, session: Session | Chain, ks: Sequence[int], deep: bool) -> Iterator[list[Run]]:
        """A large model is read once for all of them, where the memory holds what each of them makes."""
        shapes = self.trace.shapes
        if isinstance(session, Chain) and self.fits_in_memory(ks):
            every: list[Run] = []
            with suppress(Exception):  # what fails at one of them is tried one by one
                every = self._in_one_pass(session, ks, deep)
            if every:
                yield every
                return
        failed: RuntimeFailure | None = None
        for k in ks:
            try:
                run = self._run(session, k, shapes.inputs[k], shapes.probe[k], deep)
            except RuntimeFailure as why:
                failed = failed or why
                continue
            deep = False
            yield [run]
        if failed is not None:
            raise failed

    def _in_one_pass(self, session: Chain, ks: Sequence[int], deep: bool) -> list[Run]:
        """The runs at all of these sizes, and, with the first one deep, one on its inputs with the free weights."""
        shapes = self.trace.shapes
        feeds = [random_inputs(self.trace.model, shapes.inputs[k], self.options.seed + k) for k in ks]
        names = [self._names(deep and k == ks[0]) for k in ks]

        def run(at: int, got: list[Any], with_taps: bool) -> Run:
            k, values = ks[at], dict(zip(names[at], got, strict=True))
            told = self._open_sizes(shapes.inputs[k])
            return Run(feeds[at], values, shapes.probe[k], told, session.blocks, with_taps)

        if deep and self.free:
            *results, drawn = session.run_all([*feeds, feeds[0]], [*names, names[0]], [self.free])
            self.free_runs = [run(0, drawn, True)]
        else:
            results = session.run_all(feeds, names)
        return [run(at, got, deep and k == ks[0]) for at, (k, got) in enumerate(zip(ks, results, strict=True))]

    def fits_in_memory(self, ks: Sequence[int]) -> bool:
        """Whether the memory holds what runs at all of these assignments make."""
        passes = (self.trace.shapes.passes[k] for k in ks)
        return footprint.within(self.trace.model, passes, self.options.memory_limit // 3)

    def _run(
        self, session: Session | Chain, k: int, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, Dims],
        deep: bool,
    ) -> Run:  # fmt: skip
        names = self._names(deep)
        feeds, got = _on_random_inputs(session, self.trace.model, shapes, self.options.seed + k, names)
        return Run(feeds, dict(zip(names, got, strict=True)), sizes, self._open_sizes(shapes), session.blocks, deep)

    def _names(self, deep: bool) -> list[str]:
        went = self.trace.caches_dropped(self.kept)
        outputs = [o.name for o in self.trace.model.skeleton.graph.output if o.name not in went]
        return [*dict.fromkeys((*outputs, *(self.taps if deep else ())))]

    def _open_sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        sizes: dict[str, int] = {}
        for info in self.trace.model.skeleton.graph.input:
            for axis, dim in enumerate(info.type.tensor_type.shape.dim):
                if info.name in shapes and not dim.dim_value and axis < len(shapes[info.name]):
                    sizes.setdefault(symbol_name(dim) or f"{info.name}.{axis}", shapes[info.name][axis])
        return " ".join(f"{name}={n}" for name, n in sizes.items())


def _on_random_inputs(
    session: Session | Chain,
    model: Model,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    names: Sequence[str] | None,
) -> tuple[dict[str, Any], list[Any]]:
    """Inputs on which a model runs, and its outputs."""
    last: Exception | None = None
    for low, high in RANGES:
        feeds = random_inputs(model, shapes, seed, high, low)
        try:
            return feeds, session.run(feeds, names)
        except Exception as e:
            last = e
    raise RuntimeFailure(
        f"ONNX Runtime cannot run the model on random inputs of shapes {_first_of(shapes)}: "
        f"{first_line(last or Exception())}; give shapes that fit with --overwrite-input-shape"
    )


def _first_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """For a line: a decoder may have a hundred inputs."""
    left = len(shapes) - LISTED
    return f"{dict(list(shapes.items())[:LISTED])}" + (f" and {left} more" if left > 0 else "")


def _runnable(original: Original, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]] | None:
    """Input shapes near `shapes` at which the original runs: relations between symbols are known to the graph only."""
    model, options = original.trace.model, original.options
    symbols: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for info in model.skeleton.graph.input:
        if info.name in shapes:
            for axis, dim in enumerate(info.type.tensor_type.shape.dim):
                if not dim.dim_value:
                    symbols[symbol_name(dim) or f"{info.name}.{axis}"].append((info.name, axis))
    session = opened(model, options, original.trace.shapes.dtype)
    for factor, offset in ((1, 1), (1, -1), (2, 0), (4, 0), (16, 0), (64, 0), (0, 1), (0, 512), (0, 16000)):
        for places in symbols.values():
            trial = {name: list(shape) for name, shape in shapes.items()}
            for name, axis in places:
                trial[name][axis] = trial[name][axis] * factor + offset
            sizes = {name: tuple(shape) for name, shape in trial.items()}
            try:
                footprint.check(model, infer(model, sizes).passes[0], min(options.memory_limit, TRIAL_LIMIT))
                _on_random_inputs(session, model, sizes, options.seed, None)
                return sizes
            except Exception:  # any error only says that these sizes do not fit
                continue
    return None
