"""What running a model would take, worked out before anything runs: a few bytes of a file can ask for terabytes.

Knows shapes and the sizes of types; nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.model import Model, nbytes_of, needs
from onnxprune.shapes.known import Pass


def peak(model: Model, state: Pass) -> tuple[int, str]:
    """Bytes of all tensors that are alive at once, at the worst moment, and the largest tensor of that moment. Weights
    are not counted, tensors of unknown shape neither."""
    nodes = model.skeleton.graph.node
    last = {name: index for index, node in enumerate(nodes) for name in needs(node)}
    last |= {o.name: len(nodes) for o in model.skeleton.graph.output}
    alive = {i.name: _bytes(state, i.name) for i in model.skeleton.graph.input if i.name not in model.weights}
    total = sum(alive.values())
    worst = (total, max(alive, key=lambda n: alive[n], default=""))
    ends: dict[int, list[str]] = {}
    for index, node in enumerate(nodes):
        for name in node.output:
            if name and name not in alive:
                alive[name] = _bytes(state, name)
                total += alive[name]
                ends.setdefault(last.get(name, index), []).append(name)
        if total > worst[0]:
            worst = (total, max(alive, key=lambda n: alive[n]))
        for name in ends.pop(index, ()):
            total -= alive.pop(name)
    return worst


def within(model: Model, states: Iterable[Pass], limit: int) -> bool:
    """Whether runs in which all of this is known, at once, take at most `limit` bytes."""
    states = list(states)
    if sum(_bytes(state, name) for state in states for name in state.types) <= limit:
        return True
    return sum(peak(model, state)[0] for state in states) <= limit


def check(model: Model, state: Pass, limit: int) -> None:
    """RuntimeFailure where the tensors of one run take more than `limit` bytes."""
    size, largest = peak(model, state)
    if size > limit:
        raise RuntimeFailure(
            f"one run takes {_gigabytes(size)} of memory, the most of it for '{largest}' of shape "
            f"{list(state.dims(largest) or ())}; allow more with --memory, or give smaller inputs with "
            "--overwrite-input-shape"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GB" if size < 1 << 50 else "over a million GB"


def _bytes(state: Pass, name: str) -> int:
    value_type, sizes = state.types.get(name), state.sizes(name)
    known = [d for d in sizes or () if isinstance(d, int)]
    if not isinstance(value_type, tuple) or sizes is None or len(known) < len(sizes):
        return 0
    try:
        return max(nbytes_of(value_type[0], known), 0)
    except UsageError:  # a type that this onnx package does not know
        return 0
