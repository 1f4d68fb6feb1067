"""One point of a sweep: how it is made, and what it shares with the others that are made in the same process.

Every point is one JSON file in a folder, written whole by the process that made it. Knows runs and their reports; it
prunes through `Pruner`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from onnxprune.errors import explain
from onnxprune.files import json_text, write_json
from onnxprune.measure import Comparison, compared, timed
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pipeline import Clock, Pruner
from onnxprune.progress import inside
from onnxprune.rehearsal import blaming
from onnxprune.report import to_json
from onnxprune.results import Cost, SweepPoint


@dataclass(frozen=True)
class Measured:
    """metric: its name, with its `unit` and which way is better. latency: seconds of one run, where it is measured.
    warnings: what makes the value doubtful."""

    metric: str
    value: float
    latency: float | None = None
    unit: str = ""
    higher_is_better: bool = True
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One point to make. key: of everything that it depends on; shared: of that without its ratio and criterion."""

    name: str
    model: Path
    options: Options
    data: str | None
    metric: str
    samples: int | None
    benchmark: bool
    folder: Path
    keep: bool
    key: str
    shared: str
    measure: Measure

    @property
    def file(self) -> Path:
        """Where the point goes."""
        return self.folder / f"{self.name}.json"


Measure = Callable[[Job, Model], Measured]
"""How good a model is, and how long it takes if that is asked for."""


class Bench:
    """What the points of one sweep share in one process; each part is made when it is first asked for."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @cached_property
    def pruner(self) -> Pruner:
        """The model ready to be cut, with its inputs, statistics, scores and curves."""
        return Pruner(self.job.model, self.job.options.resolved(), Clock())

    @cached_property
    def comparison(self) -> Comparison:
        """The dense model on the data; without data on other inputs than those that it was pruned with: of the
        calibration data as many again, as far as there are others, or made-up ones, as many as `compare` makes."""
        job = self.job
        options = replace(job.options, seed=job.options.seed + 1)
        limit = job.samples or (options.calib_samples if options.calib and not job.data else None)
        return compared(job.model, job.data or options.calib, options, job.metric, limit)


_benches: dict[str, Bench] = {}
"""By what its jobs share, that of the sweep that this process works for: one at most."""


def bench(job: Job) -> Bench:
    """That of the job; an earlier one of another sweep is let go."""
    if job.shared not in _benches:
        _benches.clear()
        _benches[job.shared] = Bench(job)
    return _benches[job.shared]


def clear() -> None:
    """Let go of what is shared in this process."""
    _benches.clear()


def quality(job: Job, model: Model) -> Measured:
    """The metric of a model, and its latency if that is asked for."""
    found = bench(job).comparison.measure(model)
    measured = Measured(found.metric, found.after, None, found.unit, found.higher_is_better, found.warnings)
    if not job.benchmark:
        return measured
    times = timed(Model.load(job.model), model, job.options)
    return replace(measured, latency=times.after.median / 1e3)


def finished(job: Job) -> SweepPoint | None:
    """The point that an earlier run made of the same options and files."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(job.file.read_text("utf-8"))
        point = SweepPoint(**found["point"])
        if found["key"] == job.key and point.error is None and (not job.keep or Path(str(point.model)).is_file()):
            return point
    return None


def run(job: Job) -> SweepPoint:
    """Make one point, whatever happens; perhaps in another process, perhaps for the second time."""
    if point := finished(job):
        return point
    started = time.perf_counter()
    point = SweepPoint(job.name, job.options.criterion, job.options.ratio)
    report = None
    try:
        with blaming((job.model, job.options)), inside(f"points: {job.name}", 0.0):
            made = bench(job).pruner.cut(job.options.ratio, job.options.criterion, Clock())
            _, point = _measured(job, point, made.model, made.report.after)
        report = to_json(made.report)
        if job.keep:
            path = job.folder / f"{job.name}.onnx"
            made.model.save(path, also={path.with_suffix(".plan.json"): json_text(made.plan.to_json())})
            point = replace(point, model=str(path))
    except Exception as error:
        point = replace(point, error=explain(error)[0])
    point = replace(point, seconds=time.perf_counter() - started)
    write(job, point, report=report)
    return point


def original(job: Job) -> tuple[Measured, SweepPoint]:
    """What the metric is, and the model as it is. What fails here fails everywhere, so it is raised."""
    job = replace(job, keep=False)
    if point := finished(job):
        found = json.loads(job.file.read_text("utf-8"))["measured"]
        return Measured(**{**found, "warnings": tuple(found["warnings"])}), point
    with blaming((job.model, job.options)):
        cost = bench(job).pruner.cost
    measured, point = _measured(job, SweepPoint(job.name, "", 0.0), Model.load(job.model), cost)
    write(job, point, measured=asdict(measured))
    return measured, point


def _measured(job: Job, point: SweepPoint, model: Model, cost: Cost) -> tuple[Measured, SweepPoint]:
    """What was measured, and the point with what the model is worth and costs."""
    found = job.measure(job, model)
    costs: dict[str, Any] = {"parameters": cost.parameters, "macs": round(cost.macs), "bytes": cost.bytes}
    return found, replace(point, metric=found.value, latency=found.latency, **costs)


def write(job: Job, point: SweepPoint, **more: Any) -> None:
    """The file of a point, whole."""
    job.folder.mkdir(exist_ok=True)  # with the first file: a sweep that cannot begin leaves nothing
    write_json(job.file, {"key": job.key, "point": asdict(point), **more})
