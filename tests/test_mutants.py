"""The proof catches what is cut wrongly, in networks made to hide it: a few of them quickly, all of them slowly."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "fuzz"))

import mutants
import networks

QUICK = ("convnext, layer scale 1e-6", "ends in ArgMax", "QDQ matrices", "weights in an else branch", "4 groups", "split")


@pytest.mark.parametrize("name", QUICK)
def test_every_mutant_is_caught(name: str) -> None:
    made = mutants.Pruned.of(name, networks.SPECIAL[name](), 0.5)
    found = list(mutants.mutants(made, np.random.default_rng(0)))
    assert len(found) > 3
    for what, model in found:
        assert made.caught(model), what
    for what, seen in mutants.alone(made):
        assert seen, what


def test_what_is_right_is_no_mutant_and_is_not_caught() -> None:
    made = mutants.Pruned.of("plain", networks.SPECIAL["plain"](), 0.5)
    assert not made.caught(made.after.model)
    right = made.after.model.weights
    for _, model in mutants.mutants(made, np.random.default_rng(0)):
        others = [n for n, w in model.weights.items() if w is not right[n]]
        assert all(model.weights[n].array().tobytes() != right[n].array().tobytes() for n in others)


def test_a_proof_that_compares_nothing_is_found_out(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(mutants.verify, "equivalence", lambda *given: None)
    monkeypatch.setattr(mutants, "generated", lambda: [("plain", networks.SPECIAL["plain"]())])
    args = Namespace(folders=[], generated=False, ratio=0.5, count=4, seed=0, alone=False, largest=30, limit=100)
    assert mutants.run(args) == 1
    assert "of 4 mutants of 1 networks" in capsys.readouterr().out


def test_there_are_networks_enough() -> None:
    assert len(list(networks.generated())) >= 60


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), [pytest.param(n, m, id=n) for n, m in networks.generated() if n not in QUICK])
def test_every_mutant_of_every_network_is_caught(name: str, model: Any) -> None:
    try:
        made = mutants.Pruned.of(name, model, 0.5)
    except mutants.NothingToPrune:
        pytest.skip("nothing can go")
    for what, wrong in mutants.mutants(made, np.random.default_rng(0)):
        assert made.caught(wrong), what
