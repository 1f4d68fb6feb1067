"""Whether a model knows more of a text than how often each token occurs in it. Knows arrays only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.measure.metrics import Array


def by_frequency(texts: Sequence[Array], vocabulary: int) -> float:
    """The perplexity of guessing by frequency: how often tokens occur in every second of the texts [length], once more
    each, says how likely those of the others are. Tokens below 0 do not count; infinite where nothing is left."""
    halves = [np.concatenate([np.empty(0, np.int64), *(t[t >= 0] for t in texts[k::2])]) for k in (0, 1)]
    if not len(halves[1]):
        return np.inf
    counts = np.bincount(halves[0].astype(np.int64), minlength=vocabulary) + 1
    likely = counts[halves[1].astype(np.int64)] / counts.sum()
    return float(np.exp(-np.log(likely).mean()))
