"""Pictures as an input of a model takes them: read with Pillow, resized, in its range of values.

Knows files and arrays; of the model only its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from onnxprune.data.batches import Feed
from onnxprune.data.inputs import Input
from onnxprune.data.pixels import Pixels
from onnxprune.errors import UsageError
from onnxprune.model import Array

Decode = Callable[[str], tuple[Pixels, tuple[int, ...]]]
"""Of an input by name, the range of values of its pixels, and its sizes."""
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def read_pictures(path: Path, files: Sequence[Path], specs: Sequence[Input], decode: Decode) -> tuple[Feed, str]:
    """The pictures `files` of the folder `path` resized to what the model takes, and how their values were scaled."""
    takes = [s for s in specs if s.kind == "image" and len(s.axes) == 4]
    if len(specs) != 1 or not takes:
        raise UsageError(f"{path}: pictures need a model with one input that is an image; give an .npz instead")
    spec = takes[0]
    scale, shape = decode(spec.name)
    stack = np.stack(list(_decoded(files, spec, shape)))
    return {spec.name: scale.of_pixels(stack, spec.channel, spec.dtype)}, scale.text


def class_names(path: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """Where all `files` lie in two or more folders of one level in `path`, these are the classes, numbered in this
    order, that of their names; else ()."""
    inside = [p.relative_to(path).parts for p in files]
    names = sorted({parts[0] for parts in inside})
    return () if len(names) < 2 or any(len(parts) != 2 for parts in inside) else tuple(names)


def _decoded(files: Sequence[Path], spec: Input, shape: Sequence[int]) -> Iterator[Array]:
    """Each picture as float32 in 0..1, (C, H, W) or (H, W, C) as the model has it."""
    channels = shape[spec.channel]
    height, width = shape[2:4] if spec.channel == 1 else shape[1:3]
    for path in files:
        try:
            with Image.open(path) as picture:
                small = picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]).resize(
                    (width, height), Image.Resampling.BILINEAR
                )
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise UsageError(f"{path}: not a picture that Pillow can read; remove it from the folder") from None
        values = np.asarray(small, np.float32).reshape(height, width, channels) / 255
        yield values.transpose(2, 0, 1) if spec.channel == 1 else values
