"""Hidden units of experts went: what is left in each is solved for by the tokens that are routed to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_packed_weights import mixture

from onnxprune.api import prune
from onnxprune.fit import layers
from onnxprune.fit.experts import Experts, Mixture, Tokens
from onnxprune.model import Model
from onnxprune.run import open_session

FORMS: dict[str, dict[str, Any]] = {
    "floats": {},
    "one expert a token": {"k": 1},
    "gates beside": {"gates": True},
    "4 bits, a scale a row": {"bits": 4},
    "4 bits, zero points, gates beside": {"bits": 4, "zeros": True, "gates": True},
    "4 bits, blocks, zero points": {"bits": 4, "block": 16, "zeros": True},
    "8 bits, a scale a row": {"bits": 8, "zeros": True},
}


def inputs(seed: int, count: int = 24) -> list[dict[str, NDArray[Any]]]:
    """Batches whose features depend on each other, the same way for every seed."""
    mix, rng = np.random.default_rng(3).standard_normal((6, 12)), np.random.default_rng(seed)
    noise = 0.1
    return [
        {"x": (rng.standard_normal((8, 16, 6)) @ mix + noise * rng.standard_normal((8, 16, 12))).astype(np.float32)}
        for _ in range(count)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_the_sum_of_the_experts_is_what_the_node_gives(form: str) -> None:
    model = Model.load(mixture(**FORMS[form])[0].model())
    node = next(n for n in model.skeleton.graph.node if "MoE" in n.op_type)
    for name in ("h", "r", "m"):
        model.skeleton.graph.output.add(name=name)
    feed = inputs(0, 1)[0]
    h, r, m = open_session(model).run(["h", "r", "m"], feed)
    tokens = Tokens(Mixture.of(node, model), h.reshape(-1, h.shape[-1]), r)
    found = tokens.whole()
    assert np.abs(found - m.reshape(found.shape)).max() <= (2e-2 if FORMS[form].get("bits") == 8 else 1e-4) * np.abs(m).max()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_stored_is_what_is_read(form: str) -> None:
    model = Model.load(mixture(**FORMS[form])[0].model())
    layer = next(x for x in layers(model, lambda name: 3) if isinstance(x, Experts))
    before = layer.read(model)
    layer.write(model, before)
    assert np.allclose(layer.read(model), before, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_refit_loses_less_on_inputs_that_it_has_not_seen(form: str) -> None:
    model = mixture(**FORMS[form])[0].model()
    sliced = prune(model, ratio=0.3, calib=inputs(0), reconstruct="none")
    fitted = prune(model, calib=inputs(0), plan=sliced.plan)
    assert fitted.report.reconstruction is not None
    layer = next(r for r in fitted.report.reconstruction["layers"] if r["layer"] == "m")
    assert layer["after"] < layer["before"]
    fresh = inputs(1, 4)
    dense = open_session(Model.load(model))

    def error(result: Any) -> float:
        own = open_session(result.model)
        return sum(float(np.square(own.run(None, f)[0] - dense.run(None, f)[0]).sum()) for f in fresh)

    assert error(fitted) < 0.8 * error(sliced)
