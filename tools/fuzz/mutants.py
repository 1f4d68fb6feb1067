"""One parameter at a time is cut wrongly: the proof has to catch each.

A mutant is a rewritten graph in which one parameter holds other positions than those that are kept (all moved by one,
two swapped, a square matrix turned, the first ones in place of those that are kept), or one number that an edit wrote
is off (groups, hidden sizes, sizes of a split, indices). What has the bytes of the right one is none.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from networks import generated
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto

from onnxprune.errors import CheckFailed, NothingToPrune, OnnxPruneError
from onnxprune.model import Model, Weight, every_node
from onnxprune.options import Options
from onnxprune.pipeline import Clock, analysed, check, prove
from onnxprune.planning import profile, select
from onnxprune.planning.criteria import l2
from onnxprune.prove import proofs as verify
from onnxprune.prove.comparison import Comparison
from onnxprune.prove.original import Original, Run
from onnxprune.prove.places import Places
from onnxprune.prove.slices import Compared, Source, kept_of
from onnxprune.rewrite import Rewritten, rewrite
from onnxprune.trace import Block, Groups, Mask

COUNTS = ("group", "num_heads", "num_groups", "hidden_size", "split", "q_num_heads", "kv_num_heads")
"""Attributes that an edit writes."""
SIZES = ("Split", "Gather", "ScatterND")
"""Operators of which an input that an edit writes holds sizes or indices, each of which counts."""


@dataclass
class Pruned:
    """A network, what is kept of it, and the right result."""

    name: str
    groups: Groups
    kept: Mask
    after: Rewritten
    account: Compared
    options: Options

    @classmethod
    def of(cls, name: str, source: Any, ratio: float) -> Pruned:
        options = Options(ratio=ratio, residual="all", fast=True).resolved()
        groups = analysed(Model.load(source), options, Clock())
        removed = select(groups, profile.importance(groups, l2, 0), options)
        if not removed.any():
            raise NothingToPrune("nothing can go")
        kept = groups.kept_ids(removed)
        after = rewrite(groups.trace, kept)
        prove(groups, kept, after, options, Clock())
        return cls(name, groups, kept, after, verify.compared(groups.trace, kept, after.model), options)

    def caught(self, model: Model) -> str:
        """By which part of the proof a mutant is caught; "" where it is not."""
        wrong = Rewritten(model, self.after.aliases)
        try:
            check(self.groups, self.kept, wrong, self.options, Clock())
        except OnnxPruneError:
            return "re-trace"
        except Exception:  # a graph that fits no rule ends a run too, if not in a line of its own
            return "re-trace, by an internal error"
        try:
            verify.equivalence(self.groups.trace, self.kept, model, self.options)
        except CheckFailed as why:
            return "slices" if "parameter" in why.message else "equivalence"
        return ""


Mutant = tuple[str, Model]


def mutants(pruned: Pruned, rng: np.random.Generator) -> Iterator[Mutant]:
    """What is wrong, and the graph with it."""
    right, held = pruned.after.model, pruned.groups.trace.model.weights
    for name, source in pruned.account.sources.items():
        weight = right.weights[name]
        if weight.size < 2 or weight.dtype.kind not in "fiu" or weight.dtype.itemsize * weight.size > 1 << 22:
            continue
        own, value = held[source.parameter].array(), weight.array()
        for what, wrong in _cuts(own, value, source, pruned.kept, rng):
            if wrong.shape == value.shape and wrong.tobytes() != value.tobytes():
                yield f"{name}: {what}", _with(right, name, Weight.of(wrong, weight.onnx_type))
    yield from _numbers(pruned)


def _cuts(
    own: NDArray[Any], value: NDArray[Any], source: Source, kept: Mask, rng: np.random.Generator
) -> Iterator[tuple[str, NDArray[Any]]]:
    for b in source.blocks:
        for k, axis in enumerate(b.axes):
            rolled = [Block(b.axes, np.roll(c.ids, 1, k), b.coarse) if c is b else c for c in source.blocks]
            part = kept_of(own, rolled, kept)
            if part.size == value.size:
                yield f"axis {axis} moved by one", part.reshape(value.shape)
            if value.shape[axis] > 1:
                order = np.arange(value.shape[axis])
                i, j = rng.choice(order, 2, replace=False)
                order[[i, j]] = order[[j, i]]
                yield f"{i} and {j} of axis {axis} swapped", value.take(order, axis)
            if b.ids.ndim == 1:
                yield (
                    f"the first of axis {axis}",
                    own.take(np.arange(value.shape[axis]), axis) if own.ndim == 1 else value,
                )
    for a in range(value.ndim - 1):
        if value.shape[a] == value.shape[a + 1]:
            yield f"axes {a} and {a + 1} turned", np.ascontiguousarray(np.swapaxes(value, a, a + 1))


def _numbers(pruned: Pruned) -> Iterator[Mutant]:
    """Attributes and constants that differ from the original's, each off by one or exchanged."""
    right, held = pruned.after.model, pruned.groups.trace.model.weights
    originals = {n.name: n for n in pruned.groups.trace.nodes}
    for k, node in enumerate(every_node(right.skeleton.graph)):
        before = originals.get(node.name)
        for j, a in enumerate(node.attribute):
            was = next((b for b in before.attribute if b.name == a.name), None) if before is not None else None
            if a.name not in COUNTS or was is None or (was.i, list(was.ints)) == (a.i, list(a.ints)):
                continue
            wrong = right.copy()
            target = every_node(wrong.skeleton.graph)[k].attribute[j]
            if a.type == AttributeProto.INTS:
                target.ints[:] = [*a.ints[1:], a.ints[0]] if len(set(a.ints)) > 1 else [a.ints[0] + 1, *a.ints[1:]]
            else:
                target.i = was.i
            yield f"{node.name}: {a.name} of {node.op_type}", wrong
        for i, name in enumerate(node.input[1:2], 1):
            if node.op_type in SIZES and name in right.weights and name not in held:
                value = right.weights[name].array()
                moved = np.roll(value, 1)
                if value.size > 1 and not np.array_equal(moved, value):
                    yield f"{node.name}: input {i} of {node.op_type}", _with(right, name, Weight.of(moved))


def _with(model: Model, name: str, weight: Weight) -> Model:
    wrong = model.copy()
    wrong.weights[name] = weight
    return wrong


def alone(pruned: Pruned) -> Iterator[tuple[str, bool]]:
    """Every parameter moved by one, with nothing but the equivalence on drawn weights to catch it: whether it does."""
    trace, kept, options = pruned.groups.trace, pruned.kept, pruned.options
    original = Original(trace, kept, (), options, lambda model: model, trace.shapes.dtype)
    run: Run | None = None
    for name, source in pruned.account.sources.items():
        for b in source.blocks:
            if b.ids.ndim > 1 or np.array_equal(kept[b.ids], np.roll(kept[b.ids], 1)):
                continue
            if run is None:
                run = next(original.runs([0]))[0]
            moved = tuple(Block(c.axes, np.roll(c.ids, 1), c.coarse) if c is b else c for c in source.blocks)
            sources = {**pruned.account.sources, name: Source(source.parameter, moved)}
            comparison = Comparison(Places(trace, kept), sources, pruned.after.model, options)
            try:
                comparison.on_drawn_weights(comparison.in_real_numbers or comparison.as_it_rounds, run)
            except CheckFailed:
                yield f"{name}: axis {b.axes[0]}", True
            else:
                yield f"{name}: axis {b.axes[0]}", False


def networks(args: Namespace) -> Iterator[tuple[str, ModelProto | str]]:
    if not args.folders or args.generated:
        yield from generated()
    for folder in args.folders:
        yield from ((p.name, str(p)) for p in sorted(folder.glob("*.onnx")) if p.stat().st_size <= args.largest * 1e6)


def run(args: Namespace) -> int:
    start, by, tried = time.monotonic(), Counter[str](), 0
    missed: list[str] = []
    unseen: list[str] = []
    lone = seen = 0
    for name, source in networks(args):
        if time.monotonic() - start > args.limit:
            break
        try:
            pruned = Pruned.of(name, source, args.ratio)
        except OnnxPruneError as why:
            print(f"{name}: left out, {why.message[:120]}", flush=True)
            continue
        tried += 1
        rng = np.random.default_rng(args.seed)
        found = list(mutants(pruned, rng))
        if 0 < args.count < len(found):
            found = [found[k] for k in sorted(rng.choice(len(found), args.count, replace=False))]
        own = Counter(pruned.caught(model) or f"missed: {what}" for what, model in found)
        misses = [text for text in own if text.startswith("missed")]
        missed += [f"{name}: {text}" for text in misses]
        by.update({text: n for text, n in own.items() if text not in misses})
        if args.alone:
            each = list(alone(pruned))
            lone, seen = lone + len(each), seen + sum(ok for _, ok in each)
            unseen += [f"{name}: {what}" for what, ok in each if not ok]
        print(f"{name}: {len(found)} mutants, {len(misses)} missed", flush=True)
    total = sum(by.values()) + len(missed)
    for text in missed:
        print(text)
    share = 100 * sum(by.values()) / max(1, total)
    print(f"{share:.2f} % of {total} mutants of {tried} networks caught in {time.monotonic() - start:.0f} s: "
          + ", ".join(f"{n} by {text}" for text, n in by.most_common()))  # fmt: skip
    if args.alone:
        print(f"equivalence on drawn weights alone: {seen} of {lone}" + "".join(f"\n  {text}" for text in unseen))
    return int(bool(missed) or not total)
