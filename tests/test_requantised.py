"""What a MatMulNBits reads was pruned: its weight is solved for, and goes back into a few bits block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper
from test_packed_weights import gated

from onnxprune.api import prune
from onnxprune.fit.few_bits import numbers
from onnxprune.fit.requantised import BlockGrid, FewBits
from onnxprune.model import Model

FORMS: dict[str, dict[str, Any]] = {
    "4 bits": {"bits": 4, "block": 16},
    "4 bits, zero points": {"bits": 4, "block": 16, "zeros": "packed"},
    "4 bits, odd number of blocks": {"bits": 4, "block": 32, "zeros": "packed", "flat": False, "hidden": 96},
    "4 bits, zero points that are floats": {"bits": 4, "block": 16, "zeros": "float", "bias": True},
    "4 bits, the last block not full": {"bits": 4, "block": 16, "zeros": "packed", "hidden": 90},
    "2 bits": {"bits": 2, "block": 16, "zeros": "packed"},
    "8 bits": {"bits": 8, "block": 16, "zeros": "packed"},
    "half precision": {"bits": 4, "block": 16, "kind": np.float16},
}


def inputs(kind: Any = np.float32, count: int = 24) -> list[dict[str, NDArray[Any]]]:
    """Batches whose features depend on each other."""
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((6, 12))
    noise = 0.1
    return [
        {"x": (rng.standard_normal((8, 16, 6)) @ mix + noise * rng.standard_normal((8, 16, 12))).astype(kind)}
        for _ in range(count)
    ]


def weight_of(model: Model, name: str = "d") -> FewBits:
    node = next(n for n in model.skeleton.graph.node if n.name == name)
    found = FewBits.of(node, model)
    assert found is not None
    return found


@pytest.mark.parametrize("form", FORMS)
def test_what_it_stores_is_what_it_reads(form: str) -> None:
    how = {"width": 48, "hidden": 96} | FORMS[form]
    model = Model.load(gated(**how).model(helper.np_dtype_to_tensor_dtype(np.dtype(how.get("kind", np.float32)))))
    weight = weight_of(model)
    before, whole = weight.read(model), numbers(weight.node, 1, model)
    names = weight.roots
    stored = [model.weights[name].array().copy() for name in names]
    weight.set_grid(model, weight.grid(model))
    weight.write(model, before)
    assert [np.array_equal(a, model.weights[n].array()) for a, n in zip(stored, names, strict=True)] == [True] * len(names)
    gram = np.eye(how["hidden"])
    found, grid = weight.requantised(model, 0.7 * before[::-1], gram)
    weight.set_grid(model, grid)
    weight.write(model, found)
    assert np.abs(weight.read(model) - found).max() <= 2e-3 * np.abs(found).max()
    assert whole is not None
    assert whole.shape == (48, -(-how["hidden"] // how["block"]), how["block"])


def test_later_columns_make_up_for_earlier_ones() -> None:
    """Where inputs depend on each other, feedback leaves less of the error than rounding each number by itself."""
    model = Model.load(gated(48, 96, bits=4, block=16, zeros="packed").model())
    weight, rng = weight_of(model), np.random.default_rng(0)
    rows = rng.standard_normal((400, 12)) @ rng.standard_normal((12, 96)) + 0.05 * rng.standard_normal((400, 96))
    wanted, gram = rng.standard_normal((96, 48)) / 10, rows.T @ rows

    def error(found: NDArray[np.float64]) -> float:
        return float(np.square(rows @ (found - wanted)).sum())

    fed, _ = weight.requantised(model, wanted, gram)
    alone, _ = weight.requantised(model, wanted, np.diag(np.diag(gram)))
    assert error(fed) < 0.5 * error(alone)
    own = weight.grid(model)
    weight.set_grid(model, BlockGrid(own.scale, own.zero, own.top))
    weight.write(model, wanted)
    assert error(alone) < error(weight.read(model))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_left_makes_up_for_blocks_that_went(form: str) -> None:
    how = {"width": 64, "hidden": 160} | FORMS[form]
    kind = how.get("kind", np.float32)
    model = gated(**how).model(helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    result = prune(model, ratio=0.3, calib=inputs(kind))
    report = result.report.reconstruction
    assert report is not None
    errors = report["output_error"]
    assert errors["refitted"] < 0.25 * errors["sliced"]
    layer = next(r for r in report["layers"] if r["layer"] == "d")
    assert layer["after"] < 0.25 * layer["before"]
    assert result.model.weights["d_B"].dtype == np.uint8


def test_codes_stay_where_new_ones_are_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gated(64, 160, bits=4, block=16, zeros="packed").model()

    def worse(self: FewBits, model: Model, value: Any, gram: Any) -> tuple[Any, BlockGrid]:
        return 3 * value, self.grid(model)

    monkeypatch.setattr(FewBits, "requantised", worse)
    sliced = prune(model, ratio=0.3, calib=inputs(), reconstruct="none")
    refitted = prune(model, calib=inputs(), plan=sliced.plan)
    for name in ("d_B", "d_s", "d_z"):
        assert np.array_equal(sliced.model.weights[name].array(), refitted.model.weights[name].array())
