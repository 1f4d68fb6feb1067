"""Images for a model whose data nobody gave: photographs that come with the package, made-up ones, or both. Knows the
inputs of a model, no units."""

from __future__ import annotations

import numpy as np

from onnxprune.data import photographs, synthetic
from onnxprune.data.inputs import Input
from onnxprune.data.pixels import Pixels
from onnxprune.model import Array


class ImageSource:
    """Draws images, so many of them photographs (a share, 0..1) and the others made up. Lines of writing, which the
    photographs do not have, are always made up."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.fields: dict[tuple[int, ...], Array] = {}  # textures by the shape of an image, costly to make

    def drawn(self, rng: np.random.Generator, spec: Input, shape: tuple[int, ...], scale: Pixels) -> Array:
        """Images of this shape as the input takes them, or volumes in which every image stands for a whole stack."""
        inner = shape[1:] if spec.channel == 1 else (shape[-1], *shape[1:-1])
        size = (inner[0], inner[-2], inner[-1])
        real = rng.random(shape[0]) < self.shown(size)
        made = np.empty((shape[0], *size), spec.dtype)
        made[real] = scale.of_pixels(photographs.images(rng, int(real.sum()), *size), 1, spec.dtype)
        if not real.all():
            if size not in self.fields:
                self.fields[size] = synthetic.leaf_textures(rng, *size)
            leaves = synthetic.images(rng, int((~real).sum()), *size, self.fields[size])
            made[~real] = scale.of_normalised(leaves, 1, spec.dtype)
        if len(shape) == 5:
            made = np.repeat(made[:, :, None], inner[1], 2)
        return made if spec.channel == 1 else np.moveaxis(made, 1, -1)

    def shown(self, size: tuple[int, ...]) -> float:
        """The share of photographs among images of this (channels, height, width)."""
        return 0.0 if size[2] >= synthetic.WIDE * size[1] else self.share

    def text(self, spec: Input, shape: tuple[int, ...], scale: Pixels) -> str:
        """What they are, for the report."""
        height, width = shape[2:4] if spec.channel == 1 else shape[1:3]
        share = self.shown((1, height, width))
        names = ["photographs that come with onnxprune"] * (share > 0) + ["made-up images"] * (share < 1)
        return f"{' and '.join(names)} ({scale.text})"
