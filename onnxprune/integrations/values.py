"""Refitted weights of one model, put where another model has the same weights. Knows who reads which weight, no units.

A layer that two files share is solved once: solved in each, on other inputs, it would no longer be one layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from onnx import NodeProto

from onnxprune.errors import CheckFailed
from onnxprune.integrations.sharing import Sharing, content
from onnxprune.model import Model, Weight, every_node

Use = tuple[str, int]
"""What a node makes, which tells it from any other, and the number of an input."""
MEND = "choose by weights alone (--fast) or do not refit (--reconstruct none)"


class Reads:
    """Who reads which weight of a model. names: of every use. nodes: by what they make. makers: of every tensor."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names: dict[Use, str] = {}
        self.nodes: dict[str, NodeProto] = {}
        self.makers: dict[str, NodeProto] = {}
        self.uses: dict[str, list[Use]] = defaultdict(list)
        for node in every_node(model.graph):
            made = next((str(o) for o in node.output if o), "")
            self.nodes[made] = node
            self.makers |= dict.fromkeys(node.output, node)
            for i, name in enumerate(node.input):
                if name in model.weights:
                    self.names[made, i] = name
                    self.uses[name].append((made, i))

    def weight(self, use: Use) -> Weight | None:
        """What is read there; None where no weight is."""
        return self.model.weights[self.names[use]] if use in self.names else None

    def beside(self, use: Use) -> set[str]:
        """The weights that its node reads at other inputs, or that go into what it reads there: of a bias, the matrix
        whose product it is added to."""
        made, at = use
        others = [name for i, name in enumerate(self.nodes[made].input) if i != at]
        read = {name for other in others if other in self.makers for name in self.makers[other].input}
        return self.model.weights.keys() & {*others, *read}


@dataclass(frozen=True)
class _Change:
    """A weight that a use has now. original: its dense name, "" for a bias where there was none."""

    use: Use
    original: str
    weight: Weight


def carried(sharing: Sharing, sliced: Model, refitted: Model, target: Model) -> Model:
    """`target`, the pruned `sharing.other` with its dense values, with those that refitting gave to what it shares.

    sliced, refitted: the pruned `sharing.first` with its dense values, and as it is. CheckFailed where it cannot be
    told which weights of the target these are."""
    dense, other = Reads(sharing.first.model), Reads(sharing.other.model)
    values: dict[Use, Weight] = {}
    for change in _changes(dense, Reads(sliced), Reads(refitted)):
        for use in _places(sharing, change, dense, other, refitted):
            values[use] = change.weight
    return _written(target, values)


def differing(sharing: Sharing, first: Model, other: Model) -> str:
    """The first weight that both have of which the pruned `other` has values that the pruned `first` does not; ""
    where there is none."""
    dense, theirs, ours, found = Reads(sharing.first.model), Reads(sharing.other.model), Reads(first), Reads(other)
    for name, twin in sharing.pairs.items():
        known = {content(w) for w in _now(dense.uses[name], ours)}
        if not known.issuperset(content(w) for w in _now(theirs.uses[twin], found)):
            return name
    return ""


def _changes(dense: Reads, sliced: Reads, refitted: Reads) -> Iterator[_Change]:
    """The uses whose weight is no slice any more."""
    for use, name in refitted.names.items():
        before, after = sliced.weight(use), refitted.model.weights[name]
        if before is not after and (before is None or content(before) != content(after)):
            yield _Change(use, dense.names.get(use, ""), after)


def _places(sharing: Sharing, change: _Change, dense: Reads, other: Reads, refitted: Model) -> list[Use]:
    """The uses of the other model that are to have the weight; none where it does not have that layer."""
    original = change.original
    near = _alike(sharing, change.use, dense, other)
    if not original:
        return [place for place in near if place not in other.names]
    there = _equal(sharing, original, other)
    found = [use for use in near if use in there] or [use for use in there if use == change.use]
    own = dense.uses[original]
    if original in sharing.pairs and (not found or len(own) == 1):
        alike = len(set(map(content, _now(own, Reads(refitted))))) == 1
        found = other.uses[sharing.pairs[original]] if alike else []
    if there and not found:
        raise CheckFailed(
            f"it has weights that are equal to '{original}' of {sharing.first.path}, and nothing tells which of them "
            f"its new values belong to; {MEND}"
        )
    return found


def _equal(sharing: Sharing, original: str, other: Reads) -> list[Use]:
    """The uses in the other model of weights that are equal to this one of the first."""
    values = sharing.first.every.get(original)
    names = [name for name, its in sharing.other.every.items() if its == values]
    return [use for name in names for use in other.uses[name]]


def _alike(sharing: Sharing, use: Use, dense: Reads, other: Reads) -> list[Use]:
    """The same input of those nodes of the other model that read, or add to, the same weights as the node of `use`."""
    made, at = use
    beside = {sharing.pairs[name] for name in dense.beside(use) if name in sharing.pairs}
    shared = set(sharing.pairs.values())
    return [
        (node, at)
        for node, its in other.nodes.items()
        if beside and its.op_type == dense.nodes[made].op_type and other.beside((node, at)) & shared == beside
    ]


def _now(uses: list[Use], reads: Reads) -> Iterator[Weight]:
    """What is read at these uses, where they are still there."""
    yield from (weight for use in uses if (weight := reads.weight(use)) is not None)


def _added(sharing: Sharing, use: Use, dense: Reads, other: Reads) -> list[Use]:
    """Of a node that was given a bias, the nodes of the other model that read the same weight beside it."""
    made, i = use
    beside = [(k, name) for (node, k), name in dense.names.items() if node == made and name in sharing.pairs]
    found = [(node, i) for k, name in beside for node, at in other.uses[sharing.pairs[name]] if at == k]
    return [place for place in dict.fromkeys(found) if dense.nodes[made].op_type == other.nodes[place[0]].op_type]


def _written(target: Model, values: Mapping[Use, Weight]) -> Model:
    """A copy of `target` that reads these weights there; a weight that others read as well gets a name of its own."""
    model = target.copy()
    reads = Reads(model)
    given: dict[tuple[str, Hashable], list[Use]] = defaultdict(list)
    for use, weight in values.items():
        given[reads.names.get(use, ""), content(weight)].append(use)
    for (name, _), uses in given.items():
        alone = bool(name) and set(reads.uses[name]) == set(uses)
        fresh = name if alone else model.fresh_name(f"{name or uses[0][0]}_refit")
        model.weights[fresh] = values[uses[0]]
        for made, i in uses if not alone else ():
            node = reads.nodes[made]
            node.input.extend([""] * (i + 1 - len(node.input)))
            node.input[i] = fresh
    return model
