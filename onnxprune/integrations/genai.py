"""What the genai_config.json of an ONNX Runtime GenAI folder says of sizes, after some of them changed.

ONNX Runtime GenAI refuses keys that it does not know: what no key of its own can say is said in words only. Knows names
and numbers, and the attributes of attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from onnxprune import api
from onnxprune.integrations.decoders import cuts
from onnxprune.model import Model, attribute, every_node

CONFIG = "genai_config.json"
QUERY_HEADS = ("num_heads", "q_num_heads")
"""How operators call the number of query heads."""
Says = tuple[str, int, int | None]
"""A key, what it says, and what it is to say; None where no one number can."""


def updated(
    config: Mapping[str, Any], home: str, results: Mapping[str, api.Result]
) -> tuple[dict[str, Any], list[str]]:
    """The configuration, which lies in the folder `home`, with the sizes that its models have now (results by path),
    and what to say of it."""
    model = config.get("model")
    parts, notes = dict(model) if isinstance(model, dict) else {}, list[str]()
    for name, section in parts.items():
        path = (PurePosixPath(home) / str(section.get("filename"))).as_posix() if isinstance(section, dict) else ""
        if path not in results:
            continue
        for key, old, new in _sizes(section, results[path]):
            if new is None:
                notes.append(f"{name}.{key} stays {old}, as not every layer has the same number now")
            elif new != old:
                parts[name] = {**parts[name], key: new}
                notes.append(f"{name}.{key} {old} -> {new}")
    return {**config, **({"model": parts} if parts else {})}, notes


def _sizes(section: Mapping[str, Any], result: api.Result) -> Iterator[Says]:
    """What the keys of one model are to say."""
    caches, queries = {*cuts(result)}, query_heads(result.model)
    if (old := section.get("num_key_value_heads")) is not None and caches:
        cut = caches.pop() if len(caches) == 1 else (old, None)
        yield "num_key_value_heads", old, old if cut is None else cut[1]
    if (old := section.get("num_attention_heads")) is not None and queries:
        yield "num_attention_heads", old, queries.pop() if len(queries) == 1 else None
    old = section.get("hidden_size")
    if old is not None and len(streams := _streams(result, old)) == 1:
        yield "hidden_size", old, streams.pop()


def _streams(result: api.Result, width: int) -> set[int]:
    """How wide the streams between the layers are now that had this width: in channels, be a unit a block of them."""
    found = set[int]()
    for group in (g for g in result.report.groups if g.crosses_norm):
        removed = result.plan.groups.get(group.name, ())
        found.update(width - len(r.remove) for r in removed if r.shape == (width,))
        found.update({width} if not removed and group.units == width else ())
    return found


def query_heads(model: Model) -> set[int]:
    """The numbers of query heads that the attention operators of a model have."""
    found = (attribute(node, key) for node in every_node(model.graph) for key in QUERY_HEADS)
    return {int(n) for n in found if n}
