"""A pruned file that was there already, beside the original and the plan that it is said to follow.

Knows what the stages prove; it makes no plan and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import numpy as np
from onnx import NodeProto

from onnxprune.errors import CheckFailed, RuntimeFailure
from onnxprune.fit import restore
from onnxprune.model import Model, Weight, every_node, scopes
from onnxprune.options import Options
from onnxprune.pipeline.stages import Clock, prove
from onnxprune.planning import OutputError, calibrated, parted, working
from onnxprune.progress import now
from onnxprune.results import Proof, Verified
from onnxprune.rewrite import Rewritten, rewrite
from onnxprune.trace import Groups, Mask


def audited(groups: Groups, kept: Mask, given: Model, refitted: bool, options: Options) -> Verified:
    """Prove that `given` is the rewriting that keeps the ids of `kept`; CheckFailed where it is not.

    With `refitted` its float parameters may have other values than the original's: the graph is proven with slices in
    their place, and the error of the outputs is measured on the inputs that `options` say."""
    expected = rewrite(groups.trace, kept)
    slices = expected.model.weights
    sources = _sources(given, expected.model)
    differing = [n for n, s in sources.items() if not s or not _is_slice(n, given.weights[n], slices[s])]
    if differing and not refitted:
        others = f" and {len(differing) - 1} more are no slices" if len(differing) > 1 else " is no slice"
        raise CheckFailed(
            f"parameter '{differing[0]}' of the pruned model{others} of the original's; the plan does not say that "
            "weights were refitted (--refitted does)"
        )
    given = replace(given.copy(), taken=expected.model.taken)
    sliced = _with_slices(given, {name: slices.get(sources[name]) for name in differing})
    aliases = {n: expected.aliases.get(s, s) for n, s in sources.items() if s and s != n} | expected.aliases
    proof = prove(groups, kept, Rewritten(sliced, aliases), options, Clock())[0]
    verified = Verified(**{f.name: getattr(proof, f.name) for f in fields(Proof)}, refitted=tuple(differing))
    return _measured(groups, kept, given, verified, options) if differing else verified


def _sources(given: Model, expected: Model) -> dict[str, str]:
    """The expected parameter that each given one stands for, by where it is read; "" for a bias where none was."""
    twins = {_made_tensor(node): node for node in every_node(expected.skeleton.graph)}
    found: dict[str, str] = {}
    for node in every_node(given.skeleton.graph):
        twin = twins.get(_made_tensor(node))
        if twin is None or twin.op_type != node.op_type:
            raise CheckFailed(f"the plan leaves no {node.op_type} '{node.name}', which the pruned model has")
        for i, name in enumerate(node.input):
            source = twin.input[i] if i < len(twin.input) else ""
            if _may_stand_for(source, name, given, expected, found):
                found[name] = source
            elif name != source:
                raise CheckFailed(
                    f"{node.op_type} '{node.name}' of the pruned model reads '{name}' where the plan leaves '{source}'"
                )
    outputs = [o.name for scope in scopes(given.skeleton.graph) for o in scope.graph.output]
    return found | {name: name for name in outputs if name in given.weights and name in expected.weights}


def _may_stand_for(source: str, name: str, given: Model, expected: Model, found: Mapping[str, str]) -> bool:
    """Whether `name` is a parameter that may be in the place of `source`: by that name, or by a new one that stands for
    nothing else."""
    if name not in given.weights or (source and source not in expected.weights):
        return False
    return name == source or (name not in expected.weights and found.get(name, source) == source)


def _made_tensor(node: NodeProto) -> str:
    """What tells a node from any other, whatever it reads."""
    return next((str(o) for o in node.output if o), "")


def _is_slice(name: str, weight: Weight, own: Weight) -> bool:
    """Whether a parameter is the slice that the plan leaves. CheckFailed where no refit can have made it of that."""
    if (weight.onnx_type, weight.shape) != (own.onnx_type, own.shape):
        raise CheckFailed(
            f"parameter '{name}' of the pruned model has shape {list(weight.shape)} where the plan leaves "
            f"{list(own.shape)}, or another type"
        )
    if weight is own:
        return True
    here, there = weight.array().ravel(), own.array().ravel()
    if here.dtype == object:
        return bool((here == there).all())
    bits = f"u{min(here.itemsize, 8)}"  # as a NaN is one
    here, there = here.view(bits), there.view(bits)
    if np.array_equal(here, there):
        return True
    if np.array_equal(np.sort(here), np.sort(there)):
        raise CheckFailed(f"parameter '{name}' of the pruned model has the values of its slice in another order")
    return False


def _with_slices(given: Model, values: Mapping[str, Weight | None]) -> Model:
    """`given` with other values of parameters, and without those that have none."""
    model = given.copy()
    added = {name for name, weight in values.items() if weight is None}
    model.weights |= {name: weight for name, weight in values.items() if weight is not None}
    for name in added:
        del model.weights[name]
    for node in every_node(model.skeleton.graph):
        if added.intersection(node.input):
            node.input[:] = ["" if name in added else name for name in node.input]
            while not node.input[-1]:
                del node.input[-1]
    return model


def _measured(groups: Groups, kept: Mask, given: Model, verified: Verified, options: Options) -> Verified:
    """With the error of the outputs, as a run that refits tells it: on the inputs that judge there (few inputs have all
    been fitted to), BatchNorms with the moments of made-up ones; with the values as they are, and with slices."""
    try:
        inputs = calibrated(groups, options, now())
        parts = parted(inputs.feeds)
        dense = working(groups, inputs, options)
        now()("judge")
        judge = OutputError(dense, parts.judge or parts.fit, options.providers)
        sliced, written = rewrite(dense.trace, kept).model, given.copy()
        restore(written, sliced)
        errors = {"written": judge.error(written), "sliced": judge.error(sliced)}
    except RuntimeFailure as failure:
        return replace(verified, inputs=f"not measured: {failure.message}")
    if not np.isfinite(errors["written"]):
        raise CheckFailed("the outputs of the pruned model are not finite where those of the original are")
    return replace(verified, output_error=errors, inputs=inputs.source)
