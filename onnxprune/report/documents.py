"""What a run did, as documents: JSON for machines, and a page. Knows results as data and computes none."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import __version__
from onnxprune.files import json_text, write_texts
from onnxprune.report.page import render
from onnxprune.report.run import Report
from onnxprune.results import Compared, Inspection, Proof, Sweep, Verified

SCHEMA = 1
"""It grows when a key changes its meaning."""


def to_json(result: Report | Inspection | Compared | Sweep | Verified) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers; `schema` grows when a key changes its meaning."""
    body = _plain(asdict(replace(result, graph=None) if isinstance(result, Inspection) else result))
    body.pop("graph", None)
    if isinstance(result, Verified):
        body = {"proof": {f.name: body.pop(f.name) for f in fields(Proof)}, **body}
    if isinstance(result, Report):
        body = {"providers": list(result.proof.providers), **body}
    return document(type(result).__name__.lower(), body)


def document(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a command has to tell: with `schema`, its `kind` and the versions before it, in JSON's own types."""
    return {"schema": SCHEMA, "kind": kind, "versions": versions(), **_plain(body)}


def write(path: Path, result: Report | Inspection | Sweep, title: str) -> None:
    """The file at `path`, whole or not at all; see `text`."""
    write_texts({path: text(path, result, title)})


def text(path: Path, result: Report | Inspection | Sweep, title: str) -> str:
    """As a page where the name ends in .html, as JSON otherwise."""
    data = to_json(result)
    return render(data, title) if path.suffix.lower() in (".html", ".htm") else json_text(data)


def versions() -> dict[str, str]:
    """Versions of this tool and of what its result depends on."""
    found = {"onnxprune": __version__, "python": platform.python_version()}
    for name in ("onnx", "onnxruntime-gpu", "onnxruntime", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    """JSON's own types: numpy's scalars and arrays, tuples and mappings included. It has no infinity and no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
