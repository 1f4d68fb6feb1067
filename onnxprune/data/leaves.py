"""Dead leaves: opaque shapes with soft edges, each with its own colour, shading and texture, painted over each other.

Most of them are a few pixels, so that many are worked on at once: what each pixel of several boxes needs to know of its
leaf stands in one long row. Knows shapes and arrays; what they are to look like is said elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]
PIXELS = 1 << 11
"""Of leaves that are worked on together, about; larger ones are worked on alone."""


@dataclass(frozen=True)
class Leaves:
    """Shapes to paint, the last on top: soft superellipses |u|^power + |v|^power = 1 with u and v in units of
    radius * stretch and radius / stretch; all in pixels. `centre` is (leaves, 2), the others are (leaves,)."""

    centre: Array
    radius: Array
    stretch: Array
    angle: Array
    power: Array
    blur: Array

    @property
    def axes(self) -> tuple[Array, Array]:
        """Half the length and half the width of each."""
        return self.radius * self.stretch, self.radius / self.stretch

    def boxes(self, height: int, width: int) -> NDArray[np.int64]:
        """(2, leaves, 2): the first row and column of what each may cover, and those behind it; empty where these are
        no larger."""
        (a, b), cos, sin = self.axes, np.abs(np.cos(self.angle)), np.abs(np.sin(self.angle))
        reach = np.stack([a * sin + b * cos, a * cos + b * sin], 1) + (self.blur + 1)[:, None]
        first, last = (np.trunc(self.centre + way * reach).astype(np.int64) for way in (-1, 1))
        return np.stack([np.maximum(first, 0), np.minimum(last + 1, (height, width))])


@dataclass(frozen=True)
class Looks:
    """Of leaves: colours (channels, leaves), how strong the texture is (leaves,), shading down and along (leaves, 2);
    cuts (leaves, 3): the row, the column and the number of the field where the texture of each begins."""

    colours: Floats
    grain: Floats
    slope: Floats
    cuts: NDArray[np.int64]


def covered(canvas: Floats, leaves: Leaves, looks: Looks, fields: Floats) -> None:
    """Paint leaves on `canvas` (channels, height, width), with textures out of `fields` (number, channels, rows,
    columns)."""
    boxes = leaves.boxes(*canvas.shape[1:])
    areas = np.maximum(boxes[1] - boxes[0], 0).prod(1)
    seen = np.flatnonzero(areas)
    large = areas[seen] > PIXELS
    ends = (np.diff(np.cumsum(areas[seen]) // PIXELS) > 0) | large[1:] | large[:-1]
    for some in np.split(seen, np.flatnonzero(ends) + 1) if len(seen) else ():
        _paint(canvas, leaves, looks, fields, some, boxes[:, some])


@dataclass(frozen=True)
class _Places:
    """Where the pixels of some boxes lie, as indices: `of`, the leaf of each row; `row`, `leaf`, those of each pixel.
    down, along: how far a row or a pixel is from the corner of its box."""

    of: Any
    row: Any
    leaf: Any
    down: Array
    along: Array

    @classmethod
    def of_boxes(cls, high: Array, wide: Array) -> _Places:
        """Of boxes of these sizes one after the other; one alone is laid out as it is, with nothing said twice."""
        if len(high) == 1:
            whole = slice(None)
            return cls(whole, (whole, None), whole, np.arange(high[0]), np.arange(wide[0]))
        of = np.repeat(np.arange(len(high)), high)
        down = np.arange(len(of)) - np.repeat(np.cumsum(high) - high, high)
        row = np.repeat(np.arange(len(of)), wide[of])
        along = np.arange(len(row)) - (np.cumsum(wide[of]) - wide[of])[row]
        return cls(of, row, of[row], down, along)


def _paint(canvas: Floats, leaves: Leaves, looks: Looks, fields: Floats, some: Array, boxes: Array) -> None:
    """Paint `some` of the leaves, in these boxes."""
    sizes = boxes[1] - boxes[0]
    at = _Places.of_boxes(*sizes.T)
    of, row, leaf = at.of, at.row, at.leaf
    centre, radius = leaves.centre[some].astype(np.float32), leaves.radius[some].astype(np.float32)
    y = (boxes[0, of, 0] + at.down).astype(np.float32) - centre[of, 0]
    x = (boxes[0, leaf, 1] + at.along).astype(np.float32) - centre[leaf, 1]
    (a, b), power = (axis[some] for axis in leaves.axes), leaves.power[some]
    cos, sin = (f(leaves.angle[some]).astype(np.float32) for f in (np.cos, np.sin))
    u = np.abs((cos[leaf] * x + (sin[of] * y)[row]) / a[leaf])
    v = np.abs(((cos[of] * y)[row] - sin[leaf] * x) / b[leaf])
    exponent = power[leaf]
    # Near the edge, (1 - inside) / power is the distance from it in units of the smaller half-axis.
    edge = np.minimum(a, b) / (power * leaves.blur[some])
    alpha = np.clip(0.5 + (1 - (u**exponent + v**exponent)) * edge[leaf], 0, 1).astype(np.float32)

    slope = looks.slope[some]
    shade = (slope[of, 0] * (y / radius[of]))[row] + slope[leaf, 1] * (x / radius[leaf])
    shade = np.stack([colour[leaf] + shade for colour in looks.colours[:, some]]).reshape(len(canvas), -1)
    over, ends = alpha.ravel(), np.cumsum(sizes.prod(1))
    for i, (top, left), (bottom, right), end in zip(some.tolist(), *boxes.tolist(), ends.tolist(), strict=True):
        part = canvas[:, top:bottom, left:right]
        own = slice(end - (bottom - top) * (right - left), end)
        down, along, field = looks.cuts[i]
        made = fields[field, :, down : down + bottom - top, along : along + right - left] * looks.grain[i]
        made += shade[:, own].reshape(part.shape)
        made -= part
        made *= over[own].reshape(part.shape[1:])
        part += made
