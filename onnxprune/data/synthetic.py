"""Inputs made from nothing but a random generator, for models whose data nobody gave. Knows arrays only.

What counts is that the statistics inside a network come out as they do on real inputs, and for images these are edges,
occlusion, and textures that differ from object to object: white noise or smooth fields drive a trained network into
states that no photograph does. Dead leaves (opaque shapes that cover each other, their sizes distributed as r^-3) have
the edges and the scale invariance of photographs; that every leaf also has its own colour, shading, blur and 1/f^a
texture brings the deeper layers close as well.

All images are in the normalised space of image networks: mean about 0, standard deviation about 1, within `SPAN`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from onnxprune.data import lettering
from onnxprune.data.leaves import Leaves, Looks, covered

Array = NDArray[Any]
Floats = NDArray[np.float32]

SPAN = (-2.1, 2.6)
"""What black and white become under the usual normalisation of photographs."""
SHARED, OWN = 0.9, 0.45
"""Weights of what the channels have in common and of what each has alone: their squares add up to one."""
CONTRAST = 0.75
RADII = (0.05, 0.5)
"""Least and largest radius of a leaf, as a share of the shorter side."""
LEAVES = (10, 80)
OBJECTS, OBJECT_RADII = (4, 9), (0.1, 0.5)
"""The same for a few things on a plain background. Half of the images of one channel are such: much of what is grey
(digits, clothes, scans) has been cut out or written on paper. Measured on a trained classifier of grey images, these
bring the layers' covariances closer to those on real images than either kind alone, and spread the predictions."""
WIDE = 2.5
"""Most of the images that are so many times wider than high are lines of writing, as such inputs mostly are."""
WRITTEN = 0.8
CENTRAL = 4
"""At most this many large leaves lie in the centre, as the subject of a photograph does."""
FIELDS = 32
"""Texture fields made for one set; every leaf cuts its own piece out of one of them."""


def images(
    rng: np.random.Generator, count: int, channels: int, height: int, width: int, fields: Floats | None = None
) -> Floats:
    """`count` images of textured dead leaves, (count, channels, height, width), in the normalised space. `fields` from
    `leaf_textures` can be used for many calls."""
    fields = leaf_textures(rng, channels, height, width) if fields is None else fields
    made = np.empty((count, channels, height, width), np.float32)
    for canvas in made:
        _paint(rng, canvas, fields)
    return made


def leaf_textures(rng: np.random.Generator, channels: int, height: int, width: int) -> Floats:
    """Textures with room to cut pieces as large as an image out of them at different places."""
    return textures(rng, FIELDS, channels, height + height // 2, width + width // 2)


def textures(rng: np.random.Generator, count: int, channels: int, height: int, width: int) -> Floats:
    """Fields of unit variance whose amplitude falls as 1/f^a, each with its own a in [0.5, 1.5]."""
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.hypot(y, x)
    frequency[0, 0] = math.inf  # no constant part: that is the leaf's colour
    spectrum = frequency ** -rng.uniform(0.5, 1.5, (count, 1, 1))
    fields = np.empty((count, channels, height, width), np.float32)
    for field, shape in zip(fields, spectrum, strict=True):
        noise = _coloured(rng, channels, (height, width))
        field[:] = np.fft.irfft2(np.fft.rfft2(noise) * shape, s=(height, width))
        field /= field.std() + 1e-6
    return fields


def _coloured(rng: np.random.Generator, channels: int, shape: tuple[int, ...]) -> Array:
    """Normal noise of unit variance, mostly shared by the channels as brightness is: (channels, *shape)."""
    return SHARED * rng.standard_normal((1, *shape)) + OWN * rng.standard_normal((channels, *shape))


def _scattered(rng: np.random.Generator, height: int, width: int, plain: bool) -> Leaves:
    """Leaves of all sizes everywhere, a few large ones in the centre; or, for a `plain` background, a few objects."""
    side = min(height, width)
    count = round(int(rng.integers(*(OBJECTS if plain else LEAVES), endpoint=True)) * max(height, width) / side)
    least, most = OBJECT_RADII if plain else RADII
    # Inverse transform of the density r^-3 on [least, most].
    radius = side * (least**-2 - rng.random(count) * (least**-2 - most**-2)) ** -0.5
    centre = 0.5 + 0.2 * rng.standard_normal((count, 2)) if plain else rng.random((count, 2))
    subjects = rng.choice(count, int(rng.integers(1, CENTRAL, endpoint=True)), replace=False)
    radius[subjects] = side * rng.uniform(0.15, 0.4, len(subjects))
    centre[subjects] = 0.5 + 0.12 * rng.standard_normal((len(subjects), 2))
    return Leaves(
        centre * (height, width), radius, np.exp(rng.uniform(-0.5, 0.5, count)), rng.uniform(0, math.pi, count),
        rng.uniform(1.5, 5, count), rng.uniform(0.7, 1.5, count) + rng.exponential(0.05, count) * radius,
    )  # fmt: skip


def _line(rng: np.random.Generator, height: int, width: int) -> Leaves:
    """The strokes of a line of text."""
    ends, pen = lettering.segments(rng, height, width)
    count = len(ends)
    (down, right), long = (ends[:, 1] - ends[:, 0]).T, np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    a, b = (long + pen) / 2, pen / 2
    return Leaves(
        ends.mean(1), np.sqrt(a * b), np.sqrt(a / b), np.arctan2(down, right), np.full(count, 4.0),
        np.full(count, rng.uniform(0.7, 1.2)),
    )  # fmt: skip


def _paint(rng: np.random.Generator, canvas: Floats, fields: Floats) -> None:
    """One image on `canvas` (channels, height, width)."""
    channels, height, width = canvas.shape
    text = width >= WIDE * height and rng.random() < WRITTEN
    plain = text or (channels == 1 and rng.random() < 0.5)
    leaves = _line(rng, height, width) if text else _scattered(rng, height, width, plain)
    count = len(leaves.radius)
    colours = _coloured(rng, channels, (count + 1,)).astype(np.float32)
    grain = rng.uniform(0.1, 0.7, count + 1).astype(np.float32)
    slope = (0.4 * rng.standard_normal((count + 1, 2))).astype(np.float32)
    if text:  # one ink, that can be read
        paper = colours[:, count:]
        ink = paper - np.sign(paper.mean() or 1) * rng.uniform(1.2, 3) + 0.3 * colours[:, :1]
        colours[:, :count], grain[:], slope[:] = ink, rng.uniform(0, 0.4), 0

    boxes = leaves.boxes(height, width)
    sizes = np.maximum(boxes[1] - boxes[0], 0)
    seen = np.flatnonzero(sizes.all(1))
    ground = [] if plain else [(height, width)]
    room = np.array([*ground, *sizes[seen]]).reshape(-1, 2)
    cuts = np.asarray(rng.integers(np.c_[fields.shape[2:] - room + 1, np.full(len(room), len(fields))]))
    if plain:
        canvas[:] = colours[:, count, None, None]
        if channels == 1:
            canvas /= CONTRAST  # so that some backgrounds are as black or white as they come
    else:
        top, left, field = cuts[0]
        y, x = (2 * np.arange(n, dtype=np.float32) / n - 1 for n in (height, width))
        shade = colours[:, count, None, None] + (slope[count, 0] * y[:, None] + slope[count, 1] * x)
        canvas[:] = fields[field, :, top : top + height, left : left + width] * grain[count] + shade
    looks = Looks(colours, grain, slope, np.zeros((count, 3), np.int64))
    looks.cuts[seen] = cuts[len(ground) :]
    covered(canvas, leaves, looks, fields)
    canvas *= CONTRAST
    np.clip(canvas, *SPAN, out=canvas)


def features(rng: np.random.Generator, shape: tuple[int, ...], clusters: int = 8) -> Floats:
    """Vectors along the last axis from a mixture of Gaussians, each with few strong directions; unit variance as a
    whole. Neighbours on the axes between follow each other slowly, as the steps of a sequence do."""
    width = shape[-1]
    rank = max(1, min(8, width // 2))
    centres = 0.7 * rng.standard_normal((clusters, width))
    factors = rng.standard_normal((clusters, rank, width)) / math.sqrt(rank)
    kind = rng.integers(clusters, size=shape[0])
    latent = rng.standard_normal((*shape[:-1], rank))
    for axis in range(1, len(shape) - 1):
        steps = np.moveaxis(latent, axis, 0)
        for k in range(1, len(steps)):
            steps[k] = 0.8 * steps[k - 1] + 0.6 * steps[k]
    inner = np.einsum("n...r,nrw->n...w", latent, factors[kind])
    centre = centres[kind].reshape(shape[0], *[1] * (len(shape) - 2), width)
    made = centre + 0.6 * inner + 0.4 * rng.standard_normal(shape)
    return np.asarray(made, np.float32)


def tokens(rng: np.random.Generator, values: Array, shape: tuple[int, ...]) -> Array:
    """Some of `values`, in every sample (first axis) as a text of its own: a few are frequent, by Zipf's law with an
    exponent of its own (near 0 is plain noise); they come from all values or from a range of neighbours, as the letters
    of a script do; and what was written is written again."""
    count = len(values)
    if len(shape) < 2 or count < 3:
        return np.asarray(rng.choice(values, shape))
    made = np.empty(shape, values.dtype)
    for sample in made:
        width = count if rng.random() < 0.5 else int(math.exp(rng.uniform(math.log(min(8, count)), math.log(count))))
        start = int(rng.integers(0, count - width + 1))
        own = rng.permutation(values[start : start + width])
        frequency = np.cumsum(np.arange(1, width + 1) ** -rng.uniform(0, 1.5))
        drawn = own[np.searchsorted(frequency, rng.random(sample.size) * frequency[-1])]
        sample[...] = _repeated(rng, drawn).reshape(sample.shape)
    return made


def _repeated(rng: np.random.Generator, text: Array) -> Array:
    """Replace a share of the text, which differs from text to text, by copies of pieces that stand before them."""
    length = len(text)
    for _ in range(int(rng.uniform(0, 0.15) * length) if length >= 16 else 0):
        size = int(rng.integers(2, min(12, length // 3)))
        at = int(rng.integers(size, length - size + 1))
        source = int(rng.integers(0, at - size + 1))
        text[at : at + size] = text[source : source + size]
    return text


def balanced(rng: np.random.Generator, classes: Array, count: int) -> Array:
    """Indices of `count` samples, equal numbers of each class as far as there are so many, in random order."""
    order = rng.permutation(len(classes))
    rank = np.empty(len(classes), int)  # how many of the same class come before
    seen: dict[int, int] = {}
    for i in order:
        label = int(classes[i])
        rank[i] = seen.get(label, 0)
        seen[label] = rank[i] + 1
    taken = order[np.argsort(rank[order], kind="stable")][:count]
    return np.asarray(rng.permutation(taken))


def softmax(scores: Array) -> Array:
    """Probabilities (samples, classes); what already is a distribution stays."""
    if (scores >= 0).all() and np.allclose(scores.sum(1), 1, atol=1e-2):
        return scores
    return np.asarray(scipy.special.softmax(scores, axis=1))


def entropy(probabilities: Array) -> float:
    """Of the mean over the samples, as a share of log(classes)."""
    mean = probabilities.mean(0)
    return float(-(mean * np.log(mean + 1e-12)).sum() / math.log(len(mean)))
