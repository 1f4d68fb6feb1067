"""Images turned left to right, as more inputs of the same kind. Knows the inputs of a model, no answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.inputs import Input

Feeds = Sequence[Mapping[str, NDArray[Any]]]


def mirrored(feeds: Feeds, specs: Sequence[Input]) -> list[dict[str, NDArray[Any]]]:
    """The batches with every image turned; none where the model reads anything else beside images."""
    if not specs or any(s.kind != "image" or len(s.axes) != 4 for s in specs):
        return []
    columns = {s.name: 3 if s.channel == 1 else 2 for s in specs}
    return [{name: np.ascontiguousarray(np.flip(x, columns[name])) for name, x in feed.items()} for feed in feeds]
