"""A report as one HTML file that needs nothing else: no network, no server.

The page carries the same data as `--report out.json`; `page.js` shows it with Observable Plot. Names from a model reach
the page as text only, and its content security policy runs no script but those that are written here.
Knows a report as text, no ONNX.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

REPORT = ("d3.min.js", "plot.min.js", "common.js", "charts.js", "layers.js", "page.js")
GRAPH = ("d3.min.js", "common.js", "graph.js")
"""Scripts of the pages that there are."""


def render(data: Mapping[str, Any], title: str, names: Sequence[str] = REPORT) -> str:
    """The page of what `report.to_json` gives, or of another kind of data with scripts of its own."""
    scripts = [_read(name) for name in names]
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    parts = {
        "@POLICY@": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}",
        "@STYLE@": _read("page.css"),
        "@DATA@": _inert({**data, "title": title}),
        "@SCRIPTS@": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    before, page = "", _read("page.html")
    for mark, text in parts.items():
        head, page = page.split(mark)
        before += head + text
    return before + page


def _inert(data: Mapping[str, Any]) -> str:
    """JSON that no name can end early: inside a script element only `<` could."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _read(name: str) -> str:
    return files(__name__).joinpath(name).read_text("utf-8")
