"""What a run did, as documents: JSON for machines, and a page. Knows results as data and computes none."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import __version__
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.files import json_text, write_texts
from onnxprune.report.page import render
from onnxprune.report.run import Report
from onnxprune.report.sentence import headline
from onnxprune.results import Compared, Inspection, Proof, Sweep, Verified
from onnxprune.run import runtime_version

PAGES = (".html", ".htm")
"""How the name of a page ends."""
PICTURED = 1000
"""Layers that the picture of a page has at most (half a megabyte); JSON has all of them."""
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


def write(path: Path, result: Report | Sweep | Compared, title: str) -> None:
    """The file at `path`, whole or not at all; see `text`."""
    write_texts({path: text(path, result, title)})


def check_report_file(path: Path) -> None:
    """UsageError where the name of a file does not say a form that is written."""
    if path.suffix.lower() not in (*PAGES, ".json"):
        raise UsageError(f"a report is a page or JSON: give {path} a name that ends in .html or .json")


def text(path: Path, result: Report | Sweep | Compared, title: str) -> str:
    """As a page where the name ends in .html, as JSON where it ends in .json; UsageError otherwise. A page bears
    the date, JSON does not: it is the same whenever it is written."""
    check_report_file(path)
    data = to_json(result)
    if path.suffix.lower() not in PAGES:
        return json_text(data)
    data |= {"headline": headline(result), "date": _now()}
    if isinstance(result, Report):
        data |= {"layers": data["layers"][:PICTURED], "layer_count": len(result.layers)}
    return render(data, title)


def _now() -> str:
    """The date in UTC, or that of SOURCE_DATE_EPOCH (reproducible-builds.org) where it is a number of seconds."""
    now = datetime.now(UTC)
    with suppress(ValueError, OverflowError, OSError):
        now = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "")), UTC)
    return f"{now:%Y-%m-%d %H:%M} UTC"


def versions() -> dict[str, str]:
    """Versions of this tool and of what its result depends on."""
    found = {"onnxprune": __version__, "python": platform.python_version(), "onnx": metadata.version("onnx")}
    with suppress(RuntimeFailure):  # to inspect a model takes no runtime
        build, version = runtime_version()
        found[build] = version
    return found | {"numpy": np.__version__}


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
