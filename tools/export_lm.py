"""Write the small language model as the four ONNX files that `tools/lm/forms.py` lists, and compare their logits.

    python tools/export_lm.py FOLDER [--checkpoint models/small_lm.safetensors]

Needs torch, onnxscript and tokenizers. FOLDER gets plain.onnx, cached.onnx, grouped.onnx, int4.onnx and the model's
tokenizer.json. What is printed for each is the largest difference of a logit from torch's; those of the three in
float32 must agree within 1e-3, or the exit code is 1.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.lm import checkpoint, forms
from tools.lm.measuring import feed_of, session_of

MODELS = Path(__file__).resolve().parents[1] / "models"
ALLOWED = 1e-3


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=MODELS / "small_lm.safetensors")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    model = checkpoint.load(args.checkpoint)
    paths = {form: args.folder / f"{form}.onnx" for form in ("plain", "cached", "grouped", "int4")}
    with torch.no_grad():
        forms.plain(model, paths["plain"])
        forms.cached(model, paths["cached"])
        forms.grouped(model, paths["grouped"])
        forms.int4(paths["grouped"], paths["int4"])
        ids = torch.randint(0, model.sizes.vocabulary, (2, 40), generator=torch.Generator().manual_seed(0))
        wanted = model(ids).numpy()
    shutil.copy(MODELS / "small_lm.tokenizer.json", args.folder / "tokenizer.json")
    worst = {}
    for form, path in paths.items():
        session = session_of(path)
        worst[form] = float(np.abs(session.run(["logits"], feed_of(session, ids.numpy()))[0] - wanted).max())
    for form, off in worst.items():
        print(f"{paths[form]}: logits within {off:.2g} of torch's, which go up to {np.abs(wanted).max():.3g}")
    return int(max(off for form, off in worst.items() if form != "int4") > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
