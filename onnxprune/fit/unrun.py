"""What a branch that no input lets run has in common with the one that runs: weights that both read the same way.

They may change for both, as the weight of two layers does of which inputs reach one only. Knows layers and bodies, no
solutions.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterator

from onnxprune.fit.bodies import Body
from onnxprune.fit.finding import layers, shared
from onnxprune.fit.fitted import Fitted
from onnxprune.fit.linear import Linear
from onnxprune.fit.tails import tail
from onnxprune.fit.walk import Walk
from onnxprune.model import Topology, bodies

Rank = Callable[[str], int | None]


def in_common(walk: Walk, index: int, runs: Container[str], rank: Rank) -> frozenset[str]:
    """Names of parameters that all branches of an If read as weights or offsets of equal layers and in no other way,
    where one branch `runs` (by attribute) and no other does."""
    node = walk.nodes[index]
    names = [name for name, _ in bodies(node)]
    if node.op_type != "If" or sum(name in runs for name in names) != 1:
        return frozenset()
    here, there = (dict(_uses(Body.of(walk, index, name), walk, rank)) for name in names)
    return frozenset(root for use in here.keys() & there.keys() for root in here[use])


def _uses(body: Body, walk: Walk, rank: Rank) -> Iterator[tuple[Hashable, tuple[str, ...]]]:
    """Of a body, every layer with what it does to its input, and the parameters of it that nothing else in there
    reads."""
    graph = Topology(body.model)
    fitted = Fitted(graph, walk.types, {})
    for members in shared(layers(body.model, rank)):
        uses = [_use(layer, fitted, rank) for layer in members] if fitted.own(members) else []
        if uses and uses[0] is not None and uses.count(uses[0]) == len(uses):
            yield uses[0]


def _use(layer: Linear, fitted: Fitted, rank: Rank) -> tuple[Hashable, tuple[str, ...]] | None:
    """None where the offset of one such layer could change without that of another."""
    matrix = layer.read(fitted.graph.model)
    its = tail(layer, fitted.graph, matrix.shape[0] * matrix.shape[2], rank(layer.out))
    offset = None if its.shift is None else fitted.offset(its.shift)
    if its.shift is not None and (offset is None or any(len(fitted.readers(root, ())) != 1 for root in offset.roots)):
        return None
    roots = layer.roots if offset is None else (*layer.roots, *offset.roots)
    form = (layer.node.op_type, *sorted(a.SerializeToString() for a in layer.node.attribute))
    return (layer.key, form, its.scale.tobytes(), None if offset is None else offset.key), roots
