"""The smallest cut that is fast enough: the ratio is searched by measured time, for which no weights need be refitted
and nothing proven. Knows ratios and seconds; how a cut is decided, carried out and timed is the affair of others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from onnxprune.errors import CheckFailed, NothingToPrune
from onnxprune.measure import Benchmark, timed
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline.pruner import Pruned, Pruner
from onnxprune.pipeline.stages import Clock
from onnxprune.planning import Decision
from onnxprune.progress import inside, now
from onnxprune.rewrite import rewrite
from onnxprune.units import duration

STEPS = 10
"""Ratios that are tried at most."""
CLOSE = 0.97
"""A cut whose time comes so near to the bound is looked for no further."""
FARTHEST = 0.9
"""Of what is open, the part that one step goes at most, so that one that nothing is known of is not the end."""
NARROW = 2e-3
"""What is open between two ratios, and not worth another try."""
SECONDS = 1.0
"""How long the models of one try run, in turns."""
AGAIN = 3
"""How often a cut is carried out, where what comes of it turns out slower than its try."""


@dataclass
class Search:
    """Ratios, and the milliseconds that what they leave takes. whole: what the dense model took at first; low: the
    largest ratio that is too slow; high: the smallest that is fast enough. times: of what was removed."""

    pruner: Pruner
    dense: Model
    bound: float
    whole: float = 0.0
    tried: list[dict[str, Any]] = field(default_factory=list)
    low: tuple[float, float] = (0.0, 0.0)
    high: tuple[float, float] = (1.0, 0.0)
    best: tuple[Decision, Options] | None = None
    times: dict[bytes, float] = field(default_factory=dict)

    def begin(self) -> None:
        """Time the dense model; NothingToPrune where it is fast enough."""
        self.whole = timed(self.dense, self.dense, self.pruner.options, SECONDS).before.median
        self.low = 0.0, self.whole
        if self.whole <= self.bound:
            bound = duration(self.bound)
            raise NothingToPrune(f"the model takes {duration(self.whole)} as it is, within --max-latency {bound}")

    def milliseconds(self, model: Model) -> float:
        """What a model takes beside the dense one: whatever else runs meanwhile slows both down."""
        found = timed(self.dense, model, self.pruner.options, SECONDS)
        return self.whole * found.after.median / found.before.median

    def run(self) -> tuple[Decision, Options]:
        """The cut with the smallest ratio that is fast enough, by interpolation between one that is and one that is
        not. CheckFailed where there is none."""
        for _ in range(STEPS):
            (low, slow), (high, quick) = self.low, self.high
            part = (slow - self.bound * (1 + CLOSE) / 2) / max(slow - quick, 1e-9)
            ratio = round(low + (high - low) * min(max(part, 1 - FARTHEST), FARTHEST), 4)
            if high - low < NARROW or not self._try(ratio):
                break
        if self.best is None:
            raise self.failure()
        return self.best

    def failure(self) -> CheckFailed:
        """That nothing is fast enough, and what comes nearest."""
        least = min(self.tried, key=lambda one: float(one["latency"]))
        return CheckFailed(
            f"no cut is fast enough for --max-latency {duration(self.bound)}: the least that was reached is "
            f"{duration(least['latency'])}, at --ratio {least['ratio']:.3f} (the model takes {duration(self.whole)})"
        )

    def _try(self, ratio: float) -> bool:
        """Time one ratio; whether to go on."""
        options = replace(self.pruner.options, ratio=ratio)
        with inside(f"search: ratio {ratio:.3f}", len(self.tried) / STEPS):
            decision = self.pruner.planner(options)
            groups, removed = self.pruner.groups, decision.removed.tobytes()
            if removed not in self.times:
                small = rewrite(groups.trace, groups.kept_ids(decision.removed)).model
                self.times[removed] = self.milliseconds(small) if decision.removed.any() else self.whole
            taken = self.times[removed]
        return self.note(ratio, taken, (decision, options))

    def note(self, ratio: float, taken: float, made: tuple[Decision, Options]) -> bool:
        """Keep what a ratio takes; whether to go on."""
        holds = taken <= self.bound
        now().step(f"ratio {ratio:.3f} takes {duration(taken)}", len(self.tried) / STEPS)
        self.tried.append({"ratio": ratio, "holds": holds, "latency": taken})
        if holds:
            self.high, self.best = (ratio, taken), made
        else:
            self.low = ratio, taken
        return not holds or taken < CLOSE * self.bound


def fast_enough(pruner: Pruner, dense: Any, clock: Clock) -> Pruned:
    """The smallest cut that takes at most `options.max_latency` milliseconds, as `report.search` tells.

    NothingToPrune where the dense model does; CheckFailed where no cut does, with the least that was reached."""
    found = _begun(pruner, dense)
    for _ in range(AGAIN):
        decision, options = found.run()
        pruned = pruner.carried_out(decision, options, clock)
        clock.progress("benchmark", 0.0)
        times = timed(found.dense, pruned.model, options)
        taken = found.whole * times.after.median / times.before.median
        if taken <= found.bound:
            return _told(pruned, found, times)
        found.best, found.high = None, (1.0, 0.0)
        found.note(options.ratio, taken, (decision, options))
    raise found.failure()


def decided(pruner: Pruner, dense: Any) -> tuple[Decision, Options]:
    """What `fast_enough` carries out first, and with which options; raises what it does."""
    return _begun(pruner, dense).run()


def _begun(pruner: Pruner, dense: Any) -> Search:
    found = Search(pruner, Model.load(dense), float(pruner.options.max_latency or 0))
    found.begin()
    return found


def _told(pruned: Pruned, found: Search, times: Benchmark) -> Pruned:
    """The report with what was measured and tried."""
    report = pruned.report
    search = {"ratio": report.options.ratio, "tried": found.tried, "max_latency": found.bound}
    latency = {**(report.latency or {}), "measured": times.to_json()}
    return pruned._replace(report=replace(report, latency=latency, search=search))
