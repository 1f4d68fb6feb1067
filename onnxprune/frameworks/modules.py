"""A torch module made as small as its pruned weights: every layer gets the sizes of its tensors, by its type alone.

How many heads or groups are left is not in a shape: 8 of 32 positions may be one head of 8 or two of 4. The plan tells
it, by which positions went. Knows torch modules, shapes and plans, no ONNX.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.frameworks.heads import knows_heads, resized
from onnxprune.frameworks.transfer import Sliced
from onnxprune.planning import Plan
from onnxprune.trace import Mask

Shapes = Mapping[str, tuple[int, ...]]
"""Of a layer's own tensors, by name."""
Kept = Mapping[tuple[str, int], Mask]
"""Which positions stay, by the name of a tensor and an axis of it, where some go."""


@dataclass(frozen=True)
class Layer:
    """A layer whose tensors got other shapes. path: its name in the whole module, `kept`: of all tensors."""

    path: str
    module: Any
    before: Shapes
    after: Shapes
    kept: Kept

    def alive(self, name: str, groups: int, what: str) -> int:
        """How many of the `groups` along the first axis of a tensor are left. Raises UsageError where that is not
        known, or where they keep different numbers of positions."""
        kept = self.kept.get((joined(self.path, name), 0))
        if self.before[name][0] == self.after[name][0]:
            return groups
        left = set() if kept is None else set(kept.reshape(groups, -1).sum(1).tolist()) - {0}
        if kept is None or len(left) != 1:
            raise UsageError(
                f"how many of the {groups} {what} of '{self.path}' are left does not follow from its weight "
                f"{list(self.after[name])}; give the plan in the names of these weights (plan=), exclude it when "
                "pruning (--nodes-to-exclude), or adapt it in the module"
            )
        return int(kept.reshape(groups, -1).any(1).sum())


def shrink(
    module: Any, state: Mapping[str, Any], plan: Plan | None = None, by_hand: Sequence[str] = (), pruned: Any = None,
    inputs: Sequence[Any] | None = None,
) -> Any:  # fmt: skip
    """Give the layers of the torch `module` the sizes of `state` (arrays or tensors by name) and load it, in place.

    plan: what went from `state`, in its own names (see `renamed`); what `apply_plan` and `sliced` return brings it
    along. Modules that hold projections and a number of heads get new ones, by their attributes, but those whose names
    match a glob of `by_hand`: these, and sizes that a `forward` spells out, are the caller's to adapt. pruned: the
    ONNX model to compare its answers with, on `inputs` (arrays or tensors in order) or made-up ones. Returns `module`.

    Raises UsageError where names differ, a layer's other sizes do not follow from its tensors and the plan, or no
    inputs can be had; CheckFailed where answers differ. The module is then as it was, values of weights apart."""
    import torch

    used = state.plan if plan is None and isinstance(state, Sliced) else plan
    if used is not None and used.branches:
        raise UsageError(
            f"the plan takes out the residual branch that ends at {used.branches[0]}, which lies in the module's code; "
            "take it out there and give the plan without `branches`, or prune with --no-blocks"
        )
    tensors = {name: torch.as_tensor(np.array(x) if isinstance(x, np.ndarray) else x) for name, x in state.items()}
    own = module.state_dict()
    differing = sorted(own.keys() ^ tensors.keys())
    if differing:
        raise UsageError(
            f"'{differing[0]}' is in the module or in the weights but not in both; are they of one network?"
        )
    shapes = {name: tuple(t.shape) for name, t in own.items()}
    kept = _kept(used, shapes, tensors)
    mine = _named(module, [by_hand] if isinstance(by_hand, str) else by_hand)
    with _as_it_was(module):
        for path, layer in module.named_modules():
            if path not in mine:
                _resize_heads(path, layer, tensors, kept)
        _resize_layers(module, tensors, kept)
        module.load_state_dict(tensors)
        if pruned is not None:
            from onnxprune.frameworks.checking import check

            check(module, pruned, inputs)
    return module


def _named(module: Any, patterns: Sequence[str]) -> set[str]:
    """The names of modules that match; UsageError where a pattern matches none."""
    paths = [path for path, _ in module.named_modules()]
    found = {pattern: fnmatch.filter(paths, pattern) for pattern in patterns}
    if unread := [pattern for pattern, names in found.items() if not names]:
        raise UsageError(f"by_hand: no module is called '{unread[0]}'; names are those of named_modules()")
    return {name for names in found.values() for name in names}


def _resize_layers(module: Any, tensors: Mapping[str, Any], kept: Kept) -> None:
    """Tensors of the new shapes for every layer, and what it keeps beside them."""
    made: dict[int, Any] = {}  # parameters that layers share stay shared
    for path, layer in module.named_modules():
        before = _shapes(layer)
        wanted = {name: tensors[full] for name in before if (full := joined(path, name)) in tensors}
        _shrink_tensors(layer, wanted, made)
        after = _shapes(layer)
        if before != after:
            _resize(Layer(path, layer, before, after, kept))


@contextmanager
def _as_it_was(module: Any) -> Iterator[None]:
    """Where something is raised inside, all layers get back what they were."""
    held = [(m, type(m), dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in module.modules()]
    try:
        yield
    except BaseException:
        for layer, kind, attributes, parameters, buffers in held:
            layer.__class__ = kind
            vars(layer).clear()
            vars(layer).update(attributes, _parameters=parameters, _buffers=buffers)
        raise


def joined(path: str, name: str) -> str:
    """The name of a layer's tensor in the whole module."""
    return f"{path}.{name}" if path else name


def _kept(plan: Plan | None, shapes: Shapes, tensors: Mapping[str, Any]) -> Kept:
    """What a plan leaves along single axes; UsageError where it is not what the weights have lost."""
    found: dict[tuple[str, int], Mask] = {}
    for removal in (r for removals in (plan.groups if plan else {}).values() for r in removals):
        (axis, *more), name = removal.axes, removal.parameter
        if more or name not in shapes or shapes[name][axis : axis + 1] != removal.shape:
            continue
        mask = found.setdefault((name, axis), np.ones(removal.shape, bool))
        mask[list(removal.remove)] = False
    for (name, axis), mask in found.items():
        if mask.sum() != tensors[name].shape[axis]:
            raise UsageError(
                f"the plan leaves {mask.sum()} positions of axis {axis} of '{name}', the weights have "
                f"{tensors[name].shape[axis]}; give the plan that they were sliced by, in their names (--save-plan)"
            )
    return found


def _shapes(layer: Any) -> Shapes:
    """Shapes of a layer's own tensors, by name."""
    return {n: tuple(t.shape) for n, t in (*layer._parameters.items(), *layer._buffers.items()) if t is not None}


def _shrink_tensors(layer: Any, wanted: Mapping[str, Any], made: dict[int, Any]) -> None:
    """Give a layer empty tensors of the shapes that are wanted. made: parameters that were made before, by the `id` of
    those that they stand for."""
    import torch
    from torch import nn

    for name, tensor in wanted.items():
        if (old := layer._parameters.get(name)) is not None and old.shape != tensor.shape:
            value = torch.empty(tensor.shape, dtype=old.dtype, device=old.device)
            layer._parameters[name] = made.setdefault(id(old), nn.Parameter(value, old.requires_grad))
        elif (old := layer._buffers.get(name)) is not None and old.shape != tensor.shape:
            layer._buffers[name] = old.new_empty(tensor.shape)


def _is_torchs(layer: Any) -> bool:
    return type(layer).__module__.startswith("torch.nn")


def _resize_heads(path: str, layer: Any, tensors: Mapping[str, Any], kept: Kept) -> None:
    """The numbers of a module that counts heads and holds projections that get smaller."""
    if _is_torchs(layer) or not knows_heads(vars(layer)):
        return
    smaller = [
        (full, axis)
        for held, part in _held(path, layer)
        for name, shape in _shapes(part).items()
        if len(shape) > 1 and (full := joined(held, name)) in tensors
        for axis, (old, new) in enumerate(zip(shape, tensors[full].shape, strict=True))
        if old != new
    ]
    unknown = [name for name, axis in smaller if (name, axis) not in kept]
    if unknown:
        raise UsageError(
            f"which heads of '{path}' are left does not follow from the shape of '{unknown[0]}'; give the plan in the "
            "names of these weights (plan=), or adapt that module (by_hand)"
        )
    if smaller:
        vars(layer).update(resized(path, vars(layer), {f"{n}[{axis}]": kept[n, axis] for n, axis in smaller}))


def _held(path: str, layer: Any) -> Iterator[tuple[str, Any]]:
    """A module and the layers that it holds itself, or in a list."""
    yield path, layer
    for name, part in layer.named_children():
        if _is_torchs(part):
            yield from _held(joined(path, name), part)


def _resize(layer: Layer) -> None:
    """The numbers that a layer keeps beside its tensors, by the first of the kinds that it is of."""
    from torch import nn

    kinds: tuple[tuple[type, Callable[[Layer], None]], ...] = (
        (nn.modules.conv._ConvNd, _resize_convolution),
        (nn.Linear, _resize_linear),
        (nn.Embedding, _resize_embedding),
        (nn.modules.batchnorm._NormBase, _resize_norm),  # of instances as well
        (nn.GroupNorm, _resize_group_norm),
        (nn.LayerNorm, _resize_layer_norm),
        (nn.PReLU, _resize_prelu),
        (nn.RNNBase, _resize_recurrent),
        (nn.MultiheadAttention, _resize_attention),
    )
    next((resize for kind, resize in kinds if isinstance(layer.module, kind)), _resize_other)(layer)


def _resize_other(layer: Layer) -> None:
    """A layer of someone's own: whole numbers that are the size of an axis follow it, where only one size becomes of
    such axes. UsageError for one of torch's own."""
    if _is_torchs(layer.module):
        raise UsageError(
            f"the sizes of '{layer.path}' ({type(layer.module).__name__}) do not follow from its tensors; exclude it "
            "when pruning (--nodes-to-exclude), or adapt it in the module"
        )
    becomes: dict[int, set[int]] = {}
    for name, shape in layer.before.items():
        for old, new in zip(shape, layer.after[name], strict=True):
            becomes.setdefault(old, set()).add(new)
    if not knows_heads(vars(layer.module)):
        for name, value in list(vars(layer.module).items()):
            if type(value) is int and len(found := becomes.get(value, set())) == 1:
                setattr(layer.module, name, *found)


def _resize_linear(layer: Layer) -> None:
    layer.module.out_features, layer.module.in_features = layer.after["weight"]


def _resize_embedding(layer: Layer) -> None:
    layer.module.num_embeddings, layer.module.embedding_dim = layer.after["weight"]


def _resize_norm(layer: Layer) -> None:
    layer.module.num_features = next(iter(shape[0] for shape in layer.after.values() if shape))


def _resize_group_norm(layer: Layer) -> None:
    layer.module.num_groups = layer.alive("weight", layer.module.num_groups, "groups")
    (layer.module.num_channels,) = layer.after["weight"]


def _resize_layer_norm(layer: Layer) -> None:
    layer.module.normalized_shape = layer.after["weight"]


def _resize_prelu(layer: Layer) -> None:
    (layer.module.num_parameters,) = layer.after["weight"]


def _resize_recurrent(layer: Layer) -> None:
    module, after = layer.module, layer.after
    if module.proj_size:
        _resize_other(layer)
        return
    module.hidden_size, module.input_size = after["weight_hh_l0"][1], after["weight_ih_l0"][1]
    sides = 2 if module.bidirectional else 1
    for level in range(1, module.num_layers):
        if after[f"weight_ih_l{level}"][1] != sides * module.hidden_size:
            raise UsageError(
                f"the levels of '{layer.path}' keep different sizes; make them one layer each and prune again"
            )
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def _resize_convolution(layer: Layer) -> None:
    module, weight, (outer, inner) = layer.module, layer.before["weight"], layer.after["weight"][:2]
    if module.groups > 1 and weight[1] == inner == 1 and module.groups == weight[0]:
        module.groups = outer  # depthwise: a group is a channel
    elif module.groups > 1:
        module.groups = layer.alive("weight", module.groups, "groups")
    sizes = (outer, inner * module.groups)
    module.out_channels, module.in_channels = sizes[::-1] if module.transposed else sizes


def _resize_attention(layer: Layer) -> None:
    from onnxprune.frameworks.pruned_attention import resize

    resize(layer.path, layer.module, layer.after, layer.kept)
