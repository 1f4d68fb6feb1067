"""What every task is made of: the `Task` itself, seeded generators, greedy CTC decoding and batched running."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

Feeds = dict[str, np.ndarray]
PARTS = ("calib", "test")
MODELS = Path(__file__).resolve().parents[2] / "models"


@dataclass(frozen=True)
class Task:
    """A trained model, data for it and a metric.

    `inputs(part, n, seed)` gives feeds of `n` samples as the model takes them, `labelled(n, seed)` those of
    `inputs("test", n, seed)` and their labels; no test sample is a calibration sample. The sample axis is the first
    one but where `axes` names another for an input or output of the model (None: no sample axis at all). `score` takes
    the outputs as `run` gives them, samples first, and the labels; it gives one value in [0, 1] an item.

    `states` says which output goes back into which input of a recurrent model. Its labelled feeds are sequences, with
    the steps as the second axis of what changes from step to step, and `run` gives the outputs of the last step.

    kind: of the network. aside: it is looked at only when everything is done, and reported by itself.
    """

    name: str
    model: Path
    inputs: Callable[[str, int, int], Feeds]
    labelled: Callable[[int, int], tuple[Feeds, Any]]
    score: Callable[[list[np.ndarray], Any], np.ndarray]
    items: int
    metric: str
    kind: str
    axes: Mapping[str, int | None] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    data: tuple[Path, ...] = ()
    aside: bool = False

    def missing(self) -> list[Path]:
        return [path for path in (self.model, *self.data) if not path.exists()]


def batches(task: Task, feeds: Feeds, batch: int) -> Iterator[Feeds]:
    """The feeds cut into pieces of at most `batch` samples, each ready for a session."""
    cut = {name: axis for name in feeds if (axis := task.axes.get(name, 0)) is not None}
    name = next(iter(cut))
    count = feeds[name].shape[cut[name]]
    for start in range(0, count, batch):
        rows = range(start, min(start + batch, count))
        yield {key: value.take(rows, cut[key]) if key in cut else value for key, value in feeds.items()}


def open_session(path: str | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: trained files make the optimiser talk
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(task: Task, session_or_path: ort.InferenceSession | str | Path, feeds: Feeds, batch: int) -> list[np.ndarray]:
    """The outputs of a model for all samples, in the order of the graph's outputs and with samples first."""
    session = open_session(session_or_path) if isinstance(session_or_path, str | Path) else session_or_path
    axes = [task.axes.get(output.name, 0) for output in session.get_outputs()]
    parts = [last_step(task, session, piece) for piece in batches(task, feeds, batch)]
    return [
        np.concatenate([np.moveaxis(out, axis, 0) for out in outs], 0) if axis is not None else outs[0]
        for outs, axis in zip(zip(*parts, strict=True), axes, strict=True)
    ]


def last_step(task: Task, session: ort.InferenceSession, feeds: Feeds) -> list[np.ndarray]:
    """The outputs after every step; inputs with an axis more than the model's are sequences."""
    ranks = {value.name: len(value.shape) for value in session.get_inputs()}
    sequences = [name for name, value in feeds.items() if value.ndim > ranks[name]]
    names = [output.name for output in session.get_outputs()]
    outputs: list[np.ndarray] = []
    for step in range(feeds[sequences[0]].shape[1] if sequences else 1):
        now = feeds | {name: feeds[name][:, step] for name in sequences}
        if outputs:
            now |= {into: outputs[names.index(out)] for into, out in task.states.items()}
        outputs = session.run(None, now)
    return outputs


def generator(task: str, part: str, seed: int) -> np.random.Generator:
    """Random numbers of one part of one task; those of the two parts have nothing in common."""
    return np.random.default_rng([zlib.crc32(task.encode()), PARTS.index(part), seed])


def choose(count: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` different indices below `count`, [n]."""
    if n > count:
        raise ValueError(f"{n} samples asked for, {count} are there")
    return rng.permutation(count)[:n]


def classifiers(
    family: str, folder: Path, names: Mapping[str, tuple[str, str, bool]],
    read: Callable[[Path, str], tuple[np.ndarray, np.ndarray]],
    normalised: Callable[[np.ndarray], np.ndarray],
) -> list[Task]:  # fmt: skip
    """Tasks of classifiers that `models/` carries (file, kind and whether it is set aside, by task), on one set of
    images: `read(folder, part)` gives them as bytes with their labels."""

    def sample(part: str, n: int, seed: int) -> tuple[Feeds, np.ndarray]:
        images, labels = read(folder, part)
        rows = choose(len(images), n, generator(family, part, seed))
        return {"image": normalised(images[rows].astype(np.float32) / 255)}, labels[rows]

    return [
        Task(
            name=name, model=MODELS / file, inputs=lambda part, n, seed: sample(part, n, seed)[0],
            labelled=lambda n, seed: sample("test", n, seed), score=top1, items=5000, metric="top-1", data=(folder,),
            kind=kind, aside=aside,
        )
        for name, (file, kind, aside) in names.items()
    ]  # fmt: skip


def ctc(scores: np.ndarray, alphabet: Sequence[str], blank: int = 0) -> list[str]:
    """Greedy decoding of [n, steps, classes]; `alphabet` has an entry for every class, the blank's is not used."""
    best = scores.argmax(-1)
    fresh = np.concatenate([np.ones_like(best[:, :1], bool), best[:, 1:] != best[:, :-1]], 1) & (best != blank)
    return ["".join(alphabet[k] for k in row[keep]) for row, keep in zip(best, fresh, strict=True)]


def matches(got: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """1 where the texts agree exactly, [n]."""
    return np.array([a == b for a, b in zip(got, wanted, strict=True)], np.float64)


def top1(outputs: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """1 where the highest of the first output, [n, classes], is the label, [n]."""
    return (outputs[0].argmax(-1) == labels).astype(np.float64)
