"""Whether a shrunk module computes what the pruned ONNX file does, on the same inputs.

Knows torch modules and ONNX Runtime, no plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.data import Feed, Input, checked, describe
from onnxprune.errors import CheckFailed, UsageError
from onnxprune.model import Array, Model
from onnxprune.run import Session, first_line
from onnxprune.shapes import infer

CLOSE = 1e-3
"""How far an answer may be off, as a share of the output's largest: float32 in another order of operations loses about
a hundredth of this. Types of fewer digits lose CLOSE_HALF."""
CLOSE_HALF = 3e-2
BATCH = 2


def check(module: Any, pruned: Any, inputs: Sequence[Any] | None = None) -> float:
    """Run a torch module and the pruned ONNX model and return the largest difference, as a share of the output's
    largest value.

    pruned: path, bytes, ModelProto or Model. inputs: arrays or tensors in the order in which both take them; random
    ones where none are given. Raises UsageError where no inputs can be made up or the model cannot run on them,
    CheckFailed where the module cannot, or outputs differ."""
    import torch

    model = Model.load(pruned)
    specs = describe(model, infer(model))
    feed = _made_up(specs) if inputs is None else _named(inputs, specs)
    session = Session(model, ["cpu"])
    try:
        expected = session.run(feed)
    except Exception as error:
        raise UsageError(
            f"the pruned model cannot run on these inputs ({first_line(error)}); give others (inputs=)"
        ) from None
    weights = list(module.parameters())
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in weights)
    device, training = (weights[0].device if weights else "cpu"), [m for m in module.modules() if m.training]
    module.train(False)
    try:
        with torch.no_grad():
            got = list(_tensors(module(*(torch.as_tensor(feed[s.name]).to(device) for s in specs))))
    except Exception as error:
        raise CheckFailed(
            f"the shrunk module cannot run ({first_line(error)}); its forward spells out a size: make that an "
            "attribute, or exclude the layer when pruning (--nodes-to-exclude)"
        ) from None
    finally:
        for part in training:
            part.training = True
    return _largest(
        [x.detach().float().cpu().numpy() for x in got], expected, session.outputs, CLOSE_HALF if half else CLOSE
    )


def _largest(got: Sequence[Array], expected: Sequence[Array], names: Sequence[str], close: float) -> float:
    """The largest difference of all outputs; CheckFailed where one is too large."""
    largest = 0.0
    if len(got) < len(expected):
        raise CheckFailed(
            f"the module gives {len(got)} tensors, the pruned model {len(expected)}; are they one network?"
        )
    for name, mine, theirs in zip(names, got, expected, strict=False):
        if mine.shape != theirs.shape:
            raise CheckFailed(
                f"'{name}' has shape {list(mine.shape)} from the shrunk module and {list(theirs.shape)} from the "
                "pruned model"
            )
        if not theirs.size:
            continue
        wide = theirs.astype(np.float64)
        off = float(np.abs(mine - wide).max() / max(float(np.abs(wide).max()), 1e-30))
        if not off <= close:
            raise CheckFailed(
                f"'{name}' of the shrunk module differs from the pruned model by {off:.2g} of its largest value (at "
                f"most {close:g}); a refitted file has other weights, so compare with onnxprune.apply(model, plan); "
                "else its forward has a size that is no attribute"
            )
        largest = max(largest, off)
    return largest


def _tensors(given: Any) -> Iterator[Any]:
    """The tensors of an output, in order."""
    if hasattr(given, "detach"):
        yield given
    elif isinstance(given, Mapping | tuple | list):
        for part in given.values() if isinstance(given, Mapping) else given:
            yield from _tensors(part)


def _named(inputs: Sequence[Any], specs: Sequence[Input]) -> Feed:
    """The inputs by their names in the model."""
    if len(inputs) != len(specs):
        raise UsageError(f"inputs holds {len(inputs)} arrays, the model takes {', '.join(s.name for s in specs)}")
    arrays = (x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x) for x in inputs)
    return checked(dict(zip((s.name for s in specs), arrays, strict=True)), specs, "inputs")


def _made_up(specs: Sequence[Input]) -> Feed:
    """Random inputs of the declared sizes, of two samples where their number is open."""
    random, feed = np.random.default_rng(0), {}
    for spec in specs:
        shape = tuple(BATCH if size is None and k == spec.batch else size for k, size in enumerate(spec.axes))
        known = tuple(size for size in shape if size is not None)
        if len(known) < len(shape) or spec.dtype.kind not in "fiub":
            raise UsageError(f"no inputs can be made up for '{spec.name}' {list(spec.axes)}; give them (inputs=)")
        made = random.standard_normal(known) if spec.dtype.kind == "f" else random.choice(spec.safe(known), known)
        feed[spec.name] = np.ones(known, bool) if spec.dtype.kind == "b" else np.asarray(made).astype(spec.dtype)
    return feed
