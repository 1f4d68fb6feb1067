"""How long models take in ONNX Runtime, loaded and optimised as an application would.

Knows sessions and clocks, no units.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import RANGES, random_inputs, sizes
from onnxprune.errors import RuntimeFailure
from onnxprune.model import Model, fitted
from onnxprune.options import Options
from onnxprune.progress import now
from onnxprune.run import DEVICES, PROVIDERS, deployed, first_line, may_lack
from onnxprune.shapes import Shapes, infer
from onnxprune.steady import cores
from onnxprune.steady import threads as thread_count

Feed = dict[str, NDArray[Any]]
Run = Callable[[], Any]
Clock = Callable[[], float]
SECONDS = 4.0
"""What a comparison of two models takes, apart from warming up, unless they are slow."""
TURN = 0.02
"""Seconds that one model runs before it is the other's turn."""
TURNS = 15
"""The least number of turns."""
SETTLE = 0.3
"""Share of a turn that is not counted: cold caches, and threads of the other session that still spin."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one run: the median, and the quartiles below and above it (see `clock_of`)."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(seconds: Sequence[float]) -> Timing:
        """Of many runs, in seconds each."""
        low, median, high = np.percentile(seconds, (25, 50, 75)) * 1e3
        return Timing(float(median), float(low), float(high))


@dataclass(frozen=True)
class Benchmark:
    """Two models on the same inputs, in turns. threads: inside an operator; 0 is the runtime's default on `cores`."""

    before: Timing
    after: Timing
    runs: tuple[int, int]
    inputs: Mapping[str, tuple[int, ...]]
    batch: int
    threads: int
    cores: int
    providers: tuple[str, ...]

    @property
    def speedup(self) -> float:
        """How many times faster the second model is, by the medians."""
        return self.before.median / self.after.median

    def to_json(self) -> dict[str, Any]:
        """The entry of a report, in milliseconds."""
        return {
            "unit": "ms", "before": vars(self.before), "after": vars(self.after), "speedup": self.speedup,
            **{name: getattr(self, name) for name in ("runs", "inputs", "batch", "threads", "cores", "providers")},
        }  # fmt: skip


def benchmark(
    before: Model, after: Model, *, batch: int = 1, threads: int = 0, providers: Sequence[str] = ("cpu",),
    input_shapes: Mapping[str, Sequence[int]] | None = None, seconds: float | None = None, seed: int = 0,
) -> Benchmark:  # fmt: skip
    """Both models in turns, so that whatever else the machine does meets both alike.

    seconds: how long both run in all, as SECONDS where it is left out. RuntimeFailure where no inputs can be found."""
    now()("benchmark")
    sessions = [deployed(model, providers, threads) for model in (before, after)]
    working = before.normalised()
    feed = runnable(sessions[0], working, infer(working, input_shapes), batch, input_shapes or {}, seed)
    runs, clock = [bound(session, feed) for session in sessions], clock_of(providers, threads)
    taken: list[list[float]] = [[], []]
    for run in runs:
        turn(run)  # warms up
    end, turns = time.perf_counter() + (SECONDS if seconds is None else seconds), 0
    while turns < TURNS or time.perf_counter() < end:
        for run, own in zip(runs, taken, strict=True):
            own += turn(run, clock=clock)
        turns += 1
    first, second = map(Timing.of, taken)
    shapes = {name: x.shape for name, x in feed.items()}
    count = next((x.shape[0] for x in feed.values() if x.ndim), 1)
    used = tuple(sessions[1].get_providers())
    return Benchmark(first, second, (len(taken[0]), len(taken[1])), shapes, count, threads, cores(), used)


def check_timed(model: Any, options: Options) -> None:
    """RuntimeFailure where a model (what `Model.load` takes) cannot be timed, as ONNX Runtime has no kernel for an
    operator of it: before any work, as others run in its place for everything else."""
    loaded = Model.load(model)
    if may_lack(loaded.skeleton):
        deployed(loaded, options.providers, options.threads)


def timed(before: Model, after: Model, options: Options, seconds: float | None = None) -> Benchmark:
    """`benchmark` as the options say."""
    return benchmark(
        before, after, batch=options.batch, threads=options.threads, providers=options.providers,
        input_shapes=options.input_shapes, seconds=seconds, seed=options.seed,
    )  # fmt: skip


def runnable(
    session: Any, model: Model, shapes: Shapes, batch: int, given: Mapping[str, Sequence[int]], seed: int = 0
) -> Feed:
    """Random inputs for `batch` samples, where the model leaves their number open, on which the session runs.

    `given`: shapes by input, as in Options. RuntimeFailure where it runs on none."""
    last: Exception | None = None
    for dims in sizes(model, shapes, batch, given):
        for low, high in RANGES:
            feed = random_inputs(model, dims, seed, high, low)
            try:
                session.run(None, feed)
            except Exception as error:  # whatever fails, other sizes may do
                last = error
                continue
            return feed
    raise RuntimeFailure(
        f"ONNX Runtime cannot run the model on random inputs: {first_line(last or Exception())}; "
        "give shapes that fit with --overwrite-input-shape"
    )


def bound(session: Any, feed: Feed) -> Run:
    """One run of the session. On an accelerator its inputs and outputs stay there: copies are not the model's time."""
    feed, session.taken = fitted(session.taken, feed), {}  # once, and not in every run
    device = any(p in DEVICES for p in session.get_providers())
    if not (device or session.in_place) or any(x.dtype == object for x in feed.values()):
        return lambda: session.run(None, feed)
    outputs = [o.name for o in session.get_outputs()]
    binding = session.bound({name: session.placed(x) for name, x in feed.items()}, outputs)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def clock_of(providers: Sequence[str], count: int) -> Clock:
    """What tells how long a run takes on `count` threads (0: the runtime's choice). A single one on the processor is
    the one that calls: the time that it works is what it takes where nothing else runs. Else the wall clock."""
    alone = all(PROVIDERS.get(name.lower(), name) == PROVIDERS["cpu"] for name in providers)
    return time.thread_time if alone and (count or thread_count()) == 1 else time.perf_counter


def turn(run: Run, seconds: float = TURN, least: int = 2, clock: Clock = time.perf_counter) -> list[float]:
    """Seconds of each run of one turn by the `clock`, without those at its beginning."""
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < least or time.perf_counter() < begin + seconds:
        start = clock()
        run()
        taken.append(clock() - start)
    return taken[max(1, int(SETTLE * len(taken))) :]
