"""A torch module made as small as its pruned weights: every layer gets the sizes of its tensors, by its type alone.

Knows torch modules and shapes, no ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxprune.errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]
"""Of a layer's own tensors, by name."""


def shrink(module: Any, state: Mapping[str, Any]) -> Any:
    """Give the layers of the torch `module` the sizes of `state` (arrays or tensors by name) and load it, in place.

    Returns `module`. Sizes that are written into `forward` (a reshape to a number of heads) are the caller's to adapt.
    Raises UsageError where names differ, or a layer's other sizes do not follow from its tensors."""
    import torch

    tensors = {name: torch.as_tensor(np.array(x) if isinstance(x, np.ndarray) else x) for name, x in state.items()}
    own = module.state_dict()
    differing = sorted(own.keys() ^ tensors.keys())
    if differing:
        raise UsageError(
            f"'{differing[0]}' is in the module or in the weights but not in both; are they of one network?"
        )
    made: dict[int, Any] = {}  # parameters that layers share stay shared
    for path, layer in module.named_modules():
        before = _shapes(layer)
        wanted = {name: tensors[full] for name in before if (full := _joined(path, name)) in tensors}
        _shrink_tensors(layer, wanted, made)
        after = _shapes(layer)
        if before != after:
            _resize(path, layer, before, after)
    module.load_state_dict(tensors)
    return module


def _joined(path: str, name: str) -> str:
    """The name of a layer's tensor in the whole module."""
    return f"{path}.{name}" if path else name


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


def _resize(path: str, layer: Any, before: Shapes, after: Shapes) -> None:
    """The numbers that a layer keeps beside its tensors, by the first of the kinds that it is of."""
    from torch import nn

    kinds: tuple[tuple[type, Callable[[str, Any, Shapes, Shapes], None]], ...] = (
        (nn.modules.conv._ConvNd, _resize_convolution),
        (nn.Linear, _resize_linear),
        (nn.Embedding, _resize_embedding),
        (nn.modules.batchnorm._NormBase, _resize_norm),  # of instances as well
        (nn.LayerNorm, _resize_layer_norm),
        (nn.PReLU, _resize_prelu),
        (nn.RNNBase, _resize_recurrent),
    )
    resize = next((resize for kind, resize in kinds if isinstance(layer, kind)), _refuse)
    resize(path, layer, before, after)


def _refuse(path: str, layer: Any, before: Shapes, after: Shapes) -> None:
    """UsageError for a layer of torch's own; whoever wrote another one knows what it keeps."""
    if type(layer).__module__.startswith("torch.nn"):
        raise UsageError(
            f"the sizes of '{path}' ({type(layer).__name__}) do not follow from its tensors; exclude it when "
            "pruning (--nodes-to-exclude), or adapt it in the module"
        )


def _resize_linear(path: str, layer: Any, before: Shapes, after: Shapes) -> None:
    layer.out_features, layer.in_features = after["weight"]


def _resize_embedding(path: str, layer: Any, before: Shapes, after: Shapes) -> None:
    layer.num_embeddings, layer.embedding_dim = after["weight"]


def _resize_norm(path: str, layer: Any, before: Shapes, after: Shapes) -> None:
    layer.num_features = next(iter(shape[0] for shape in after.values() if shape))


def _resize_layer_norm(path: str, layer: Any, before: Shapes, after: Shapes) -> None:
    layer.normalized_shape = after["weight"]


def _resize_prelu(path: str, layer: Any, before: Shapes, after: Shapes) -> None:
    (layer.num_parameters,) = after["weight"]


def _resize_recurrent(path: str, layer: Any, before: Shapes, after: Shapes) -> None:
    if layer.proj_size:
        _refuse(path, layer, before, after)
        return
    layer.hidden_size, layer.input_size = after["weight_hh_l0"][1], after["weight_ih_l0"][1]
    sides = 2 if layer.bidirectional else 1
    for level in range(1, layer.num_layers):
        if after[f"weight_ih_l{level}"][1] != sides * layer.hidden_size:
            raise UsageError(f"the levels of '{path}' keep different sizes; make them one layer each and prune again")
    layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]


def _resize_convolution(path: str, layer: Any, before: Shapes, after: Shapes) -> None:
    weight, (outer, inner) = before["weight"], after["weight"][:2]
    if layer.groups > 1:
        if not (weight[1] == inner == 1 and layer.groups == weight[0]):
            raise UsageError(
                f"how many of the {layer.groups} groups of '{path}' are left does not follow from its weight "
                f"{list(after['weight'])}; exclude it when pruning (--nodes-to-exclude), or adapt it in the module"
            )
        layer.groups = outer  # depthwise: a group is a channel
    sizes = (outer, inner * layer.groups)
    layer.out_channels, layer.in_channels = sizes[::-1] if layer.transposed else sizes
