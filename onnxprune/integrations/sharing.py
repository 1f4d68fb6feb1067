"""Which weights two models share, and what one of them makes the other lose.

Files of one network (an encoder and a decoder, a decoder with and without its cache) each carry a copy of what they
share, under the same names or others. Weights are one where they are equal byte by byte. Knows groups, plans and
weights; nothing is run.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxprune.model import FLOATS, Model, Weight
from onnxprune.options import Options
from onnxprune.planning import Plan, Removal, movable
from onnxprune.trace import Groups


@dataclass
class Member:
    """One model of a folder, `path` inside it, with its groups under the options of the run."""

    path: Path
    groups: Groups
    options: Options

    @property
    def model(self) -> Model:
        """The dense model as it was traced."""
        return self.groups.trace.model

    @cached_property
    def every(self) -> dict[str, Hashable]:
        """By name, what tells the values of every weight of floats that holds more than one."""
        weights = self.model.weights
        return {n: content(w) for n, w in weights.items() if w.onnx_type in FLOATS and w.size > 1}

    @cached_property
    def telling(self) -> dict[str, Hashable]:
        """Without those whose values are all one number: zeros of one layer are those of any other."""
        return {n: c for n, c in self.every.items() if not is_constant(self.model.weights[n])}

    @cached_property
    def places(self) -> dict[str, dict[Hashable, list[int]]]:
        """Of every parameter, by axes and their sizes, the blocks of ids along these: one for each use that is cut in
        a way of its own."""
        found: dict[str, dict[Hashable, list[int]]] = defaultdict(lambda: defaultdict(list))
        for k, (s, axes, ids) in enumerate(self.groups.blocks):
            found[s.parameter][axes, ids.shape].append(k)
        return found

    @cached_property
    def _components(self) -> list[list[int]]:
        return list(self.groups.components())

    def named(self, blocks: Iterable[int]) -> list[str]:
        """The names of the groups that these blocks are in, of those that the options let go."""
        may_go = movable(self.groups, self.options)
        wanted = {k for k in blocks if may_go[self.groups.classes[self.groups.blocks[k][2]]].any()}
        return [self.groups.name(c) for c in self._components if not wanted.isdisjoint(c)]

    def prunable(self, block: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Which positions of a block, flat, may go; those that go with others count as free."""
        ids = self.groups.blocks[block][2].ravel()
        classes = self.groups.classes[ids]
        return self.groups.prunable[classes] | self.groups.derived[classes]


def content(weight: Weight) -> Hashable:
    """Equal where two weights are, in type, shape and values."""
    digest = hashlib.blake2b(memoryview(weight.raw() or b""), digest_size=16).digest()
    weight.release()
    return weight.onnx_type, weight.shape, digest


def is_constant(weight: Weight) -> bool:
    """Whether all values are one, so that they tell nothing."""
    array = weight.array().ravel()
    return bool((array == array[0]).all())


@dataclass(frozen=True)
class Sharing:
    """What `other` shares with `first`. pairs: names of one weight in both. alike: names in both of weights that have
    the same values and that nothing else tells apart."""

    first: Member
    other: Member
    pairs: Mapping[str, str]
    alike: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()

    @staticmethod
    def of(first: Member, other: Member) -> Sharing:
        """By name and values; by values alone where these stand in both models once."""
        pairs = {n: n for n, c in first.telling.items() if other.telling.get(n) == c}
        left, right = _left(first, pairs), _left(other, pairs)
        alike = []
        for values in sorted(left.keys() & right.keys(), key=lambda v: left[v]):
            if len(left[values]) == len(right[values]) == 1:
                pairs[left[values][0]] = right[values][0]
            else:
                alike.append((tuple(left[values]), tuple(right[values])))
        return Sharing(first, other, pairs, tuple(alike))

    def blocks(self) -> Iterator[tuple[list[int], list[int]]]:
        """The blocks of `first` at every place of the parameters that both have, and those of `other` there."""
        for name, twin in self.pairs.items():
            for place, own in self.first.places[name].items():
                yield own, self.other.places[twin].get(place, [])

    def held(self) -> list[str]:
        """The groups of `first` of which something may go that `other` has to keep."""
        return self.first.named(k for own, theirs in self.blocks() for k in own if not self._free(k, theirs))

    def _free(self, k: int, theirs: Sequence[int]) -> bool:
        """Whether all that may go of a block may go of these of `other`."""
        may = self.first.prunable(k)
        return not may.any() or (bool(theirs) and all(not (may & ~self.other.prunable(m)).any() for m in theirs))

    def linked(self) -> list[str]:
        """The groups of `other` that a block of `first` decides about."""
        return self.other.named(m for _, theirs in self.blocks() for m in theirs)

    def imposed(self, plan: Plan) -> Plan:
        """What a plan of `first` makes `other` lose, as far as they share it: what is coupled to it goes as well. A
        weight that loses other positions for each of its uses tells nothing of those of `other`."""
        groups, blocks = dict[str, tuple[Removal, ...]](), self.other.groups.blocks
        once = {n for n, cuts in _removed(plan).items() if len({(axes, shape) for axes, shape, _ in cuts}) == len(cuts)}
        for name, removals in plan.groups.items():
            own = [
                Removal(twin, r.axes, r.shape, r.remove, self.other.groups.use(blocks[m][0]))
                for r in removals
                if r.parameter in once and (twin := self.pairs.get(r.parameter)) is not None
                for m in self.other.places[twin].get((r.axes, r.shape), ())
            ]  # fmt: skip
            if own:
                groups[name] = tuple(own)
        return replace(plan, groups=groups, fingerprint="")

    def disagreement(self, plan: Plan, other: Plan) -> str:
        """The first weight of `first` of which the two plans do not remove the same; "" where they agree."""
        ours, theirs = _removed(plan), _removed(other)
        apart = [n for n, twin in self.pairs.items() if ours[n] != theirs[twin]]
        for names, twins in self.alike:
            if Counter(frozenset(ours[n]) for n in names) != Counter(frozenset(theirs[n]) for n in twins):
                apart += names
        return min(apart, default="")


def _left(member: Member, taken: Iterable[str]) -> dict[Hashable, list[str]]:
    """Names by values, without those that are `taken`."""
    found: dict[Hashable, list[str]] = defaultdict(list)
    for name in sorted(member.telling.keys() - set(taken)):
        found[member.telling[name]].append(name)
    return found


def _removed(plan: Plan) -> defaultdict[str, set[tuple[Hashable, Hashable, Hashable]]]:
    """What goes from every parameter: axes, their sizes, positions."""
    found: defaultdict[str, set[tuple[Hashable, Hashable, Hashable]]] = defaultdict(set)
    for r in (r for removals in plan.groups.values() for r in removals):
        found[r.parameter].add((r.axes, r.shape, r.remove))
    return found
