"""The inputs that a network learns on: parted from those that judge, multiplied by copies, drawn a batch at a time.

Knows inputs and what kind each is, nothing of torch and no units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from onnxprune.data import Calibration, Feed, Input, calibration
from onnxprune.finetuning import recipe
from onnxprune.model import Array, Model
from onnxprune.options import Options
from onnxprune.shapes import Shapes

SHIFT = 1 / 8
"""Of an image's side: how far a copy is moved at most."""
CONTRAST, TINT = 0.3, 0.1
"""Changes of images: of all channels, of each one, as shares of the spread of values."""
CUT = 0.5
"""How often a rectangle of another image is put in (CutMix; Yun et al. 2019, arXiv 1905.04899)."""


@dataclass(frozen=True)
class Parts:
    """Feeds to learn on, and others that only judge. labels: one a sample to learn on, in order. made_up: they are not
    the user's."""

    fit: tuple[Feed, ...]
    judge: tuple[Feed, ...]
    source: str
    made_up: bool
    labels: Array | None = None


def parted(model: Model, shapes: Shapes, options: Options) -> Parts:
    """The user's inputs in two parts, or made-up ones, twice. Too few have no part that judges."""
    if options.calib is None:
        fit = calibration(model, shapes, options)
        other = replace(options, seed=options.seed + 1, calib_samples=min(recipe.FEWEST, options.calib_samples))
        return Parts(fit.feeds, calibration(model, shapes, other).feeds, fit.source, True)
    most = max(options.calib_samples, min(recipe.INPUTS, fitting(shapes, options) // 2))
    return _parted(calibration(model, shapes, replace(options, calib_samples=most)))


def fitting(shapes: Shapes, options: Options) -> int:
    """How many samples of all inputs take half of the memory, by the sizes that the shapes were inferred at."""
    sizes = shapes.inputs[0].values()
    batch = max((s[0] for s in sizes if s and s[0]), default=1)
    return int(options.memory_limit / 2 / max(4 * sum(prod(d or 1 for d in s) for s in sizes) / batch, 1))


def _parted(found: Calibration) -> Parts:
    """The last feeds judge, as many as it takes."""
    at, left = len(found.feeds), recipe.held(found.samples) if found.samples >= recipe.FEWEST else 0
    while left > 0 and at > 1:
        at -= 1
        left -= rows(found.feeds[at])
    fit = found.feeds[:at]
    labels = None if found.labels is None else found.labels[: sum(map(rows, fit))]
    return Parts(fit, found.feeds[at:], found.source, False, labels)


def rows(feed: Feed) -> int:
    """How many samples a feed has, by its first array."""
    first = next(iter(feed.values()), np.zeros(1))
    return len(first) if first.ndim else 1


def calib_of(parts: Parts) -> Callable[[], list[dict[str, Array]]]:
    """The part to learn on as `Options.calib` takes it, under the name that the data had."""

    def feeds() -> list[dict[str, Array]]:
        starts = np.cumsum([0, *map(rows, parts.fit)])
        if parts.labels is None:
            return list(parts.fit)
        return [{**f, "labels": parts.labels[a : a + rows(f)]} for a, f in zip(starts, parts.fit, strict=False)]

    feeds.__name__ = parts.source.rpartition(": ")[0] or parts.source
    return feeds


@dataclass
class Bucket:
    """Samples that fit into one batch: arrays [samples, ...] by input, and inputs that are the same for all. size: of a
    batch, where the model fixes it."""

    arrays: dict[str, Array]
    shared: dict[str, Array]
    size: int | None
    labels: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values()))) if self.arrays else 1

    def feeds(self, at: Array) -> Iterator[tuple[Feed, Array]]:
        """The samples at these places, in batches that the model takes, each with its places."""
        size = self.size or len(at)
        for start in range(0, len(at), size):
            some = at[start : start + size]
            if len(some) == size or not self.size:
                yield {n: x[some] for n, x in self.arrays.items()} | self.shared, some

    def batches(self, most: int) -> Iterator[Feed]:
        """All samples, but for those that do not fill a batch of fixed size; `most` a batch otherwise."""
        at = np.arange(len(self))
        for some in [at] if self.size else np.array_split(at, -(-len(at) // most)):
            yield from (feed for feed, _ in self.feeds(some))


def buckets(feeds: Sequence[Feed], specs: Sequence[Input], labels: Array | None = None) -> list[Bucket]:
    """All samples, joined where they have one shape; a feed stays whole where samples are counted on other axes."""
    counted = [s.name for s in specs if s.batch == 0]
    if not counted or {s.batch for s in specs} - {0, None}:
        return [Bucket({}, dict(feed), 1) for feed in feeds]
    shared = [s.name for s in specs if s.batch != 0]
    size = next((s.axes[0] for s in specs if s.batch == 0 and s.axes[0]), None)
    said = _by_feed(feeds, labels)
    found = []
    for members in _alike(feeds, counted, shared):
        own, theirs = [feeds[k] for k in members], [said[k] for k in members]
        found.append(_joined(own, theirs, counted, shared, size))
    return found


def _by_feed(feeds: Sequence[Feed], labels: Array | None) -> list[Array | None]:
    """The labels of each feed."""
    if labels is None:
        return [None] * len(feeds)
    return list(np.split(labels, np.cumsum([*map(rows, feeds)])[:-1]))


def _joined(
    feeds: Sequence[Feed],
    labels: Sequence[Array | None],
    counted: Sequence[str],
    shared: Sequence[str],
    size: int | None,
) -> Bucket:
    """Feeds of one shape in one bucket."""
    made = Bucket({n: np.concatenate([f[n] for f in feeds]) for n in counted}, {n: feeds[0][n] for n in shared}, size)
    own = np.concatenate([x for x in labels if x is not None] or [np.zeros(0)])
    made.labels = own if len(own) == len(made) else None  # a batch of fixed size is filled up, and has too few
    return made


def _alike(feeds: Sequence[Feed], counted: Sequence[str], shared: Sequence[str]) -> list[list[int]]:
    """Feeds whose samples have one shape and the same of what is for all samples."""
    found: dict[Any, list[int]] = defaultdict(list)
    for k, feed in enumerate(feeds):
        found[(*(feed[n].shape[1:] for n in counted), *(feed[n].tobytes() for n in shared))].append(k)
    return list(found.values())


def multiplied(bucket: Bucket, specs: Sequence[Input], mixed: bool, copies: int, seed: int) -> Bucket:
    """With copies of every sample whose images are flipped and moved, and also tinted and `mixed`."""
    images = [s for s in specs if s.kind == "image" and s.name in bucket.arrays and len(s.axes) == 4]
    if not images or copies < 2:
        return bucket
    rng = np.random.default_rng((seed, 1))
    parts = [bucket.arrays]
    for _ in range(copies - 1):
        made = dict(bucket.arrays)
        for spec in images:
            made[spec.name] = _varied(bucket.arrays[spec.name], spec, rng, mixed)
        parts.append(made)
    arrays = {n: np.concatenate([p[n] for p in parts]) for n in bucket.arrays}
    return replace(bucket, arrays=arrays, labels=None if bucket.labels is None else np.tile(bucket.labels, copies))


def _varied(x: Array, spec: Input, rng: np.random.Generator, mixed: bool) -> Array:
    """One copy of every image, in its own type and layout."""
    images = np.moveaxis(x, spec.channel, 1).astype(np.float32)
    images = _moved(images, rng)
    if mixed:
        images = _mixed(_tinted(images, rng), rng)
        images = np.clip(images, x.min(), x.max())
    back = np.moveaxis(images, 1, spec.channel)
    return np.ascontiguousarray(np.rint(back) if x.dtype.kind in "iu" else back).astype(x.dtype)


def _moved(x: Array, rng: np.random.Generator) -> Array:
    """Half of them flipped; all moved, edges mirrored."""
    height, width = x.shape[2:]
    reach = (int(height * SHIFT), int(width * SHIFT))
    padded = np.pad(x, ((0, 0), (0, 0), (reach[0],) * 2, (reach[1],) * 2), "symmetric")
    out = np.empty_like(x)
    for k in range(len(x)):
        top, left = rng.integers(2 * reach[0] + 1), rng.integers(2 * reach[1] + 1)
        image = padded[k, :, top : top + height, left : left + width]
        out[k] = image[..., ::-1] if rng.random() < 0.5 else image
    return out


def _tinted(x: Array, rng: np.random.Generator) -> Array:
    """Other contrast, brightness and colours."""
    n, c = x.shape[:2]
    mean, spread = x.mean((1, 2, 3), keepdims=True), x.std((1, 2, 3), keepdims=True)
    gain = 1 + CONTRAST * rng.uniform(-1, 1, (n, 1, 1, 1)) + TINT * rng.uniform(-1, 1, (n, c, 1, 1))
    shift = CONTRAST * rng.uniform(-1, 1, (n, 1, 1, 1)) + TINT * rng.uniform(-1, 1, (n, c, 1, 1))
    return np.asarray(mean + (x - mean) * gain + shift * spread, np.float32)


def _mixed(x: Array, rng: np.random.Generator) -> Array:
    """A rectangle of another image in some of them."""
    height, width = x.shape[2:]
    others, out = rng.permutation(len(x)), x.copy()
    for k in range(len(x)):
        if rng.random() < CUT:
            side = np.sqrt(rng.random())
            h, w = max(1, int(side * height)), max(1, int(side * width))
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            out[k, :, top : top + h, left : left + w] = x[others[k], :, top : top + h, left : left + w]
    return out
