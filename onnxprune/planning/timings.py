"""What every segment of a model costs in ONNX Runtime at several widths: seconds instead of MACs.

The runtime's own profiler says how long the kernels of a segment take. To these times, at a few widths of every block
that cuts the segment, a sum is fitted: what is always spent, what each block costs, and what their product costs. Times
are kept in a file of the machine's cache, by processor, runtime, provider, threads, operators and shapes. Knows
segments, widths and seconds, not what a unit is worth.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxprune.data import random_inputs
from onnxprune.errors import OnnxPruneError
from onnxprune.files import write_texts
from onnxprune.measure import bound, cores, runnable, turn
from onnxprune.model import Model
from onnxprune.options import Options, Progress
from onnxprune.planning.allocation import Costs
from onnxprune.planning.profile import share
from onnxprune.planning.segments import Segment, Segments, signature
from onnxprune.planning.selection import select
from onnxprune.rewrite import rewrite
from onnxprune.run import PROVIDERS, deployed, runtime_version
from onnxprune.shapes import Inputs, infer
from onnxprune.trace import Groups, Ids, Mask

SHARES = (1.0, 0.65, 0.3)
"""Of every block that cuts a segment, the widths that are timed."""
SECONDS = 0.02
"""How long a segment runs to be timed."""
TURN, TURNS = 0.1, 5
"""Seconds, and how often, that the whole model runs."""
LAYOUT = {"ReorderInput", "ReorderOutput"}
"""Kernels that only change the layout of tensors: alone, a segment needs them at both ends; in the model hardly."""
MULTIPLES = (1, 2, 4, 8, 16, 32)
TIMED_KINDS = 4
"""So many kinds of segments, those with the most MACs, show which multiples the runtime likes."""
PAYS = 0.5
"""Share of the expected saving from which a step is worth it."""


@dataclass
class Timer:
    """Seconds of segments of one model; of what was timed before on this machine, from a file."""

    groups: Groups
    options: Options
    known: dict[str, float] = field(default_factory=dict)
    fresh: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = _read(cache_file())

    @cached_property
    def feed(self) -> dict[str, NDArray[Any]]:
        """Inputs that the whole model runs on."""
        model, o = self.groups.trace.model, self.options
        session = deployed(model, o.providers, o.threads)
        return runnable(session, model, self.groups.trace.shapes, o.batch, o.input_shapes, o.seed)

    def wholes(self, removed: Sequence[Mask]) -> list[float]:
        """Seconds of the whole model without these units, in turns."""
        models = [rewrite(self.groups.trace, self.groups.kept_ids(mask)).model for mask in removed]
        o = self.options
        runs = [bound(deployed(model, o.providers, o.threads), self.feed) for model in models]
        taken: list[list[float]] = [[] for _ in runs]
        for k in range(TURNS + 1):
            for run, own in zip(runs, taken, strict=True):
                own += turn(run, TURN)[: None if k else 0]  # the first one warms up
        return [float(np.median(own)) for own in taken]

    @cached_property
    def segments(self) -> Segments:
        """The segments of the model, at the sizes of its `feed`."""
        at = {name: x.shape for name, x in self.feed.items()}
        return Segments(self.groups, infer(self.groups.trace.model, at))

    @cached_property
    def machine(self) -> list[Any]:
        """What a time depends on besides the model: runtime, providers, threads, cores, processor."""
        return [runtime_version()[1], list(self.options.providers), self.options.threads, cores(), processor()]

    def at(self, segment: Segment, widths: Sequence[int | None]) -> tuple[Mask, float] | None:
        """Classes that are left, and seconds, where every row of a block keeps so many units (None: all); None where
        it cannot be cut or run like that."""
        removed = np.zeros(len(self.groups.prunable), bool)
        for block, width in zip(segment.blocks, widths, strict=True):
            if width is not None:
                removed[np.atleast_2d(block)[:, width:]] = True
        kept = self.groups.kept_ids(removed & self.groups.prunable)
        try:
            seconds = self.time(*self.segments.cut(segment, kept))
        except (OnnxPruneError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError):
            return None  # no rectangle is left at these widths, or a size is known to the whole graph only
        return self.groups.alive(kept), seconds

    def time(self, model: Model, sizes: Inputs) -> float:
        """Seconds of one run of a segment, measured unless it was before."""
        text = json.dumps([self.machine, signature(model, sizes)])
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        if key not in self.known:
            self.known[key] = self.fresh[key] = measured(model, sizes, self.options)
        return self.known[key]

    def save(self) -> None:
        """Adds what is new to the file; a machine that cannot keep it times again."""
        if not self.fresh:
            return
        path = cache_file()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_texts({path: json.dumps(_read(path) | self.fresh)})
        except (OSError, OnnxPruneError):
            return
        self.fresh.clear()


def costs(groups: Groups, options: Options, progress: Progress | None = None) -> Costs:
    """Seconds of every segment by the kept shares of its blocks, so scaled that the whole model takes what it takes,
    dense and at half its widths. What no width changes is fixed."""
    timer = Timer(groups, options)
    found = timer.segments.found
    parts = []
    for k, segment in enumerate(found):
        if progress:
            progress("timing", k / len(found))
        parts.append(fitted(segment, list(_points(timer, segment))))
    timer.save()
    made = Costs(np.array([p for _, _, p in parts]), [s.blocks for s in found], [each for _, each, _ in parts])
    always = sum(a for a, _, _ in parts)
    none = np.zeros(len(groups.prunable), bool)
    half = select(groups, none.astype(float), replace(options, ratio=0.5, scope="local", of="units"))
    whole, halved = timer.wholes([none, half])
    saved = made.whole - made.total(groups.alive(groups.kept_ids(half)))
    scale = (whole - halved) / saved if whole > halved and saved > 0 else whole / (made.whole + always)
    scale = min(scale, whole / made.whole) if made.whole else 1.0
    return _by_branch(groups, found, [(p * scale, [x * scale for x in each], a) for a, each, p in parts], whole)


def _by_branch(
    groups: Groups, segments: Sequence[Segment], parts: Sequence[tuple[float, list[float], float]], whole: float
) -> Costs:
    """The costs of segments, of those inside a residual branch as long as that stays. parts: of each segment what its
    product costs, what each block does, and, in any unit, what is always spent; whole: seconds of all together."""
    fixed = max(whole - sum(p + sum(each) for p, each, _ in parts), 0.0)
    always = fixed / (sum(a for _, _, a in parts) or 1.0)
    terms: list[tuple[float, tuple[Ids, ...], list[float]]] = []
    for segment, (contraction, each, a) in zip(segments, parts, strict=True):
        within = tuple(np.array([u]) for u, b in groups.branches.items() if b.nodes.issuperset(segment.nodes))
        if not within:
            terms.append((contraction, segment.blocks, each))
            continue
        terms += [(contraction, (*segment.blocks, *within), [0.0] * (len(segment.blocks) + len(within)))]
        terms += [(x, (b, *within), [0.0] * (1 + len(within))) for x, b in zip(each, segment.blocks, strict=True) if x]
        terms += [(a * always, within, [0.0] * len(within))]
        fixed -= a * always
    return Costs(np.array([c for c, _, _ in terms]), [b for _, b, _ in terms], [e for _, _, e in terms], fixed)


def _points(timer: Timer, segment: Segment) -> Iterator[tuple[list[float], float, float]]:
    """Kept shares of the blocks, their product, and seconds; the whole segment first."""
    free = [timer.groups.prunable[b].any() for b in segment.blocks]
    levels = [[_width(b.shape[-1], s, timer.options.round_to) for s in SHARES] if f else [None] * len(SHARES)
              for b, f in zip(segment.blocks, free, strict=True)]  # fmt: skip
    grid = list(product(*levels)) if sum(free) <= 2 else list(zip(*levels, strict=True))
    for widths in dict.fromkeys(grid):
        found = timer.at(segment, widths)
        if found is not None:
            kept, seconds = found
            yield [float(kept[b].mean()) for b in segment.blocks], share(segment.blocks, kept), seconds


def _width(units: int, share: float, multiple: int) -> int:
    """Near to a share of the units, and a multiple as far as there is a choice."""
    while multiple > 1 and multiple > units // 4:
        multiple //= 2
    return max(multiple, round(units * share / multiple) * multiple) if share < 1 else units


def fitted(segment: Segment, points: Sequence[tuple[list[float], float, float]]) -> tuple[float, list[float], float]:
    """What is always spent, for each block, and for their product: not negative, and exact for the whole segment."""
    single = len(segment.blocks) != 2
    none = [0.0] * len(segment.blocks)
    if not points:
        return 0.0, none, 0.0
    rows = np.array([[1.0, p, *([] if single else shares)] for shares, p, _ in points])
    seconds = np.array([s for _, _, s in points])
    if len({tuple(row) for row in rows.tolist()}) == 1:
        return (0.0, none, float(seconds[0])) if segment.macs else (float(seconds[0]), none, 0.0)
    found = scipy.optimize.nnls(rows / seconds[:, None], np.ones(len(seconds)))[0]
    found *= seconds[0] / (rows[0] @ found)
    return float(found[0]), none if single else found[2:].tolist(), float(found[1])


def multiple(groups: Groups, options: Options) -> int:
    """The least multiple of units by which a step pays: that, and every larger one, saves at least half of what its
    share of the work lets expect. In one thread: what kernels like does not hang on how work is shared out."""
    timer = Timer(groups, replace(options, threads=1))
    saved: dict[int, list[tuple[float, float]]] = {}
    for segment in _most_work(timer.segments.found, groups):
        for m in MULTIPLES:
            if (part := _saved_by_step(timer, segment, m)) is not None:
                saved.setdefault(m, []).append((part, segment.macs))
    timer.save()
    pays = {m: sum(x * w for x, w in found) / sum(w for _, w in found) >= PAYS for m, found in saved.items()}
    return next((m for m in sorted(pays) if all(pays[n] for n in pays if n >= m)), 1)


def _saved_by_step(timer: Timer, segment: Segment, multiple: int) -> float | None:
    """What a step of so many units saves, as a share (0..1) of what its share of the work lets expect; None where the
    segment cannot take it."""
    steps = [_step(b.shape[-1], multiple) for b in segment.blocks]
    narrow, wide = (timer.at(segment, [step[k] for step in steps]) for k in (0, 1))
    if narrow is None or wide is None:
        return None
    (less, seconds), (full, most) = ((share(segment.blocks, kept), taken) for kept, taken in (narrow, wide))
    return min(max((1 - seconds / most) / (1 - less / full), 0.0), 1.0) if less < full else None


def _most_work(segments: Sequence[Segment], groups: Groups) -> list[Segment]:
    """One segment of each kind that units cut, those kinds first that have the most MACs in all."""
    kinds: dict[Any, list[Segment]] = {}
    for segment in segments:
        if segment.macs and any(groups.prunable[b].any() for b in segment.blocks):
            kinds.setdefault((segment.macs, tuple(b.shape for b in segment.blocks)), []).append(segment)
    most = sorted(kinds.values(), key=lambda alike: -sum(s.macs for s in alike))
    return [alike[0] for alike in most[:TIMED_KINDS]]


def _step(units: int, multiple: int) -> tuple[int | None, int | None]:
    """An odd multiple below nine tenths of the units and the even one above it; of narrower blocks nothing goes."""
    times = int(0.9 * units) // multiple
    odd = times - 1 + times % 2
    return (odd * multiple, (odd + 1) * multiple) if odd > 0 and (odd + 1) * multiple <= units else (None, None)


def measured(model: Model, sizes: Inputs, options: Options) -> float:
    """Seconds of one run: of its kernels, where the profiler can tell, else with all that surrounds them."""
    feed = random_inputs(model, sizes, options.seed, 1)
    if any(PROVIDERS.get(p.lower(), p) != PROVIDERS["cpu"] for p in options.providers):
        run = bound(deployed(model, options.providers, options.threads), feed)
        turn(run)
        return float(np.percentile(turn(run, SECONDS, 8), 25))
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        session = deployed(model, options.providers, options.threads, str(Path(folder) / "profile"))
        turn(lambda: session.run(None, feed), SECONDS, 8)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    runs, spent = [], 0.0
    for event in events:
        kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if kernel and event["args"].get("op_name") not in LAYOUT:
            spent += event["dur"] * 1e-6
        elif event["name"] == "model_run":
            runs.append(spent)
            spent = 0.0
    return float(np.percentile(runs[len(runs) // 4 :], 25))  # what else the machine does only adds


def processor() -> str:
    """The model of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "flags"))]
    return " ".join(dict.fromkeys(named)) or platform.processor() or platform.machine()


def cache_file() -> Path:
    """Where times are kept: $ONNXPRUNE_CACHE, or the user's cache folder."""
    folder = os.environ.get("ONNXPRUNE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxprune"
    return (Path(folder) if folder else base) / "timings.json"


def _read(path: Path) -> dict[str, float]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: float(v) for k, v in value.items()} if isinstance(value, dict) else {}
