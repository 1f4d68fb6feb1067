"""Magika on the files of a few pinned packages: what type is a file, where the label is its extension."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path

import numpy as np

from .base import PARTS, Feeds, Task, choose, generator, top1

BLOCK, SIDE, PADDING = 4096, 1024, 256  # bytes read from either end, of these kept, the value of a missing byte
MOST = 40  # files of one type
TYPES = {
    ".asm": "asm", ".c": "c", ".clj": "clojure", ".cpp": "cpp", ".cs": "cs", ".css": "css", ".el": "lisp",
    ".go": "go", ".gz": "gzip", ".hs": "haskell", ".html": "html", ".ico": "ico", ".ini": "ini", ".java": "java",
    ".js": "javascript", ".json": "json", ".lua": "lua", ".odt": "odt", ".pas": "pascal", ".php": "php", ".pl": "perl",
    ".png": "png", ".po": "po", ".py": "python", ".rb": "ruby", ".rs": "rust", ".rst": "rst", ".scala": "scala",
    ".scm": "lisp", ".sty": "latex", ".svg": "svg", ".tex": "latex", ".toml": "toml", ".ts": "typescript",
    ".ttf": "ttf", ".v": "verilog", ".wav": "wav", ".woff": "woff", ".woff2": "woff2", ".xml": "xml", ".yaml": "yaml",
}  # fmt: skip


@cache
def files(data: Path) -> dict[str, list[Path]]:
    """The files of each part, at most `MOST` of each type; every fourth is for calibration."""
    rng = np.random.default_rng(0)
    by_type: dict[str, list[Path]] = {}
    for folder in folders(data):
        for path in sorted(folder.rglob("*")):
            if path.suffix in TYPES and path.stat().st_size >= 64:
                by_type.setdefault(TYPES[path.suffix], []).append(path)
    out: dict[str, list[Path]] = {part: [] for part in PARTS}
    for _, paths in sorted(by_type.items()):
        for i, k in enumerate(rng.permutation(len(paths))[:MOST]):
            out[PARTS[i % 4 != 3]].append(paths[k])
    return out


def folders(data: Path) -> list[Path]:
    names = ("bokeh", "docutils", "jupyterlab", "pygments", "sphinx")
    others = ("fonts/dejavu", "fonts/liberation", "speech", "fashion")
    return [*(data / "files" / name for name in names), *(data / name for name in others)]


def encode(content: bytes) -> np.ndarray:
    """The first and the last 1024 bytes without the white space at the ends, padded inwards: int32 [2048]."""
    begin, end = content[:BLOCK].lstrip()[:SIDE], content[-BLOCK:].rstrip()[-SIDE:]
    out = np.full(2 * SIDE, PADDING, np.int32)
    out[: len(begin)] = np.frombuffer(begin, np.uint8)
    out[2 * SIDE - len(end) :] = np.frombuffer(end, np.uint8)
    return out


def sample(data: Path, part: str, n: int, seed: int) -> tuple[Feeds, np.ndarray]:
    """Encoded files [n, 2048] and the index of each type among the model's classes [n]."""
    paths = files(data)[part]
    chosen = [
        paths[k]
        for k in choose(len(paths), min(n, len(paths)) if part == "calib" else n, generator("magika", part, seed))
    ]
    classes = json.loads((data / "magika.json").read_text())["target_labels_space"]
    labels = np.array([classes.index(TYPES[path.suffix]) for path in chosen])
    return {"bytes": np.stack([encode(path.read_bytes()) for path in chosen])}, labels


def inputs(data: Path, part: str, n: int, seed: int) -> Feeds:
    return sample(data, part, n, seed)[0]


def tasks(cache: Path) -> list[Task]:
    data = cache / "data"
    return [
        Task(
            name="magika",
            model=cache / "models" / "magika.onnx",
            inputs=partial(inputs, data),
            labelled=partial(sample, data, "test"),
            score=top1,
            items=450,
            metric="file type",
            kind="embedding, convolutions",
            aside=True,
            data=(data / "magika.json", *folders(data)),
        )
    ]
