"""The small language model as networks of `tools/bench_rivals.py`: what of a file is kept, and its perplexity."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tools.lm import checkpoint, forms
from tools.lm.measuring import perplexity, windows
from tools.lm.text import fetch, tokenizer_of

MODELS = Path(__file__).resolve().parents[2] / "models"
NETWORKS = {"lm_gqa": "grouped", "lm_int4": "int4"}
"""The name there, and the form."""


def export(name: str, path: Path) -> None:
    """One of the NETWORKS, to `path`, with its tokenizer beside it."""
    model, floats = checkpoint.load(MODELS / "small_lm.safetensors"), path.with_suffix(".floats")
    forms.grouped(model, floats)
    if NETWORKS[name] == "int4":
        forms.int4(floats, path)
        floats.unlink()
    else:
        floats.replace(path)
    (path.parent / "tokenizer.json").write_bytes((MODELS / "small_lm.tokenizer.json").read_bytes())


def weights(path: Path) -> float:
    """How many weights a file holds; packed ones count one by one."""
    graph = onnx.load(path).graph
    packed = {n.input[1]: {a.name: a.i for a in n.attribute}["bits"] for n in graph.node if n.op_type == "MatMulNBits"}
    floats = onnx.TensorProto.FLOAT
    return sum(
        math.prod(t.dims) * 8 / packed.get(t.name, 8)
        for t in graph.initializer if t.data_type == floats or t.name in packed
    )  # fmt: skip


def figures(source: Path, out: Path, texts: Path) -> dict[str, Any]:
    """Of `out`, made of `source`: the share of the weights that is left, and the perplexity on held-out text, which a
    file that does not run has none of."""
    train, held_out = fetch(texts)
    tokenizer = tokenizer_of(MODELS / "small_lm.tokenizer.json", train)
    rows = windows(np.array(tokenizer.encode(held_out.read_text("utf-8")).ids, np.int64))
    kept = weights(out) / weights(source)
    try:
        found = {"runs": True, "note": "", "perplexity": perplexity(out, rows)}
    except Exception as error:
        found = {"runs": False, "note": f"does not run: {' '.join(str(error).split())[:160]}"}
    return {"kept": kept, "dense_perplexity": perplexity(source, rows)} | found
