"""Where a framework's tensors are in an ONNX model: by name, by values, or by what an exporter computed of them.

Exporters rename, transpose, stack and reorder tensors (the gates of an LSTM), share equal ones and fold BatchNorm into
the convolution before it. Values tell which is which; where they do not, nothing is guessed. Knows names, arrays and
plans; no torch.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune import api
from onnxprune.errors import UsageError
from onnxprune.frameworks.arrays import is_constant, is_float, is_norm
from onnxprune.frameworks.rows import elements
from onnxprune.frameworks.transfer import Cuts
from onnxprune.frameworks.uses import Use, Uses, along, cuts_of
from onnxprune.model import Array, Model
from onnxprune.planning import Plan


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
            unknown.append(name)
    if unknown:
        told = [f"'{n}' {list(state[n].shape)}{_candidates(matching.open.get(n, []))}" for n in unknown[:3]]
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UsageError(
            f"not found in the model for certain: {', '.join(told)}{more}; {_advice(state, unknown)}, or name with "
            "--keep what is to stay as it is"
        )
    return matching.cuts


def _advice(state: Mapping[str, Array], unknown: Sequence[str]) -> str:
    """What to do about tensors that are not found."""
    alike: dict[tuple[tuple[int, ...], bytes], list[str]] = defaultdict(list)
    for name, array in state.items():
        alike[array.shape, array.tobytes()].append(name)
    equal = [n for n in unknown if len(alike[state[n].shape, state[n].tobytes()]) > 1]
    if equal:
        one = equal[0]
        other = next(n for n in alike[state[one].shape, state[one].tobytes()] if n != one)
        return (
            f"{len(equal)} of them hold the same numbers as others ('{one}' and '{other}'), as fresh weights do, and "
            "exporters keep equal tensors once: train a step, or add a little noise to every weight, and export again"
        )
    return "give the weights that were exported, export with BatchNorm kept and without constant folding"


def _candidates(uses: Sequence[Use]) -> str:
    names = sorted({u.parameter for u in uses})
    return f" (may be any of {', '.join(names[:4])}{', ..' if len(names) > 4 else ''})" if names else ""


class _Matching:
    """Settles tensors one after the other.

    cuts: of those that are certain. open: of the others, all uses that a tensor may be. renewed: tensors whose name a
    parameter with other values has, by that parameter: those of a fold, or of another training."""

    def __init__(self, model: Model, plan: Plan, state: Mapping[str, Array]) -> None:
        self.state, self.uses = state, Uses(model, plan, state)
        self.cuts: dict[str, Cuts] = {}
        self.open: dict[str, list[Use]] = {}
        self.renewed: dict[str, str] = {}
        self.modules: dict[str, list[str]] = defaultdict(list)
        for name, array in state.items():
            if array.ndim and is_float(array):
                self.modules[_module(name)].append(name)

    def direct(self) -> None:
        """By name, by values, and by the values of rows."""
        for name, array in self.state.items():
            if array.size <= 1 or not is_float(array):
                continue
            named = self.uses.named(name, array)
            uses = self._with_values(name, array, named) if named else list(self.uses.equal(array))
            cuts = {u.cuts for u in uses}
            if len(cuts) == 1 and (named or not is_constant(array)):
                self.cuts[name] = cuts.pop()
            elif uses:
                self.open[name] = uses
            elif not is_constant(array):
                self._by_rows(name, array)

    def _with_values(self, name: str, array: Array, named: list[Use]) -> list[Use]:
        """The uses of the parameter of this name: as they are, or as a square one was transposed."""
        parameter = named[0].parameter
        if np.array_equal(array, self.uses.arrays[parameter]):
            return named
        turned = [u for u in self.uses.equal(array) if u.parameter == parameter]
        if not turned:
            self.renewed[name] = parameter
        return turned or named

    def _by_rows(self, name: str, array: Array) -> None:
        """A tensor that an exporter took apart or reordered."""
        kept = self.uses.rows.rows(array) if array.ndim > 1 else elements(array, self.uses.rows)
        cuts = None if kept is None else cuts_of(kept)
        if cuts is not None:
            self.cuts[name] = cuts

    def folded(self) -> None:
        """A weight times one factor for each output channel, and the BatchNorm whose factors these are."""
        norms: dict[str, set[Cuts]] = defaultdict(set)
        for name, array in self.state.items():
            known = name in self.cuts or name in self.open
            if array.ndim > 1 and is_float(array) and (name in self.renewed or not known):
                for module, cuts in self._unfolded(name, array):
                    norms[module].add(cuts)
        for module, found in norms.items():
            if len(found) == 1:
                self._settle(self.modules[module], *found)

    def _unfolded(self, name: str, array: Array) -> list[tuple[str, Cuts]]:
        """Settle a weight that something was folded into, and its bias, which went into that of the fold. Modules of
        vectors that fit the factors, and what goes from these."""
        fits = list(self.uses.scaled(array, self.renewed.get(name)))
        if len({use.cuts for use, _, _ in fits}) != 1:
            if fits:
                self.open[name] = [use for use, _, _ in fits]
            return []
        use, axis, factors = fits[0]
        self.cuts[name] = use.cuts
        outputs = along(use.cuts, axis)
        if outputs is None:
            return []
        self._settle(self._open_vectors(_module(name), len(factors)), outputs)
        vectors = {m: [self.state[n] for n in self._open_vectors(m, len(factors))] for m in self.modules}
        return [(module, outputs) for module, own in vectors.items() if is_norm(own, factors)]

    def beside(self) -> None:
        """What its values leave open: by the node of a tensor of the same module, or in a module of vectors only, which
        work position by position, like the others."""
        for name, uses in list(self.open.items()):
            near = self._near(name)
            cuts = {u.cuts for u in uses if u.node in near} or self._by_node(_module(name), uses)
            if len(cuts) == 1:
                self.cuts[name] = cuts.pop()
        for names in self.modules.values():
            shapes = {self.state[n].shape for n in names}
            settled = {self.cuts[n] for n in names if n in self.cuts}
            if len(shapes) == 1 and len(shapes.pop()) == 1 and len(settled) == 1:
                self._settle(names, *settled)

    def _near(self, name: str) -> set[int]:
        """The nodes that read settled tensors of the same module, and those that read what these make; none where names
        say no module, and all tensors would be beside each other."""
        near: set[int] = set()
        for other in self.modules[_module(name)] if _module(name) else ():
            if other in self.cuts and other != name:
                array = self.state[other]
                near |= {u.node for u in self.uses.named(other, array) or self.uses.equal(array)}
        return near.union(*map(self.uses.after, near))

    def _by_node(self, module: str, uses: Sequence[Use]) -> set[Cuts]:
        """What goes in the uses whose readers are named after a module, or after one that ends so."""
        found: dict[str, set[Cuts]] = defaultdict(set)
        for use in uses:
            for path in self.uses.paths(use):
                found[path].add(use.cuts)
        ends = (cuts for path, cuts in found.items() if path.endswith(f".{module}"))
        return (found.get(module) or set[Cuts]().union(*ends)) if module else set()

    def _settle(self, names: Sequence[str], cuts: Cuts) -> None:
        """Of these tensors those go, where nothing else was found."""
        for name in names:
            self.cuts.setdefault(name, cuts)

    def _open_vectors(self, module: str, length: int) -> list[str]:
        """The vectors of a module that are not settled yet."""
        return [n for n in self.modules[module] if n not in self.cuts and self.state[n].shape == (length,)]


def _module(name: str) -> str:
    return name.rpartition(".")[0]
