"""What the config.json of a Hugging Face folder says of sizes, after some of them changed.

A key is changed only where it is certain what it says: it has the width that one group had in every layer, and all of
these have one new width. What is not so is listed under the key `onnxprune`, layer by layer. Knows names and numbers,
no graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from onnxprune.planning import Plan
from onnxprune.results import GroupInfo

HIDDEN = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim", "ffn_hidden_size")
"""How configurations call the width of the layer inside a block."""
HEADS = ("num_attention_heads", "attention_heads", "n_head", "n_heads", "num_heads")
LAYERS = ("num_hidden_layers", "layers", "n_layer", "n_layers", "num_layers")
WIDTH = ("hidden_size", "d_model", "n_embd", "dim")
HEAD_SIZE = ("head_dim", "d_kv")
"""Where one of these stands, the number of heads may change: else readers divide the width by it, and heads would seem
to be of another size."""
SHARED_HEADS = ("num_key_value_heads", "num_kv_heads")
"""How they call the number of heads of a cache."""
NESTED = "text_config"
"""Where configurations of models with several inputs say what their decoder is like."""
SIDES = ("decoder", "encoder")
RECORD = "onnxprune"


@dataclass(frozen=True)
class Cut:
    """A group of a model: how many units it had and has, and how many whole heads (`after` is None where heads lost
    units inside). side: of the encoder, the decoder, or neither. matrices: shapes of its two-dimensional weights.
    cached: whether a cache has its heads."""

    model: str
    name: str
    side: str
    units: tuple[int, int]
    heads: tuple[int, int | None]
    matrices: frozenset[tuple[int, ...]]
    cached: bool = False

    @staticmethod
    def of(model: str, group: GroupInfo, plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> Cut:
        """model: its path in the folder. shapes: of the dense weights, by name."""
        words = " ".join((model, *group.layers, *group.nodes))
        side = next((s for s in SIDES if s in words), "")  # the decoder's attention to the encoder bears both names
        rows = group.rows if group.kind == "head" and not group.caches else 0
        matrices = frozenset(shapes[n] for n in group.layers if len(shapes[n]) == 2)
        return Cut(
            model,
            group.name,
            side,
            (group.units, group.kept),
            (rows, _heads(group, plan, rows)),
            matrices,
            bool(group.caches),
        )

    @property
    def changed(self) -> bool:
        """Whether it lost anything."""
        return self.units[0] != self.units[1]

    def record(self) -> dict[str, Any]:
        """Its entry under the key `onnxprune`."""
        heads = {"heads": list(self.heads)} if self.heads[0] and self.heads[1] is not None else {}
        return {"units": list(self.units), **heads}


def _heads(group: GroupInfo, plan: Plan, rows: int) -> int | None:
    """How many heads are left where each is there with all its units or is not there; None where that is not so."""
    left = set[int | None]()
    for r in plan.groups.get(group.name, ()) if rows else ():
        kept = np.ones(prod(r.shape), bool)
        kept[list(r.remove)] = False
        whole = kept.reshape(rows, -1) if not kept.size % rows else kept[None]
        left.add(int(whole.all(1).sum()) if (whole.all(1) == whole.any(1)).all() else None)
    return left.pop() if len(left) == 1 else None if left else rows


def updated(
    config: Mapping[str, Any], cuts: Sequence[Cut], shared: tuple[int, int] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The configuration with the sizes that its models have now, and what to say of it. shared: how many heads every
    cache had and has, where some went."""
    after, notes, told = dict(config), list[str](), set[Cut]()
    if shared is not None and cache_key(config):
        after, note = _with_cache_heads(config, shared[1])
        notes.append(note)
        told.update(c for c in cuts if c.cached)
    for side, key, kind in _keys(config):
        own = [c for c in cuts if (not side or c.side == side) and kind(c, config)]
        size = _size(own, key, config)
        if size is not None:
            after[key] = size
            notes.append(f"{key} {config[key]} -> {size}")
            told.update(own)
    left = [c for c in cuts if c.changed and c not in told]
    if left:
        after[RECORD] = {**config.get(RECORD, {}), **_recorded(left)}
        notes.append(
            f"no key says the sizes of {len(left)} groups for certain, as they are not the same in every layer or have "
            f"no key of their own; they are listed under '{RECORD}'"
        )
    return after, notes


def _recorded(cuts: Iterable[Cut]) -> dict[str, Any]:
    """The sizes of groups, by model and name."""
    record: dict[str, Any] = {}
    for cut in cuts:
        record.setdefault(cut.model, {})[cut.name] = cut.record()
    return record


def _with_cache_heads(config: Mapping[str, Any], count: int) -> tuple[dict[str, Any], str]:
    """The configuration with this number of heads of a cache, and what to say of it."""
    found = cache_key(config)
    assert found is not None
    where, key = found
    changed = {**where, key: count}
    return dict(changed) if where is config else {**config, NESTED: changed}, (
        f"{key} {where[key]} -> {count}; the number of query heads stays, as readers divide the width by it to know "
        "how large a head is"
    )


def cache_key(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """Where a configuration says how many heads a cache has: the object and its key; None where it does not."""
    nested = config.get(NESTED)
    for where in (config, *([nested] if isinstance(nested, dict) else [])):
        for key in SHARED_HEADS:
            if _number(where, key):
                return where, key
    return None


def _size(cuts: Sequence[Cut], key: str, config: Mapping[str, Any]) -> int | None:
    """What a key that speaks of these groups is to say; None where it stays, or that is not certain."""
    sizes = {c.heads[1] if key.endswith(HEADS) else c.units[1] for c in cuts}
    certain = any(c.changed for c in cuts) and len(sizes) == 1 and _in_every_layer(cuts, config)
    return sizes.pop() if certain else None


def _keys(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Callable[[Cut, Mapping[str, Any]], bool]]]:
    """Keys that say a size: of which side of the network, the key, and whether a group is what it speaks of."""
    for side in (*SIDES, ""):
        for name in HIDDEN:
            if _number(config, key := f"{side}_{name}" if side else name):
                yield side, key, _is_hidden(key)
        for name in HEADS:
            if _number(config, key := f"{side}_{name}" if side else name) and _keeps_its_heads(config, key):
                yield side, key, _is_attention(key)


def _keeps_its_heads(config: Mapping[str, Any], key: str) -> bool:
    """Whether the number of heads may change in a configuration: it says how large one is, and all have keys of their
    own."""
    shared = config.get(SHARED_HEADS[0], config[key])
    return any(_number(config, name) for name in HEAD_SIZE) and shared == config[key]


def _is_hidden(key: str) -> Callable[[Cut, Mapping[str, Any]], bool]:
    def fits(cut: Cut, config: Mapping[str, Any]) -> bool:
        widths = {config[name] for name in WIDTH if _number(config, name)}
        turned = {(cut.units[0], w) for w in widths} | {(w, cut.units[0]) for w in widths}
        return not cut.heads[0] and cut.units[0] == config[key] and not turned.isdisjoint(cut.matrices)

    return fits


def _is_attention(key: str) -> Callable[[Cut, Mapping[str, Any]], bool]:
    return lambda cut, config: cut.heads[0] == config[key]


def _in_every_layer(cuts: Iterable[Cut], config: Mapping[str, Any]) -> bool:
    """Whether every layer of each side of each model has as many of these groups."""
    counts = Counter((c.model, c.side) for c in cuts)
    return all(layers and not n % layers for (_, side), n in counts.items() for layers in [_layers(config, side)])


def _layers(config: Mapping[str, Any], side: str) -> int:
    """How many layers a side has; 0 where that is not said."""
    own = [f"{side}_layers", f"num_{side}_layers"] if side else []
    return next((config[name] for name in (*own, *LAYERS) if _number(config, name)), 0)


def _number(config: Mapping[str, Any], key: str) -> bool:
    return type(config.get(key)) is int and config[key] > 0
