"""Criteria that score units: small functions of `CriterionInputs`, larger = more important.

They know no operator and no graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError
from onnxprune.planning.criteria import gradient
from onnxprune.planning.criteria.inputs import CriterionInputs

if TYPE_CHECKING:
    from onnxprune.fit import Site

Scores = NDArray[np.float64]


def bn_scale(inputs: CriterionInputs) -> Scores:
    """|gamma| of the normalisations behind a unit (Liu et al. 2017, Network Slimming, arXiv 1708.06519); the mean where
    there are none."""
    scores, seen = np.zeros(inputs.count), np.zeros(inputs.count, bool)
    if not inputs.scales:
        raise UsageError("--criterion bn-scale needs a normalisation in the graph; it was folded, so take obs or l2")
    for gamma, units in inputs.scales:
        np.add.at(scores, units, np.abs(gamma))
        seen[units] = True
    scores[~seen] = scores[seen].mean()
    return scores


def fpgm(inputs: CriterionInputs) -> Scores:
    """Sum of the distances to all other slices of the same matrix: small near the geometric median, where a filter is
    replaceable (He et al. 2019, Filter Pruning via Geometric Median, arXiv 1811.00250, eq. 8)."""
    scores = np.zeros(inputs.count)
    for rows, units in inputs.slices():
        squares = np.square(rows).sum(1)
        apart = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0)).sum(1)
        if apart.mean() > 0:
            np.add.at(scores, units, apart / apart.mean())
    return scores


def lamp(inputs: CriterionInputs) -> Scores:
    """w^2 by the sum of all that are no smaller, in the unit's family (Lee et al. 2021, arXiv 2010.07611, eq. 4)."""
    scores = inputs.importance(lambda weight, rng: np.asarray(np.square(weight)))
    for units in inputs.families:
        order = np.argsort(scores[units])
        tail = np.cumsum(scores[units][order][::-1])[::-1]
        scores[units[order]] = scores[units][order] / np.maximum(tail, 1e-300)
    return scores


def activation(inputs: CriterionInputs) -> Scores:
    """Root mean square of what a unit gives to each layer that reads it, each layer by its mean (Molchanov et al. 2017,
    arXiv 1611.06440, section 2.2)."""
    scores = np.zeros(inputs.count)
    for site in inputs.sites:
        _add(scores, site.units, _strength(site))
    return scores


def wanda(inputs: CriterionInputs) -> Scores:
    """sum |W| |x| over a unit's columns (Sun et al. 2024, arXiv 2306.11695, eq. 1), each site by its mean."""
    scores = np.zeros(inputs.count)
    for site in inputs.sites:
        _add(scores, site.units, np.abs(site.matrix).sum(2) * _strength(site))
    return scores


def flap(inputs: CriterionInputs) -> Scores:
    """Var(x) sum W^2 over a unit's columns, standardised in each site (An et al. 2024, arXiv 2312.11983, eq. 5)."""
    scores = np.zeros(inputs.count)
    for site in inputs.sites:
        variance = np.diagonal(site.gram, axis1=1, axis2=2) - np.square(site.mean) * (not site.movable)
        each = (variance * np.square(site.matrix).sum(2)).reshape(*site.units.shape, -1).sum(2)
        np.add.at(scores, site.units, (each - each.mean()) / (each.std() or 1.0))
    return np.asarray(scores - scores.min())


def beta_rank(inputs: CriterionInputs) -> Scores:
    """Mean |f| of the filter that makes a unit times the deviation of what it gives by that of what it reads, averaged
    over positions, each layer by its mean (Homayounfar et al. 2023, Beta-Rank, arXiv 2304.07461; `std_filters` of its
    code). A unit that no layer makes counts as the mean of the others."""
    scores, seen = np.zeros(inputs.count), np.zeros(inputs.count, bool)
    for flow in inputs.flows:
        gain = flow.spread_out / np.maximum(flow.spread_in, 1e-30)[..., None]
        each = np.abs(flow.matrix).mean(1) * gain.mean(1)
        if each.mean() > 0:
            np.add.at(scores, flow.units, each / each.mean())
            seen[flow.units] = True
    scores[~seen] = scores[seen].mean() if seen.any() else 1.0
    return scores


def cfsp(inputs: CriterionInputs) -> Scores:
    """Coarse and fine: how far the layer that reads a unit turns the stream that it adds to, times the unit's share of
    |W| in each output, averaged over outputs, times |x| (Wang et al. 2025, CFSP, arXiv 2409.13199), each site by its
    mean. Shares are of an output: those of a unit over all outputs, as in the authors' code, sum up to one whatever its
    weights are. Layers that add to no stream count as the mean of the others."""
    turns = inputs.turns
    usual = float(np.mean(list(turns.values()))) if turns else 1.0
    scores = np.zeros(inputs.count)
    for site in inputs.sites:
        coarse = float(np.mean([usual if site.inside else turns.get(m.index, usual) for m in site.members]))
        weight = np.abs(site.matrix)
        fine = (weight / np.maximum(weight.sum(1, keepdims=True), 1e-30)).mean(2) * _strength(site)
        own = np.zeros(inputs.count)
        _add(own, site.units, fine)
        scores += coarse / (usual or 1.0) * own
    return scores


def obs(inputs: CriterionInputs) -> Scores:
    """The least-squares error that removing a unit alone leaves after the update (SPA, eq. 7)."""
    from onnxprune.planning.obs import Elimination

    scores = np.zeros(inputs.count)
    for site in inputs.sites:
        for g in range(len(site.units)):
            part = Elimination(site, g, inputs.groups.prunable)
            units = list(part.columns)
            scores[units] += part.scores(units)
    return scores


def taylor(inputs: CriterionInputs) -> Scores:
    """See `gradient.taylor`."""
    return gradient.taylor(inputs.gradients())


def taylor_so(inputs: CriterionInputs) -> Scores:
    """See `gradient.taylor_so`."""
    return gradient.taylor_so(inputs.gradients("fisher"))


def lrp(inputs: CriterionInputs) -> Scores:
    """See `gradient.lrp`."""
    return gradient.lrp(inputs.gradients("logit"))


def oracle(inputs: CriterionInputs) -> Scores:
    """The change of the loss when the unit alone is masked: one forward a unit; the yardstick of all others."""
    return inputs.masked_losses()


def _strength(site: Site) -> Scores:
    """[groups, K]: root mean square of every column of a site's input."""
    return np.asarray(np.sqrt(np.diagonal(site.gram, axis1=1, axis2=2) + np.square(site.mean) * site.movable))


def _add(scores: Scores, units: NDArray[np.int64], columns: Scores) -> None:
    """Columns [groups, K] summed over each channel's columns, divided by their mean."""
    each = columns.reshape(*units.shape, -1).sum(2)
    if each.mean() > 0:
        np.add.at(scores, units, each / each.mean())
