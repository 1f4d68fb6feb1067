"""What a run, a sweep or a comparison found, in a sentence that can be quoted by itself.

Knows results as data and computes none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from onnxprune.report.run import Report
from onnxprune.results import Compared, Cost, Proof, Sweep, SweepPoint
from onnxprune.units import SHARE, written


def headline(result: Report | Sweep | Compared) -> str:
    """Cost, quality and proof of what was made; of a sweep, the ends of its front. One line of plain text."""
    if isinstance(result, Sweep):
        return _of_sweep(result)
    if isinstance(result, Compared):
        return f"B has {_cost(result.before, result.after)} of A; {_quality(result.quality)}."
    quality, failed = result.validation, (result.validation or {}).get("failed")
    parts = [f"{_name(result.files)} keeps {_cost(result.before, result.after, 'its')}"]
    parts.append(_quality(quality) if quality else "its accuracy was not measured")
    if times := (result.latency or {}).get("measured"):
        speedup = times["speedup"]
        parts.append(
            f"it runs {speedup:.2f} times faster" if speedup >= 1 else f"it runs {1 / speedup:.2f} times slower"
        )
    parts.append(_proof(result.proof))
    return "; ".join(parts) + "." + (f" A gate failed: {'; '.join(failed)}." if failed else "")


def _name(files: Mapping[str, str]) -> str:
    return PurePath(files["model"]).name if "model" in files else "The model"


def _cost(before: Cost, after: Cost, whose: str = "the") -> str:
    """What is left of the MACs (a model may have none) and of the parameters."""
    counts = (("MACs", after.macs, before.macs), ("parameters", after.parameters, before.parameters))
    return " and ".join(f"{_percent(new / old)} of {whose} {name}" for name, new, old in counts if old)


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def value(number: float, unit: str) -> str:
    """A value of a metric as it is written: shares in per cent, others with their unit."""
    return _percent(number, 2) if unit == SHARE else written(number, unit)


def _quality(quality: Mapping[str, Any]) -> str:
    name, doubtful = str(quality["metric"]), ", which are doubtful" if quality["warnings"] else ""
    samples = f"on {quality['samples']:,} samples{doubtful}"
    if name == "snr":
        return f"its answers are {quality['after']:.1f} dB from those of the original {samples}"
    after, before = (value(quality[key], quality["unit"]) for key in ("after", "before"))
    if name in ("agreement", "cosine"):  # which the original has with itself
        return f"its {name} with the original is {after} {samples}"
    less = "" if quality["higher_is_better"] else " (less is better)"
    return f"its {name} is {after} where it was {before}{less} {samples}"


def _proof(proof: Proof) -> str:
    sizes = len(proof.sizes) or len(proof.batches)
    return "the cut is proven" + (f" at {sizes} sizes of its inputs" if sizes > 1 else "")


def _of_sweep(sweep: Sweep) -> str:
    """By MACs, or by parameters where there are none."""
    dense, done = sweep.dense, [p for p in sweep.points if p.error is None]
    cost = "macs" if dense.macs else "parameters"
    front = [p for name in sweep.fronts.get(cost, ()) for p in done if p.name == name]
    if not front:
        return f"No cut of {_name(sweep.files)} could be made, of {len(sweep.points)} that were tried."
    word = "MACs" if cost == "macs" else cost

    def told(point: SweepPoint) -> str:
        kept = getattr(point, cost) / getattr(dense, cost)
        good = value(point.metric or 0.0, sweep.unit)
        return f"{_percent(kept)} of its {word} with {good} {sweep.metric} ({point.criterion}, ratio {point.ratio:g})"

    ends = told(front[0]) if len(front) == 1 else f"from {told(front[0])} to {told(front[-1])}"
    others = f"; {len(done)} cuts were tried" if len(done) > 1 else ""
    return f"{_name(sweep.files)} pruned: {ends}; uncut it has {value(dense.metric or 0.0, sweep.unit)}{others}."
