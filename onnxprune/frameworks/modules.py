"""A torch module made as small as its pruned weights: every layer gets the sizes of its tensors, by its type alone.

Knows torch modules and shapes, no ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxprune.errors import UsageError


def shrink(module: Any, state: Mapping[str, Any]) -> Any:
    """Give the layers of the torch `module` the sizes of `state` (arrays or tensors by name) and load it, in place.

    Returns `module`. Sizes that are written into `forward` (a reshape to a number of heads) are the caller's to adapt.
    Raises UsageError where names differ, or a layer's other sizes do not follow from its tensors."""
    import torch
    from torch import nn

    tensors = {name: torch.as_tensor(np.array(x) if isinstance(x, np.ndarray) else x) for name, x in state.items()}
    own = module.state_dict()
    differing = sorted(own.keys() ^ tensors.keys())
    if differing:
        raise UsageError(
            f"'{differing[0]}' is in the module or in the weights but not in both; are they of one network?"
        )
    made: dict[int, Any] = {}  # parameters that layers share stay shared
    for path, layer in module.named_modules():
        prefix = f"{path}." if path else ""
        before = {n: tuple(t.shape) for n, t in (*layer._parameters.items(), *layer._buffers.items()) if t is not None}
        for name, old in list(layer._parameters.items()):
            if old is not None and old.shape != tensors[prefix + name].shape:
                value = torch.empty(tensors[prefix + name].shape, dtype=old.dtype, device=old.device)
                layer._parameters[name] = made.setdefault(id(old), nn.Parameter(value, old.requires_grad))
        for name, old in list(layer._buffers.items()):
            if old is not None and prefix + name in tensors and old.shape != tensors[prefix + name].shape:
                layer._buffers[name] = old.new_empty(tensors[prefix + name].shape)
        after = {n: tuple(t.shape) for n, t in (*layer._parameters.items(), *layer._buffers.items()) if t is not None}
        if before != after:
            _resize(path, layer, before, after)
    module.load_state_dict(tensors)
    return module


Shapes = Mapping[str, tuple[int, ...]]


def _resize(path: str, layer: Any, before: Shapes, after: Shapes) -> None:
    """The numbers that a layer keeps beside its tensors."""
    from torch import nn

    kind = nn.modules
    if isinstance(layer, kind.conv._ConvNd):
        _resize_convolution(path, layer, before["weight"], after["weight"])
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = after["weight"]
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = after["weight"]
    elif isinstance(layer, kind.batchnorm._NormBase):  # of instances as well
        layer.num_features = next(iter(shape[0] for shape in after.values() if shape))
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = after["weight"]
    elif isinstance(layer, nn.PReLU):
        (layer.num_parameters,) = after["weight"]
    elif isinstance(layer, nn.RNNBase) and not layer.proj_size:
        layer.hidden_size, layer.input_size = after["weight_hh_l0"][1], after["weight_ih_l0"][1]
        sides = 2 if layer.bidirectional else 1
        for level in range(1, layer.num_layers):
            if after[f"weight_ih_l{level}"][1] != sides * layer.hidden_size:
                raise UsageError(
                    f"the levels of '{path}' keep different sizes; make them one layer each and prune again"
                )
        layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
    elif type(layer).__module__.startswith("torch.nn"):
        raise UsageError(
            f"the sizes of '{path}' ({type(layer).__name__}) do not follow from its tensors; exclude it when "
            "pruning (--nodes-to-exclude), or adapt it in the module"
        )


def _resize_convolution(path: str, layer: Any, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    outer, inner = after[:2]
    if layer.groups > 1:
        if not (before[1] == inner == 1 and layer.groups == before[0]):
            raise UsageError(
                f"how many of the {layer.groups} groups of '{path}' are left does not follow from its weight "
                f"{list(after)}; exclude it when pruning (--nodes-to-exclude), or adapt it in the module"
            )
        layer.groups = outer  # depthwise: a group is a channel
    sizes = (outer, inner * layer.groups)
    layer.out_channels, layer.in_channels = sizes[::-1] if layer.transposed else sizes
