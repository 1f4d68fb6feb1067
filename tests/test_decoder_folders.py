"""Folders of ONNX Runtime GenAI and of Optimum: caches lose as many heads in every layer, and configurations say so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import graph
from onnx import ModelProto, helper, numpy_helper

from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import CheckFailed, UsageError
from onnxprune.integrations import prune_folder
from onnxprune.integrations.decoders import cuts, evenly
from onnxprune.options import Options

WORDS, WIDTH, QUERIES, SHARED, SIZE, HIDDEN, LAYERS = 40, 32, 8, 4, 16, 48, 2
PAST = ", ".join(f"float[batch, {SHARED}, past, dim] past_{k}_{side}" for k in range(LAYERS) for side in ("key", "value"))
PRESENT = PAST.replace(" past_", " present_").replace("past,", "total,")
SIGNATURE = f"(int64[batch, steps] input_ids, int64[batch, total] attention_mask, {PAST}) => (float[batch, steps, {WORDS}] logits, {PRESENT})"
LENGTHS = """m = ReduceSum<keepdims = 0>(attention_mask, one) l = Sub(m, one) lengths = Cast<to = 6>(l) s = Shape(attention_mask)
n = Gather(s, one0) longest = Cast<to = 6>(n) h0 = Gather(words, input_ids) """
LAYER = """a{k} = LayerNormalization<axis = -1>(h{k}, gain) q{k} = MatMul(a{k}, wq{k}) k{k} = MatMul(a{k}, wk{k}) v{k} = MatMul(a{k}, wv{k})
o{k}, present_{k}_key, present_{k}_value = com.microsoft.GroupQueryAttention<num_heads = {h}, kv_num_heads = {g}, do_rotary = 1>(
    q{k}, k{k}, v{k}, past_{k}_key, past_{k}_value, lengths, longest, cosines, sines)
y{k} = MatMul(o{k}, wo{k}) r{k} = Add(h{k}, y{k}) b{k} = LayerNormalization<axis = -1>(r{k}, gain) u{k} = MatMul(b{k}, wu{k})
g{k} = Relu(u{k}) d{k} = MatMul(g{k}, wd{k}) h{next} = Add(r{k}, d{k}) """
GENAI = {
    "model": {
        "type": "llama", "vocab_size": WORDS,
        "decoder": {
            "filename": "model.onnx", "head_size": SIZE, "hidden_size": WIDTH, "num_attention_heads": QUERIES,
            "num_key_value_heads": SHARED, "num_hidden_layers": LAYERS,
            "inputs": {"input_ids": "input_ids", "past_key_names": "past_%d_key"}, "outputs": {"logits": "logits"},
        },
    },
    "search": {"max_length": 64},
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "head_dim": SIZE,
    "num_attention_heads": QUERIES, "num_key_value_heads": SHARED, "vocab_size": WORDS,
}  # fmt: skip


def decoder() -> ModelProto:
    """As the builder of ONNX Runtime GenAI makes them: how long the past is comes from the mask, and how large a head of it
    is is left open."""
    weights: dict[str, Any] = {
        "words": (WORDS, WIDTH), "gain": (WIDTH,), "head": (WIDTH, WORDS), "cosines": (64, SIZE // 2), "sines": (64, SIZE // 2),
        "one": np.array([1]), "one0": np.array(1),
    }  # fmt: skip
    body = LENGTHS
    for k in range(LAYERS):
        body += LAYER.replace("{next}", str(k + 1)).replace("{k}", str(k)).replace("{h}", str(QUERIES)).replace("{g}", str(SHARED))
        weights |= {
            f"wq{k}": (WIDTH, QUERIES * SIZE), f"wk{k}": (WIDTH, SHARED * SIZE), f"wv{k}": (WIDTH, SHARED * SIZE),
            f"wo{k}": (QUERIES * SIZE, WIDTH), f"wu{k}": (WIDTH, HIDDEN), f"wd{k}": (HIDDEN, WIDTH),
        }  # fmt: skip
    return graph(SIGNATURE, f"{body} logits = MatMul(h{LAYERS}, head)", **weights)


def folder(path: Path, name: str, config: Mapping[str, Any], indent: int = 4) -> Path:
    path.mkdir()
    onnx.save(decoder(), path / "model.onnx")
    (path / name).write_text(json.dumps(config, indent=indent))
    (path / "tokenizer.json").write_text("{}")
    return path


def sizes(path: Path) -> set[int]:
    return {i.type.tensor_type.shape.dim[1].dim_value for i in onnx.load(path).graph.input if i.name.startswith("past")}


def test_a_folder_of_genai(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, out = folder(tmp_path / "dense", "genai_config.json", GENAI), tmp_path / "out"
    assert main([str(dense), str(out), "--fast", "--ratio", "0.5", "--kv-heads"]) == 0
    text = (out / "genai_config.json").read_text()
    config = json.loads(text)
    assert config["model"]["decoder"] == GENAI["model"]["decoder"] | {"num_key_value_heads": 2, "num_attention_heads": 4}
    assert config["search"] == GENAI["search"]
    assert text.splitlines()[1].startswith('    "model"')
    assert sizes(out / "model.onnx") == {2}
    assert {p.name for p in out.iterdir()} == {p.name for p in dense.iterdir()}
    said = capsys.readouterr().out
    assert "decoder.num_key_value_heads 4 -> 2" in said
    assert "past_0_key" in said


def test_a_folder_of_optimum(tmp_path: Path) -> None:
    """Its readers divide the width by the number of query heads, so that it stays."""
    result = prune_folder(folder(tmp_path / "dense", "config.json", LLAMA, 2), ratio=0.5, fast=True, kv_heads=True)
    config = json.loads((result.save(tmp_path / "out") / "config.json").read_text())
    assert config == LLAMA | {"num_key_value_heads": 2, "intermediate_size": 24}
    nested = {"model_type": "some", "text_config": LLAMA}
    result = prune_folder(folder(tmp_path / "nested", "config.json", nested, 2), ratio=0.5, fast=True, kv_heads=True)
    assert json.loads(result.texts["config.json"])["text_config"]["num_key_value_heads"] == 2


def test_a_configuration_that_cannot_say_it(tmp_path: Path) -> None:
    config = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
    dense = folder(tmp_path / "dense", "config.json", config)
    with pytest.raises(UsageError, match="num_key_value_heads"):
        prune_folder(dense, ratio=0.5, fast=True, kv_heads=True)
    assert prune_folder(dense, ratio=0.5, fast=True).results


def test_all_layers_lose_what_they_lose_on_average(tmp_path: Path) -> None:
    """One head of the first and none of the second is none of either; three and two are two or three of both."""
    path = folder(tmp_path / "dense", "genai_config.json", GENAI) / "model.onnx"
    for first, second, wanted in ((0.25, 0.0, {None}), (0.75, 0.5, {(4, 2)}), (0.75, 0.75, {(4, 1)})):
        tried = list[Options]()

        def uneven(path: Path, options: Options, first: float = first, second: float = second, tried: list[Options] = tried) -> api.Result:
            tried.append(options)
            apart = {"wk0": first, "wk1": second} if len(tried) == 1 else {}
            made = api.prune(path, replace(options, ratio_of={**apart, **options.ratio_of}))
            groups = tuple(replace(group, asked=()) for group in made.report.groups)  # as if it had chosen so by itself
            return replace(made, report=replace(made.report, groups=groups))

        result = evenly(uneven)(path, Options(fast=True, ratio=0.5, kv_heads=True))
        assert {*cuts(result)} == wanted
        assert len(tried) == 1 + (first != second)


def test_a_layer_that_is_kept_keeps_all(tmp_path: Path) -> None:
    dense = folder(tmp_path / "dense", "genai_config.json", GENAI)
    result = prune_folder(dense, ratio=0.5, fast=True, kv_heads=True, nodes_to_exclude=["wk0"])
    assert not result.texts
    with pytest.raises(CheckFailed, match="one number for all layers"):
        prune_folder(dense, ratio=0.5, fast=True, kv_heads=True, ratio_of={"wk0": 0.5, "wk1": 0.25})


def test_a_file_by_itself_may_differ_from_layer_to_layer() -> None:
    result = api.prune(decoder(), ratio=0.5, fast=True, kv_heads=True, ratio_of={"wk0": 0.5, "wk1": 0.25})
    assert {*cuts(result)} == {(4, 2), (4, 3)}


def test_the_width_of_genai_follows(tmp_path: Path) -> None:
    dense = folder(tmp_path / "dense", "genai_config.json", GENAI)
    result = prune_folder(dense, ratio=0.5, fast=True, residual="all")
    section = json.loads(result.texts["genai_config.json"])["model"]["decoder"]
    assert section["hidden_size"] == result.results["model.onnx"].model.weights["words"].shape[1] < WIDTH
    assert section["num_key_value_heads"] == SHARED


def test_the_width_of_genai_follows_by_whole_blocks_too(tmp_path: Path) -> None:
    """Where the stream is read by a layer of 4 bits, a unit of it is a block of channels."""
    dense, random = folder(tmp_path / "dense", "genai_config.json", GENAI), np.random.default_rng(2)
    model = onnx.load(dense / "model.onnx")
    head = next(n for n in model.graph.node if "head" in n.input)
    head.CopyFrom(helper.make_node("MatMulNBits", [head.input[0], "codes", "scales"], head.output, domain="com.microsoft",
                                   K=WIDTH, N=WORDS, bits=4, block_size=16))  # fmt: skip
    made = {"codes": random.integers(0, 256, (WORDS, WIDTH // 16, 8)).astype(np.uint8),
            "scales": random.uniform(0.01, 0.02, (WORDS, WIDTH // 16)).astype(np.float32)}  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in made.items())
    onnx.save(model, dense / "model.onnx")
    result = prune_folder(dense, ratio=0.5, fast=True, residual="all")
    assert json.loads(result.texts["genai_config.json"])["model"]["decoder"]["hidden_size"] == 16
    assert result.results["model.onnx"].model.weights["words"].shape == (WORDS, 16)
