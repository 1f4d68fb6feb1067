"""Criteria: how important a unit is.

The simplest kind is a saliency for every weight, which the mechanism sums over the coupled slices of a unit (SPA,
section 3.2): a function (weight, rng) -> array of the weight's shape, larger = more important; it sees neither
operators nor names. The other kind scores units from what `CriterionInputs` holds. Others join through `register` or
the entry point group `onnxprune.criteria`. Knows criteria by name, no operator.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError
from onnxprune.options import near

if TYPE_CHECKING:
    from onnxprune.planning.criteria.inputs import CriterionInputs

Criterion = Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]


def l1(weight: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """|w| (Li et al. 2016, Pruning Filters for Efficient ConvNets)."""
    return np.asarray(np.abs(weight))


def l2(weight: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """w^2."""
    return np.asarray(np.square(weight))


def random(weight: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Seeded uniform: the sanity floor of every comparison."""
    return rng.random(weight.shape, np.float32)


WEIGHTS: dict[str, Criterion] = {"l1": l1, "l2": l2, "random": random}
UNITS = {
    "bn-scale": "bn_scale", "fpgm": "fpgm", "lamp": "lamp", "activation": "activation",
    "wanda": "wanda", "flap": "flap", "cfsp": "cfsp", "beta-rank": "beta_rank", "obs": "obs", "taylor": "taylor",
    "taylor-so": "taylor_so", "lrp": "lrp", "oracle": "oracle",
}  # fmt: skip
"""Name -> function of `units`, which is imported when it is asked for."""
OWN: dict[str, Callable[..., NDArray[Any]]] = {}
"""Functions of a caller, by their names: the latest of each, as a notebook defines them again."""
WITHOUT_INPUTS = {"bn-scale", "fpgm", "lamp"}
ELEMENTWISE: set[Criterion] = {l1, l2, random}
"""Criteria that look at each weight alone: they may be shown a parameter a few rows at a time."""


def register(name: str, criterion: Criterion) -> None:
    """Make a per-weight `criterion` available under `name`."""
    WEIGHTS[name] = criterion


def named(criterion: str | Callable[..., NDArray[Any]]) -> str:
    """The name of a criterion; of a function the one that it has, by which it can be asked for from then on.

    A function of two arguments is given every weight and a random generator, and gives an array of the weight's shape;
    one of a single argument is given `CriterionInputs`, and gives one score a unit. UsageError where it takes another
    number of them, or has the name of a criterion that is there."""
    if isinstance(criterion, str):
        return criterion
    name = str(getattr(criterion, "__name__", type(criterion).__name__))
    if name in WEIGHTS or name in UNITS:
        raise UsageError(f"there is a criterion '{name}' already; give the function another name")
    if (count := _arguments(criterion)) not in (1, 2):
        raise UsageError(f"the criterion '{name}' takes (weight, rng) or one CriterionInputs, not {count} arguments")
    OWN[name] = criterion
    return name


def _arguments(criterion: Callable[..., NDArray[Any]]) -> int:
    return len(signature(criterion).parameters)


def check(name: str) -> None:
    """UsageError with the known names where there is no such criterion."""
    if name not in WEIGHTS and name not in UNITS and name not in OWN:
        for point in entry_points(group="onnxprune.criteria"):
            if point.name == name:
                register(name, point.load())
    if name not in WEIGHTS and name not in UNITS and name not in OWN:
        known = sorted((*WEIGHTS, *UNITS, *OWN))
        choice = f"; choose one of {', '.join(known)}"
        raise UsageError(f"no criterion '{name}'{near(name, known) or choice}")


def needs_inputs(name: str) -> bool:
    """Whether the criterion looks at activations or gradients. UsageError where there is none of that name."""
    check(name)
    if name in OWN:
        return _arguments(OWN[name]) == 1
    return name in UNITS and name not in WITHOUT_INPUTS


def scores(name: str, inputs: CriterionInputs) -> NDArray[np.float64]:
    """[classes]: the importance of every unit, by the criterion of that name; worked out once for the same inputs."""
    if name not in inputs.scored:
        inputs.scored[name] = _scored(name, inputs)
    return inputs.scored[name]


def _scored(name: str, inputs: CriterionInputs) -> NDArray[np.float64]:
    check(name)
    if name in WEIGHTS:
        return inputs.importance(WEIGHTS[name])
    if name in OWN:
        own = OWN[name]
        return np.asarray(own(inputs), np.float64) if _arguments(own) == 1 else inputs.importance(own)
    from onnxprune.planning.criteria import units

    found: NDArray[np.float64] = getattr(units, UNITS[name])(inputs)
    return found
