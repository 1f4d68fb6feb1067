"""What the user should look at: weights that look like a fixed transform (STFT, mel, DCT), not learned.

Knows the weights of groups, no operator.
"""

from __future__ import annotations

import numpy as np

from onnxprune.trace import Groups

SHARE = 0.95
"""Of the energy of a sinusoid under any window, this much lies in a few neighbouring frequencies."""
FEW = 32


def of(groups: Groups) -> tuple[str, ...]:
    """All notes on one model."""
    return (*fixed_transforms(groups), *single_sizes(groups))


def single_sizes(groups: Groups) -> tuple[str, ...]:
    """Symbolic dimensions that work at one size only: what depends on them was taken as fixed."""
    return tuple(
        f"input dimension '{name}' works at one size only, as far as could be found; it was taken as fixed"
        for name in groups.trace.shapes.pinned
    )


def fixed_transforms(groups: Groups) -> tuple[str, ...]:
    """Prunable layers whose filters are nearly all pure tones: each has its energy in three neighbouring bins."""
    out: dict[str, str] = {}
    trace = groups.trace
    for s, _, ids in groups.blocks:
        weight = trace.model.weights[s.parameter]
        if s.parameter in out or len(weight.shape) < 2 or not groups.prunable[groups.classes[ids]].any():
            continue
        longest = max(weight.shape[1:])
        if longest < 32 or weight.size > 1 << 24:
            continue
        if weight.size // weight.shape[0] != longest:
            continue
        filters = weight.array().reshape(weight.shape[0], -1)
        found = tones(filters) or tones(filters.T)
        weight.release()
        if found:
            nodes = [n.name for n in trace.nodes if s.parameter in n.input]
            where = nodes[0] if nodes else s.parameter
            out[s.parameter] = (
                f"{s.parameter} (at '{where}') looks like a fixed transform, not learned: "
                f"keep it with --nodes-to-exclude '{where}'"
            )
    return tuple(out.values())


def tones(filters: np.ndarray) -> bool:
    """Whether nine filters of ten are sinusoids under a window. A few are looked at first: of most layers none is."""
    if filters.shape[0] < 8 or filters.shape[1] < 32:
        return False
    few = filters[np.linspace(0, len(filters) - 1, min(FEW, len(filters))).astype(int)]
    return (
        bool(np.isfinite(few).all()) and _pure(few) > 0.5 and bool(np.isfinite(filters).all()) and _pure(filters) > 0.9
    )


def _pure(filters: np.ndarray) -> float:
    """The share of sinusoids among those that are not constant: numbers far from zero are none, such as scales."""
    if not np.isfinite(filters).all():
        return 0.0
    waves = filters.astype(np.float64)
    waves -= waves.mean(axis=1, keepdims=True)
    power = np.abs(np.fft.rfft(waves, axis=1)) ** 2
    total = power.sum(axis=1)
    live = total > 1e-12
    if live.sum() < 8:
        return 0.0
    wide = np.pad(power[live], ((0, 0), (2, 2)))
    near = np.stack([wide[:, k : k + power.shape[1]] for k in range(5)]).sum(axis=0).max(axis=1)
    return float((near / total[live] > SHARE).mean())
