"""How well and how fast an ONNX file of a language model goes on with a text: all by ONNX Runtime alone.

Knows files and ids, nothing of onnxprune, whose own figures are checked against these.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime

LENGTH, BATCH = 256, 8
PROMPT, NEW = 64, 64
"""Tokens that are read at once, and that are then made one by one."""


def session_of(path: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """On the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feed_of(session: onnxruntime.InferenceSession, ids: np.ndarray, past: dict[str, np.ndarray] | None = None) -> dict:
    """Ids [N, S] behind `past`, arrays by the names of inputs; without it the caches are empty."""
    feed: dict[str, np.ndarray] = dict(past or {})
    for spec in session.get_inputs():
        if spec.name.startswith("past") and past is None:
            feed[spec.name] = np.zeros((len(ids), spec.shape[1], 0, spec.shape[3]), np.float32)
    before = next((x.shape[2] for name, x in feed.items() if name.startswith("past")), 0)
    whole = before + ids.shape[1]
    made = {
        "input_ids": ids, "attention_mask": np.ones((len(ids), whole), np.int64),
        "position_ids": np.broadcast_to(np.arange(before, whole), ids.shape),
    }  # fmt: skip
    return feed | {s.name: made[s.name] for s in session.get_inputs() if s.name in made}


def windows(ids: np.ndarray) -> np.ndarray:
    """[windows, LENGTH] of a text's ids, one after the other."""
    return ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)


def perplexity(path: Path, rows: np.ndarray) -> float:
    """Of windows [N, LENGTH], each token but the first of a window by those before it in the window."""
    session, lost = session_of(path, 0), 0.0
    for part in np.split(rows, range(BATCH, len(rows), BATCH)):
        logits = session.run(["logits"], feed_of(session, part))[0][:, :-1].astype(np.float64)
        best = logits.max(-1, keepdims=True)
        norm = np.log(np.exp(logits - best).sum(-1)) + best[..., 0]
        lost += float((norm - np.take_along_axis(logits, part[:, 1:, None], -1)[..., 0]).sum())
    return float(np.exp(lost / (rows.shape[0] * (rows.shape[1] - 1))))


def speeds(paths: list[Path], ids: np.ndarray, repeats: int = 5) -> list[tuple[float, float]]:
    """Of each file the tokens a second with one thread, measured in turns, medians: of a window of LENGTH that is read,
    and of NEW ones that are made one by one behind a prompt (nan without a cache)."""
    sessions, found = [session_of(p) for p in paths], [list[tuple[float, float]]() for _ in paths]
    for _ in range(repeats):
        for session, times in zip(sessions, found, strict=True):
            times.append((_read(session, ids[None, :LENGTH]), _made(session, ids[None, :PROMPT])))
    return [tuple(statistics.median(column) for column in zip(*times, strict=True)) for times in found]


def _read(session: onnxruntime.InferenceSession, ids: np.ndarray) -> float:
    feed, began = feed_of(session, ids), time.perf_counter()
    session.run(["logits"], feed)
    return ids.size / (time.perf_counter() - began)


def _made(session: onnxruntime.InferenceSession, ids: np.ndarray) -> float:
    names = [o.name for o in session.get_outputs()]
    if len(names) == 1:
        return float("nan")
    out = dict(zip(names, session.run(names, feed_of(session, ids)), strict=True))
    began = time.perf_counter()
    for _ in range(NEW):
        past = {k.replace("present", "past_key_values"): v for k, v in out.items() if k.startswith("present")}
        word = out["logits"][:, -1].argmax(-1)[:, None]
        out = dict(zip(names, session.run(names, feed_of(session, word, past)), strict=True))
    return NEW / (time.perf_counter() - began)
