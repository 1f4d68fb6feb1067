"""Transformers through ONNX and back: heads and groups of shrunk modules are those of the pruned file. Needs torch, but
for the numbers themselves."""

from __future__ import annotations

import copy
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import array, graph, run
from safetensors.numpy import save_file

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import CheckFailed, UsageError
from onnxprune.frameworks.heads import resized
from onnxprune.planning import Plan, Removal

Made = tuple[Any, Any]
"""A module, and inputs of two samples."""


def kept(n: int, *stay: int) -> Any:
    mask = np.zeros(n, bool)
    mask[list(stay)] = True
    return mask


HALVED = kept(32, 0, 1, 2, 3, 8, 9, 10, 11)
"""Of four heads of eight, two of four."""
FUSED = np.concatenate([HALVED] * 3)
TAKEN_WHOLE = kept(32, *range(8))


@pytest.mark.parametrize(
    ("attributes", "axes", "changes"),
    [
        ({"num_heads": 4, "head_dim": 8, "attn_dim": 32, "scale": 0.35, "fused_attn": True}, {"qkv": FUSED, "proj": HALVED},
         {"num_heads": 2, "head_dim": 4, "attn_dim": 8, "fused_attn": False}),
        ({"num_heads": 4, "head_dim": 8, "fused_attn": True}, {"qkv": np.concatenate([TAKEN_WHOLE] * 3)}, {"num_heads": 1}),
        ({"n_heads": 4, "dim": 32, "attention_head_size": 8}, {"q": HALVED, "k": HALVED, "v": HALVED},
         {"n_heads": 2, "dim": 8, "attention_head_size": 4}),
        ({"num_attention_heads": 4, "attention_head_size": 8, "all_head_size": 32, "layer_idx": 1}, {"q": TAKEN_WHOLE},
         {"num_attention_heads": 1, "all_head_size": 8}),
        ({"n_heads": 4, "key_value_proj_dim": 8, "inner_dim": 32}, {"q": HALVED, "bias": kept(4, 0, 1)},
         {"n_heads": 2, "key_value_proj_dim": 4, "inner_dim": 8}),
        ({"num_heads": 4}, {"qkv": FUSED, "proj": HALVED}, {"num_heads": 2}),
        ({"num_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_key_value_groups": 2},
         {"q": kept(32, *range(16)), "k": kept(16, *range(8))}, {"num_heads": 2, "num_key_value_heads": 1}),
        ({"head_dim": 8, "num_key_value_groups": 2}, {"q": HALVED, "k": kept(16, 0, 1, 2, 3)},
         {"head_dim": 4}),
        ({"head_dim": 8, "num_key_value_groups": 2}, {"q": TAKEN_WHOLE, "k": kept(16, *range(8))},
         {"num_key_value_groups": 1}),
        ({"num_heads": 1, "head_dim": 8}, {"q": kept(8, 0, 1)}, {"head_dim": 2}),
        ({"num_heads": 8, "head_dim": 8}, {"q": kept(64, *range(48))}, {"num_heads": 6}),
    ],
)  # fmt: skip
def test_numbers_of_an_attention_by_their_values(attributes: Any, axes: Any, changes: Any) -> None:
    found = resized("attn", attributes, axes)
    assert {name: value for name, value in found.items() if attributes[name] != value} == changes


@pytest.mark.parametrize(
    ("attributes", "axes", "words"),
    [
        ({"num_heads": 4, "head_dim": 8}, {"q": HALVED, "v": kept(32, 0, 1, 2, 8, 9, 10)}, "q 4, v 3; prune with scope"),
        ({"head_dim": 8}, {"q": HALVED, "v": kept(16, 0)}, "q 4, v 1; prune with scope"),
        ({"num_heads": 5}, {"q": HALVED}, "the size of a head of 'attn'"),
        ({"num_heads": 4, "head_dim": 8}, {"q": HALVED, "k": kept(48, *range(8))}, "'k' holds 6 heads of 8"),
        ({"num_heads": 4, "head_dim": 8}, {"q": HALVED, "v": TAKEN_WHOLE}, "q 2, v 1"),
    ],
)  # fmt: skip
def test_what_is_unclear_is_refused(attributes: Any, axes: Any, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        resized("attn", attributes, axes)


def test_apply_plan_tells_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = "Reshape(%s, heads) %st = Transpose<perm = [0, 2, 1, 3]>(%sr)"
    parts = " ".join(f"{p} = MatMul(x, {p}w) {p}r = {split % (p, p, p)}" for p in "qkv")
    model = graph(
        "(float[2, 5, 32] x) => (float[2, 5, 32] y)",
        f"{parts} kk = Transpose<perm = [0, 1, 3, 2]>(kt) s = MatMul(qt, kk) w = Softmax<axis = -1>(s) o = MatMul(w, vt)"
        " t = Transpose<perm = [0, 2, 1, 3]>(o) j = Reshape(t, joined) y = MatMul(j, ow)",
        qw=(32, 32), kw=(32, 32), vw=(32, 32), ow=(32, 32), heads=np.array([2, 5, 4, 8]), joined=np.array([2, 5, 32]),
    )  # fmt: skip
    plan = onnxprune.plan(model, ratio=0.5, fast=True)
    state = {name: array(model, name) for name in ("qw", "kw", "vw", "ow")}
    heads = onnxprune.apply_plan(plan, state, model).heads
    assert {n: (h.axis, h.before, h.after) for n, (h,) in heads.items()} == {
        "qw": (1, (4, 8), (2, 4)), "kw": (1, (4, 8), (2, 4)), "vw": (1, (4, 8), (2, 4)), "ow": (0, (4, 8), (2, 4))
    }  # fmt: skip
    plan.save(tmp_path / "plan.json")
    save_file(state, tmp_path / "w.safetensors")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    own, out = str(tmp_path / "own.json"), str(tmp_path / "o.safetensors")
    files = [str(tmp_path / name) for name in ("plan.json", "w.safetensors")]
    for arguments in ([*files, out, "--model", str(tmp_path / "m.onnx"), "--save-plan", own], [own, files[1], out]):
        assert main(["apply-plan", *arguments]) == 0
        assert "qw, axis 1: 4 heads or groups of 8 -> 2 of 4" in capsys.readouterr().out
    assert main(["apply-plan", own, files[1], out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["heads"]["ow"] == [{"axis": 0, "before": [4, 8], "after": [2, 4]}]


@pytest.mark.parametrize("rows", [[4], [2, 4], [5, 1], [4, 0]])
def test_rows_of_a_plan_are_checked(rows: list[int]) -> None:
    data = Plan({"a": (Removal("a", (0,), (8,), (1,), rows=(4, 2)),)}).to_json()
    assert Plan.from_json(data).groups["a"][0].rows == (4, 2)
    data["groups"]["a"][0]["rows"] = rows
    with pytest.raises(UsageError, match="'rows' of 'a' are heads before and after"):
        Plan.from_json(data)


def hand_written() -> Made:
    """Attention with the attributes of timm's, in one block."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Attention(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.head_dim, self.attn_dim = 4, 8, 32
            self.scale, self.fused_attn = 8**-0.5, True
            self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

        def forward(self, x: Any) -> Any:
            qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
            if self.fused_attn:
                out = nn.functional.scaled_dot_product_attention(q, k, v)
            else:
                out = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
            return x + self.proj(out.transpose(1, 2).reshape(*x.shape[:2], self.attn_dim))

    layers = [nn.Linear(12, 32), Attention(), nn.LayerNorm(32), Attention(), nn.LayerNorm(32), nn.Linear(32, 5)]
    return nn.Sequential(*layers), torch.randn(2, 6, 12)


def needs(name: str) -> Any:
    """A package that is there, and not broken."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name}: {error}")


def of_timm() -> Made:
    vit = needs("timm.models.vision_transformer").VisionTransformer
    made = vit(img_size=16, patch_size=8, num_classes=5, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2)
    return made, needs("torch").randn(2, 3, 16, 16)


def of_torchvision() -> Made:
    made = needs("torchvision.models").VisionTransformer(16, 8, 2, 4, 32, 64, num_classes=5)
    return made, needs("torch").randn(2, 3, 16, 16)


def of_transformers(kind: str, tokens: bool, **sizes: int) -> Made:
    transformers, torch = needs("transformers"), needs("torch")
    config = getattr(transformers, f"{kind}Config")(**sizes)
    made = getattr(transformers, f"{kind}{'ForSequenceClassification' if tokens else 'ForImageClassification'}")(config)
    return made, torch.randint(0, 50, (2, 8)) if tokens else torch.randn(2, 3, 16, 16)


BERT = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
MADE: dict[str, Callable[[], Made]] = {
    "hand-written": hand_written,
    "timm ViT": of_timm,
    "torchvision ViT": of_torchvision,
    "DistilBERT": lambda: of_transformers(
        "DistilBert", True, vocab_size=50, max_position_embeddings=16, n_layers=2, n_heads=4, dim=32, hidden_dim=64
    ),
    "BERT": lambda: of_transformers("Bert", True, max_position_embeddings=16, **BERT),
    "ViT": lambda: of_transformers(
        "ViT", False, image_size=16, patch_size=8, **{k: v for k, v in BERT.items() if k != "vocab_size"}
    ),
}


def made(name: str, noise: float = 0.1) -> Made:
    """A tiny network that returns a tensor, its weights not equal to each other as fresh ones are."""
    torch = needs("torch")
    torch.manual_seed(0)
    network, x = MADE[name]()

    class Logits(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            out = self.network(x)
            return getattr(out, "logits", out)

    with torch.no_grad():
        for p in network.parameters():
            p.add_(noise * torch.randn_like(p))
    return Logits().eval(), x


def exported(network: Any, x: Any, path: Path) -> Path:
    needs("torch").onnx.export(network, (x,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "N"}})
    return path


def arrays(network: Any) -> dict[str, Any]:
    return {n: t.numpy() for n, t in network.state_dict().items()}


@pytest.mark.parametrize("name", MADE)
def test_there_and_back(tmp_path: Path, name: str) -> None:
    network, x = made(name)
    torch = needs("torch")
    model = exported(network, x, tmp_path / "model.onnx")
    plan = onnxprune.plan(model, ratio=0.5, fast=True)
    pruned = onnxprune.apply(model, plan).to_proto()
    state = onnxprune.apply_plan(plan, arrays(network), model)
    assert {h.before[0] for found in state.heads.values() for h in found} == {4}
    assert {h.after[0] for found in state.heads.values() for h in found} == {2}
    small = onnxprune.shrink(copy.deepcopy(network), state, pruned=pruned)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in network.parameters())
    feed = {"x": x.numpy()}
    (expected,) = run(pruned, feed)
    (again,) = run(onnx.load(exported(small, x, tmp_path / "small.onnx")), feed)
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

    optimiser = torch.optim.SGD(small.parameters(), 0.01)
    before = small(x).square().mean()
    before.backward()
    optimiser.step()
    assert small(x).square().mean() < before
    (trained,) = run(onnx.load(exported(small, x, tmp_path / "trained.onnx")), feed)
    np.testing.assert_allclose(small(x).detach().numpy(), trained, rtol=1e-4, atol=1e-5 * np.abs(trained).max())
    fresh = onnxprune.shrink(copy.deepcopy(network), onnxprune.sliced(state.plan, arrays(network)), pruned=pruned)
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    with pytest.raises(UsageError, match=r"which heads of 'network.*give the plan in the names of these weights"):
        onnxprune.shrink(copy.deepcopy(network), dict(state))


def test_a_module_that_is_refused_is_as_it_was(tmp_path: Path) -> None:
    network, x = made("hand-written")
    model = exported(network, x, tmp_path / "model.onnx")
    plan = onnxprune.plan(model, ratio=0.5, fast=True)
    state = onnxprune.apply_plan(plan, arrays(network), model)
    expected, shown = network(x), str(network)
    other = onnxprune.apply(model, onnxprune.plan(model, ratio=0.7, fast=True)).to_proto()
    tries: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (CheckFailed, "the shrunk module cannot run", {"pruned": other, "by_hand": ["network.[13]"]}),
        (CheckFailed, "differs from the pruned model by", {"pruned": other}),
        (UsageError, r"no module is called 'network\.9'", {"by_hand": "network.9"}),
        (UsageError, "inputs holds 2 arrays", {"pruned": other, "inputs": [x, x]}),
    ]
    for kind, words, keywords in tries:
        with pytest.raises(kind, match=words):
            onnxprune.shrink(network, state, **keywords)
        assert str(network) == shown
        np.testing.assert_array_equal(network(x).detach().numpy(), expected.detach().numpy())
    small = onnxprune.shrink(network, state, inputs=[x], pruned=onnxprune.apply(model, plan))
    assert (small.network[1].num_heads, small.network[1].head_dim) == (2, 4)
    assert not small.network[1].fused_attn


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_groups_of_convolutions_and_norms(tmp_path: Path, ratio: float) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn = torch.nn
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.ReLU(),
        nn.Conv2d(16, 16, 1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in layers.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model = exported(layers, torch.randn(1, 3, 8, 8), tmp_path / "model.onnx")
    plan = onnxprune.plan(model, ratio=ratio, fast=True)
    state = onnxprune.apply_plan(plan, arrays(layers), model)
    small = onnxprune.shrink(copy.deepcopy(layers), state, pruned=onnxprune.apply(model, plan).to_proto())
    assert small[5].num_channels < 16
    with pytest.raises(UsageError, match=r"how many of the 4 groups of '[25]' are left"):
        onnxprune.shrink(copy.deepcopy(layers), dict(state))


def test_pruned_attention_is_torchs() -> None:
    """With all heads and positions, on all that torch takes."""
    torch = pytest.importorskip("torch")
    from onnxprune.frameworks.pruned_attention import PrunedAttention, resize

    torch.manual_seed(0)
    for keywords in ({"batch_first": True}, {}, {"bias": False}, {"kdim": 6, "vdim": 10}):
        theirs = torch.nn.MultiheadAttention(32, 4, **keywords).eval()
        ours = copy.deepcopy(theirs)
        resize("", ours, {n: tuple(p.shape) for n, p in ours.named_parameters()}, {("other", 0): np.ones(1, bool)})
        assert isinstance(ours, PrunedAttention)
        q, k, v = torch.randn(3, 5, 32), torch.randn(3, 5, ours.kdim), torch.randn(3, 5, ours.vdim)
        n, length = (3, 5) if theirs.batch_first else (5, 3)
        hidden = torch.zeros(n, length, dtype=torch.bool)
        hidden[:, -1] = True
        late = torch.ones(length, length, dtype=torch.bool).triu(1)
        calls: list[dict[str, Any]] = [
            {}, {"key_padding_mask": hidden}, {"attn_mask": late, "need_weights": False}, {"average_attn_weights": False},
            {"attn_mask": torch.randn(n * 4, length, length)},
        ]  # fmt: skip
        for call in calls:
            for mine, other in zip(ours(q, k, v, **call), theirs(q, k, v, **call), strict=True):
                assert (mine is None) == (other is None)
                if mine is not None:
                    torch.testing.assert_close(mine, other)
        torch.testing.assert_close(ours(q[0], k[0], v[0])[0], theirs(q[0], k[0], v[0])[0])
