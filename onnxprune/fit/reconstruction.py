"""Refit what is left to what was there: sequential, asymmetric least squares over the rewritten graph.

Layer by layer, in order: the input comes from the pruned network as it is by now, the target from the dense one (where
the layer feeds a sum, the dense sum less the current shortcut). Every layer behind the first cut is solved again, not
only those that lost inputs: each takes back part of what the earlier ones could not. Knows layers and what was
kept, no budget.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from onnxprune.errors import RuntimeFailure
from onnxprune.fit.compared import Dense, changed
from onnxprune.fit.equations import Equations, Gathering, Light, Refit, Refits
from onnxprune.fit.finding import layers, owners, passed, shared
from onnxprune.fit.fitted import Fitted
from onnxprune.fit.inside import EXACT, Owner, Part
from onnxprune.fit.least_squares import Problem
from onnxprune.fit.linear import Linear, Unsolvable
from onnxprune.fit.products import Layer, depthwise
from onnxprune.fit.requantised import FewBits
from onnxprune.fit.sites import sample_size
from onnxprune.fit.tails import Tail, tail
from onnxprune.fit.walk import Walk
from onnxprune.heap import give_back
from onnxprune.model import Array
from onnxprune.rewrite import Rewritten
from onnxprune.trace import Mask, Trace

ROUNDS = 2
"""A layer that reads what it gave before is solved for this often, each time on what its weights make it read."""
HELD = 0.2
"""Share of the rows that judge where no batch is left to do so."""
NOTHING = "nothing that it reads or gives was cut"
UNSEEN, NO_BETTER = "no input lets it run", "what the node gives is no better with other weights inside"
MOST_HELD = 0.5
"""Share of the rows that may be held out: a model whose batch size is fixed can have all of them in one batch."""


class Reconstruction:
    """Both networks on the way through the same batches. The last `held` batches, if any, only choose. light: for
    a rougher and quicker refit. others: where `after` is a body, the weights that are read outside of it; all layers of
    such an inner graph are solved for."""

    def __init__(
        self, trace: Trace, kept: Mask, after: Rewritten, feeds: Sequence[Mapping[str, Array]], held: int,
        providers: Sequence[str] = ("cpu",), seed: int = 0, light: Light | None = None, dense: Dense | None = None,
        others: frozenset[str] | None = None,
    ) -> None:  # fmt: skip
        self.light, self.inner, self.others = light, others is not None, others or frozenset()
        self.trace, self.kept, self.after, self.held, self.seed = trace, kept, after, held, seed
        self.dense = dense or Dense(trace, feeds, providers)
        self.current = Walk(after.model, feeds, trace.shapes.dtype, providers)
        self.open: set[int] = set()
        self.fitted = Fitted(self.current, trace.shapes.dtype, after.aliases, self.others)
        self.refits = Refits()
        changed = range(len(self.current.nodes)) if self.inner else self._changed()
        self.touched = self.current.followers(changed)
        self.dense.start(self.current, self.touched)

    def run(self, progress: Callable[[float], None] | None = None) -> Refits:
        """Solve for all layers in order, changing the weights of `after`; `progress` is told the share that is done."""
        found = self._layers()
        todo = {members[0].key: members for members in shared(found)}
        within, before = owners(self.current.nodes), passed(found, self.after.model)
        for k, layer in enumerate(found):
            if progress:
                progress(before[k])
            within = self._enter(within, layer.index)
            self.open = {m.index for later in todo.values() for m in later} | set(within)
            self._solve(layer, todo)
            if layer.key not in todo and (k + 1 == len(found) or found[k + 1].index != layer.index):
                self._release()  # else the node's next layer needs it
        self._enter(within, len(self.current.nodes))
        return self.refits

    def asked(self) -> Iterator[tuple[Linear, str, int]]:
        """Of every layer, in order, the tensor that it is compared with, and how many rows of a batch are looked at."""
        found = self._layers()
        by_key = {members[0].key: members for members in shared(found)}
        for k, layer in enumerate(found):
            self.open = {later.index for later in found[k:]}
            matrix = layer.read(self.after.model)
            with suppress(Unsolvable):
                its = self._tail(layer, matrix.shape[0] * matrix.shape[2])
                yield layer, its.compared, self._rows(matrix, len(by_key[layer.key]))

    def _layers(self) -> list[Linear]:
        """Those that are solved for, as far as they can be."""
        found = layers(self.after.model, self.trace.rank, self.refits.skipped)
        return [layer for layer in found if not depthwise(layer, self.after.model)] if self.light else found

    def _rows(self, matrix: Array, uses: int) -> int:
        """How many rows of a batch are looked at for each of so many layers that use a matrix."""
        groups, columns, _ = matrix.shape
        total = sample_size(groups, columns) // (uses * (self.light.rows if self.light else 1))
        return -(-total // self.current.batches)

    def _solve(self, layer: Linear, todo: dict[Hashable, list[Linear]]) -> None:
        """Solve for a layer, with all that share its matrix when it is the last of them; then they leave `todo`."""
        members = todo[layer.key]
        if members[0] is layer and len(members) > 1:
            with suppress(Unsolvable):
                self._refit(members, 1)  # the others must not read what nothing was done about
        if members[-1] is layer:
            try:
                self.refits.solved.append(self._refit(members, len(members)))
            except Unsolvable as why:
                self.refits.skipped[layer.roots[0]] = str(why)
            del todo[layer.key]

    def _release(self) -> None:
        """Let go of what no layer that is still to come needs."""
        self.current.release()
        self.dense.release()
        if self.light is None:
            give_back()

    def _enter(self, nodes: Sequence[int], before: int) -> list[int]:
        """Solve for the layers in the bodies of those nodes that come before another; the nodes that are left."""
        for index in (k for k in nodes if k < before and k in self.touched):
            self._inside(index, self.current.nodes[index].name)
            self._release()
        return [k for k in nodes if k > before]

    def _inside(self, index: int, title: str) -> None:
        """Solve for the layers in the bodies of a node as long as what it gives comes nearer to the dense one's: what
        comes back changes with them."""
        try:
            own = Owner(self.trace, self.kept, self.dense.walk, self.current, self.after, index, self.held)
            error, found = own.error, Refits()
            for _ in range(1 if own.node.op_type == "If" else ROUNDS):
                if error <= EXACT:
                    break
                before = own.state()
                refits, after = self._parts(own)
                if not after < error:
                    own.restore(before)
                    self.touched |= self.current.forget([index], self.touched)
                    found = replace(found, skipped=found.skipped or refits.skipped or {title: NO_BETTER})
                    break
                error, found = after, refits
        except (Unsolvable, RuntimeFailure) as why:
            self.refits.skipped[title] = str(why)
            return
        self.refits.solved += found.solved
        self.refits.skipped |= found.skipped | {f"{title} {name}": UNSEEN for name in own.idle}

    def _parts(self, own: Owner) -> tuple[Refits, float]:
        """Solve for the layers of all bodies of a node once, and the error then; infinite where that failed."""
        try:
            refits = Refits.of([self._part(part) for part in own.parts(self.others)])
            self.touched |= self.current.forget([own.index], self.touched)
            return refits, own.error
        except (Unsolvable, RuntimeFailure):
            return Refits(), np.inf

    def _part(self, part: Part) -> Refits:
        """Solve for the layers of one body."""
        inner = Reconstruction(
            self.trace, self.kept, Rewritten(part.body.model, self.after.aliases), list(part.given.values()), part.held,
            self.current.providers, self.seed, self.light, part.dense, part.body.others,
        )  # fmt: skip
        refits = inner.run()
        part.body.put_back()
        return refits

    def _changed(self) -> list[int]:
        """The nodes that are new, or that read other weights than in the dense graph."""
        return changed(self.dense.walk, self.current)

    def _refit(self, members: list[Linear], seen: int) -> Refit:
        """Solve for one matrix by the first `seen` of the layers that use it; Unsolvable where that cannot be done."""
        here = self._equations(members, seen)
        report = self._improve(here)
        if not report.before:
            raise Unsolvable(NOTHING)
        if members[0].feeds_back:
            report.after = self._settle(here, seen, report.before)
        return report

    def _improve(self, here: Equations) -> Refit:
        """Solve, and write what was found unless the layers are exact as they are."""
        solved, energy = here.solve(self.light), here.energy
        before, after = (sum(getattr(s, what) for s in solved) / energy for what in ("before", "error"))
        if before:
            matrix, bias = np.stack([s.matrix for s in solved]), np.stack([s.bias for s in solved])
            layer = here.members[0]
            if isinstance(layer, Layer) and isinstance(layer.weight, FewBits):
                after = self._requantise(here, layer.weight, matrix, bias, before)
            else:
                after = self._stored(here, matrix, bias, before, after)
        return Refit(here.members[0].title, before, after, max(s.ridge for s in solved))

    def _requantise(self, here: Equations, weight: FewBits, matrix: Array, bias: Array, before: float) -> float:
        """The relative error that is left: what was found goes back into a few bits, where it is better so than what is
        there."""
        gram, mean = here.seen()
        found, grid = weight.requantised(self.after.model, matrix[0], gram)
        new = found[None]
        bias = bias + mean @ (matrix - new) if here.movable else bias
        after = here.error_of(new, bias) / here.energy
        if not after < before:
            return before
        weight.set_grid(self.after.model, grid)
        self._write(here, new, bias)
        return after

    def _stored(self, here: Equations, matrix: Array, bias: Array, before: float, after: float) -> float:
        """Write what was found, and give the relative error that is left: weights that are stored as integers are
        rounded first, and written only where they are better so than those that are there."""
        layer, model = here.members[0], self.after.model
        scales = self.fitted.rescaled(here.members, matrix)
        grid = layer.grid(model if scales is None else scales.model(model))
        if grid is not None:
            matrix, bias = here.rounded(matrix, bias, grid) if self.light is None else (grid.nearest(matrix), bias)
            after = here.error_of(matrix, bias) / here.energy
            if not after < before:
                return before
        if scales is not None:
            self.fitted.rescale(scales)
        self._write(here, matrix, bias)
        return after

    def _settle(self, here: Equations, seen: int, error: float) -> float:
        """The relative error of a layer that reads what it gave before, with the weights that `here` gave: on what
        they make it read they are solved for again, and taken back where that is worse."""
        for left in reversed(range(ROUNDS)):
            then = self._equations(here.members, seen)
            if not then.error < here.error:
                self._write(then, here.matrix, here.bias)
                break
            here, error = then, then.error / then.energy
            if not left or not self._improve(here).before:
                break
        return error

    def _write(self, at: Equations, matrix: Array, bias: Array) -> None:
        """Replace what the layers had when `at` was set up."""
        at.members[0].write(self.after.model, matrix)
        moved = (bias - at.bias).ravel()
        self.fitted.move(at.tails, moved if at.movable else np.zeros_like(moved))
        self.touched |= self.current.forget([m.index for m in at.members], self.touched)

    def _equations(self, members: list[Linear], seen: int) -> Equations:
        """What the first `seen` of the layers read and should give; a change is for all of them."""
        if not self.fitted.own(members):
            raise Unsolvable("the weight has uses that are no layers")
        matrix = members[0].read(self.after.model)
        groups, outputs = matrix.shape[0], matrix.shape[0] * matrix.shape[2]
        tails = [self._tail(m, outputs) for m in members]
        ends = {self.current.made_by.get(t.compared, m.index) for m, t in zip(members, tails, strict=True)}
        if not ends & self.touched:
            raise Unsolvable(NOTHING)
        bias = self.fitted.common_bias(members, tails, outputs).reshape(groups, -1)
        movable = all(self.fitted.movable(t.shift) for t in tails)
        low, high = min(t.low for t in tails), max(t.high for t in tails)
        scale, gathered = tails[0].scale.reshape(groups, -1), self._gather(members[:seen], tails[:seen], matrix)
        problems = [
            Problem(rows, wanted, own, offset, low, high, movable)
            for own, (rows, wanted, offset) in zip(scale, gathered, strict=True)
        ]
        held = min(self.held / self.current.batches or HELD, MOST_HELD)
        return Equations(members, tails, matrix, bias, movable, problems, held)

    def _tail(self, layer: Linear, outputs: int) -> Tail:
        """What follows the layer; without the sum it goes into where that cannot be the target yet, or is larger."""
        its = tail(layer, self.current, outputs, self.trace.rank(layer.out))
        shapes = self.trace.shapes.probe[0]
        early = its.other and self.current.ancestors([its.other]) & self.open - {layer.index}
        if early or (its.total and shapes.get(its.total) != shapes.get(its.end)):
            return replace(its, total="", other="", low=-np.inf, high=np.inf)
        return its

    def _gather(self, members: list[Linear], tails: list[Tail], matrix: Array) -> list[tuple[Array, ...]]:
        """Of every group (rows, wanted, offset) of all `members`, held-out batches last."""
        groups, _, outputs = matrix.shape
        most = self._rows(matrix, len(members))
        gathering = Gathering(self.current.batches, groups)
        for layer, its in zip(members, tails, strict=True):
            dense = self.dense.answers(layer, its.compared, self.kept, outputs)
            xs = layer.inputs(self.current)
            others = self.current.real(its.other) if its.other else [None] * len(xs)
            rng = np.random.default_rng((self.seed, layer.index))
            batches = zip(xs, dense, others, strict=True)
            gathering.add(layer, its, ((x, z, y.shape, *y.targets(layer, x, most, rng)) for x, y, z in batches))
        return gathering.joined()
