"""The photographs that come with the package, and what is made of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from onnxprune.data import photographs
from onnxprune.data.pool import Pool

FOLDER = Path(photographs.__file__).parent / "photographs"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_every_photograph_has_an_author_and_a_free_licence() -> None:
    lines = (FOLDER / "SOURCES.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if ".jpg |" in line]
    files = sorted(p.name for p in FOLDER.glob("*.jpg"))
    assert [row[0] for row in rows] == files
    assert 60 <= len(files) <= 150
    assert {row[3] for row in rows} <= {
        "public domain", "CC0-1.0", "CC-BY-1.0", "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0"
    }  # fmt: skip
    assert all(len(row) == 6 and all(row) for row in rows)
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 1.5e6


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (4, 16, 40), (3, 64, 16), (3, 1, 5), (3, 300, 300)])
def test_images_of_every_size_are_varied_pixels(shape: tuple[int, int, int]) -> None:
    made = photographs.images(rng(), 40, *shape)
    assert (made.shape, made.dtype) == ((40, *shape), np.float32)
    assert made.min() >= 0
    assert made.max() <= 1
    colours = made[:, :3]
    assert 0.3 < colours.mean() < 0.6
    assert 0.15 < colours.std() < 0.4
    assert len(np.unique(colours.reshape(40, -1).mean(1))) == 40
    if shape[0] == 4:
        assert (made[:, 3] == 1).all()


def test_images_follow_the_seed() -> None:
    assert np.array_equal(photographs.images(rng(3), 4, 3, 16, 16), photographs.images(rng(3), 4, 3, 16, 16))
    assert not np.array_equal(photographs.images(rng(3), 4, 3, 16, 16), photographs.images(rng(4), 4, 3, 16, 16))


def test_the_photographs_themselves_stay_in_colour_and_order() -> None:
    found = photographs.pictures()
    assert len(found) == len(list(FOLDER.glob("*.jpg")))
    assert {picture.mode for picture in found} == {"RGB"}
    assert min(min(picture.size) for picture in found) >= 100


def test_a_pool_gives_even_classes_and_holds_little() -> None:
    """One class in forty is rare; every row says what it was."""
    classes = np.where(rng().random(2000) < 0.025, 1, 0)
    pool = Pool(rng(), 40, [])
    for rows in np.split(np.arange(2000), 50):
        pool.add({"x": rows, "y": rows * 2}, partial(np.eye(2).__getitem__, classes[rows]))
        assert sum(len(b["x"]) for b in pool.batches) <= 80 + 40
    picked, scores = pool.chosen()
    assert np.array_equal(scores.argmax(1), classes[picked["x"]])
    assert np.array_equal(picked["y"], 2 * picked["x"])
    assert len(set(picked["x"])) == 40
    assert scores[:, 1].sum() == 20
    assert max(picked["x"]) > 1000
