"""How far a network is from its teacher, sample by sample. Knows tensors, no graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from onnxprune.finetuning.recipe import LABELS, LOGITS, TEMPERATURE
from onnxprune.finetuning.targets import Target

Tensor = Any


def losses(
    targets: Sequence[Target], ours: Sequence[Tensor], theirs: Sequence[Tensor], rows: int, labels: Tensor | None = None
) -> Tensor:
    """[rows]: for scores of classes the divergence at a temperature and some of the squared error, for other numbers
    the squared error by their variance; the mean over the targets. What has no row for each sample counts for all."""
    total = torch.zeros(rows, device=ours[0].device)
    for target, a, b in zip(targets, ours, theirs, strict=True):
        squared = (a - b) ** 2
        if target.axis is None:
            found = squared / target.spread
        else:
            t, axis = TEMPERATURE, target.axis
            wanted = F.log_softmax(b / t, axis)
            apart = wanted.exp() * (wanted - F.log_softmax(a / t, axis))
            found = t * t * apart.sum(axis, keepdim=True) + LOGITS * squared.mean(axis, keepdim=True)
            if labels is not None and a.dim() == 2:
                found = found + LABELS * F.cross_entropy(a, labels, reduction="none")[:, None]
        by_row = found.dim() > 0 and len(found) == rows
        total = total + (found.reshape(rows, -1).mean(1) if by_row else found.mean())
    return total / len(targets)
