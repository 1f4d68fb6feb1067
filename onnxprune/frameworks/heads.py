"""The numbers that an attention module keeps beside its layers: heads, the size of a head, the width of all of them.

They are found by what they are worth and what they are called, never by whose module it is. Knows attributes, sizes and
which positions stay, no torch and no ONNX.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.trace import Mask

PARTS = (1, 2, 3)
"""So many of query, key and value may stand side by side in one projection."""
SIZES = ("dim", "size", "width", "channels", "features")
"""An attribute about heads is a size where its name holds one of these words, otherwise a number of heads."""
FUSED = "fused_attn"
"""The attribute that chooses torch's attention, which takes its scale from the size of a head, in place of the module's
own, which has a `scale`: with smaller heads only the latter computes what it did."""

Axes = Mapping[str, Mask]
"""By a name for messages, which positions stay along an axis of a projection."""


@dataclass(frozen=True)
class _Runs:
    """An axis of heads: so many runs of `size` positions, of which `alive` are left, of `left` positions each."""

    name: str
    count: int
    size: int
    alive: int
    left: int


def knows_heads(attributes: Mapping[str, Any]) -> bool:
    """Whether any attribute is a number of heads or the size of one."""
    return any("head" in name for name, _ in _numbers(attributes))


def resized(path: str, attributes: Mapping[str, Any], axes: Axes) -> dict[str, Any]:
    """The attributes of an attention module that change, with their new values.

    axes: those of its projections that lose positions. Raises UsageError where it is not clear what one becomes."""
    counts = {name: value for name, value in _numbers(attributes) if _is_count(name)}
    size = _size_of_head(path, attributes, axes, counts)
    runs = [found for name, kept in axes.items() if (found := _runs(name, kept, size))]
    if not runs:
        return {}
    others = {name: value for name, value in _numbers(attributes) if name not in counts}
    smaller = attributes.get(FUSED) is True and any(r.left != size for r in runs)
    counted = _new_counts(path, counts, runs) if counts else {}
    return counted | _new_sizes(path, others, runs) | ({FUSED: False} if smaller else {})


def _new_counts(path: str, counts: Mapping[str, int], runs: Sequence[_Runs]) -> dict[str, Any]:
    """Numbers of heads, which must explain every axis of heads."""
    changes: dict[str, Any] = {}
    explained: set[str] = set()
    for name, value in counts.items():
        if own := _of_count(runs, value):
            explained |= {r.name for r in own}
            changes[name] = _one(path, name, value, {r.name: r.alive * value // r.count for r in own})
    if lost := [r for r in runs if r.name not in explained]:
        raise UsageError(
            f"'{lost[0].name}' holds {lost[0].count} heads of {lost[0].size}, and no number of heads of '{path}' "
            f"({', '.join(f'{n} = {v}' for n, v in counts.items())}) says so; adapt that module (by_hand)"
        )
    return changes


def _new_sizes(path: str, numbers: Mapping[str, int], runs: Sequence[_Runs]) -> dict[str, Any]:
    """Numbers that are the size of one head or the length of an axis of heads."""
    changes: dict[str, Any] = {}
    for name, value in sorted(numbers.items(), key=lambda item: item[1]):
        found = {r.name: r.left for r in runs if r.size == value}
        found = found or {r.name: r.alive * r.left for r in runs if r.count * r.size == value}
        if "groups" in name:  # heads of queries for each of keys and values
            found = {q.name: q.alive // k.alive for q in runs for k in runs if q.count == value * k.count and value > 1}
        if found:
            changes[name] = _one(path, name, value, found)
    return changes


def _numbers(attributes: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The whole numbers among attributes."""
    return ((n, v) for n, v in attributes.items() if type(v) is int and v > 0)


def _is_count(name: str) -> bool:
    """Whether an attribute of this name is a number of heads."""
    return "head" in name and not name.startswith("d_") and not any(word in name for word in SIZES)


def _size_of_head(path: str, attributes: Mapping[str, Any], axes: Axes, counts: Mapping[str, int]) -> int:
    """Of one head before: a number so large that all heads together are as long as an axis; without one, the shortest
    axis, that of values or of what is read of all heads, holds each head once."""
    most, lengths = max(counts.values(), default=0), {len(kept) for kept in axes.values()} - {*counts.values()}
    others = [(n, v) for n, v in _numbers(attributes) if n not in counts]
    wide = {n: v for n, v in others if _fits(v, most, lengths)}
    said = {v for n, v in wide.items() if "head" in n} or {*wide.values()}
    if len(said) == 1:
        return said.pop()
    if said or len({*counts.values()}) > 1 or not lengths or not most or min(lengths) % most:
        raise UsageError(
            f"the size of a head of '{path}' before does not follow from its attributes; adapt that module (by_hand)"
        )
    return min(lengths) // most


def _fits(size: int, most: int, lengths: Collection[int]) -> bool:
    """Whether a head may be so large: `most` heads of it are as long as an axis, or where nobody counts heads, some."""
    return any(n % size == 0 if not most else n in [size * most * p for p in PARTS] for n in lengths)


def _runs(name: str, kept: Mask, size: int) -> _Runs | None:
    """The heads along an axis; None where what stays is not as much of each that is left: it is no axis of heads."""
    if len(kept) % size:
        return None
    left = kept.reshape(-1, size).sum(1)
    alive = left[left > 0]
    return _Runs(name, len(left), size, len(alive), int(alive[0])) if len(set(alive.tolist())) == 1 else None


def _of_count(runs: Sequence[_Runs], value: int) -> list[_Runs]:
    """The axes that have `value` heads, or those of two or three of query, key and value."""
    exact = [r for r in runs if r.count == value]
    return exact + [r for r in runs if r.count in [value * n for n in PARTS[1:]] and r.alive % (r.count // value) == 0]


def _one(path: str, name: str, value: int, found: Mapping[str, int]) -> int:
    """What a number becomes, if all axes agree."""
    if len(set(found.values())) > 1:
        told = ", ".join(f"{n} {v}" for n, v in found.items())
        raise UsageError(
            f"'{name}' of '{path}' is one number, {value}, but these layers would need different ones: {told}; prune "
            "with --scope local, which takes as much of all that may go, exclude what lost more (--nodes-to-exclude), "
            "or adapt that module (by_hand)"
        )
    return next(iter(found.values()))
