"""Decoders with a cache in a folder: how many heads each cache has, and as many in all of them where the configuration
has one number for all layers.

Knows results of the API, no graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from onnxprune import api
from onnxprune.errors import CheckFailed
from onnxprune.options import Options
from onnxprune.results import CacheInfo

NO_BRANCH = "no whole branch went: the configuration has a cache for every layer"
Pruner = Callable[[Path, Options], api.Result]
"""How one model is pruned."""


def heads(cache: CacheInfo) -> tuple[int, int] | None:
    """How many heads a cache that stays had, and how many are left; None where none went."""
    changed = [(a, b) for a, b in zip(cache.before, cache.after, strict=True) if a != b]
    return (int(changed[0][0]), int(changed[0][1])) if changed else None


def cuts(result: api.Result) -> list[tuple[int, int] | None]:
    """The `heads` of every cache that goes in."""
    return [heads(cache) for cache in result.report.caches if cache.kind == "input"]


def evenly(prune: Pruner) -> Pruner:
    """`prune` for models of which every layer has a cache, and every cache as many heads: where a whole cache would go
    no branch does, where some lose more heads than others all lose what they lose on average, and the rest is chosen
    anew. CheckFailed where they cannot."""

    def pruned(path: Path, options: Options) -> api.Result:
        note = ""
        result = prune(path, options)
        if any(not cache.after for cache in result.report.caches):
            if options.blocks:
                raise CheckFailed(
                    f"{path.name} loses whole caches, and its configuration has one for every layer; leave out "
                    "--kv-heads, or prune the file by itself"
                )
            options, note = replace(options, blocks=False), NO_BRANCH
            result = prune(path, options)
        if len({*cuts(result)}) <= 1:
            return _noted(result, note)
        if shares := _shares(result, options.max_ratio):
            result = prune(path, replace(options, ratio_of={**options.ratio_of, **shares}))
        if len({*cuts(result)}) > 1:
            kept = sorted({str(cut[1]) if cut else "all" for cut in cuts(result)})
            raise CheckFailed(
                f"of the heads of its caches {path.name} keeps {' and '.join(kept)}, and its configuration has one "
                "number for all layers; leave out --kv-heads, or prune the file by itself"
            )
        return _noted(result, note)

    return pruned


def _noted(result: api.Result, note: str) -> api.Result:
    """With one more thing to say, if there is one."""
    notes = (*result.report.notes, *([note] if note else []))
    return replace(result, report=replace(result.report, notes=notes))


def _shares(result: api.Result, most: float) -> dict[str, float]:
    """The share, at `most` this, that the groups of all caches are to lose: what they lose on average, or nothing where
    one of them keeps its heads in any case. None of them where the user says shares of some."""
    groups = [group for group in result.report.groups if group.caches]
    free = {name for group in groups for name in group.caches}
    found = cuts(result)
    before = max(cut[0] for cut in found if cut)
    lost = min(round(sum(a - b for a, b in filter(None, found)) / len(found)), int(most * before))
    held = any(cache.kind == "input" and cache.name not in free for cache in result.report.caches)
    asked = any(group.asked for group in groups)
    return {} if asked else {group.name: 0.0 if held else lost / before for group in groups}
