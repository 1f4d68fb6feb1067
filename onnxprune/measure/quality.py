"""Two models on the same data, sample by sample: the metric of both, the drop with its interval, fidelity, gates.

Knows outputs and samples, not what was pruned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import Feed, Input, batched, calibration, checked, decoder, describe, read, tokens_of, unread
from onnxprune.errors import CheckFailed, RuntimeFailure, UsageError
from onnxprune.measure.custom import Custom, chosen
from onnxprune.measure.doubts import Answers
from onnxprune.measure.gates import FIDELITY, Quality, check_intervals, check_unit, failures, refuse
from onnxprune.measure.guessing import by_frequency
from onnxprune.measure.intervals import Floats
from onnxprune.measure.metrics import METRICS, Metric, Outputs, undecided
from onnxprune.measure.tally import Tally, figures, likely, total
from onnxprune.model import Model, Taken, fitted, gone
from onnxprune.options import Gates, Options, check_gates
from onnxprune.progress import now
from onnxprune.run import first_line, open_session
from onnxprune.shapes import Shapes, footprint, infer

Array = NDArray[Any]
BATCH = 64
MADE_UP = 128
"""Inputs made up where no data is given."""
SCORES = 1 << 25
"""At most so many numbers an output has of a batch of texts."""
EVERYTHING = 1 << 62
KEPT = 32
"""This part of the memory may hold what the dense model answers, for the next model that is measured."""


@dataclass(frozen=True)
class Data:
    """Feeds ready for a session and the labels of each; a fixed batch is filled up, `rows` says how many count.
    folders: names of those whose numbers the labels are. warnings: what makes the data doubtful as it was read.
    tokens: of the texts that a feed holds, below 0 where one is padded; None where no input takes any, or several do.
    is_text: whether they were given as a text."""

    feeds: list[Feed]
    labels: list[Array] | None
    rows: list[int]
    source: str
    folders: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    tokens: list[Array] | None = None
    is_text: bool = False

    def __len__(self) -> int:
        return sum(self.rows)


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
    batch = _batch(model, shapes, specs, feeds)
    feeds, given, _, _ = batched(feeds, labels or numbers, specs, wanted, batch, options.seed, source.name)
    rows = [len(x) for x in given or ()]
    folders = () if source.labels else source.classes
    tokens = tokens_of(specs, feeds)
    return Data(
        feeds, given if labels else None, rows, source.name, folders, source.warnings, tokens, source.is_text
    )  # fmt: skip


def _batch(model: Model, shapes: Shapes, specs: Sequence[Input], feeds: Sequence[Feed]) -> int:
    """How many samples are run at once: fewer of long texts, as a score for every token of every place is much."""
    length = max(
        (f[s.name].size // max(len(f[s.name]), 1) for f in feeds for s in specs if s.kind == "tokens"), default=1
    )
    outputs = [shapes.static(o.name) or () for o in model.graph.output]
    scores = max((dims[-1] or 1 for dims in outputs if len(dims) == 3), default=1)
    return max(1, min(BATCH, SCORES // (length * scores)))


def compared(
    model: Any, data: Any, options: Options, metric: Any = "", limit: int | None = None, gates: Gates | None = None
) -> Comparison:
    """The dense `model` on `data`; without data on made-up inputs, which show how far two models differ and no more.

    UsageError, before any work, where `gates` cannot be judged on this data, or might hold by mistake because something
    is wrong with it, or with the calibration data of `options`."""
    check_gates(gates)
    now()("validate")
    source = Model.load(model).normalised()
    refuse(gates, unread(options.calib, source))
    shapes = infer(source, options.input_shapes)
    if data is not None:
        found = load(data, source, shapes, options, limit)
    else:
        footprint.check(source, shapes.passes[0], options.memory_limit)
        made = calibration(source, shapes, replace(options, calib=None, calib_samples=limit or MADE_UP))
        specs = describe(source, shapes)
        first = next((s.name for s in specs if s.batch == 0), None)
        rows = [len(feed[first]) if first else 1 for feed in made.feeds]
        found = Data(list(made.feeds), None, rows, made.source, tokens=tokens_of(specs, made.feeds))
    comparison = Comparison(source, found, metric, options.providers, options.memory_limit // KEPT)
    comparison.check(gates)
    return comparison


class Comparison:
    """A dense model and data; any number of other models are measured against them. room: bytes that the dense model's
    answers may take: so many of them are kept.

    warnings: what makes the figures doubtful."""

    def __init__(
        self, dense: Model, data: Data, metric: Any = "", providers: Sequence[str] = ("cpu",), room: int = 0
    ) -> None:
        """Runs the dense model, so that data or a metric that do not fit are known before any work."""
        self.data, self.providers = data, providers
        self.session = open_session(dense, providers)
        self._room, self._kept = room, dict[int, dict[str, Array]]()
        first = [*self._dense(0).values()]
        labels, tokens = (None if given is None else given[0][: data.rows[0]] for given in (data.labels, data.tokens))
        self.metric = chosen(metric, first, labels, tokens, data.is_text)
        tally, answers, lost = Tally(self.metric), Answers(data.folders), 0
        classes = isinstance(self.metric, Metric) and self.metric.takes_classes and data.labels is not None
        for k in range(len(data.feeds)):
            outputs = [*self._dense(k).values()]
            tally.add(outputs, self._reference(k, outputs))
            lost += int(undecided(outputs[0].reshape(len(outputs[0]), -1)).sum())
            if classes:
                answers.add(outputs, self._reference(k, outputs))
        self.statistics = tally.statistics()
        doubt = f"the dense model's answer to {lost} of {len(data)} samples is not a number (NaN)" if lost else ""
        doubt = doubt or (answers.doubt() if classes else self._guessed(first) or self._undirected())
        self.warnings = (*data.warnings, *([f"{data.source}: {doubt}"] if doubt else []))

    def _guessed(self, first: Outputs) -> str:
        """That a language model knows no more of the text than how often its tokens occur."""
        if not isinstance(self.metric, Metric) or self.metric.against != "tokens":
            return ""
        texts = [text for k in range(len(self.data.feeds)) for text in self._reference(k, first)]
        guess, found = by_frequency(texts, np.asarray(first[0]).shape[-1]), total(self.metric, self.statistics)
        return (
            ""
            if found < guess
            else (
                f"the perplexity of the dense model is {found:.4g}, no better than by the frequency of the tokens "
                f"({guess:.4g}): does it go on with texts, and are this text and this tokenizer its own?"
            )
        )

    def _undirected(self) -> str:
        """That a function does not say which way is better."""
        if not isinstance(self.metric, Custom) or self.metric.directed:
            return ""
        name = str(getattr(self.metric.function, "__name__", self.metric.name))
        return (
            f"whether more or less of {self.metric.name} is better is not said, so more is taken as better; say it by "
            f"{name}.higher_is_better = True or False"
        )

    def check(self, gates: Gates | None) -> None:
        """UsageError where gates cannot be judged here, or might hold by mistake."""
        refuse(gates, self.warnings)
        check_unit(gates, self.metric.name, self.metric.unit)
        few = "one sample has none" if len(self.data) < 2 else ""
        whole = "" if self.statistics.ndim else f"{self.metric.name} gives one number for all samples, not one for each"
        check_intervals(gates, whole or few, few)

    def measure(self, other: Model, gates: Gates | None = None, seed: int = 0) -> Quality:
        """`other` against the dense model. Gates that do not hold are named in `failed`; see `check` for what is a
        UsageError."""
        self.check(gates)
        session = open_session(other, self.providers)
        self._check_inputs(session, other.taken)
        likeness = {name: list[Floats]() for name in (*FIDELITY, "snr")}
        tally = Tally(self.metric)
        say = now()
        for k in range(len(self.data.feeds)):
            say("validate", k / len(self.data.feeds))
            dense, found = self._dense(k), self._outputs(session, k)
            left = [*fitted(other.taken, dense).values()]
            mine = [*found.values()]
            _check_shapes(left, mine)
            for name, statistics in likeness.items():
                statistics.append(METRICS[name].statistics(mine, left))
            tally.add(mine, self._reference(k, left))
        before, after, drop, within = figures(self.metric, self.statistics, tally.statistics(), seed)
        parts = {name: np.concatenate(x) for name, x in likeness.items()}
        quality = Quality(
            self.metric.name, before, after, drop, within, len(self.data),
            {name: total(METRICS[name], x) for name, x in parts.items()},
            self.data.source, tuple(session.get_providers()), self.metric.unit, self.metric.higher_is_better,
            {name: likely(METRICS[name], parts[name], seed) for name in FIDELITY}, gates or None,
            warnings=self.warnings,
        )  # fmt: skip
        return replace(quality, failed=tuple(failures(quality, gates))) if gates else quality

    def judged(self, other: Model, gates: Gates | None = None, seed: int = 0) -> dict[str, Any]:
        """What `measure` gives, as plain data; CheckFailed where a gate does not hold."""
        quality = self.measure(other, gates, seed)
        if quality.failed:
            raise CheckFailed("; ".join(quality.failed))
        return asdict(quality)

    def _reference(self, k: int, dense: Outputs) -> Any:
        """What the metric compares the k-th outputs with: labels, or those of the dense model."""
        against = self.metric.against if isinstance(self.metric, Metric) else "labels"
        if against != "dense" and self.data.labels is not None:
            return self.data.labels[k]
        return dense if self.data.tokens is None or against != "tokens" else self.data.tokens[k][: self.data.rows[k]]

    def _check_inputs(self, session: Any, taken: Taken) -> None:
        """The two models must take the same inputs, of which the other may have `taken` a part."""
        ours, theirs = _inputs(self.session, taken), _inputs(session)
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

    def _dense(self, k: int) -> dict[str, Array]:
        """What the dense model answers to the k-th feed."""
        if k in self._kept:
            return self._kept[k]
        made = self._outputs(self.session, k)
        size = sum(x.nbytes for x in made.values())
        if size <= self._room:
            self._room -= size
            self._kept[k] = made
        return made

    def _outputs(self, session: Any, k: int) -> dict[str, Array]:
        """Of the k-th feed, those that have a row for each sample, by name."""
        rows = self.data.rows[k]
        try:
            names = [o.name for o in self.session.get_outputs() if not gone(session.taken, o.name)]
            made = dict(zip(names, session.run(names, self.data.feeds[k]), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise RuntimeFailure(f"ONNX Runtime failed on the validation data: {first_line(error)}") from error
        counted = {n: x[:rows] for n, x in made.items() if isinstance(x, np.ndarray) and x.ndim and len(x) >= rows}
        if not counted:
            raise UsageError("no output of the model has a row for each sample, so it cannot be measured on this data")
        return counted


def _check_shapes(dense: Outputs, other: Outputs) -> None:
    ours, theirs = [x.shape for x in dense], [x.shape for x in other]
    if ours != theirs:
        raise UsageError(f"the two models give outputs of shapes {ours} and {theirs}; compare alike ones")


def _inputs(session: Any, taken: Taken | None = None) -> dict[str, tuple[str, list[Any]]]:
    """The types and declared sizes of what a session takes, as they are with what is left of them."""
    found = {i.name: (i.type, i.shape) for i in session.get_inputs() if not gone(taken or {}, i.name)}
    for name, (_, shape) in found.items():
        for axis, positions in ((taken or {}).get(name) or {}).items():
            shape[axis] = len(positions)
    return found
