"""Calibration inputs: what the user gives, or else synthetic ones that fit the model.

Knows the inputs of a model, no units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np

from onnxprune.data import sounds, spectra, synthetic
from onnxprune.data.amounts import amounts
from onnxprune.data.batches import Feed, batched, checked, cut
from onnxprune.data.beside import beside
from onnxprune.data.calibration_sizes import sizes
from onnxprune.data.decoding import decoder
from onnxprune.data.images import ImageSource
from onnxprune.data.inputs import Input, describe
from onnxprune.data.pixels import Pixels
from onnxprune.data.pool import Pool, Shown
from onnxprune.data.random import random_inputs
from onnxprune.data.ranges import pixels
from onnxprune.data.samples import read
from onnxprune.data.text import TextSource, tokenizer_of
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.model import Array, Model
from onnxprune.options import Options
from onnxprune.progress import now
from onnxprune.run import entire, first_line
from onnxprune.shapes import Inputs, Shapes
from onnxprune.steady import alongside

CLASSES = 50_000
"""More scores a sample than these are no classes, but a map or letters in a row."""
TRIED = 256
"""So many photographs and made-up images are shown to a classifier, whose answers then decide between them."""
SHOWN = 4
"""No more of each than one in so many of those that are chosen from."""
STEPS = 4
"""Batches in a row on which a model with a state is tried."""
PIECES = 32
"""A sound is cut into so many pieces at most for a model that carries a state from one to the next."""


@dataclass(frozen=True)
class Calibration:
    """Batches ready for a session, in the model's own types.

    The first axis of an array counts samples where the model's input has a batch axis; where the batch is fixed, the
    last one repeats its last sample, so that the feeds may hold more rows than `samples`. `source` is a line for the
    report. `diversity` is the entropy of the mean softmax over the set, as a share of the most that so many classes
    can have; None where there is no class output. `labels` (samples,) are those of an .npz, in the order of the feeds.
    """

    feeds: tuple[dict[str, Array], ...]
    samples: int
    source: str
    synthetic: bool
    diversity: float | None
    labels: Array | None = None


def calibration(model: Model, shapes: Shapes, options: Options) -> Calibration:
    """The inputs on which activations are measured: the user's, or synthetic ones. Seeded and deterministic."""
    want = options.calib_samples
    batch = min(options.calib_batch, want)
    made = _Calibrator(model, shapes, options, want, batch)
    return made.synthetic() if options.calib is None else made.given(options.calib)


class _Calibrator:
    """One model, and what is made for it: arrays for each of its inputs, in batches that it runs on."""

    def __init__(self, model: Model, shapes: Shapes, options: Options, want: int, batch: int) -> None:
        self.model, self.shapes, self.options, self.want, self.batch = model, shapes, options, want, batch
        self.specs = describe(model, shapes)
        self.session = entire(model, options.providers, shapes.dtype)
        self.images = ImageSource(1.0)
        self.texts = TextSource(tokenizer_of(model.path, options.tokenizer), self.specs)
        self.streams: dict[str, Iterator[Array]] = {}  # what is left of the sounds that go on from batch to batch

    @cached_property
    def scales(self) -> dict[str, Pixels]:
        """The range of values of every image input."""
        return {s.name: pixels(self.model, self.shapes, s, self.options) for s in self.specs if s.kind == "image"}

    def given(self, data: Any) -> Calibration:
        """What the user gives, checked, in a random order; UsageError where the model does not run on it."""
        decode = decoder(self.model, self.shapes, self.specs, self.options)
        source = read(data, self.specs, self.want, self.options.seed, decode)
        feeds = [checked(feed, self.specs, source.name) for feed in source.feeds]
        first = next((s.name for s in self.specs if s.batch == 0), None)
        batch = next(self.sizes())[first][0] if first else 1  # the user may have fixed that of an open axis
        feeds, labels, samples, have = batched(
            feeds, source.labels, self.specs, self.want, batch, self.options.seed, source.name
        )
        try:
            self.session.run(None, feeds[0])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise UsageError(f"{source.name}: the model cannot run on this data: {first_line(error)}") from error
        of = f" of {have}" if have > samples else ""
        text = f"{source.name}: {samples}{of} {'sample' if have == 1 else 'samples'}{source.note}"
        return Calibration(
            tuple(feeds), samples, text, False, self.diversity(feeds, samples), _classes(labels, source.name)
        )

    def sizes(self) -> Iterator[Inputs]:
        """Of all inputs, the most telling first."""
        return sizes(self.model, self.shapes, self.batch, self.options.input_shapes)

    def synthetic(self) -> Calibration:
        """Inputs by their kinds at the first sizes that the model runs at, or else plain random ones."""
        if self.options.tokenizer is not None:
            self.texts.check()
        trials = list(self.sizes())
        running = (dims for dims in trials if self.heard(dims) is not None)
        dims = next(running, None)
        if dims is None:
            return self.plain()
        if dims != trials[0] and any(s.kind == "sound" for s in self.specs):
            # A detector for pieces of 576 samples may run on 512, too, and hear nothing in them.
            dims = max([dims, *running], key=lambda dims: self.heard(dims) or 0.0)
        self.streams.clear()
        return self.chosen(dims)

    def heard(self, dims: Inputs) -> float | None:
        """How much the first output varies over a few batches of these sizes; None where the model does not run."""
        rng = np.random.default_rng(self.options.seed)
        self.streams.clear()
        try:
            feeds = [self.feed(dims, rng) for _ in range(STEPS if any(s.kind == "state" for s in self.specs) else 1)]
            self.carry_states(feeds)
            answers = [np.asarray(self.session.run(None, feed)[0], float) for feed in feeds]
            return float(np.std(np.stack(answers)))
        except Exception:  # whatever fails, other sizes or plain random inputs may do
            return None

    def chosen(self, dims: Inputs) -> Calibration:
        """As many samples as wanted at these sizes; for a classifier, those of a pool whose predicted classes are most
        evenly spread."""
        rng = np.random.default_rng(self.options.seed)
        first = self.feed(dims, rng)
        rows = next((dims[s.name][0] for s in self.specs if s.batch == 0), 1)
        want, most = amounts(self.model, self.shapes, dims, rows, self.want)
        if all(s.batch == 0 for s in self.specs) and self.probabilities(first, rows) is not None:
            shown: Shown = []
            if any(s.kind == "image" for s in self.specs):
                rng, shown = self.choose_images(dims, rows, min(want, TRIED, most // SHOWN))
            pool, say = Pool(rng, want, shown), now()
            with alongside() as begun:  # the next inputs are made while these are run
                for k in range(len(shown), batches := math.ceil(most / rows)):
                    say.done(k / batches)
                    feed = self.feed(dims, rng)
                    pool.add(feed, begun(partial(self.scores, feed, rows)))
                picked, scores = pool.chosen()
            feeds = cut(picked, np.arange(len(scores)), self.specs, rows, any(s.axes[0] for s in self.specs))
            return Calibration(
                tuple(feeds), len(scores), f"{self.text(dims)}, class-balanced", True, synthetic.entropy(scores)
            )
        feeds = [first] + [self.feed(dims, rng) for _ in range(math.ceil(want / rows) - 1)]
        self.carry_states(feeds)
        samples = min(want, rows * len(feeds))
        return Calibration(tuple(feeds), samples, self.text(dims), True, self.diversity(feeds, samples))

    def choose_images(self, dims: Inputs, rows: int, count: int) -> tuple[np.random.Generator, Shown]:
        """Photographs or made-up images, whichever the classes are more evenly predicted on: a classifier of clothes on
        plain grounds finds in photographs little that it knows. Gives what draws more of them, and those shown."""
        tried = []
        for share in (1.0, 0.0):
            self.images.share, rng, shown = share, np.random.default_rng(self.options.seed), Shown()
            with alongside() as begun:
                for _ in range(math.ceil(count / rows)):
                    feed = self.feed(dims, rng)
                    shown.append((feed, begun(partial(self.scores, feed, rows))))
                tried.append((synthetic.entropy(np.concatenate([scores() for _, scores in shown])), share, rng, shown))
        _, self.images.share, rng, shown = max(tried, key=lambda one: one[0])
        return rng, shown

    def carry_states(self, feeds: list[Feed]) -> None:
        """Recurrent states are what the batch before left behind: at zero, where they begin, little depends on them."""
        states = [s.name for s in self.specs if s.kind == "state"]
        outputs = [o.name for o in self.session.get_outputs()]
        for before, feed in pairwise(feeds) if states else ():
            left = [x for x in self.session.run(outputs, before) if isinstance(x, np.ndarray)]
            for name in states:
                alike = [x for x in left if x.shape == feed[name].shape and x.dtype == feed[name].dtype]
                if alike:
                    feed[name] = alike[0]
                    left = [x for x in left if x is not alike[0]]

    def plain(self) -> Calibration:
        """Plain random inputs at the sizes that shape inference found."""
        dims = self.shapes.inputs[0]
        rows = next((dims[s.name][0] for s in self.specs if s.batch == 0 and dims.get(s.name)), 1)
        try:
            feeds = [random_inputs(self.model, dims, self.options.seed + k) for k in range(math.ceil(self.want / rows))]
            self.session.run(None, feeds[0])
        except Exception as error:
            raise RuntimeFailure(
                f"the model runs on no calibration inputs that could be made ({first_line(error)}); give data with "
                "--calib, or sizes with --overwrite-input-shape"
            ) from error
        text = "plain random inputs, as the model runs on no others"
        return Calibration(tuple(feeds), rows * len(feeds), text, True, self.diversity(feeds, rows * len(feeds)))

    def feed(self, dims: Inputs, rng: np.random.Generator) -> Feed:
        """One batch."""
        made = beside(self.model, self.specs, dims) | self.texts.drawn(rng, dims)
        return {s.name: made[s.name] if s.name in made else self.array(s, dims[s.name], rng) for s in self.specs}

    def array(self, spec: Input, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        """Values for one input of this shape, by its kind."""
        values: Array
        match spec.kind:
            case "image":
                values = self.images.drawn(rng, spec, shape, self.scales[spec.name])
            case "sound" | "features" if spec.batch is None or len(shape) < 2:
                values = rng.standard_normal(shape)
            case "sound":
                values = self.sound(spec, shape, rng)
            case "features" if spectra.axis_of_bands(shape) is not None:
                values = spectra.features(rng, shape)
            case "features":
                values = synthetic.features(rng, shape)
            case "tokens" | "integers":
                values = synthetic.tokens(rng, spec.safe(shape), shape)
        return values.astype(spec.dtype)

    def sound(self, spec: Input, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        """Sounds of their own; of a model with a state the next piece of those of the batch before."""
        if all(s.kind != "state" for s in self.specs):
            return sounds.sounds(rng, shape)
        piece = next(self.streams.get(spec.name, iter(())), None)
        if piece is None:
            axis = 1 + int(np.argmax(shape[1:]))
            pieces = min(math.ceil(self.want / shape[0]), PIECES)
            long = sounds.sounds(rng, (*shape[:axis], pieces * shape[axis], *shape[axis + 1 :]))
            self.streams[spec.name] = iter(np.split(long, pieces, axis))
            piece = next(self.streams[spec.name])
        return piece

    def text(self, dims: Inputs) -> str:
        """What the inputs are, for the report."""
        images = [self.images.text(s, dims[s.name], self.scales[s.name]) for s in self.specs if s.kind == "image"]
        texts = self.texts.text(dims)
        kinds = ("sound", "features", "integers") if texts else ("sound", "features", "tokens", "integers")
        made = [self.kind(s, dims) for s in self.specs if s.kind in kinds]
        others = [f"synthetic {' and '.join(dict.fromkeys(made))}"] if made else []
        return " and ".join(filter(None, dict.fromkeys([*images, texts, *others]))) or "constants"

    def kind(self, spec: Input, dims: Inputs) -> str:
        """What is made for an input, in a word or few."""
        spectral = spec.kind == "features" and spectra.axis_of_bands(dims[spec.name]) is not None
        return "spectra of speech" if spectral else spec.kind

    def scores(self, feed: Feed, rows: int) -> Array:
        """The probabilities (rows, classes) of a model that was seen to have some."""
        found = self.probabilities(feed, rows)
        assert found is not None
        return found

    def probabilities(self, feed: Feed, rows: int) -> Array | None:
        """(rows, classes) from the first output that has a row for each sample and scores for two or more classes."""
        for spec in self.session.get_outputs():
            if spec.type not in ("tensor(float)", "tensor(float16)", "tensor(double)") or len(spec.shape or ()) < 2:
                continue
            scores = np.asarray(self.session.run([spec.name], feed)[0])
            if scores.ndim < 2 or len(scores) != rows or scores.size != rows * scores.shape[1]:
                continue
            if not 2 <= scores.shape[1] <= CLASSES:
                continue
            return synthetic.softmax(scores.reshape(rows, -1).astype(float))
        return None

    def diversity(self, feeds: Sequence[Feed], samples: int) -> float | None:
        """See `Calibration`."""
        first = next((s.name for s in self.specs if s.batch == 0), None)
        scores: list[Array] = []
        for feed in feeds if first else ():
            found = self.probabilities(feed, len(feed[first or ""]))
            if found is None or (scores and found.shape[1] != scores[0].shape[1]):
                return None  # as many scores as the input is long are no classes either
            scores.append(found)
        return synthetic.entropy(np.concatenate(scores)[:samples]) if scores else None


def _classes(labels: list[Array] | None, source: str) -> Array | None:
    """(samples,): for criteria that differentiate a loss."""
    if labels is None:
        return None
    if any(x.dtype.kind not in "iu" or x.size != len(x) for x in labels):
        raise UsageError(f"{source}: 'labels' must be integers, one per sample")
    return np.concatenate([x.reshape(-1) for x in labels])
