"""Operators of ai.onnx.ml, which keep what they learned in attributes: scalers, linear models, machines, trees.

An attribute that has a value for each column of the input is sliced where columns go. A rule knows one `Op`, not the
graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from onnxprune.trace.editor import Editor
from onnxprune.trace.labels import Ids
from onnxprune.trace.op import Op
from onnxprune.trace.rules.base import ranks_known, spell, unary
from onnxprune.trace.tracing import ReductionKind

UNKNOWN = "its columns are not followed"


def _columns(op: Op) -> Ids | None:
    """The ids of the columns of the input, rows of columns or a single row; None where there are none, and where they
    are not followed and stay."""
    if not op.blocks(0) or not ranks_known(op, [0]):
        return None
    block = op.block_on(0, len(op.dims(0)) - 1)
    if len(op.dims(0)) > 2 or block is None or block.ids.shape != op.dims(0)[-1:]:
        op.freeze(UNKNOWN)
        return None
    return block.ids


def _slice(op: Op, ids: Ids, names: Sequence[str]) -> bool:
    """Slice these attributes, rows of columns, with the ids of the columns; False where one has none such rows. What
    is given once, for all columns, stays."""
    found = {name: op.attr(name, []) for name in names}
    many = {name: values for name, values in found.items() if len(values) > 1}
    if any(len(values) % ids.size for values in many.values()):
        return False

    def sliced(e: Editor, name: str, values: Sequence[Any]) -> None:
        e.attr(name, np.reshape(values, (-1, ids.size))[:, e.kept(ids)].ravel().tolist())

    for name, values in many.items():
        op.edit(partial(sliced, name=name, values=values))
    return True


def per_column(*names: str) -> Callable[[Op], None]:
    """Scaler, Imputer: every position by what attributes of these names say of its column."""

    def rule(op: Op) -> None:
        unary(op)
        ids = _columns(op)
        if ids is None or not _slice(op, ids, names):
            op.freeze(UNKNOWN, outputs=True)

    return rule


def normalizer(op: Op) -> None:
    """Normalizer: rows are divided by their norm."""
    if _columns(op) is not None:
        spelled = spell(op.dims(0))
        op.eq({0: spelled}, {0: spelled}, stat=spelled[-1])


def linear(op: Op) -> None:
    """LinearRegressor, LinearClassifier: a matrix product with coefficients."""
    _sums(op, "coefficients")


def machine(op: Op) -> None:
    """SVMRegressor, SVMClassifier: products with support vectors, or distances to them; without any, a linear model."""
    vectors = op.attr("n_supports", 0) or op.attr("vectors_per_class")
    radial = bool(vectors) and op.attr("kernel_type", "LINEAR") == "RBF"
    _sums(op, "support_vectors" if vectors else "coefficients", "gather" if radial else "sum")


def _sums(op: Op, name: str, kind: ReductionKind = "sum") -> None:
    """Sums over columns, one for each row of the attribute `name`, from which all outputs are made."""
    ids = _columns(op)
    if ids is None:
        return
    if not _slice(op, ids, [name]):
        return op.freeze(UNKNOWN)
    spelled = spell(op.dims(0), ["n", "c"][2 - len(op.dims(0)) :])
    op.eq({0: spelled}, {0: ["n", ""]}, sizes={"r": len(op.attr(name)) // ids.size}, kind=kind, macs="nrc")


def trees(op: Op) -> None:
    """TreeEnsemble, TreeEnsembleRegressor, TreeEnsembleClassifier: columns that no node asks for may go, and those that
    are asked for get new numbers."""
    ids = _columns(op)
    if ids is None:
        return
    asked = np.array(op.attr("nodes_featureids", []), np.int64)
    modes = op.attr("nodes_modes", [])
    leaf = np.array([m == b"LEAF" for m in modes], bool) if isinstance(modes, list) else np.zeros(asked.size, bool)
    if leaf.size != asked.size or not ((asked >= 0) & (asked < ids.size) | leaf).all():
        return op.freeze(UNKNOWN)
    op.freeze_ids(ids[np.unique(asked[~leaf])], "a tree asks for this column")
    op.eq({0: spell(op.dims(0), ["n", "c"][2 - len(op.dims(0)) :])}, {0: ["n", ""]})

    def renumbered(e: Editor) -> None:
        e.attr("nodes_featureids", np.where(leaf, 0, np.cumsum(e.kept(ids))[asked * ~leaf] - 1).tolist())

    op.edit(renumbered)
