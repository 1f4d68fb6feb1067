"""Rendered text lines: words and numbers in many fonts, with pixel noise where a task asks for it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

TEXT = """
about above across after again almost along already always among animal answer apple around aside autumn away back
balance before begin behind believe below better between beyond bicycle black blue board book border both bottle branch
bread bridge bright bring broken brother brown build busy button camera candle capital captain carry castle cause
centre century chair chance change cheese children choice circle city clean clear clever clock close cloud coffee cold
colour common company corner cotton country course cousin cover crowd current danger daughter decide deep desert
different dinner direct doctor double doubt dream during early earth east effort eight either empty engine enough
equal evening every example expect eye factory family farmer father field fight figure final finger finish first
fish flower follow forest forget forward fresh friend front fruit garden general gentle glass gold government grand
grass great green ground group grow guess half hammer hand happy harbour heavy height history holiday honest horse
hotel hour house hundred husband idea important inside instead island january journey judge kitchen knife knowledge
language large laugh leather leave left letter library light listen little machine market matter measure meeting
member message middle minute mirror modern moment money month morning mother mountain music narrow nation nature
never night north nothing notice number object ocean office often orange order other outside owner page paint paper
parent party people perfect person picture place plan plant pleasure pocket police position possible power present
price promise purple question quick quiet rabbit railway rather reason record regular remember result return river
school science season second secret seven shadow shape sharp sheep silver simple sister small smooth soldier
something south special spring square station stone story straight street strong sudden sugar summer table teacher
thank theatre thick think thousand through thunder ticket together tomorrow travel triangle trouble uncle under
valley vegetable village visit voice water weather welcome west wheel white window winter wonder world writing yellow
"""
WORDS = TEXT.split()
FONTS = ("dejavu", "liberation")


def data(cache: Path) -> tuple[Path, ...]:
    """The folders that must be there for lines to be the same everywhere."""
    return tuple(cache / "data" / "fonts" / name for name in FONTS)


@cache
def fonts(folder: Path) -> list[Path]:
    """Every font of the folder but the narrow and the slanted ones, by name."""
    every = [path for name in FONTS for path in sorted((folder / name).glob("*.ttf"))]
    return [p for p in every if not any(w in p.name for w in ("Narrow", "Italic"))]


@cache
def font(path: Path, size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(str(path), size)


def text(rng: np.random.Generator, words: int, numbers: bool = True) -> str:
    """That many words, a few in capitals or with a capital, about a fifth of them numbers if these are wanted."""
    out = []
    for _ in range(words):
        kind = rng.random()
        word = str(rng.choice(WORDS))
        if kind < 0.2 and numbers:
            word = str(rng.integers(10, 10 ** int(rng.integers(2, 6))))
        elif kind < 0.35:
            word = word.upper()
        elif kind < 0.55:
            word = word.capitalize()
        out.append(word)
    return " ".join(out)


def render(line: str, path: Path, height: int, rng: np.random.Generator, sigma: float = 0.0) -> np.ndarray:
    """The line on a plain ground, [height, width, 3] bytes; `sigma` is the pixel noise in grey levels of 255.

    Dark on light or, for one line in five, the reverse; letters fill roughly two thirds of the height.
    """
    from PIL import Image, ImageDraw

    size = int(height * rng.uniform(0.6, 0.72))
    face = font(path, size)
    left, top, right, bottom = face.getbbox(line)
    margin = int(rng.integers(height // 8, height // 4))
    ink, ground = rng.integers(0, 90, 3), rng.integers(175, 256, 3)
    if rng.random() < 0.2:
        ink, ground = ground, ink
    image = Image.new("RGB", (int(right - left) + 2 * margin, height), tuple(int(v) for v in ground))
    origin = (margin - left, (height - (bottom - top)) / 2 - top)
    ImageDraw.Draw(image).text(origin, line, fill=tuple(int(v) for v in ink), font=face)
    pixels = np.asarray(image, np.float32)
    noise = rng.normal(0, sigma, pixels.shape) if sigma else 0.0
    return np.clip(pixels + noise, 0, 255).round().astype(np.uint8)


def fitting(
    folder: Path,
    height: int,
    width: int,
    rng: np.random.Generator,
    words: int,
    sigma: float = 0.0,
    numbers: bool = True,
    least: int = 0,
) -> tuple[np.ndarray, str]:
    """A line of `least` to `width` pixels and its text; texts are drawn until one fits."""
    every = fonts(folder)
    while True:
        line = text(rng, int(rng.integers(1, words + 1)), numbers)
        image = render(line, every[int(rng.integers(len(every)))], height, rng, sigma)
        if least <= image.shape[1] <= width:
            return image, line


def padded(image: np.ndarray, width: int) -> np.ndarray:
    """[height, w, 3] bytes to [3, height, width] in -1 to 1, blue first, zeros on the right."""
    out = np.zeros((3, image.shape[0], width), np.float32)
    out[:, :, : image.shape[1]] = image[..., ::-1].transpose(2, 0, 1) / 127.5 - 1
    return out
