"""Group normalisation as exporters spell it without an operator of its own: Reshape to [batch, groups, all that is in a
group], InstanceNormalization, Reshape back.

Where the sides of an image are open, its channels lie on an axis of run-time size in between, in runs as long as the
image is large. Node by node such an axis is not followed; seen as a whole the three nodes leave every channel where it
was, and take statistics over those of its group. Knows chains of nodes, as `trace/shuffle.py` does.
"""

from __future__ import annotations

from onnxprune.shapes import Size
from onnxprune.trace.labels import Block
from onnxprune.trace.op import Op
from onnxprune.trace.rules.inputs import Norm


def group_norm(op: Op) -> bool:
    """Give the output of the chain that starts here its blocks; False where there is no such chain, or where the sides
    of the image are known, so that the rules of its nodes do.

    As many channels stay in every group that stays."""
    blocks = op.blocks(0)
    if op.type != "Reshape" or len(blocks) != 1 or blocks[0].axes != (1,) or op.is_parameter(0):
        return False
    groups, nodes = _groups(op), _behind(op)
    if groups is None or nodes is None:
        return False
    block, (norm, back) = blocks[0], nodes
    rows = block.ids.reshape(groups, -1)
    inside = Block((1, 2), rows, runs=True) if groups > 1 else Block((2,), block.ids, runs=True)
    vectors = [Block((0,), op.labels.derive(rows))] if groups > 1 else []
    for i in (Norm.SCALE, Norm.BIAS) if groups > 1 else ():
        norm.meet(i, ["g"], ["g"], vectors, "meets an axis of fixed size here")
    op.set(0, [inside])
    op.edit(lambda e: e.sizes(1, 0))
    norm.set(0, [inside])
    norm.note_gather([(0, inside), *((i, v) for i in (Norm.SCALE, Norm.BIAS) for v in vectors)], [(0, inside)])
    norm.note_normalised(inside.ids, [inside.ids.ndim - 1])
    back.set(0, [block])
    back.edit(lambda e: e.sizes(1, 0))
    op.trace.passed.update((norm.index, back.index))
    return True


def _groups(op: Op) -> int | None:
    """Into how many groups of several channels a Reshape takes the channels of an image of open size."""
    before, after, target = op.sizes(0), op.out_sizes(0), op.value(1) if op.has(1) else None
    if (
        before is None
        or after is None
        or target is None
        or len(before) < 3
        or len(after) != 3
        or target.ravel()[2] != -1
    ):
        return None
    channels, groups = before[1], after[1]
    if isinstance(channels, Size) or isinstance(groups, Size) or not isinstance(after[2], Size):
        return None
    fits = before[0] == after[0] and 0 < groups < channels and channels % groups == 0
    return groups if fits and op.blocks(0)[0].ids.size == channels else None


def _behind(op: Op) -> tuple[Op, Op] | None:
    """The normalisation behind a Reshape, and the Reshape behind that to what there was; None where these are not all
    that reads what is in between."""
    trace, chain, index = op.trace, [op], op.index
    for wanted in ("InstanceNormalization", "Reshape"):
        name = trace.nodes[index].output[0]
        readers = trace.readers.get(name, ())
        if len(readers) != 1 or readers[0] == len(trace.nodes):
            return None
        index = readers[0]
        node = trace.nodes[index]
        chain.append(Op(trace, index, node))
        if chain[-1].type != wanted or node.input[0] != name or list(node.input).count(name) != 1:
            return None
    if any(trace.excluded(part.node) for part in chain) or chain[-1].out_sizes(0) != op.sizes(0):
        return None
    return chain[1], chain[2]
