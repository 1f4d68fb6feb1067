"""Batches as a model takes them: arrays checked against its inputs, a random choice of samples, joined and cut.

Knows arrays; of the model only its inputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.inputs import Input
from onnxprune.errors import UsageError
from onnxprune.model import Array

Feed = dict[str, Array]
"""One array for each input."""


class Batches(NamedTuple):
    """`labels` are those of every batch, if there are any; `samples` of the `available` ones were taken."""

    feeds: list[Feed]
    labels: list[Array] | None
    samples: int
    available: int


def checked(feed: Feed, specs: Sequence[Input], source: str) -> Feed:
    """The arrays that the model takes, in its types; what does not fit is a UsageError."""
    if len(specs) == 1 and len(feed) == 1:
        feed = {specs[0].name: next(iter(feed.values()))}
    checked = {}
    for spec in specs:
        if spec.name not in feed:
            have = ", ".join(sorted(feed)) or "nothing"
            raise UsageError(f"{source}: no array for the input {spec.name!r} of the model (it has {have})")
        checked[spec.name] = _array(np.asarray(feed[spec.name]), spec, source)
    counts = {len(checked[s.name]) for s in specs if s.batch == 0}
    if len(counts) > 1:
        raise UsageError(f"{source}: the inputs have {sorted(counts)} samples; give every input the same number")
    if 0 in counts:
        raise UsageError(f"{source}: no samples")
    return checked


def _array(array: Array, spec: Input, source: str) -> Array:
    wanted = [d if d is not None and (k or spec.batch != 0) else "N" for k, d in enumerate(spec.axes)]

    def fits(shape: tuple[int, ...]) -> bool:
        return len(shape) == len(wanted) and all(w in ("N", d) for w, d in zip(wanted, shape, strict=True))

    if spec.batch == 0 and not fits(array.shape) and fits((1, *array.shape)):
        array = array[None]  # one sample by itself
    if not fits(array.shape):
        raise UsageError(f"{source}: input {spec.name!r} has shape {wanted} but the data has {list(array.shape)}")
    kinds = {"O": "OUS", "b": "biu", "i": "biu", "u": "biu"}.get(spec.dtype.kind, "fiub")
    if array.dtype.kind not in kinds and array.dtype != spec.dtype:
        raise UsageError(f"{source}: input {spec.name!r} is {spec.dtype} but the data is {array.dtype}")
    with np.errstate(over="ignore"):  # which the next line sees
        cast = array.astype(spec.dtype, copy=False)
    _check_numbers(cast, spec, source)
    if spec.dtype.kind in "iu" and not np.array_equal(cast, array):
        raise UsageError(f"{source}: the data of input {spec.name!r} does not fit into {spec.dtype}")
    return cast


def _check_numbers(array: Array, spec: Input, source: str) -> None:
    """UsageError for floats with which a model gives no numbers; minus infinity is what masks hold."""
    what = f"{source}: the data of input {spec.name!r} has"
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise UsageError(f"{what} values that are not numbers (NaN)")
    if array.dtype.kind == "f" and np.isposinf(array).any():
        raise UsageError(f"{what} infinite values, or too large ones for {array.dtype}")


def batched(feeds: Sequence[Feed], labels: list[Array] | None, specs: Sequence[Input], want: int, batch: int, seed: int,
            source: str) -> Batches:  # fmt: skip
    """A random choice of `want` samples in a random order, because data is often sorted by class. Feeds of one shape
    are joined and cut anew into batches of `batch`, unless an input counts samples on another axis. `source` is how
    messages call the data; without samples, or with labels that are not one for each, a UsageError."""
    rng = np.random.default_rng(seed)
    counting = [s for s in specs if s.batch == 0]
    counts = np.array([len(feed[counting[0].name]) if counting else 1 for feed in feeds])
    available = int(counts.sum())
    if not available:
        raise UsageError(f"{source}: no samples")
    if labels is not None and any(len(x) != n for x, n in zip(labels, counts, strict=True)):
        raise UsageError(f"{source}: 'labels' must be one per sample")
    limit = min(available, want)
    if not counting or any(s.batch != 0 and None in s.axes for s in specs):
        return _whole(feeds, labels, counts, limit, rng)
    return _anew(feeds, labels, specs, counts, limit, batch, rng)


def _whole(
    feeds: Sequence[Feed], labels: list[Array] | None, counts: NDArray[np.int64], limit: int, rng: np.random.Generator
) -> Batches:
    """Feeds as they are, in a random order, until there are `limit` samples."""
    order = rng.permutation(len(feeds))
    order = order[: int(np.searchsorted(np.cumsum(counts[order]), limit)) + 1]
    given = None if labels is None else [labels[k] for k in order]
    return Batches([feeds[k] for k in order], given, int(counts[order].sum()), int(counts.sum()))


def _anew(
    feeds: Sequence[Feed], labels: list[Array] | None, specs: Sequence[Input], counts: NDArray[np.int64], limit: int,
    batch: int, rng: np.random.Generator,
) -> Batches:  # fmt: skip
    """Batches of `limit` samples drawn from all feeds; of the size that the model fixes, if it does."""
    available = int(counts.sum())
    chosen = np.zeros(available, bool)
    chosen[rng.permutation(available)[:limit]] = True
    fixed = next((s.axes[0] for s in specs if s.batch == 0 and s.axes[0]), None)
    size = fixed or batch
    found, given = list[Feed](), list[Array]()
    for members, rows in _drawn(feeds, specs, np.split(chosen, np.cumsum(counts)[:-1]), rng):
        found += cut(_joined([feeds[k] for k in members], specs), rows, specs, size, bool(fixed))
        if labels is not None:
            own = np.concatenate([labels[k] for k in members])[rows]
            given += np.split(own, range(size, len(own), size))
    return Batches(found, None if labels is None else given, limit, available)


def _drawn(
    feeds: Sequence[Feed], specs: Sequence[Input], chosen: Sequence[Array], rng: np.random.Generator
) -> Iterator[tuple[list[int], Array]]:
    """Feeds that can be joined, with samples of one shape and the same of what is for all samples; and of the rows that
    these make, the `chosen` ones in a random order."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for k, feed in enumerate(feeds):
        alike[tuple(feed[s.name].shape[1:] if s.batch == 0 else feed[s.name].tobytes() for s in specs)].append(k)
    for members in alike.values():
        yield members, rng.permutation(np.flatnonzero(np.concatenate([chosen[k] for k in members])))


def _joined(feeds: Sequence[Feed], specs: Sequence[Input]) -> Feed:
    if len(feeds) == 1:
        return feeds[0]
    return {
        s.name: np.concatenate([feed[s.name] for feed in feeds]) if s.batch == 0 else feeds[0][s.name] for s in specs
    }


def cut(feed: Feed, rows: Array, specs: Sequence[Input], size: int, fixed: bool) -> list[Feed]:
    """Batches of these rows of `feed`; where the size is fixed the last one repeats its last sample."""
    batches = []
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        if fixed:
            some = np.concatenate([some, np.repeat(some[-1:], size - len(some))])
        batches.append({s.name: feed[s.name][some] if s.batch == 0 else feed[s.name] for s in specs})
    return batches
