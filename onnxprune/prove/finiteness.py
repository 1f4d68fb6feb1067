"""The finished model on ordinary inputs: where the dense one gives numbers it must, too.

With fewer channels something may divide by nothing that did not: a channel that is silent for one sample, and is
normalised. Knows models and inputs, not what was removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from onnxprune.data import random_inputs
from onnxprune.errors import CheckFailed
from onnxprune.model import FLOATS, Model
from onnxprune.options import Options
from onnxprune.prove.difference import all_finite
from onnxprune.prove.outputs import Types, with_outputs
from onnxprune.run import Chain, Session, opened
from onnxprune.shapes import Inputs

Feed = Mapping[str, NDArray[Any]]
MAX_FEEDS = 8
"""Batches that are run at most."""


def ordinary_inputs(model: Model, shapes: Inputs, seed: int) -> list[Feed]:
    """A handful of inputs: normal floats, those of pixels (0 to 1), weak ones, and strong ones off their mean."""
    out: list[Feed] = []
    for k, (scale, offset) in enumerate(((1.0, 0.0), (0.25, 0.5), (0.05, 0.0), (3.0, -1.0))):
        feed = random_inputs(model, shapes, seed + 17 * k)
        out.append({n: (x * scale + offset).astype(x.dtype) if x.dtype.kind == "f" else x for n, x in feed.items()})
    return out


def check_finite(
    session: Session | Chain, pruned: Model, dense: Model, feeds: Sequence[Feed], options: Options,
    types: Types,
) -> None:  # fmt: skip
    """CheckFailed where `session`, of the model `pruned`, gives what is no number, or infinite, of inputs of which
    `dense` gives numbers."""
    names = [o.name for o in pruned.skeleton.graph.output]
    feeds = list(_spread(feeds))
    for feed, values in zip(feeds, _each(session, feeds, names), strict=True):
        got = dict(zip(names, values, strict=False))
        wrong = [n for n, x in got.items() if not all_finite(x)]
        if not wrong:
            continue
        reference = opened(dense, options, types)
        try:
            expected = dict(zip(reference.outputs, reference.run(feed), strict=True))
        except Exception:
            continue
        lost = [n for n in wrong if n in expected and all_finite(expected[n])]
        if lost:
            raise CheckFailed(
                f"the pruned model gives no finite '{lost[0]}' of inputs of which the dense model does"
                f"{_where(pruned, feed, options, types)}; keep what is before that with --nodes-to-exclude, or remove "
                "less"
            )


def _each(session: Session | Chain, feeds: Sequence[Feed], names: Sequence[str]) -> Iterator[list[Any]]:
    """The outputs of each; none where it does not run: made-up inputs need not fit, and what runs was proven."""
    if isinstance(session, Chain):  # which is read once
        with suppress(Exception):
            yield from session.run_all(feeds, [names] * len(feeds))
            return
    for feed in feeds:
        try:
            yield session.run(feed, names)
        except Exception:
            yield []


def _spread(feeds: Sequence[Feed]) -> Iterator[Feed]:
    count = min(len(feeds), MAX_FEEDS)
    return (feeds[k * len(feeds) // count] for k in range(count))


def _where(model: Model, feed: Feed, options: Options, types: Types) -> str:
    """The first node that makes what is not finite."""
    nodes = model.skeleton.graph.node
    names = [o for n in nodes for o in n.output if types(o) in FLOATS]
    session = opened(with_outputs(types, model, names), options, types)
    try:
        got = dict(zip(names, session.run(feed, names), strict=True))
    except Exception:  # the message must not fail for want of more to say
        return ""
    node = next((n for n in nodes if any(o in got and not all_finite(got[o]) for o in n.output)), None)
    return f": '{node.name}' ({node.op_type}) is the first" if node is not None else ""
