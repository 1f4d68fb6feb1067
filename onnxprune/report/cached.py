"""Caches whose sizes changed, as tables in a terminal have it. Knows results as data and computes none."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from onnxprune.report.parts import some
from onnxprune.results import CacheInfo


def print_caches(caches: Sequence[CacheInfo], console: Console, verbose: bool) -> None:
    """Which inputs and outputs have other sizes now: a line for those that change alike."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for info in (c for c in caches if c.before != c.after):
        before, after = (f"[{', '.join(map(str, sizes))}]" if sizes else "gone" for sizes in (info.before, info.after))
        alike.setdefault((info.kind, before, after), []).append(info.name)
    for (kind, before, after), names in alike.items():
        console.print(f"{kind}s {some(names, verbose)}: {before} -> {after}", soft_wrap=True)
