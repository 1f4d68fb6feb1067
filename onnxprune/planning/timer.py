"""Seconds of segments in ONNX Runtime, kept in a file of the machine's cache.

The runtime's own profiler says how long the kernels of a segment take. What is timed together is timed in turns, so
that whatever else the machine does meets all alike. Times are kept by processor, runtime, provider, threads, operators
and shapes. Knows segments, sessions and clocks, not what a unit is worth.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.data import random_inputs
from onnxprune.errors import OnnxPruneError
from onnxprune.files import write_texts
from onnxprune.measure import bound, clock_of, runnable, turn
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.planning.buckets import LinkedBuckets
from onnxprune.planning.segments import FRONT, Segment, Segments, signature
from onnxprune.planning.selection import parts
from onnxprune.rewrite import rewrite
from onnxprune.run import PROVIDERS, deployed, runtime_version
from onnxprune.shapes import Inputs, infer
from onnxprune.steady import cores
from onnxprune.trace import Groups, Mask

TURN, TURNS = 0.06, 10
"""Seconds, and how often, that the whole model runs."""
PIECE, PIECES = 0.002, 5
"""Seconds, and how often, that a segment runs; at least as often as `LEAST`."""
LEAST = 3
LEAST_SECONDS = 1e-7
TOGETHER = 1 << 28
"""Bytes of weights that are timed in turns at once, beyond the first two segments."""
FROM_PLAIN, TO_PLAIN = "ReorderInput", "ReorderOutput"
"""Kernels that only change the layout of tensors: alone, a segment begins with the first and ends with the second; in
the model it hardly does."""
MEASURED = 2
"""Raised when what is timed changes, so that no older time is taken."""
SMALL, SMALLS = 32, 40
"""Channels of the convolutions, and how many there are, that show what the profiler takes itself."""
Alone = tuple[Model, Inputs]
Array = NDArray[np.float64]


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
        clock = clock_of(o.providers, o.threads)
        runs = [bound(deployed(model, o.providers, o.threads), self.feed) for model in models]
        taken: list[list[float]] = [[] for _ in runs]
        for k in range(TURNS + 1):
            for run, own in zip(runs, taken, strict=True):
                own += turn(run, TURN, clock=clock)[: None if k else 0]  # the first one warms up
        return [float(np.percentile(own, 10)) for own in taken]  # what else the machine does only adds

    @cached_property
    def segments(self) -> Segments:
        """The segments of the model, at the sizes of its `feed`."""
        at = {name: x.shape for name, x in self.feed.items()}
        return Segments(self.groups, infer(self.groups.trace.model, at))

    @cached_property
    def sets(self) -> list[LinkedBuckets]:
        """The sets of units that lose alike, of which a segment is cut like the whole model: heads keep their widths
        equal."""
        none = np.zeros(len(self.groups.prunable))
        return parts(self.groups, none, Options(heads=False, residual="all"))[1]

    def cuts(self, segment: Segment) -> list[tuple[int, ...]]:
        """By block, the sets (by number) that have units in it."""
        inside = [np.unique(block) for block in segment.blocks]
        return [tuple(k for k, s in enumerate(self.sets) if np.isin(s.members, own).any()) for own in inside]

    @cached_property
    def machine(self) -> list[Any]:
        """What a time depends on besides the model: runtime, providers, threads, cores, processor."""
        o = self.options
        return [MEASURED, runtime_version()[1], list(o.providers), o.threads, cores(), processor()]

    def alone(self, segment: Segment, lost: Mapping[int, int]) -> tuple[Mask, Alone] | None:
        """Classes that are left where these sets (by number) lose so many steps, and the segment with nothing else;
        None where it cannot be cut like that."""
        removed = np.zeros(len(self.groups.prunable), bool)
        for k, steps in lost.items():
            removed[self.sets[k].units(steps)] = True
        kept = self.groups.kept_ids(removed)
        try:
            return self.groups.alive(kept), self.segments.cut(segment, kept)
        except (OnnxPruneError, ArithmeticError, LookupError, TypeError, ValueError, AssertionError):
            return None  # no rectangle is left, or a size is known to the whole graph only

    def seconds(self, pieces: Sequence[Alone]) -> list[float | None]:
        """Seconds of one run of each, measured in turns unless they were before; None of what does not run alone."""
        keys = [self._key(signature(*piece)) for piece in pieces]
        new = {key: piece for key, piece in zip(keys, pieces, strict=True) if key not in self.known}
        for some in _together(new):
            taken = measured([*some.values()], self.options, self.of_profiler)
            self._learnt({k: s for k, s in zip(some, taken, strict=True) if s is not None})
        return [self.known.get(key) for key in keys]

    @cached_property
    def of_profiler(self) -> float:
        """Seconds of the profiler's own in what it says of a kernel."""
        key = self._key("profiler")
        if profiled(self.options) and key not in self.known:
            self._learnt({key: _of_profiler(self.options)})
        return self.known.get(key, 0.0)

    def _key(self, what: Any) -> str:
        """Under which the time of something on this machine is kept."""
        return hashlib.sha256(json.dumps([self.machine, what]).encode()).hexdigest()[:32]

    def _learnt(self, found: Mapping[str, float]) -> None:
        self.known |= found
        self.fresh |= found

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


def _together(pieces: Mapping[str, Alone]) -> Iterator[dict[str, Alone]]:
    """The pieces in parts whose weights fit into memory together."""
    some: dict[str, Alone] = {}
    held = 0
    for key, (model, sizes) in pieces.items():
        size = sum(w.nbytes for w in model.weights.values())
        if len(some) > 1 and held + size > TOGETHER:
            yield some
            some, held = {}, 0
        some[key] = (model, sizes)
        held += size
    if some:
        yield some


def profiled(options: Options) -> bool:
    """Whether the runtime's profiler can tell how long kernels take."""
    return all(PROVIDERS.get(p.lower(), p) == PROVIDERS["cpu"] for p in options.providers)


def measured(pieces: Sequence[Alone], options: Options, of_profiler: float) -> list[float | None]:
    """Seconds of one run of each piece: of its kernels, where the profiler can tell, less so much of the profiler's own
    for each; else beyond what a run takes that does nothing. None of one that does not run."""
    if profiled(options):
        runs = _in_turns(pieces, options, profile=True)
        return [None if r is None else max(_quick(r @ (1.0, -of_profiler)), LEAST_SECONDS) for r in runs]
    nothing, *taken = _in_turns([_nothing(), *pieces], options)
    least = 0.0 if nothing is None else _quick(nothing[:, 0])
    return [None if r is None else max(_quick(r[:, 0]) - least, LEAST_SECONDS) for r in taken]


def _of_profiler(options: Options) -> float:
    """Seconds that the profiler adds to what it says of a kernel, as it writes down shapes while its clock runs: what
    small convolutions take by it beyond what they do without it."""
    nothing, plain = _in_turns([_nothing(), _smalls()], options)
    [told] = _in_turns([_smalls()], options, profile=True)
    if nothing is None or plain is None or told is None:
        return 0.0
    return max(_quick(told[:, 0]) - _quick(plain[:, 0]) + _quick(nothing[:, 0]), 0.0) / SMALLS


def _smalls() -> Alone:
    """A chain of small convolutions, each of which takes a few microseconds."""
    size = f"float[1, {SMALL}, 8, 8]"
    nodes = "\n".join(f"x{k + 1} = Conv(x{k}, w{k})" for k in range(SMALLS))
    text = f'<ir_version: 8, opset_import: ["" : 17]> chain ({size} x0) => ({size} x{SMALLS}) {{ {nodes} }}'
    parsed = onnx.parser.parse_model(text)
    weight = np.full((SMALL, SMALL, 1, 1), 1 / SMALL, np.float32)
    parsed.graph.initializer.extend(onnx.numpy_helper.from_array(weight, f"w{k}") for k in range(SMALLS))
    return Model.load(parsed).normalised(), {"x0": (1, SMALL, 8, 8)}


def _nothing() -> Alone:
    """A model that does next to nothing, which shows what a run takes by itself."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> nothing (float[1] x) => (float[1] y) { y = Relu(x) }'
    )
    return Model.load(model).normalised(), {"x": (1,)}


def _in_turns(pieces: Sequence[Alone], options: Options, profile: bool = False) -> list[Array | None]:
    """[runs, 2] of each piece, run in turns: seconds, and of how many kernels the profiler said them. None of one that
    does not run."""
    clock = time.perf_counter if profile else clock_of(options.providers, options.threads)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        runs: list[tuple[Any, Any, list[float]] | None] = []
        for k, (model, sizes) in enumerate(pieces):
            try:
                session = deployed(model, options.providers, options.threads, f"{folder}/{k}" if profile else "")
                run = bound(session, random_inputs(model, sizes, options.seed, 1))
                run()
            except Exception:  # ONNX Runtime's exceptions share no base class
                runs.append(None)
                continue
            runs.append((session, run, []))
        for _ in range(PIECES):
            for _, run, own in filter(None, runs):
                own += turn(run, PIECE, LEAST, clock)
        return [r and (_kernels(r[0]) if profile else np.array([(s, 0) for s in r[2]])) for r in runs]


def _quick(seconds: Array) -> float:
    """Of many runs the time of a quick one: what else the machine does only adds."""
    some = np.sort(seconds[len(seconds) // 4 :])
    return float(some[: max(1, len(some) // 2)].mean())


def _kernels(session: Any) -> Array:
    """[runs, 2]: seconds that the kernels of each run took, and how many they are, but for what is put before a
    segment, and for those that change layouts where the model hardly does: a plain layout is made of another inside a
    segment only."""
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    runs, spent, layout = [], np.zeros(2), np.zeros(2)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            one, kind = np.array([event["dur"] * 1e-6, 1]), event["args"].get("op_name")
            if kind == TO_PLAIN:
                layout = layout + one
            elif not event["name"].startswith(FRONT) and kind != FROM_PLAIN:
                spent, layout = spent + layout + one, np.zeros(2)
        elif event["name"] == "model_run":
            runs.append(spent)
            spent = layout = np.zeros(2)
    return np.array(runs)


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
