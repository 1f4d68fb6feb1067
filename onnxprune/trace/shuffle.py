"""Chains of movements that come to one permutation of one axis: a channel shuffle is Reshape, Transpose, Reshape.

Node by node, the tensors in between are rectangles, and the merge in another order ties what stands at one place of all
their rows: after a few chained shuffles everything is one unit. Seen as a whole such a chain only renames positions, so
that nothing is tied; where something goes, a Gather of what is left takes its place. Knows chains of nodes: with
`trace/group_norm.py` it is the one whose rule looks past its own node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from onnx import NodeProto

from onnxprune.model import attribute, traits
from onnxprune.shapes import Dim, Size, quotient
from onnxprune.trace.editor import Editor
from onnxprune.trace.labels import Block, Ids
from onnxprune.trace.op import Op
from onnxprune.trace.tracing import Trace

LONGEST = 32
"""Movements in a chain: a shuffle is three to five."""
Atom = tuple[int, Dim, Dim]
"""(axis of the chain's input, stride along it, length): axes of later tensors are runs of these, outermost first."""


def shuffle(op: Op) -> bool:
    """Give the output of the chain that starts here its blocks; False where there is no such chain.

    Asked only where one axis, and no other, is labelled: the tensors in between need no blocks of their own then, for
    they stay as they are or go."""
    blocks = op.blocks(0)
    if not _moves(op.node) or len(blocks) != 1 or len(blocks[0].axes) != 1 or op.is_parameter(0):
        return False
    block = blocks[0]
    for chain in _chains(op):
        found = _permutation(op.trace, chain)
        if found is not None and (found[0],) == block.axes and found[1].size == block.ids.size:
            last = Op(op.trace, chain[-1], op.trace.nodes[chain[-1]])
            last.set(0, [Block(block.axes, block.ids[found[1]])])
            last.edit(partial(_gather, source=op.node.input[0], block=block, order=found[1], chain=chain))
            op.trace.passed.update(chain)
            return True
    return False


def _moves(node: NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in traits.REARRANGING


def _gather(e: Editor, source: str, block: Block, order: Ids, chain: Sequence[int]) -> None:
    kept = e.kept(block.ids)
    if not kept.all():
        moved = np.cumsum(kept) - 1
        e.replace(chain, "Gather", source, moved[order[kept[order]]], axis=block.axes[0])


def _chains(op: Op) -> Iterator[list[int]]:
    """Ever longer chains of movements from this node on, as node indices: those that may end where they began.

    Nobody else may read what is in between."""
    trace, nodes, index = op.trace, op.trace.nodes, op.index
    dims, chain = op.dims(0), list[int]()
    name, turned = op.node.input[0], False
    while len(chain) < LONGEST:
        node = nodes[index]
        if not _moves(node) or list(node.input).count(name) != 1 or node.input[0] != name or trace.excluded(node):
            return
        chain.append(index)
        name, turned = node.output[0], turned or node.op_type == "Transpose"
        if turned and trace.shapes.static(name) == dims:
            yield list(chain)
        readers = trace.readers.get(name, ())
        if len(readers) != 1 or readers[0] == len(nodes):
            return
        index = readers[0]


def _permutation(trace: Trace, chain: Sequence[int]) -> tuple[int, Ids] | None:
    """(axis, order) where the chain moves positions of one axis only: position i of its output was order[i]."""
    nodes = [trace.nodes[k] for k in chain]
    dims = trace.shapes.sizes(nodes[0].input[0])
    if dims is None or dims != trace.shapes.sizes(nodes[-1].output[0]):
        return None
    axes = _followed(trace, nodes, dims)
    if axes is None or any(axis != k for k, own in enumerate(axes) for axis, _, n in own if n != 1):
        return None
    moved = []
    for k, own in enumerate(axes):
        if own == [(k, 1, dims[k])]:
            continue
        order = _order(own)
        if order is None:
            return None
        if (np.diff(order) != 1).any():
            moved.append((k, order))
    return moved[0] if len(moved) == 1 else None


def _followed(trace: Trace, nodes: Sequence[NodeProto], dims: Sequence[Dim]) -> list[list[Atom]] | None:
    """The axes of the last node's output in atoms of the first one's input, which has these dims."""
    axes: list[list[Atom]] = [[(k, 1, n)] for k, n in enumerate(dims)]
    for node in nodes:
        if node.op_type == "Transpose":
            perm = attribute(node, "perm", range(len(axes))[::-1])
            axes = [axes[k] for k in perm]
            continue
        fitting = _regrouped([a for own in axes for a in own], trace.shapes.sizes(node.output[0]) or ())
        if fitting is None:
            return None
        axes = fitting
    return axes


def _order(atoms: Sequence[Atom]) -> Ids | None:
    """The positions that an axis of these atoms runs through; None where a size is open."""
    order = np.zeros(1, np.int64)
    for _, stride, n in atoms:
        if isinstance(stride, Size) or isinstance(n, Size):
            return None
        order = (order[:, None] + np.arange(n) * stride).ravel()
    return order


def _regrouped(atoms: Sequence[Atom], dims: Sequence[Dim]) -> list[list[Atom]] | None:
    """The axes of a tensor of sizes `dims` with the same elements in row-major order; None where atoms do not fit."""
    left = [a for a in reversed(atoms) if a[2] != 1]
    out: list[list[Atom]] = []
    for size in dims:
        own: list[Atom] = []
        need = size
        while need != 1:
            if need == 0 or not left:
                return None
            axis, stride, n = left.pop()
            more, inner = quotient(need, n), quotient(n, need)
            if more is not None:
                need = more
            elif inner is not None:  # the outer part belongs here, the inner one to the axes that follow
                left.append((axis, stride, inner))
                stride, n, need = stride * inner, need, 1
            else:
                return None
            own.append((axis, stride, n))
        out.append(own)
    return None if left else out
