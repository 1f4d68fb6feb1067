"""Attention in other bases, so that what goes of a head is what counts least, whatever the channels it was written in.

Values o and the product W that reads them: of o R and R^-1 W the first r channels give the best r-dimensional
approximation of o W where R = C^-1/2 U, with C the covariance of o and U S V' = C^1/2 W (MoDeGPT, Lin et al. 2025,
arXiv 2408.09632; the SVD of values and outputs per head). Queries and keys: of q R and k T the first r give the best
inner products where R = Q^-1/2 U S^1/2, T = K^-1/2 V S^1/2 and U S V' = Q^1/2 K^1/2, with Q the second moments of the
queries and K the covariance of the keys, whose mean a softmax does not see (CORP, arXiv 2602.05243, compensates the
logits of the channels that stay; these bases contain that solution). The network computes what it did; then it is cut,
where the plan says, in these bases. Knows pairs of layers and second moments, no budget.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.fit.fitted import Fitted
from onnxprune.fit.linear import Linear
from onnxprune.fit.normal import Moments
from onnxprune.fit.pairs import Maker, Pair, Pairs
from onnxprune.fit.walk import Walk
from onnxprune.model import Array, Aside, Topology
from onnxprune.trace import Groups, Mask, Trace

ROWS = 12000
"""That moments are taken of, at most."""
DAMP = 1e-3
"""Of the mean variance, is added to each: a channel that hardly varies is not blown up."""
LEAST = 0.99
"""Error of the new basis by that of the old one, on inputs that choose, from which on the old one stays."""
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Of the rows that a layer reads: mean [K] and covariance [K, K]."""

    mean: Matrix
    covariance: Matrix

    @staticmethod
    def of(rows: Sequence[Array]) -> Spread:
        """Of several batches of rows [S, K]."""
        nothing = [np.zeros((len(r), 0), np.float32) for r in rows]
        moments = Moments.of(rows[0], nothing[0])
        for r, none in zip(rows[1:], nothing[1:], strict=True):
            moments.add(r, none)
        return Spread(moments.mean, moments.centred()[0] / moments.count)


def _spreads(
    layers: Iterable[Linear], walk: Walk, held: int, seed: int
) -> dict[str, tuple[Spread, Spread]]:  # fmt: skip
    """By the tensor that layers of the dense network read: on the batches that are fitted to, and on the `held` last
    ones."""
    found: dict[str, tuple[Spread, Spread]] = {}
    for layer in layers:
        if layer.data not in found:
            xs, rng = layer.inputs(walk), np.random.default_rng((seed, layer.index))
            rows = [layer.rows(x, layer.sample(x, -(-ROWS // len(xs)), rng))[0] for x in xs]
            cut = len(rows) - held or len(rows)
            found[layer.data] = Spread.of(rows[:cut]), Spread.of(rows[cut:] or rows)
    return found


def turned(
    groups: Groups, kept: Mask, feeds: Sequence[Mapping[str, Array]], held: int, providers: Sequence[str], seed: int,
    aside: bool = False,
) -> Trace:  # fmt: skip
    """The trace with the weights of heads that lose a part in bases in which that part counts least, where inputs that
    choose say that it helps; as it is where there are none. aside: new weights wait on the disk."""
    by_layers: dict[tuple[int, ...], list[Pair]] = defaultdict(list)
    for pair in Pairs(groups, kept):
        by_layers[tuple(sorted((layer.index for layer in pair.looked_at), reverse=True))].append(pair)
    if not by_layers:
        return groups.trace
    model = groups.trace.model.copy()
    model.aside = Aside() if aside else None
    fitted = Fitted(Topology(model), groups.trace.shapes.dtype, {})
    walk = Walk(groups.trace.model, feeds, groups.trace.shapes.dtype, providers)
    for _, pairs in sorted(by_layers.items()):  # in the order of the graph
        spreads = _spreads(pairs[0].looked_at, walk, held, seed)
        for pair in pairs:
            fit, test = ({name: both[part] for name, both in spreads.items()} for part in (0, 1))
            _turn_pair(pair, fit, test, fitted)
        walk.release()
    return replace(groups.trace, model=model)


def _turn_pair(pair: Pair, fit: Mapping[str, Spread], test: Mapping[str, Spread], fitted: Fitted) -> None:
    """Write other bases where they are better than those that the weights have by what is looked at to choose."""
    one, other = _sides(pair, test, fitted)
    bases, same, solved = (
        _bases(*_sides(pair, fit, fitted), pair.alive),
        np.eye(len(pair.alive)),
        pair.reader is not None,
    )
    old = _error(one, other, same, same, pair.alive, solved)
    if bases is None or not _error(one, other, *bases, pair.alive, solved) < LEAST * old:
        return
    for maker, basis in zip(pair.makers, bases, strict=False):
        _turn(maker, basis, fitted)
    if pair.reader is not None:
        matrix = pair.reader.read(fitted.graph.model)
        for at in pair.at:
            matrix[0, at] = bases[1].T @ matrix[0, at]
        pair.reader.write(fitted.graph.model, matrix)


def _sides(pair: Pair, spreads: Mapping[str, Spread], fitted: Fitted) -> tuple[Matrix, Matrix]:
    """[channels, channels]: second moments of what is on either side of the product, over all copies."""
    model = fitted.graph.model
    if pair.reader is not None:
        spread, matrix = spreads[pair.reader.data], pair.reader.read(model)[0]
        values = sum(spread.covariance[np.ix_(at, at)] for at in pair.at)
        return np.asarray(values), np.asarray(sum(matrix[at] @ matrix[at].T for at in pair.at))
    sides = []
    for maker, raw in zip(pair.makers, (True, not pair.centred), strict=True):
        spread, matrix = spreads[maker.layer.data], maker.layer.read(model)[0] * maker.tail.scale
        mean = spread.mean @ matrix + _offset(maker, fitted)
        sides.append(sum(
            matrix[:, at].T @ spread.covariance @ matrix[:, at] + raw * np.outer(mean[at], mean[at]) for at in maker.at
        ))  # fmt: skip
    return np.asarray(sides[0]), np.asarray(sides[1])


def _offset(maker: Maker, fitted: Fitted) -> Matrix:
    """[outputs]: what is added to a layer's product, scaled as that is."""
    bias = fitted.bias(maker.layer, len(maker.tail.offset))
    return np.asarray(maker.tail.offset + maker.tail.scale * (0 if bias is None else bias))


def _bases(one: Matrix, other: Matrix, alive: Mask) -> tuple[Matrix, Matrix] | None:
    """(R, T) with R T' = 1, the most important channels where `alive` is true; None where they cannot be told."""
    roots = [_root(m) for m in (one, other)]
    if not all(np.isfinite(r).all() for r in roots):
        return None
    u, s, _ = np.linalg.svd(roots[0] @ roots[1])
    scale = np.sqrt(np.maximum(s, 1e-12 * s[0] + 1e-30))
    first = np.linalg.solve(roots[0], u * scale)
    size = np.linalg.norm(first, axis=0)
    order = np.argsort(~alive, kind="stable")  # channels that stay take what counts most
    basis = np.empty_like(first)
    basis[:, order] = first / size
    return basis, np.linalg.inv(basis).T


def _root(moments: Matrix) -> Matrix:
    """The symmetric square root."""
    damped = moments + DAMP * max(float(np.trace(moments)) / len(moments), 1e-30) * np.eye(len(moments))
    values, vectors = np.linalg.eigh(damped)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 1e-30))) @ vectors.T)


def _error(one: Matrix, other: Matrix, basis: Matrix, dual: Matrix, alive: Mask, solved: bool) -> float:
    """Squared error of the product without the channels that go. solved: what stays of one side is read with weights
    that are the best for it, as those of a layer will be."""
    a, stay = basis.T @ one @ basis, np.flatnonzero(alive)
    kept: Matrix = np.eye(len(a))[stay]  # what stays, as it stands for all
    if solved:
        inner = a[np.ix_(stay, stay)]
        inner.flat[:: len(stay) + 1] += 1e-9 * max(float(np.trace(inner)) / len(stay), 1e-30)
        kept = np.asarray(np.linalg.solve(inner, a[stay]), np.float64)
    lost = np.eye(len(a))
    lost[stay] -= kept
    return float(np.einsum("ij,ij->", lost.T @ a @ lost, dual.T @ other @ dual))


def _turn(maker: Maker, basis: Matrix, fitted: Fitted) -> None:
    """Let a layer make its channels in another basis."""
    layer, its, model = maker.layer, maker.tail, fitted.graph.model
    matrix, offset = layer.read(model), _offset(maker, fitted)
    moved = np.zeros_like(offset)
    for at in maker.at:
        matrix[0][:, at] = matrix[0][:, at] @ basis
        moved[at] = offset[at] @ basis - offset[at]
    layer.write(model, matrix)
    if moved.any() and its.shift is not None:
        own = fitted.graph.nodes[fitted.graph.made_by[its.shift.node.output[0]]]
        fitted.move([replace(its, shift=replace(its.shift, node=own))], moved / its.scale)
