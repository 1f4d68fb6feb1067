"""Many ways to prune one model: ratios by criteria, side by side, and those that no other way beats.

Every point is one JSON file in a folder (see `jobs`): a sweep that was ended goes on where it was, and what was made
with the same options from the same files is not made again. A point that fails says why and is tried again by the next
sweep. Knows jobs and their points; how one is made is their own affair.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune import __version__
from onnxprune.errors import UsageError
from onnxprune.measure import check_timed
from onnxprune.model import Model
from onnxprune.options import Options, Progress
from onnxprune.pipeline import checked
from onnxprune.planning import criteria, uses_inputs
from onnxprune.progress import Stages, inside, now, told
from onnxprune.report import sweep_line
from onnxprune.results import Sweep, SweepPoint
from onnxprune.sweeping.jobs import Job, Measure, Measured, clear, finished, original, quality, run, write
from onnxprune.sweeping.workers import Backend, processes, workers

__all__ = ["Job", "Measure", "Measured", "fronts", "quality", "sweep"]

COSTS = ("macs", "parameters", "latency")
Name = str | os.PathLike[str]
Parallel = Callable[[Sequence[Job]], Iterator[SweepPoint]]
"""Runs jobs and gives their points as they come."""


@told
def sweep(
    model: Name, folder: Name, ratios: Sequence[float], criteria: Sequence[str] = (), options: Options | None = None, *,
    data: Name | None = None, metric: str = "", samples: int | None = None, benchmark: bool = False,
    save_models: bool = False, jobs: int | None = None, backend: Backend = "loky", address: str | None = None,
    measure: Measure = quality, progress: Progress | None = None,
) -> Sweep:  # fmt: skip
    """Prune the file `model` by every ratio and criterion; the points go into `folder`, with the models on demand.

    data, metric, samples: as for --validate, --metric and --validate-samples. benchmark: measure latency as well. jobs:
    processes, each of which makes the inputs and statistics that its points share: here (None: one for every few
    points, at most as many as there are cores), or of the cluster at `address` (None: all), whose machines must see the
    same files. measure: see `Measure`; a function of a module."""
    options = options or Options()
    criteria = list(criteria) or [options.resolved().criterion]
    _check(ratios, criteria, options)
    if address and backend == "loky":
        raise UsageError("--address is of a cluster; say which one with --backend dask or --backend ray")
    base = replace(options, calib=_absolute(options.calib))
    if benchmark:
        check_timed(model, base)
    source, labels = Path(model).resolve(), _absolute(data)
    seen = _digest([source, *Model.load(source).data_files, *filter(None, (labels, base.calib))])
    common = _Common(source, Path(folder).resolve(), labels, seen, metric, samples, benchmark, save_models, measure)
    grid = common.grid(criteria, ratios, base)
    count = processes(len(grid)) if jobs is None and backend == "loky" else jobs
    try:
        with workers(run, backend, address, count) as parallel:
            with inside("original", 0.0):
                about, dense = original(common.job("original", base))
            now().step(sweep_line(about, dense, dense), 0.0)
            if count != 1:
                clear()  # the work is done elsewhere
            found = _noted(_made(grid, parallel), len(grid), about, dense)
    finally:
        clear()
    points = tuple(found[job.name] for job in grid)
    where, asked = str(data or options.calib or "made-up inputs"), replace(options, calib=None).resolved()
    return Sweep(
        about.metric, where, dense, points, fronts(points, about.higher_is_better), asked, files={"model": str(model)},
        unit=about.unit, higher_is_better=about.higher_is_better, warnings=about.warnings,
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
        key, shared = self._key(options), self._key(replace(options.resolved(), criterion="", ratio=0.0))
        return Job(
            name, self.model, options, self.data, self.metric, self.samples, self.benchmark, self.folder, self.keep,
            key, shared, self.measure,
        )  # fmt: skip

    def grid(self, criteria: Sequence[str], ratios: Sequence[float], base: Options) -> list[Job]:
        """Every criterion with every ratio, each once."""
        ways = dict.fromkeys((c, r) for c in criteria for r in ratios)
        return [self.job(f"{c}-{r}", replace(base, criterion=c, ratio=r).resolved()) for c, r in ways]

    def _key(self, options: Options) -> str:
        """A digest of everything that a point of these options depends on."""
        how = f"{self.measure.__module__}.{self.measure.__qualname__}"
        about = [asdict(options), self.seen, self.metric, self.samples, self.benchmark, __version__, how]
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def _absolute(path: Any) -> str | None:
    """A path as other processes find it."""
    return str(Path(path).resolve()) if path else None


def _noted(points: Iterator[SweepPoint], count: int, about: Measured, dense: SweepPoint) -> dict[str, SweepPoint]:
    """All points by their names, each told of in a line as it comes."""
    found: dict[str, SweepPoint] = {}
    stages: Stages = now()
    stages("points")
    for point in points:
        found[point.name] = point
        stages.step(sweep_line(about, dense, point), len(found) / count)
    return found


def _made(grid: Sequence[Job], parallel: Parallel) -> Iterator[SweepPoint]:
    """All points of a grid: those that an earlier run made, and the rest, the cheap ones first."""
    found = {j.name: point for j in grid if (point := finished(j))}
    yield from found.values()
    yield from _points(sorted((j for j in grid if j.name not in found), key=_cost), parallel)


def _cost(job: Job) -> tuple[bool, bool, float]:
    """What is cheaper sorts first: what looks at weights only, then what ranks by them, then what removes little."""
    options = job.options
    return uses_inputs(options), criteria.needs_inputs(options.criterion), options.ratio


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
            write(job, point)
            yield point


def _check(ratios: Sequence[float], names: Sequence[str], options: Options) -> None:
    """UsageError where a grid cannot be made of these, before any work."""
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise UsageError("a sweep needs ratios between 0 and 1, such as 0.2 0.4")
    if options.max_latency is not None:
        raise UsageError("a sweep takes the ratios that it is given; leave out max_latency")
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
