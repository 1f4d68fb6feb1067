"""Calibration inputs in three parts: weights are fitted to one, the next one chooses, the last one only judges.

Knows batches and how many of them the memory allows, no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import Calibration, calibration, describe, mirrored
from onnxprune.options import Options, Progress
from onnxprune.planning.memory import samples_that_fit
from onnxprune.planning.profile import macs
from onnxprune.progress import now
from onnxprune.run import entire
from onnxprune.shapes import Inputs
from onnxprune.trace import Groups

Feeds = tuple[Mapping[str, NDArray[Any]], ...]
SHARE = 0.125
"""Of the batches, that choose, and as many that judge."""
BATCHES = 8
"""So many batches are made of few samples, so that each part has some."""
ALIKE = 2 / 3
"""Of the images, whose class is the same when they are turned left to right: then that says nothing to the model."""
SOLVED_MACS = 5e11
"""Of the dense network on all that is fitted, beyond which no mirrored images are added."""
FEW, FOLDS = 64, 4
"""With fewer samples the verdict is the mean over so many turns, in each of which another part of them judges ..."""
TURNED_MACS = 2e12
"""... unless the dense network on all of them together takes more than this: each turn is a refit of its own."""
ENOUGH = 32
"""With fewer samples of the user's made-up ones may leave more accuracy: what was seen of one network stands in
`guide/data.md`. A sample of text is many tokens."""


@dataclass(frozen=True)
class Parts:
    """fit: what statistics are taken of and weights are fitted to. choose: what ridges and accepted layers are chosen
    by; the last solve of a layer may use it, and trials of shares take from both. judge: what nothing was fitted to
    or chosen by. mirrors: of what is fitted, images turned left to right, to which weights are fitted as well."""

    fit: Feeds
    choose: Feeds
    judge: Feeds
    mirrors: Feeds = ()

    @property
    def solved(self) -> Feeds:
        """What a layer is solved on; the last ones are those that choose."""
        return self.mirrors + self.fit + self.choose


def parted(feeds: Sequence[Mapping[str, NDArray[Any]]]) -> Parts:
    """The last batches judge, those before them choose. One batch alone is fitted to; of two the second judges."""
    feeds = tuple(feeds)
    own = max(1, round(SHARE * len(feeds)))
    judge = own if len(feeds) > 1 else 0
    choose = own if len(feeds) > 2 else 0
    rest = len(feeds) - judge - choose
    return Parts(feeds[:rest], feeds[rest : rest + choose], feeds[rest + choose :])


def everything(parts: Parts) -> Parts:
    """With what judges among what is fitted: where each part of it has judged in its turn."""
    feeds = parts.fit + parts.choose + parts.judge
    own = len(parts.choose)
    return Parts(feeds[: len(feeds) - own], feeds[len(feeds) - own :], ())


def lightly(groups: Groups, parts: Parts, samples: int) -> Parts:
    """Of what is not kept for the verdict: about so many samples to fit a trial to, and as many to judge it by."""
    feeds = parts.solved
    sizes = np.cumsum(counts(groups, feeds))
    fit = max(1, min(int(np.searchsorted(sizes, samples)) + 1, len(feeds) // 2))
    last = int(np.searchsorted(sizes, 2 * sizes[fit - 1])) + 1
    return Parts(feeds[:fit], (), feeds[fit:last] or feeds)


def folds(groups: Groups, inputs: Calibration) -> list[Parts]:
    """Turns for cross-validation, where samples are few and it does not take long: every batch judges in one of them,
    what is left is parted to fit and to choose."""
    feeds, turns = inputs.feeds, list[Parts]()
    if len(feeds) < 2 or inputs.samples >= FEW or FOLDS * inputs.samples * macs(groups.trace) > TURNED_MACS:
        return turns
    for k in range(min(FOLDS, len(feeds))):
        rest = [feed for n, feed in enumerate(feeds) if n % FOLDS != k]
        own = round(SHARE * len(rest))
        turns.append(Parts(tuple(rest[: len(rest) - own]), tuple(rest[len(rest) - own :]), tuple(feeds[k::FOLDS])))
    return turns


def with_mirrors(groups: Groups, parts: Parts, options: Options) -> Parts:
    """With mirrored images, as many as memory and time allow, where the model answers most of them as it answers the
    images: it does not where writing is read."""
    turned = mirrored(parts.fit, describe(groups.trace.model, groups.trace.shapes))
    if not turned:
        return parts
    most = min(samples_that_fit(groups, options), SOLVED_MACS / max(macs(groups.trace), 1))
    room = most - sum(counts(groups, parts.solved))
    turned = turned[: int(np.searchsorted(np.cumsum(counts(groups, turned)), room, "right"))]
    if not turned:
        return parts
    session = entire(groups.trace.model, options.providers, groups.trace.shapes.dtype)
    ways = [[session.run(None, dict(f)) for f in feeds] for feeds in (parts.fit[: len(turned)], turned)]
    alike = [_alike(a, b) for straight, other in zip(*ways, strict=True) for a, b in zip(straight, other, strict=True)]
    same = np.concatenate([np.empty(0), *alike])
    return replace(parts, mirrors=tuple(turned)) if same.size and same.mean() >= ALIKE else parts


def _alike(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Of each sample whether both name the same class; nothing where they name none."""
    if not isinstance(a, np.ndarray) or a.dtype.kind != "f" or a.ndim < 2 or max(a.shape[1:]) * len(a) != a.size:
        return np.empty(0)
    return np.asarray(a.reshape(len(a), -1).argmax(1) == b.reshape(len(b), -1).argmax(1))


def counts(groups: Groups, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> list[int]:
    """How many samples each batch holds, by the first input that counts them."""
    inputs = describe(groups.trace.model, groups.trace.shapes)
    name = next((i.name for i in inputs if i.batch == 0), None)
    return [len(feed[name]) if name else 1 for feed in feeds]


def calibrated(groups: Groups, options: Options, progress: Progress | None = None) -> Calibration:
    """The inputs, as many as the memory allows, in batches that can be parted."""
    if progress:
        progress("calibrate", 0.0)
    trace = groups.trace

    rows = _together(groups)

    def taken(samples: int) -> Calibration:
        batch = max(1, min(options.calib_batch, samples // BATCHES) // rows) * rows
        return calibration(trace.model, trace.shapes, replace(options, calib_samples=samples, calib_batch=batch))

    def room(given: Inputs | None = None) -> int:
        return max(1, int(min(options.calib_samples, samples_that_fit(groups, options, given))))

    fit = room()
    inputs = taken(fit)
    if options.memory and options.calib is not None:  # whose samples have other sizes than those that would be made up
        largest = max(inputs.feeds, key=lambda feed: sum(x.nbytes for x in feed.values()))
        fits = room({name: x.shape for name, x in largest.items()})
        inputs = inputs if fits == fit else taken(fits)
    own = options.calib is not None and all(s.kind != "tokens" for s in describe(trace.model, trace.shapes))
    if own and inputs.samples < ENOUGH:
        now().warn(
            f"only {inputs.samples} sample{'s are' if inputs.samples > 1 else ' is'} looked at: fewer than {ENOUGH} "
            "may be worse than those that are made up; give more, or leave --calib out"
        )
    return replace(inputs, feeds=_apart(groups, inputs.feeds, rows))


def _together(groups: Groups) -> int:
    """How many samples go together (the frames of a clip that a reshape counts): every batch holds a multiple."""
    shapes = groups.trace.shapes
    batches = [s for s, role in shapes.plan.roles.items() if role == "batch"]
    least = shapes.fitted({**shapes.at[0].sizes, **dict.fromkeys(batches, 1)})
    return max((least[s] for s in batches), default=1)


def _apart(
    groups: Groups, feeds: tuple[dict[str, NDArray[Any]], ...], rows: int
) -> tuple[dict[str, NDArray[Any]], ...]:
    """Few feeds in smaller ones, in the same order: some of them are to judge what was fitted to the others. `rows`
    samples go together; what is left over is left out, where that is not all."""
    counted = _cut_by(groups)
    clips = [len(feed[counted[0]]) // rows for feed in feeds] if counted else []
    whole = all(n * rows == len(feed[counted[0]]) for n, feed in zip(clips, feeds, strict=False))
    if not any(clips) or (whole and len(feeds) >= BATCHES):
        return feeds
    each, parts = -(-BATCHES // len(feeds)), []
    for n, feed in zip(clips, feeds, strict=True):
        for at in np.array_split(np.arange(n * rows).reshape(n, rows), min(n, each)) if n else ():
            parts.append({name: x[at.ravel()] if name in counted else x for name, x in feed.items()})
    return tuple(parts)


def _cut_by(groups: Groups) -> list[str]:
    """The inputs that count samples, however many; none where some count them otherwise."""
    specs = describe(groups.trace.model, groups.trace.shapes)
    counted = [i.name for i in specs if i.batch == 0 and i.axes[0] is None]
    return [] if any(i.batch is not None and i.name not in counted for i in specs) else counted
