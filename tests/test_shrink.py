"""Torch modules through ONNX and back: sliced by the plan and shrunk, they are the pruned file. Needs torch."""

from __future__ import annotations

import copy
import json
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import run

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import UsageError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
make_pairs = pytest.importorskip("make_pairs")  # it needs the optimisers that it compares, too

NETWORKS = ["residual", "squeeze_excite", "lstm", "gru", "unet"]
"""Without those whose `forward` spells sizes out, and a channel shuffle: the rewriting makes a permutation of it."""


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_shrunk_module_is_the_pruned_file(tmp_path: Path, name: str, dynamo: bool) -> None:
    """Exported with BatchNorm folded and gates reordered, under names of the exporter's own."""
    torch.manual_seed(0)
    network, shape = make_pairs.networks()[name]
    network = make_pairs.randomise(network)
    model = make_pairs.export(network, shape, tmp_path / "model.onnx", dynamo)
    state = {n: t.numpy() for n, t in network.state_dict().items()}
    plan = onnxprune.plan(model, ratio=0.5, fast=True)
    small = onnxprune.shrink(copy.deepcopy(network), onnxprune.apply_plan(plan, state, model)).eval()
    x = torch.randn(shape)
    (expected,) = run(onnxprune.apply(model, plan).to_proto(), {model.graph.input[0].name: x.numpy()})
    got = small(x).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in network.parameters())


def test_layers_get_the_sizes_of_their_tensors() -> None:
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 8, 3, groups=8),
        torch.nn.ConvTranspose2d(8, 6, 2), torch.nn.Flatten(), torch.nn.Linear(6, 4, bias=False),
    )  # fmt: skip
    small = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.Conv2d(5, 5, 3, groups=5),
        torch.nn.ConvTranspose2d(5, 2, 2), torch.nn.Flatten(), torch.nn.Linear(2, 4, bias=False),
    )  # fmt: skip
    assert str(onnxprune.shrink(layers, small.state_dict())) == str(small)
    with pytest.raises(UsageError, match="groups of '0'"):
        onnxprune.shrink(
            torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1, groups=2)),
            torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1, groups=2)).state_dict(),
        )
    with pytest.raises(UsageError, match="'bias' is in the module"):
        onnxprune.shrink(torch.nn.Linear(2, 2), {"weight": torch.zeros(2, 2)})


def test_pt_files_are_read_as_weights_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = torch.nn.Sequential(OrderedDict(one=torch.nn.Linear(3, 8), two=torch.nn.Linear(8, 2)))
    weights = {n: t.to(torch.bfloat16) for n, t in layers.state_dict().items()}
    gone = {"axes": [0], "shape": [8], "remove": [1, 5]}
    removals = [{"parameter": n, **gone} for n in ("one.weight", "one.bias")]
    removals.append({"parameter": "two.weight", **gone, "axes": [1]})
    made = {"scope": "local", "ratio": 0.3, "criterion": "l2", "fingerprint": "", "reconstruct": "none"}
    plan = {"version": 2, **made, "groups": {"one.weight": removals}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "weights.pt")
    torch.save(layers, tmp_path / "module.pt")
    arguments = [str(tmp_path / name) for name in ("plan.json", "weights.pt", "out.pt")]
    assert main(["apply-plan", *arguments]) == 0
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    stay = [0, 2, 3, 4, 6, 7]
    assert torch.equal(out["one.weight"], weights["one.weight"][stay])
    assert torch.equal(out["two.weight"], weights["two.weight"][:, stay])
    arguments[1] = str(tmp_path / "module.pt")
    assert main(["apply-plan", *arguments]) == 2
    assert "is no file of weights alone" in capsys.readouterr().err


def test_carried_network_under_its_own_names() -> None:
    """Twin biases are one vector behind an Identity in this file."""
    path = Path(__file__).parents[1] / "models" / "fashion_resnet_bn.onnx"
    train = pytest.importorskip("train_fashion")
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for stage in ("stages.3", "stages.6"):
        held[f"{stage}.short.1.bias"] = held[f"{stage}.bn2.bias"]
    network = train.FashionResNet()
    state = {n: held.get(n, t.numpy()) for n, t in network.state_dict().items()}
    plan = onnxprune.plan(str(path), ratio=0.5, of="macs", fast=True)
    small = onnxprune.shrink(network, onnxprune.apply_plan(plan, state, str(path))).eval()
    x = torch.randn(2, 1, 28, 28)
    (expected,) = run(onnxprune.apply(str(path), plan).to_proto(), {"image": x.numpy()})
    np.testing.assert_allclose(small(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
