"""Many ways to prune one model: ratios by criteria, side by side, and those that no other way beats.

Every point is one JSON file in a folder, written whole by the process that made it: a sweep that was ended goes on
where it was, and what was made with the same options from the same files is not made again. A point that fails says why
and is tried again by the next sweep. Knows runs and their reports; it prunes through the API.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune import __version__, api
from onnxprune.errors import UsageError, explain
from onnxprune.files import write_json
from onnxprune.measure import compared, timed
from onnxprune.model import Model
from onnxprune.options import Options, Progress
from onnxprune.planning import criteria
from onnxprune.progress import Stages, inside, now, told
from onnxprune.report import to_json
from onnxprune.results import Cost, Sweep, SweepPoint
from onnxprune.stages import checked
from onnxprune.sweeping.workers import Backend, workers

COSTS = ("macs", "parameters", "latency")
Name = str | os.PathLike[str]


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
    """One point to make. key: of everything that it depends on."""

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
    measure: Measure

    @property
    def file(self) -> Path:
        """Where the point goes."""
        return self.folder / f"{self.name}.json"


Measure = Callable[[Job, Model], Measured]
"""How good a model is, and how long it takes if that is asked for."""
Parallel = Callable[[Sequence[Job]], Iterator[SweepPoint]]
"""Runs jobs and gives their points as they come."""


def quality(job: Job, model: Model) -> Measured:
    """The metric on the data; without data fidelity on other inputs than those that it was pruned with, as far as the
    calibration data has others."""
    options = replace(job.options, seed=job.options.seed + 1)
    limit = job.samples or (None if job.data else options.calib_samples)
    found = compared(job.model, job.data or options.calib, options, job.metric, limit).measure(model)
    measured = Measured(found.metric, found.after, None, found.unit, found.higher_is_better, found.warnings)
    if not job.benchmark:
        return measured
    times = timed(Model.load(job.model), model, options)
    return replace(measured, latency=times.after.median / 1e3)


@told
def sweep(
    model: Name, folder: Name, ratios: Sequence[float], criteria: Sequence[str] = (), options: Options | None = None, *,
    data: Name | None = None, metric: str = "", samples: int | None = None, benchmark: bool = False,
    save_models: bool = False, jobs: int | None = None, backend: Backend = "loky", address: str | None = None,
    measure: Measure = quality, progress: Progress | None = None,
) -> Sweep:  # fmt: skip
    """Prune the file `model` by every ratio and criterion; the points go into `folder`, with the models on demand.

    data, metric, samples: as for --validate, --metric and --validate-samples. benchmark: measure latency as well.
    jobs: processes here (as many as there are cores), or of the cluster at `address` (all), whose machines must see the
    same files. measure: see `Measure`; a function of a module."""
    options = options or Options()
    criteria = list(criteria) or [options.resolved().criterion]
    _check(ratios, criteria, options)
    if address and backend == "loky":
        raise UsageError("--address is of a cluster; say which one with --backend dask or --backend ray")
    say = now()
    base = replace(options, calib=_absolute(options.calib))
    source, labels = Path(model).resolve(), _absolute(data)
    seen = _digest([source, *Model.load(source).data_files, *filter(None, (labels, base.calib))])
    common = _Common(source, Path(folder).resolve(), labels, seen, metric, samples, benchmark, save_models, measure)
    ways = dict.fromkeys((c, r) for c in criteria for r in ratios)
    grid = [common.job(f"{c}-{r}", replace(base, criterion=c, ratio=r).resolved()) for c, r in ways]
    with workers(run, backend, address, jobs) as parallel:
        with inside("original", 0.0):
            about, dense = _original(common.job("original", base))
        points = _made(grid, parallel, say)
    where, higher = str(data or options.calib or "made-up inputs"), bool(about["higher_is_better"])
    asked = replace(options, calib=None).resolved()
    return Sweep(
        about["metric"], where, dense, points, fronts(points, higher), asked, files={"model": str(model)},
        unit=about["unit"], higher_is_better=higher, warnings=tuple(about["warnings"]),
    )  # fmt: skip


@dataclass(frozen=True)
class _Common:
    """What all points of a sweep have in common; `seen`: a digest of all files that they are made of."""

    model: Path
    folder: Path
    data: str | None
    seen: str
    metric: str
    samples: int | None
    benchmark: bool
    keep: bool
    measure: Measure

    def job(self, name: str, options: Options) -> Job:
        """One point of these options."""
        how = f"{self.measure.__module__}.{self.measure.__qualname__}"
        about = [asdict(options), self.seen, self.metric, self.samples, self.benchmark, __version__, how]
        key = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
        return Job(
            name, self.model, options, self.data, self.metric, self.samples, self.benchmark, self.folder, self.keep,
            key, self.measure,
        )  # fmt: skip


def _absolute(path: Any) -> str | None:
    """A path as other processes find it."""
    return str(Path(path).resolve()) if path else None


def _made(grid: Sequence[Job], parallel: Parallel, say: Stages) -> tuple[SweepPoint, ...]:
    """All points of a grid: those that an earlier run made, and the rest."""
    found = {j.name: point for j in grid if (point := finished(j))}
    say("points", len(found) / len(grid))
    for point in _points([j for j in grid if j.name not in found], parallel):
        found[point.name] = point
        say.step(f"{point.name} {point.error or f'{point.seconds:.1f} s'}", len(found) / len(grid))
    return tuple(found[j.name] for j in grid)


def fronts(points: Sequence[SweepPoint], higher_is_better: bool = True) -> dict[str, tuple[str, ...]]:
    """By each cost that is known of all finished points: those that no other one beats, the cheapest first."""
    worth = {p.name: p.metric if higher_is_better else -p.metric
             for p in points if p.error is None and p.metric is not None}  # fmt: skip
    done = [p for p in points if p.name in worth]
    timed = done and all(p.latency is not None for p in done)
    return {cost: _front(done, cost, worth) for cost in COSTS if cost != "latency" or timed}


def _front(points: Sequence[SweepPoint], cost: str, worth: Mapping[str, float]) -> tuple[str, ...]:
    """The names of the points that no other one beats in worth (more is better) and cost, the cheapest first."""
    front: list[str] = []
    for point in sorted(points, key=lambda p: (getattr(p, cost), -worth[p.name])):
        if not front or worth[point.name] > worth[front[-1]]:
            front.append(point.name)
    return tuple(front)


def finished(job: Job) -> SweepPoint | None:
    """The point that an earlier run made of the same options and files."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(job.file.read_text("utf-8"))
        point = SweepPoint(**found["point"])
        if found["key"] == job.key and point.error is None and (not job.keep or Path(str(point.model)).is_file()):
            return point
    return None


def run(job: Job) -> SweepPoint:
    """Make one point, whatever happens; in a process of its own, perhaps elsewhere, perhaps for the second time."""
    if point := finished(job):
        return point
    started = time.perf_counter()
    point = SweepPoint(job.name, job.options.criterion, job.options.ratio)
    report = None
    try:
        with inside(f"points: {job.name}", 0.0):
            result = api.prune(job.model, job.options)
            _, point = _measured(job, point, result.model, result.report.after)
        report = to_json(result.report)
        if job.keep:
            path = job.folder / f"{job.name}.onnx"
            result.model.save(path)
            point = replace(point, model=str(path))
    except Exception as error:
        point = replace(point, error=explain(error)[0])
    point = replace(point, seconds=time.perf_counter() - started)
    _write(job, point, report=report)
    return point


def _original(job: Job) -> tuple[dict[str, Any], SweepPoint]:
    """What the metric is (see `Measured`), and the model as it is. What fails here fails everywhere: it is raised."""
    job = replace(job, keep=False)
    if point := finished(job):
        metric: dict[str, Any] | str = json.loads(job.file.read_text("utf-8"))["metric"]
        if isinstance(metric, dict):  # earlier ones were a name only
            return metric, point
    cost = api.inspect(job.model, job.options).cost
    found, point = _measured(job, SweepPoint(job.name, "", 0.0), Model.load(job.model), cost)
    metric = {key: getattr(found, key) for key in ("metric", "unit", "higher_is_better", "warnings")}
    _write(job, point, metric=metric)
    return metric, point


def _measured(job: Job, point: SweepPoint, model: Model, cost: Cost) -> tuple[Measured, SweepPoint]:
    """What was measured, and the point with what the model is worth and costs."""
    found = job.measure(job, model)
    costs: dict[str, Any] = {"parameters": cost.parameters, "macs": round(cost.macs), "bytes": cost.bytes}
    return found, replace(point, metric=found.value, latency=found.latency, **costs)


def _write(job: Job, point: SweepPoint, **more: Any) -> None:
    job.folder.mkdir(exist_ok=True)  # with the first file: a sweep that cannot begin leaves nothing
    write_json(job.file, {"key": job.key, "point": asdict(point), **more})


def _points(jobs: Sequence[Job], parallel: Parallel) -> Iterator[SweepPoint]:
    """A process that is killed (for its memory, say) takes the work of others with it: the rest is run one by one, and
    a point whose process dies even then has failed."""
    left = {job.name: job for job in jobs}
    try:
        for point in parallel(jobs) if jobs else ():
            del left[point.name]
            yield point
    except Exception as error:  # of the machinery: `run` keeps what it meets
        for job in list(left.values()):
            if len(jobs) > 1:
                yield from _points([job], parallel)
                continue
            what = f"its process did not come to an end: {' '.join(str(error).split())[:300]}"
            point = SweepPoint(job.name, job.options.criterion, job.options.ratio, error=what)
            _write(job, point)
            yield point


def _check(ratios: Sequence[float], names: Sequence[str], options: Options) -> None:
    """UsageError where a grid cannot be made of these, before any work."""
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise UsageError("a sweep needs ratios between 0 and 1, such as 0.2 0.4")
    checked(options)
    for name in names:
        criteria.check(name)
    if options.calib is not None and not isinstance(options.calib, str | os.PathLike):
        raise UsageError("the inputs of a sweep are read by other processes: give the path of a file or folder")


def _digest(sources: Sequence[Name]) -> str:
    """Of the contents of files and folders; of `script.py:function`, of the script."""
    total = hashlib.sha256()
    for source in sources:
        path = Path(source)
        if not path.exists():
            path = Path(str(source).rpartition(":")[0] or source)
        if not path.exists():
            raise UsageError(f"{source} does not exist; check the path")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as stream:
                    total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
