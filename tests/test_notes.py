"""Weights that look like a fixed transform, and what only resembles one."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.report.notes import tones

RANDOM = np.random.default_rng(0)
TIMES = np.arange(64)
WAVES = np.cos(2 * np.pi * np.arange(1, 33)[:, None] * TIMES / 64)
WINDOW = np.hanning(64)


@pytest.mark.parametrize("basis", [WAVES, WAVES * WINDOW, np.concatenate([np.ones((1, 64)), WAVES]) * WINDOW])
def test_a_fourier_basis_is_pointed_out(basis: np.ndarray) -> None:
    assert tones(basis)


@pytest.mark.parametrize(
    "weight", [RANDOM.standard_normal((32, 64)), 0.01 + 0.001 * RANDOM.random((32, 64)), np.ones((32, 64)), np.zeros((32, 64))],
    ids=["learned", "scales of codes", "ones", "zeros"],
)  # fmt: skip
def test_learned_weights_and_scales_are_not(weight: np.ndarray) -> None:
    assert not tones(weight.astype(np.float32))
