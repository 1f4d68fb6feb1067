"""What must hold of a model's quality, and what is said where it does not.

Knows figures and their intervals, no model and no data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from onnxprune.errors import UsageError
from onnxprune.measure.intervals import Interval
from onnxprune.options import Gates, flag, share_meant
from onnxprune.units import SHARE, amount, written

FIDELITY = ("agreement", "cosine")
"""What a gate may ask for without labels."""


@dataclass(frozen=True)
class Quality:
    """The metric of both models; `drop`: how much worse the second one is, and the interval of that (paired; None where
    the metric is one number of all samples). fidelity: of the second model to the first: agreement, cosine,
    signal-to-noise ratio in dB; `fidelity_intervals` of the first two.

    unit: "share" of numbers from 0 to 1, "dB", any word of the user's, or "". gates: what was asked for; `failed`: what
    does not hold, in words. warnings: what makes the figures doubtful."""

    metric: str
    before: float
    after: float
    drop: float
    interval: Interval | None
    samples: int
    fidelity: Mapping[str, float]
    data: str
    providers: tuple[str, ...]
    unit: str = ""
    higher_is_better: bool = True
    fidelity_intervals: Mapping[str, Interval | None] = field(default_factory=dict)
    gates: Gates | None = None
    failed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def refuse(gates: Gates | None, doubts: tuple[str, ...]) -> None:
    """UsageError where something makes the figures doubtful that a gate is to look at."""
    if gates and doubts:
        raise UsageError(f"{doubts[0]}; {flag(gates.asked[0])} could hold by mistake: mend that, or ask for no gate")


def check_unit(gates: Gates | None, metric: str, unit: str) -> None:
    """UsageError where a share may fall by all that there is."""
    most = gates.max_drop if gates else None
    if most is not None and unit == SHARE and most >= 1:
        raise UsageError(
            f"--max-drop {most:g} lets everything through: {metric} is a share, from 0 to 1{share_meant(most)}"
        )


def check_intervals(gates: Gates | None, drop: str, fidelity: str) -> None:
    """UsageError where an interval is asked for and there is none, for the reason that is given: of the drop, of what
    is measured without labels; "" where there is one."""
    for name in gates.asked if gates and gates.gate == "interval" else ():
        if why := drop if name == "max_drop" else fidelity:
            raise UsageError(f"--gate interval cannot be had for {flag(name)}: {why}; or use --gate point")


def failures(found: Quality, gates: Gates) -> Iterator[str]:
    """The gates that do not hold, in words; a value that is no number holds none."""
    sure = gates.gate == "interval"
    if gates.max_drop is not None:
        worst = _end(found.interval, 1) if sure else found.drop
        if not worst <= gates.max_drop:
            way = "falls" if found.higher_is_better == (found.drop >= 0) else "rises"
            values = f"{written(found.before, found.unit)} to {written(found.after, found.unit)}"
            end = f", perhaps by {amount(worst, found.unit)}" if sure else ""
            yield (
                f"{found.metric} {way} by {amount(found.drop, found.unit)} ({values}){end}, "
                f"more than --max-drop {gates.max_drop:g}"
            )
    for name in FIDELITY:
        least = getattr(gates, f"min_{name}")
        worst = _end(found.fidelity_intervals[name], 0) if sure and least is not None else found.fidelity[name]
        if least is not None and not worst >= least:
            end = f", perhaps {worst:.4f}" if sure else ""
            yield f"{name} with the dense model is {found.fidelity[name]:.4f}{end}, less than --min-{name} {least:g}"


def _end(interval: Interval | None, which: int) -> float:
    """An end of an interval; where there is none, nothing holds of it."""
    return math.nan if interval is None else interval[which]
