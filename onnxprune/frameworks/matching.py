"""Where a framework's tensors are in an ONNX model: by name, by values, or by what an exporter computed of them.

Exporters rename, transpose, stack and reorder tensors (the gates of an LSTM), share equal ones and fold BatchNorm into
the convolution before it. Values tell which is which; where they do not, nothing is guessed. Knows names, arrays and
plans; no torch.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import permutations
from typing import Any

import numpy as np

from onnxprune import api
from onnxprune.errors import UsageError
from onnxprune.frameworks.rows import RowIndex, elements
from onnxprune.frameworks.transfer import Cuts, by_name, removals_of
from onnxprune.model import Array, Model, every_node
from onnxprune.planning import Plan, Removal
from onnxprune.trace import Block, Mask

CLOSE = 1e-4
"""Of a folded weight: what float32 may lose, as a share of a channel's largest weight."""
EPSILON = 0.1
"""No BatchNorm adds more to its variance."""


@dataclass(frozen=True)
class Place:
    """One use of a parameter that may be a tensor, and what goes from the tensor if it is. `node`: its reader."""

    parameter: str
    node: int
    cuts: Cuts


def matched(
    plan: Plan, state: Mapping[str, Array], source: Any, keep: Sequence[str] = (), force_plan: bool = False
) -> dict[str, Cuts]:
    """What goes from each tensor of `state`. Raises UsageError, naming them, where some cannot be told."""
    model, plan = api.completed(source, plan, force_plan=force_plan)
    matching = _Matching(model, plan, state)
    matching.direct()
    matching.folded()
    matching.beside()
    unknown = []
    for name, array in state.items():
        kept = any(fnmatch.fnmatchcase(name, pattern) for pattern in keep)
        if kept or (name not in matching.cuts and (array.size <= 1 or not is_float(array))):
            matching.cuts[name] = frozenset()
        elif name not in matching.cuts:
            unknown.append(f"'{name}' {list(array.shape)}{_candidates(matching.places.get(name, []))}")
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UsageError(
            f"not found in the model for certain: {', '.join(unknown[:3])}{more}; give the weights that were exported, "
            "export with BatchNorm kept and without constant folding, or name with --keep what is to stay as it is"
        )
    return matching.cuts


def is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat", "float"))


def _candidates(places: Sequence[Place]) -> str:
    names = sorted({p.parameter for p in places})
    return f" (may be any of {', '.join(names[:4])}{', ..' if len(names) > 4 else ''})" if names else ""


class _Matching:
    """Settles tensors one after the other; `cuts` are certain, `places` are all that a tensor may be, and the `renewed`
    have another one's values under their name: those of a fold, or of another training."""

    def __init__(self, model: Model, plan: Plan, state: Mapping[str, Array]) -> None:
        self.nodes, self.state = every_node(model.graph), state
        self.cuts: dict[str, Cuts] = {}
        self.renewed: dict[str, str] = {}
        self.places: dict[str, list[Place]] = {}
        self.arrays = {n: a for n, w in model.weights.items() if (a := w.array()).size > 1 and is_float(a)}
        self.names = by_name([n for n, a in state.items() if a.ndim], self.arrays)
        removals: dict[str, list[Removal]] = defaultdict(list)
        for r in (r for rs in plan.groups.values() for r in rs):
            removals[r.parameter].append(r)
        self.uses: dict[str, list[Place]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for i, name in enumerate(node.input):
                if name in self.arrays:
                    use = f"{node.name}:{i}"
                    mine = [r for r in removals[name] if r.use in ("", use)]
                    self.uses[name].append(Place(name, index, removals_of(mine)))
        self.alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name in self.uses:
            self.alike[_dims(self.arrays[name])].append(name)
        self.modules: dict[str, list[str]] = defaultdict(list)
        for name, array in state.items():
            if array.ndim and is_float(array):
                self.modules[_module(name)].append(name)

    @cached_property
    def index(self) -> RowIndex:
        return RowIndex({n: (self.arrays[n], [self._mask(p) for p in places]) for n, places in self.uses.items()})

    def direct(self) -> None:
        """By name, by values, and by the values of rows."""
        for name, array in self.state.items():
            if array.size <= 1 or not is_float(array):
                continue
            named = self._named(name, array)
            places = named or list(self._equal(array))
            if named and not np.array_equal(array, self.arrays[named[0].parameter]):
                turned = [
                    p for p in self._equal(array) if p.parameter == named[0].parameter
                ]  # a square one, transposed
                places = turned or named
                if not turned:
                    self.renewed[name] = named[0].parameter
            cuts = {p.cuts for p in places}
            if len(cuts) == 1 and (named or not _constant(array)):
                self.cuts[name] = cuts.pop()
            elif places:
                self.places[name] = places
            elif not _constant(array):
                mask = self.index.rows(array) if array.ndim > 1 else elements(array, self.index)
                found = None if mask is None else _cuts_of(mask)
                if found is not None:
                    self.cuts[name] = found

    def folded(self) -> None:
        """A weight times one factor for each output channel, and the BatchNorm whose factors these are."""
        norms: dict[str, list[Cuts]] = defaultdict(list)
        for name, array in self.state.items():
            known = name in self.cuts or name in self.places
            if array.ndim < 2 or not is_float(array) or (known and name not in self.renewed):
                continue
            fits = list(self._scaled(array, self.renewed.get(name)))
            if not fits:
                continue
            if len({place.cuts for place, _, _ in fits}) != 1:
                self.places[name] = [place for place, _, _ in fits]
                continue
            place, axis, scale = fits[0]
            self.cuts[name] = place.cuts
            along = _along(place.cuts, axis)
            if along is None:
                continue
            for other in self._open(_module(name), len(scale)):  # its own bias went into that of the fold
                self.cuts[other] = along
            for module in self.modules:
                if _is_norm([self.state[n] for n in self._open(module, len(scale))], scale):
                    norms[module].append(along)
        for module, found in norms.items():
            if len(set(found)) == 1:
                for name in self.modules[module]:
                    self.cuts.setdefault(name, found[0])

    def beside(self) -> None:
        """What its values leave open: by the node of a tensor of the same module, or in a module of vectors only, which
        work position by position, like the others."""
        readers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for name in node.input:
                readers[name].append(index)
        for name, places in list(self.places.items()):
            near = {
                p.node for other in self.modules[_module(name)] if other in self.cuts and other != name
                for p in self._named(other, self.state[other]) or self._equal(self.state[other])
            }  # fmt: skip
            near |= {r for n in near for out in self.nodes[n].output for r in readers[out]}
            cuts = {p.cuts for p in places if p.node in near} or self._by_node(_module(name), places, readers)
            if len(cuts) == 1:
                self.cuts[name] = cuts.pop()
        for names in self.modules.values():
            settled = {self.cuts[n] for n in names if n in self.cuts}
            if len({self.state[n].shape for n in names}) == 1 and self.state[names[0]].ndim == 1 and len(settled) == 1:
                for name in names:
                    self.cuts.setdefault(name, next(iter(settled)))

    def _by_node(self, module: str, places: Sequence[Place], readers: Mapping[str, list[int]]) -> set[Cuts]:
        """What goes in the uses whose readers are named after a module, as exporters name nodes: of layer1.0.act
        /layer1/layer1.0/act/PRelu."""
        found: dict[str, set[Cuts]] = defaultdict(set)
        for place in places:
            node = self.nodes[place.node]
            passed = node.output if node.op_type == "Identity" else ()
            for name in (node.name, *(self.nodes[r].name for out in passed for r in readers[out])):
                found[".".join(name.strip("/").split("/")[:-1])].add(place.cuts)
        ends = (cuts for path, cuts in found.items() if path.endswith(f".{module}"))
        return (found.get(module) or set[Cuts]().union(*ends)) if module else set()

    def _mask(self, place: Place) -> Mask:
        """Which elements of a parameter stay in one use."""
        shape = self.arrays[place.parameter].shape
        mask = np.ones(shape, bool)
        for r in place.cuts:
            ids = np.arange(int(np.prod(r.shape))).reshape(r.shape)
            mask &= ~np.isin(Block(r.axes, ids).spread(shape), r.remove)
        return mask

    def _named(self, name: str, array: Array) -> list[Place]:
        parameter = self.names.get(name)
        return self.uses[parameter] if parameter and self.arrays[parameter].shape == array.shape else []

    def _equal(self, array: Array) -> Iterator[Place]:
        """Uses of parameters with the values of `array`, axes in any order."""
        axes = [k for k, n in enumerate(array.shape) if n > 1]
        for parameter in self.alike[_dims(array)]:
            other = self.arrays[parameter]
            target = [k for k, n in enumerate(other.shape) if n > 1]
            for order in permutations(axes):
                if [array.shape[k] for k in order] != [other.shape[k] for k in target]:
                    continue
                moved = np.squeeze(array).transpose([axes.index(k) for k in order])
                if np.array_equal(moved.astype(other.dtype), np.squeeze(other)):
                    yield from _moved(self.uses[parameter], dict(zip(target, order, strict=True)))
                    break

    def _scaled(self, array: Array, only: str | None) -> Iterator[tuple[Place, int, Array]]:
        """Uses of parameters (or of one) that are `array` times one factor for each position of an axis: (use, axis,
        factors)."""
        for parameter in [only] if only else self.alike[_dims(array)]:
            other = self.arrays[parameter]
            for turned in (False, True) if array.ndim == 2 else (False,):
                values = other.T if turned else other
                if values.shape != array.shape:
                    continue
                axis_of = {0: 1, 1: 0} if turned else {k: k for k in range(array.ndim)}
                for axis in (0, 1):  # of outputs: the first, or in a transposed convolution the second
                    scale = _factors(np.moveaxis(array, axis, 0), np.moveaxis(values, axis, 0))
                    if scale is not None:
                        for place in _moved(self.uses[parameter], axis_of):
                            yield place, axis, scale

    def _open(self, module: str, length: int) -> list[str]:
        """The vectors of a module that are not settled yet."""
        return [n for n in self.modules[module] if n not in self.cuts and self.state[n].shape == (length,)]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _dims(array: Array) -> tuple[int, ...]:
    return tuple(sorted(n for n in array.shape if n > 1))


def _constant(array: Array) -> bool:
    """Whether all values are one, so that they tell nothing."""
    return bool((array == array.flat[0]).all())


def _moved(places: Sequence[Place], axis_of: Mapping[int, int]) -> Iterator[Place]:
    """The uses with their cuts on other axes."""
    for place in places:
        yield replace(
            place, cuts=frozenset(replace(r, axes=tuple(axis_of[axis] for axis in r.axes)) for r in place.cuts)
        )


def _along(cuts: Cuts, axis: int) -> Cuts | None:
    """What goes along one axis, as it goes from a vector; None where that axis is tangled with another."""
    here = [r for r in cuts if axis in r.axes]
    return None if any(len(r.axes) > 1 for r in here) else frozenset(replace(r, axes=(0,)) for r in here)


def _cuts_of(mask: Mask) -> Cuts | None:
    """What goes by axes; None where what stays is not all combinations of some positions of every axis."""
    alive = [mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)) for axis in range(mask.ndim)]
    if not np.array_equal(mask, reduce(np.logical_and.outer, alive)):
        return None
    gone = [np.flatnonzero(~a).tolist() for a in alive]
    return frozenset(Removal("", (k,), (mask.shape[k],), tuple(g)) for k, g in enumerate(gone) if g)


def _factors(array: Array, other: Array) -> Array | None:
    """The factor of every first position, where `other` is `array` times these and not simply anything."""
    x = array.reshape(len(array), -1).astype(np.float64)
    y = other.reshape(len(other), -1).astype(np.float64)
    power = (x * x).sum(1)
    if x.shape[1] < 2 or not power.all():
        return None
    scale = (x * y).sum(1) / power
    largest = np.abs(y).max(1)
    fits = (np.abs(y - scale[:, None] * x).max(1) <= CLOSE * largest) & (largest > 0)
    return scale if fits.all() else None


def _is_norm(vectors: Sequence[Array], scale: Array) -> bool:
    """Whether two of the vectors are the gain and variance of a BatchNorm that has these factors."""
    columns = [v.astype(np.float64) for v in vectors]
    for gain in (*columns, np.ones(len(scale))):
        for variance in columns:
            if gain is variance or (variance < 0).any():
                continue
            epsilon = np.median((gain / scale) ** 2 - variance)
            if not -CLOSE * np.median(variance) <= epsilon <= EPSILON:
                continue
            expected = gain / np.sqrt(variance + max(epsilon, 1e-12))
            if np.allclose(expected, scale, rtol=10 * CLOSE, atol=CLOSE * np.abs(scale).max()):
                return True
    return False
