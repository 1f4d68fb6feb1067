"""Two models on the same data, sample by sample: the metric of both, the drop with its interval, fidelity, gates.

Knows outputs and samples, not what was pruned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import Feed, batched, calibration, checked, decoder, describe, read
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.measure.metrics import METRICS, Custom, Floats, Metric, Outputs, chosen
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.run import first_line, open_session
from onnxprune.shapes import Shapes, footprint, infer

Array = NDArray[Any]
BATCH = 64
RESAMPLES = 1000
LEVEL = 0.95
"""Of the confidence interval of a drop."""
FIDELITY = ("agreement", "cosine", "snr")
MADE_UP = 128
"""Inputs made up where no data is given."""
EVERYTHING = 1 << 62
KEPT = 32
"""This part of the memory may hold what the dense model answers, for the next model that is measured."""


@dataclass(frozen=True)
class Data:
    """Feeds ready for a session and the labels of each; a fixed batch is filled up, `rows` says how many count."""

    feeds: list[Feed]
    labels: list[Array] | None
    rows: list[int]
    source: str

    def __len__(self) -> int:
        return sum(self.rows)


@dataclass(frozen=True)
class Gates:
    """What must hold: at most so much less of the metric, in its own unit; at least so much of the dense model's."""

    max_drop: float | None = None
    min_agreement: float | None = None
    min_cosine: float | None = None

    def __bool__(self) -> bool:
        return any(v is not None for v in vars(self).values())


@dataclass(frozen=True)
class Quality:
    """The metric of both models and `drop` = before - after with its paired interval (None where the metric is the
    user's own number); `fidelity` of the second to the first: top-1 agreement, cosine, signal-to-noise ratio in dB."""

    metric: str
    before: float
    after: float
    drop: float
    interval: tuple[float, float] | None
    samples: int
    fidelity: Mapping[str, float]
    data: str
    providers: tuple[str, ...]
    failed: tuple[str, ...] = field(default=())


def load(data: Any, model: Model, shapes: Shapes, options: Options, limit: int | None = None) -> Data:
    """All samples of any of the forms that --calib takes, with their `labels` where there are any (for pictures: the
    folders they are in). What is wrong with the data is a UsageError."""
    specs = describe(model, shapes)
    source = read(data, specs, limit or EVERYTHING, options.seed, decoder(model, shapes, specs, options))
    feeds = [checked(feed, specs, source.name) for feed in source.feeds]
    labels = source.labels or source.folders
    first = next((s.name for s in specs if s.batch == 0), None)
    # Without labels numbers stand for them: they too say how many rows of a batch of fixed size count.
    numbers = [np.arange(len(feed[first]) if first else 1) for feed in feeds]
    wanted = limit or EVERYTHING
    feeds, given, _, _ = batched(feeds, labels or numbers, specs, wanted, BATCH, options.seed, source.name)
    return Data(feeds, given if labels else None, [len(x) for x in given or ()], source.name)


def compared(model: Any, data: Any, options: Options, metric: Any = "", limit: int | None = None) -> Comparison:
    """The dense `model` on `data`; without data on made-up inputs, which show how far two models differ and no more."""
    source = Model.load(model).normalised()
    shapes = infer(source, options.input_shapes)
    if data is not None:
        found = load(data, source, shapes, options, limit)
    else:
        footprint.check(source, shapes.passes[0], options.memory_limit)
        made = calibration(source, shapes, replace(options, calib=None, calib_samples=limit or MADE_UP))
        first = next((s.name for s in describe(source, shapes) if s.batch == 0), None)
        rows = [len(feed[first]) if first else 1 for feed in made.feeds]
        found = Data(list(made.feeds), None, rows, made.source)
    return Comparison(source, found, metric, options.providers, options.memory_limit // KEPT)


class Comparison:
    """A dense model and data; any number of other models are measured against them. room: bytes that the dense model's
    answers may take: so many of them are kept."""

    def __init__(
        self, dense: Model, data: Data, metric: Any = "", providers: Sequence[str] = ("cpu",), room: int = 0
    ) -> None:
        """Runs the first batch, so that data or a metric that do not fit are known before any work."""
        self.data, self.providers = data, providers
        self.session = open_session(dense, providers)
        self._room, self._kept = room, dict[int, list[Array]]()
        first = self._outputs(self.session, 0)
        self.metric = chosen(metric, first, None if data.labels is None else data.labels[0])
        if isinstance(self.metric, Metric):
            self.metric.statistics(first, self._reference(0, first))

    def measure(self, other: Model, gates: Gates | None = None, seed: int = 0) -> Quality:
        """`other` against the dense model. Gates that do not hold are named in `failed`."""
        if gates is not None and gates.max_drop is not None and self.metric.name == "snr":
            raise UsageError("a signal-to-noise ratio has no drop; use --min-cosine, or another --metric")
        session = open_session(other, self.providers)
        self._check_inputs(session)
        own = _Sums(self.metric) if isinstance(self.metric, Metric) else _Whole(self.metric, self.data.labels)
        likeness = {name: list[Floats]() for name in FIDELITY}
        for k in range(len(self.data.feeds)):
            dense, found = self._dense(k), self._outputs(session, k)
            _check_shapes(dense, found)
            for name, statistics in likeness.items():
                statistics.append(METRICS[name].statistics(found, dense))
            own.add(dense, found, self._reference(k, dense))
        before, after, interval = own.values(seed)
        fidelity = {name: _total(METRICS[name], np.concatenate(parts)) for name, parts in likeness.items()}
        failed = tuple(_failed(gates or Gates(), before - after, fidelity, self.metric.name))
        data, used = self.data, tuple(session.get_providers())
        return Quality(
            self.metric.name, before, after, before - after, interval, len(data), fidelity, data.source, used, failed
        )  # fmt: skip

    def _reference(self, k: int, dense: Outputs) -> Any:
        """What the metric compares the k-th outputs with: labels, or those of the dense model."""
        against = self.metric.against if isinstance(self.metric, Metric) else "labels"
        return self.data.labels[k] if against == "labels" and self.data.labels is not None else dense

    def _check_inputs(self, session: Any) -> None:
        """The two models must take the same inputs."""
        ours, theirs = ({i.name: (i.type, i.shape) for i in s.get_inputs()} for s in (self.session, session))
        if ours.keys() != theirs.keys():
            raise UsageError(f"the two models take different inputs: {', '.join(ours)} and {', '.join(theirs)}")
        for name, (kind, shape) in ours.items():
            known = [(a, b) for a, b in zip(shape, theirs[name][1], strict=False) if isinstance(a, int)]
            if (
                kind != theirs[name][0]
                or len(shape) != len(theirs[name][1])
                or any(isinstance(b, int) and a != b for a, b in known)
            ):
                raise UsageError(f"the two models take different sizes of {name!r}: {shape} and {theirs[name][1]}")

    def _dense(self, k: int) -> list[Array]:
        """What the dense model answers to the k-th feed."""
        if k in self._kept:
            return self._kept[k]
        made = self._outputs(self.session, k)
        size = sum(x.nbytes for x in made)
        if size <= self._room:
            self._room -= size
            self._kept[k] = made
        return made

    def _outputs(self, session: Any, k: int) -> list[Array]:
        """Of the k-th feed, those that have a row for each sample."""
        rows = self.data.rows[k]
        try:
            made = session.run(None, self.data.feeds[k])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise RuntimeFailure(f"ONNX Runtime failed on the validation data: {first_line(error)}") from error
        counted = [x[:rows] for x in made if isinstance(x, np.ndarray) and x.ndim and len(x) >= rows]
        if not counted:
            raise UsageError("no output of the model has a row for each sample, so it cannot be measured on this data")
        return counted


Values = tuple[float, float, tuple[float, float] | None]
"""A metric of the dense model and of the other one, and the interval of the drop where there is one."""


class _Sums:
    """The statistics of a metric for both models, batch after batch."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.dense: list[Floats] = []
        self.other: list[Floats] = []

    def add(self, dense: Outputs, other: Outputs, reference: Any) -> None:
        self.dense.append(self.metric.statistics(dense, reference))
        self.other.append(self.metric.statistics(other, reference))

    def values(self, seed: int) -> Values:
        a, b = np.concatenate(self.dense), np.concatenate(self.other)
        return _total(self.metric, a), _total(self.metric, b), bootstrap(self.metric, a, b, seed)


class _Whole:
    """All outputs of both models, for the user's function, which is called once."""

    def __init__(self, metric: Custom, labels: Sequence[Array] | None) -> None:
        self.metric, self.labels = metric, labels
        self.dense: list[Outputs] = []
        self.other: list[Outputs] = []

    def add(self, dense: Outputs, other: Outputs, reference: Any) -> None:
        self.dense.append(dense)
        self.other.append(other)

    def values(self, seed: int) -> Values:
        dense, other = ([np.concatenate(parts) for parts in zip(*batches, strict=True)]
                        for batches in (self.dense, self.other))  # fmt: skip
        reference = dense if self.labels is None else np.concatenate(self.labels)
        a, b = self.metric(dense, reference), self.metric(other, reference)
        if a.ndim == 0:
            return float(a), float(b), None
        mean = METRICS["cosine"]
        return float(a.mean()), float(b.mean()), bootstrap(mean, a[:, None], b[:, None], seed)


def _check_shapes(dense: Outputs, other: Outputs) -> None:
    ours, theirs = [x.shape for x in dense], [x.shape for x in other]
    if ours != theirs:
        raise UsageError(f"the two models give outputs of shapes {ours} and {theirs}; compare alike ones")


def _total(metric: Metric, statistics: Floats) -> float:
    """The metric over all samples, of its statistics [samples, k]."""
    return float(metric.value(statistics.sum(0), np.asarray(float(len(statistics)))))


def bootstrap(metric: Metric, before: Floats, after: Floats, seed: int) -> tuple[float, float]:
    """Percentile interval of the drop over samples drawn again, the same for both models (paired; Efron 1979)."""
    rng = np.random.default_rng(seed)
    n = len(before)
    drops = []
    for _ in range(RESAMPLES):
        weights = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)
        count = np.asarray(float(n))
        drops.append(float(metric.value(weights @ before, count) - metric.value(weights @ after, count)))
    low, high = np.percentile(drops, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _failed(gates: Gates, drop: float, fidelity: Mapping[str, float], metric: str) -> Iterator[str]:
    """The gates that do not hold, in words; a value that is no number holds none."""
    if gates.max_drop is not None and not drop <= gates.max_drop:
        yield f"{metric} drops by {drop:.4f}, more than --max-drop {gates.max_drop:g}"
    for name in ("agreement", "cosine"):
        least = getattr(gates, f"min_{name}")
        if least is not None and not fidelity[name] >= least:
            yield f"{name} with the dense model is {fidelity[name]:.4f}, less than --min-{name} {least:g}"
