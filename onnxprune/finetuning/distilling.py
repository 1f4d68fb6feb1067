"""A pruned model learns from its dense one: from inputs and two graphs to the same graph with other values.

It is written only where the inputs that judge say that it is nearer to the dense model than before, run by ONNX Runtime
as it is written. Knows models and inputs, no units.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.data import Feed, Input, describe
from onnxprune.errors import CheckFailed, NothingToPrune, UsageError
from onnxprune.finetuning import recipe
from onnxprune.finetuning.inputs import Parts, buckets, fitting, multiplied, rows
from onnxprune.finetuning.targets import Target, Teacher, errors
from onnxprune.model import HALVES, Array, Model, every_node, traits
from onnxprune.options import Options, Progress
from onnxprune.run import open_session
from onnxprune.shapes import Shapes

if TYPE_CHECKING:
    from onnxprune.finetuning.network import Network
    from onnxprune.finetuning.training import Trained

MISSING = "--finetune needs torch: pip install 'onnxprune[finetune]'"
EXACT, ROUNDED = 1e-4, 1e-2
"""How far torch may be from ONNX Runtime: the largest difference by the largest number; where the graph rounds or holds
half floats, the squared difference by the variance."""


@dataclass(frozen=True)
class Finetuned:
    """The model, with the weights that it had where nothing better was found, and the report: see the guide."""

    model: Model
    report: Mapping[str, Any]

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return bool(self.report.get("interrupted"))


def check_torch() -> Any:
    """The torch module; UsageError, which names the extra, where there is none."""
    try:
        import torch
    except ImportError:
        raise UsageError(MISSING) from None
    return torch


def device() -> str:
    """Where torch computes."""
    return "cuda" if check_torch().cuda.is_available() else "cpu"


def check_trainable(model: Model, feed: Feed) -> None:
    """NothingToPrune, with the operator, where torch cannot take the model; CheckFailed where it computes other
    numbers than ONNX Runtime. `model` is normalised; before any work."""
    check_torch()
    from onnxprune.finetuning.network import Network

    network = Network(model, model.weights.keys())
    if not network.leaves:
        left = network.trained.left
        why = f"its weights are integers that operators round inside, such as '{left[0]}'" if left else "it has none"
        raise NothingToPrune(f"the model cannot be fine-tuned: no weight can be trained; {why}")
    session = open_session(model)
    names = [o.name for o in model.graph.output]
    answers = session.run(names, feed)
    floats = [k for k, a in enumerate(answers) if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    _compare(model, network, [names[k] for k in floats], [feed], [[answers[k] for k in floats]])


def finetuned(
    dense: Model, pruned: Model, shapes: Shapes, parts: Parts, options: Options, progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Finetuned:  # fmt: skip
    """`pruned` with weights that bring it nearer to `dense` on inputs that neither was fitted to, or as it is.

    dense: normalised, with its `shapes`. Raises UsageError (no torch, data that do not fit), NothingToPrune (operators
    or weights that cannot be trained), CheckFailed (torch computes something else than ONNX Runtime)."""
    check_torch()
    began = time.monotonic()
    samples, judging = sum(map(rows, parts.fit)), sum(map(rows, parts.judge))
    told: dict[str, Any] = {"inputs": parts.source, "made_up": parts.made_up, "samples": samples, "judged_on": judging}
    if samples + judging < recipe.FEWEST or not judging:
        why = f"{samples + judging} inputs are too few to learn from and to judge by; give {recipe.FEWEST} or more"
        return Finetuned(pruned, {**told, "skipped": why, "seconds": 0.0})
    job = _Job(dense, pruned, parts, shapes, options, progress)
    done = job.train(_checkpoint(dense, pruned, parts, options, checkpoint))
    model = _with(pruned, job.network)
    errors_before, errors_after, before, after = job.judged(model)
    better = after < before
    report = {
        **told, "steps": done.steps, "rate": done.rate, "accepted": better, "interrupted": done.interrupted,
        "loss": {"before": before, "after": after}, "output_error": {"before": errors_before, "after": errors_after},
        "labels": job.labelled, "targets": {t.name: _kind(t) for t in job.targets},
        "left": list(job.network.trained.left), "torch": check_torch().__version__, "device": job.network.device,
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    if checkpoint and not done.interrupted:
        checkpoint.unlink(missing_ok=True)
    return Finetuned(model if better else pruned, report)


def _kind(target: Target) -> str:
    return "values" if target.axis is None else "classes"


class _Job:
    """Both models, the inputs in buckets with their copies, and the dense model's answers."""

    def __init__(
        self, dense: Model, pruned: Model, parts: Parts, shapes: Shapes, options: Options, progress: Progress | None
    ) -> None:
        from onnxprune.finetuning.network import Network

        self.dense, self.parts, self.options, self.progress = dense, parts, options, progress
        self.working, specs = pruned.normalised(), describe(dense, shapes)
        _check_alike(dense, self.working)
        self._say(0.0)
        self.network = Network(self.working, pruned.weights.keys(), device())
        self.teacher = Teacher(dense, self.working, options.providers)
        self.targets = self.teacher.targets(parts.judge)
        self.names = [t.name for t in self.targets]
        self._check(dense, parts.judge[0])
        self._check(self.working, parts.judge[0])
        self.judge = [(feed, self._answers(self.teacher.session, feed)) for feed in parts.judge]
        self.labelled = parts.labels is not None and self._check_labels(parts.labels)
        self.copies = self._copies(specs)
        n, labels = sum(map(rows, parts.fit)), parts.labels if self.labelled else None
        copies = min(max(2, min(recipe.COPIES, recipe.POOL // n)), max(1, fitting(shapes, options) // n))
        self.buckets = [
            multiplied(b, specs, not self.labelled, copies, options.seed) for b in buckets(parts.fit, specs, labels)
        ]
        self.batch = self._batch(specs)
        self.stored = self._stored()

    def _check_labels(self, labels: Array) -> bool:
        """Whether labels have scores of classes to stand beside; UsageError where they are none of these classes."""
        scores = [a for t, a in zip(self.targets, self.judge[0][1], strict=True) if t.axis is not None and a.ndim == 2]
        for a in scores:
            if labels.min() < 0 or labels.max() >= a.shape[1]:
                raise UsageError(f"the labels are not all from 0 to {a.shape[1] - 1}, the classes that the model has")
        return bool(scores)

    def _say(self, share: float) -> None:
        if self.progress:
            self.progress("finetune", share)

    def _check(self, model: Model, feed: Feed) -> None:
        """The conversion gives what ONNX Runtime gives."""
        from onnxprune.finetuning.network import Network

        network = self.network if model is self.working else Network(model)
        whole = model is self.dense and not self.teacher.taken
        session = self.teacher.session if whole else self.teacher.opened(model)
        _compare(model, network, self.names, [feed], [self._answers(session, feed)])

    def _answers(self, session: Any, feed: Feed) -> list[Array]:
        return [a.astype(np.float32) for a in self.teacher.answers(session, feed, self.names)]

    def _batch(self, specs: Sequence[Input]) -> int:
        """Samples of one step."""
        large = any(
            s.kind == "image" and max(x.shape[2:] if s.channel == 1 else x.shape[1:-1]) >= recipe.LARGE
            for s in specs for x in [self.parts.fit[0][s.name]] if x.ndim == 4
        )  # fmt: skip
        return recipe.LARGE_BATCH if large else recipe.BATCH

    def _stored(self) -> list[list[Array]] | None:
        """The dense model's answers to all copies, by bucket; None where they would take too much memory: then it is
        asked at every step."""
        bytes_a_row = sum(a.nbytes / max(1, len(a) if a.ndim else 1) for a in self.judge[0][1])
        every = bytes_a_row * sum(map(len, self.buckets))
        if every > self.options.memory_limit / 2 or any(b.size for b in self.buckets):
            return None
        found = []
        for bucket in self.buckets:
            made = [self._answers(self.teacher.session, feed) for feed in bucket.batches(4 * self.batch)]
            found.append([np.concatenate(parts) for parts in zip(*made, strict=True)])
            if any(len(a) != len(bucket) for a in found[-1]):
                return None
        return found

    def answers(self, bucket: int, places: Array, feed: Feed) -> Sequence[Array]:
        """What the dense model says to the samples at these places."""
        if self.stored is None:
            return self._answers(self.teacher.session, feed)
        return [a[places] for a in self.stored[bucket]]

    def _copies(self, specs: Sequence[Input]) -> list[tuple[Feed, list[Array]]]:
        """The inputs that judge with varied copies of images: few inputs say more so."""
        found = []
        for bucket in buckets(self.parts.judge, specs):
            more = multiplied(bucket, specs, False, recipe.JUDGED, self.options.seed + 1)
            found += [(feed, self._answers(self.teacher.session, feed)) for feed in more.batches(recipe.BATCH)]
        return found

    def train(self, checkpoint: Any) -> Trained:
        """Leaves the network in the best state."""
        from onnxprune.finetuning.training import Run, train

        deep = sum(leaf.dim() > 1 for leaf in self.network.leaves.values()) >= recipe.DEEP
        run = Run(
            self.network, self.targets, self.buckets, self.answers, self.judge, self.batch,
            recipe.Length.of(self.options.finetune), self.options.seed, self.progress, checkpoint,
        )  # fmt: skip
        return train(run, recipe.DEEP_RATE if deep else recipe.RATE)

    def judged(self, model: Model) -> tuple[float, float, float, float]:
        """Output errors on the inputs that judge, before and after, and mean losses on these and their copies; by ONNX
        Runtime."""
        import torch

        from onnxprune.finetuning.losses import losses

        def tensors(arrays: Sequence[Array]) -> list[Any]:
            return [torch.from_numpy(a) for a in arrays]

        found = []
        for one in (self.working, model.normalised()):
            session = self.teacher.opened(one)
            ours = [self._answers(session, feed) for feed, _ in self.judge]
            error = errors(self.targets, ours, [theirs for _, theirs in self.judge])
            total = [
                losses(self.targets, tensors(self._answers(session, feed)), tensors(theirs), rows(feed))
                for feed, theirs in self.copies
            ]
            found.append((error, float(torch.cat(total).mean())))
        return found[0][0], found[1][0], found[0][1], found[1][1]


def _compare(
    model: Model, network: Network, names: Sequence[str], feeds: Sequence[Feed], wanted: Sequence[Sequence[Any]]
) -> None:
    """CheckFailed, with the output that differs most, where the network computes something else."""
    rounds = any(n.op_type in traits.ROUNDING for n in every_node(model.graph))
    loose = rounds or any(w.onnx_type in HALVES for w in model.weights.values())
    worst: tuple[float, str] = (0.0, "")
    for feed, theirs in zip(feeds, wanted, strict=True):
        for name, a, b in zip(names, network(feed, names), theirs, strict=True):
            ours, right = a.detach().cpu().numpy().astype(np.float64), np.asarray(b, np.float64)
            if right.size and ours.shape == right.shape:
                apart = np.abs(ours - right)
                if loose:
                    error = float(np.square(apart).sum() / max(np.square(right - right.mean()).sum(), 1e-30)) / ROUNDED
                else:
                    error = float(apart.max() / max(np.abs(right).max(), 1e-30)) / EXACT
                worst = max(worst, (error if np.isfinite(error) else np.inf, name))
            elif ours.shape != right.shape:
                worst = max(worst, (np.inf, name))
    if worst[0] > 1:
        raise CheckFailed(
            f"torch does not compute what ONNX Runtime does: output '{worst[1]}' is {worst[0]:.1f} times as far off as "
            "is allowed, so nothing was fine-tuned"
        )


def _check_alike(dense: Model, pruned: Model) -> None:
    """UsageError where the two models are no pair."""
    ours, theirs = (
        {i.name: i.type.tensor_type.elem_type for i in m.graph.input if i.name not in m.weights}
        for m in (dense, pruned)
    )
    if ours != theirs:
        raise UsageError(f"the two models take different inputs: {', '.join(ours)} and {', '.join(theirs)}")


def _with(pruned: Model, network: Network) -> Model:
    """The same graph with the network's values."""
    model = pruned.copy()
    model.weights |= network.weights()
    return model


def _checkpoint(dense: Model, pruned: Model, parts: Parts, options: Options, path: Path | None) -> Any:
    """The file for this run; None where none was asked for."""
    if path is None:
        return None
    from onnxprune.finetuning.checkpoints import Checkpoint

    total = hashlib.sha256(repr(sorted(asdict(replace(options, calib=None)).items())).encode())
    for model in (dense, pruned):
        for name in sorted(model.weights):
            total.update(name.encode())
            total.update(np.ascontiguousarray(model.weights[name].array()).view(np.uint8).data)
    for feed in parts.fit[:1]:
        for array in feed.values():
            total.update(np.ascontiguousarray(array).tobytes())
    return Checkpoint(path, total.hexdigest())
