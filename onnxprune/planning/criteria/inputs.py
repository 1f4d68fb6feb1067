"""What a criterion may look at, found when it is first asked for: slices, statistics, gradients.

Knows where these come from, so that a criterion need know neither operators nor the graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError
from onnxprune.model import Aside
from onnxprune.options import Options
from onnxprune.planning.limits import movable
from onnxprune.progress import now
from onnxprune.trace import Groups, Ids

Array = NDArray[np.float64]
Saliency = Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]


class CriterionInputs:
    """`feeds`: batches of inputs (none where only weights may be looked at); `labels`: of their samples, if known.
    scored: [classes], what criteria said of them, by name."""

    def __init__(
        self, groups: Groups, options: Options, feeds: Sequence[Mapping[str, NDArray[Any]]] = (),
        labels: NDArray[Any] | None = None,
    ) -> None:  # fmt: skip
        self.groups, self.options, self.feeds, self.labels = groups, options, feeds, labels
        self.count = len(groups.prunable)
        self.scored: dict[str, Array] = {}

    def importance(self, saliency: Saliency) -> Array:
        """[classes]: per-weight saliencies summed over a unit's slices (see `profile.importance`)."""
        from onnxprune.planning.profile import importance

        return importance(self.groups, saliency, self.options.seed)

    @cached_property
    def families(self) -> list[Ids]:
        """Units that live on the same axes of the same parameters."""
        found: dict[int, list[int]] = defaultdict(list)
        for u in np.flatnonzero(self.groups.prunable):
            found[int(self.groups.location_hash[u])].append(int(u))
        return [np.array(units, np.int64) for units in found.values()]

    @cached_property
    def sites(self) -> Sequence[Any]:
        """Where units are summed away, with second moments of the inputs (see `fit.Site`)."""
        from onnxprune.fit import collect

        say, feeds = now(), self._given()
        return collect(
            self.groups, feeds, self.options.providers, self.options.seed, lambda share: say("statistics", share),
            movable(self.groups, self.options), Aside() if self.needs.aside else None,
        )  # fmt: skip

    @cached_property
    def needs(self) -> Any:
        """What statistics take of the memory (see `planning.memory.Needs`)."""
        from onnxprune.planning.memory import needs

        return needs(self.groups, self.options)

    @cached_property
    def flows(self) -> Sequence[Any]:
        """What layers make units of, with how far inputs and outputs vary (see `fit.Flow`)."""
        from onnxprune.fit import flows

        return list(flows(self.groups, self._given(), self.options.providers, self.options.seed))

    @cached_property
    def turns(self) -> Mapping[int, float]:
        """By node, how far a layer turns the stream that it adds to (see `fit.turns`)."""
        from onnxprune.fit import turns

        return turns(self.groups, self._given(), self.options.providers, self.options.seed)

    def _given(self) -> Sequence[Mapping[str, NDArray[Any]]]:
        if not self.feeds:
            raise UsageError(f"--criterion {self.options.criterion} needs inputs; leave out --fast")
        return self.feeds

    def slices(self) -> Iterator[tuple[Array, Ids]]:
        """(rows [positions, weights], their classes) of every matrix that units have a slice in."""
        from onnxprune.fit import WeightValues

        values = WeightValues(self.groups.trace.nodes, self.groups.trace.model)
        for s, axes, ids in self.groups.blocks:
            weight = values.of(s.parameter, s.cells)
            if weight is None or weight.ndim < 2 or weight.dtype.kind != "f" or any(
                weight.shape[a] != n for a, n in zip(axes, ids.shape, strict=True)
            ):  # fmt: skip
                continue
            rows = np.moveaxis(weight, axes, range(len(axes))).reshape(ids.size, -1)
            yield rows.astype(np.float64), self.groups.classes[ids].ravel()

    @cached_property
    def scales(self) -> list[tuple[Array, Ids]]:
        """(values, classes) of the scales of normalisations that are left in the graph."""
        nodes = self.groups.trace.nodes
        found = []
        for s, axes, ids in self.groups.blocks:
            uses = s.uses or [(k, i) for k, n in enumerate(nodes) for i, x in enumerate(n.input) if x == s.parameter]
            if axes == (0,) and any(i == 1 and nodes[k].op_type.endswith("Normalization") for k, i in uses):
                weight = self.groups.trace.model.weights[s.parameter].array()
                if weight.shape == ids.shape:
                    found.append((weight.astype(np.float64), self.groups.classes[ids]))
        return found

    def gradients(self, seed_with: str = "loss") -> Array:
        """[samples, classes]: derivatives of every sample's loss by the units' gates."""
        from onnxprune.gradients import gate_gradients

        return gate_gradients(self.groups, [dict(f) for f in self._given()], self.labels, self.options, seed_with)  # type: ignore[arg-type]

    def masked_losses(self) -> Array:
        """[classes]: the change of the loss when a unit alone is masked."""
        from onnxprune.gradients import oracle

        return oracle(self.groups, [dict(f) for f in self.feeds], self.labels, self.options)
