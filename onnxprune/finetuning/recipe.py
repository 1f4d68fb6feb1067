"""How long to train, and with what: the numbers of the recipe, and what a user may say instead of them.

Knows numbers and words, no torch and no model. Measured on networks that nobody had tuned on; the cycle of the rate is
that of Smith and Topin 2017 (arXiv 1708.07120), the temperature that of Hinton, Vinyals and Dean 2015
(arXiv 1503.02531).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from onnxprune.options import training_length

STEPS = 2000
BATCH, LARGE_BATCH = 64, 16
LARGE = 224
"""Images of this side on are taken few at a time."""
RATE, DEEP_RATE = 5e-4, 3e-4
DEEP = 40
"""Layers with a matrix from which on a network is a deep one."""
WARM = 0.3
"""Share of the steps in which the rate rises; then it falls to 0, as a cosine."""
DECAY, CLIP = 1e-4, 1.0
TEMPERATURE, LOGITS, LABELS = 2.0, 1.0, 0.5
"""Of the softened answers; the weights of the squared error of logits, and of labels where there are any. The squared
error says what the scores of all classes should be, where soft answers are near 0 for most (Kim et al. 2021, arXiv
2105.08919); half of it is what the divergence comes to at high temperatures."""
COPIES, POOL = 24, 12288
"""Of every image so many copies, up to so many in all: more of them let more steps pay."""
JUDGED = 8
"""Copies of the images that judge."""
INPUTS = 4096
"""At most so many inputs of the user's are read."""
JUDGES, FEWEST, MOST = 0.15, 128, 256
"""Share of the inputs that only judge; of so many, at least and at most."""
TRIAL, WORSE, LOWER, TRIES = 10, 1.75, 5.0, 3
"""The first look is after so many steps. A loss of more than so many times the first one, or at the end of no less than
it, says that the rate is too high: it is divided, and there are so many tries in all."""
LOOKS = 10
"""How often the inputs that choose are looked at."""


@dataclass(frozen=True)
class Length:
    """Steps, or seconds where a time was asked for (0: none was)."""

    steps: int = STEPS
    seconds: float = 0.0

    @staticmethod
    def of(asked: Any) -> Length:
        """See `validation.training_length`, which has checked it: the recipe's own where nothing else is said."""
        steps, seconds = training_length(asked) or (0, 0.0)
        return Length(steps or STEPS, seconds)


def rate_at(step: int, steps: int, peak: float) -> float:
    """The learning rate of one step, counted from 0."""
    warm = max(1, round(WARM * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (1 + math.cos(math.pi * (step - warm + 1) / max(steps - warm, 1))) / 2


def held(samples: int) -> int:
    """How many of the inputs are to judge only."""
    return min(max(round(JUDGES * samples), FEWEST), MOST, samples // 2)
