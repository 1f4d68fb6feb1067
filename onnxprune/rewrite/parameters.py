"""The parameters of a rewritten graph: which uses of one can share a slice, and what each slice is called.

Knows the slices of a trace and who reads which parameter, no importance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from onnxprune.model import Model, scopes
from onnxprune.rewrite.slicing import take
from onnxprune.trace import Mask, Slice, Trace

Variants = dict[Hashable, list[Slice]]
"""The slices of one parameter by what is cut from it; () = nothing."""


class Slicer:
    """Writes the kept positions of every parameter into `model`, a copy of the traced one."""

    def __init__(self, trace: Trace, kept: Mask, model: Model) -> None:
        self.trace, self.kept, self.model = trace, kept, model
        graphs = scopes(model.skeleton.graph)
        self.nodes = [node for scope in graphs for node in scope.graph.node]
        self.reads = Counter(name for node in self.nodes for name in node.input)
        self.outputs = {o.name for scope in graphs for o in scope.graph.output}

    def sliced(self) -> dict[str, str]:
        """Slice all parameters; returns what those that are new were cut from (new name -> original name)."""
        aliases: dict[str, str] = {}
        slices: dict[str, list[Slice]] = defaultdict(list)
        for s in self.trace.slices.values():
            slices[s.parameter].append(s)
        for name, own in slices.items():
            for fresh in self._slice(name, own):
                aliases[fresh] = self.trace.aliases.get(name, name)
        return aliases

    def _slice(self, name: str, slices: Sequence[Slice]) -> list[str]:
        """Slice one parameter. The first variant keeps its name unless somebody reads it whole; the names of others."""
        variants: Variants = defaultdict(list)
        for s in slices:
            variants[self._cut(s)].append(s)
        taken = self._read_whole(name, slices, variants)
        weight, fresh = self.model.weights[name], list[str]()
        for members in (m for cut, m in variants.items() if cut):
            part = take(weight, members[0].blocks, self.kept, members[0].cells)
            if not taken:
                self.model.weights[name], taken = part, True
                continue
            fresh.append(self.model.fresh_name(f"{name}_pruned"))
            self.model.weights[fresh[-1]] = part
            for index, i in (use for s in members for use in s.uses):
                self.nodes[index].input[i] = fresh[-1]
        return fresh

    def _cut(self, s: Slice) -> Hashable:
        """Equal for slices from which the same positions go; () where none do."""
        masks = ((b, self.kept[b.ids]) for b in s.blocks)
        return tuple((b.axes, mask.shape, mask.tobytes()) for b, mask in masks if not mask.all())

    def _read_whole(self, name: str, slices: Sequence[Slice], variants: Variants) -> bool:
        """Whether somebody reads all of a parameter: a use that no slice stands for, or one that loses nothing."""
        if any(not s.uses for s in slices):  # which stands for all uses
            return False
        listed = sum(len(s.uses) for s in slices)
        return listed < self.reads[name] or name in self.outputs or () in variants
