"""The loop: AdamW over one cycle of the rate, with a guard against rates that are too high, and the best state kept.

Knows a network in torch, batches and answers; whether the result is taken is decided by others. A step is
drawn by the seed and its number, so that a run that was stopped goes on as it would have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from onnxprune.data import Feed
from onnxprune.finetuning import recipe
from onnxprune.finetuning.checkpoints import Checkpoint
from onnxprune.finetuning.inputs import Bucket
from onnxprune.finetuning.losses import losses
from onnxprune.finetuning.network import Network, tensor
from onnxprune.finetuning.targets import Target
from onnxprune.model import Array

Tensor = Any
Answers = Callable[[int, Array, Feed], Sequence[Array]]
"""What the dense model says to the samples at these places of a bucket, whose feed this is."""


@dataclass
class Run:
    """What is trained on what. judge: feeds with the dense model's answers, which choose among states."""

    network: Network
    targets: Sequence[Target]
    buckets: Sequence[Bucket]
    answers: Answers
    judge: Sequence[tuple[Feed, Sequence[Array]]]
    batch: int
    length: recipe.Length
    seed: int
    progress: Callable[[str, float], None] | None = None
    checkpoint: Checkpoint | None = None


@dataclass
class Trained:
    """steps: of the last try. rate: its peak. start, best: losses of the inputs that judge, at the start and in the
    state that the network is left in. tries: rates that were too high. interrupted: by Ctrl-C."""

    start: Array
    best: Array
    rate: float
    steps: int = 0
    tries: int = 0
    interrupted: bool = False
    state: dict[str, Array] = field(default_factory=dict)


class TooHigh(Exception):
    """The rate makes the network worse."""


def train(run: Run, rate: float) -> Trained:
    """Train the network, and leave it in the best state that was seen, which may be the first."""
    leaves = run.network.leaves
    first = {n: leaf.detach().clone() for n, leaf in leaves.items()}
    start = judged(run)
    done = Trained(start, start, rate, state=_copied(leaves))
    kept = run.checkpoint.load() if run.checkpoint else None
    if kept is not None:
        done.rate, done.tries, done.best, done.state = kept.rate, kept.tries, kept.best, dict(kept.state)
    began = time.monotonic()
    try:
        while True:
            try:
                _try(run, done, began, kept)
                break
            except TooHigh:
                done.tries += 1
                if done.tries == recipe.TRIES:
                    break
                kept, done.rate = None, done.rate / recipe.LOWER
                _set(leaves, first)
    except KeyboardInterrupt:
        done.interrupted = True
    _set(leaves, {n: torch.from_numpy(a.copy()) for n, a in done.state.items()})
    return done


def _try(run: Run, done: Trained, began: float, kept: Any) -> None:
    """One cycle at a rate; TooHigh where it does harm."""
    leaves = run.network.leaves
    optimiser = torch.optim.AdamW(list(leaves.values()), lr=done.rate, weight_decay=recipe.DECAY)
    steps, at = run.length.steps, 0
    if kept is not None:
        at, steps = kept.resume(leaves, optimiser), kept.steps
    look, first, since = max(1, steps // recipe.LOOKS), at, time.monotonic()
    while at < steps:
        if run.length.seconds and at % recipe.TRIAL == 0 and at > first:
            now = time.monotonic()
            left = max(0.0, run.length.seconds - (now - began))
            steps = at + int(left * (at - first) / max(now - since, 1e-9))
            look = max(1, steps // recipe.LOOKS)
        if at < steps:
            _step(run, optimiser, at, recipe.rate_at(at, steps, done.rate))
            at += 1
        done.steps = at
        if at == recipe.TRIAL or at % look == 0 or at >= steps:
            _look(run, done, at, steps)
            if run.checkpoint and at < steps:
                run.checkpoint.save(run.network.leaves, optimiser, done, at, steps)


def _step(run: Run, optimiser: Any, at: int, rate: float) -> None:
    """One batch, which a model of fixed batch size takes in pieces."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    rng = np.random.default_rng((run.seed, 2, at))
    sizes = np.array([len(b) for b in run.buckets], np.float64)
    k = int(rng.choice(len(sizes), p=sizes / sizes.sum()))
    bucket = run.buckets[k]
    count = min(max(run.batch, bucket.size or 1), max(len(bucket), bucket.size or 1))
    places = rng.choice(len(bucket), count, replace=count > len(bucket))
    optimiser.zero_grad(set_to_none=True)
    pieces = list(bucket.feeds(places))
    for feed, some in pieces:
        rows = len(some)
        theirs = [tensor(a, run.network.device) for a in run.answers(k, some, feed)]
        labels = None if bucket.labels is None else tensor(bucket.labels[some], run.network.device).long()
        ours = run.network(feed, [t.name for t in run.targets])
        (losses(run.targets, ours, theirs, rows, labels).mean() / len(pieces)).backward()
    torch.nn.utils.clip_grad_norm_(list(run.network.leaves.values()), recipe.CLIP)
    if all(leaf.grad is None or bool(torch.isfinite(leaf.grad).all()) for leaf in run.network.leaves.values()):
        optimiser.step()


def _look(run: Run, done: Trained, at: int, steps: int) -> None:
    """Keep the state if it is the best, and the last one unless it is clearly worse: of states that cannot be told
    apart the last one has learned most. TooHigh where the rate does harm."""
    found = judged(run)
    before, now = float(done.start.mean()), float(found.mean())
    if run.progress:
        run.progress(f"finetune: loss {now:.3g} of {before:.3g}", at / steps)
    if not now <= recipe.WORSE * before or (at >= steps and not now < before):
        raise TooHigh
    if now < done.best.mean() or (at >= steps and not clearly_worse(found, done.best)):
        done.best, done.state = found, _copied(run.network.leaves)


def clearly_worse(losses: Array, than: Array) -> bool:
    """Whether the mean is larger by more than two standard errors of the paired difference."""
    apart = losses - than
    return bool(apart.mean() > 2 * apart.std() / max(len(apart) - 1, 1) ** 0.5)


def judged(run: Run) -> Array:
    """Losses of the inputs that judge, one a sample."""
    found = []
    with torch.no_grad():
        for feed, answers in run.judge:
            rows = len(answers[0]) if answers[0].ndim else 1
            ours = run.network(feed, [t.name for t in run.targets])
            theirs = [tensor(a, run.network.device) for a in answers]
            found.append(losses(run.targets, ours, theirs, rows).cpu().numpy())
    return np.asarray(np.concatenate(found), np.float64)


def _copied(leaves: Mapping[str, Tensor]) -> dict[str, Array]:
    return {n: leaf.detach().cpu().numpy().copy() for n, leaf in leaves.items()}


def _set(leaves: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(values[name])
