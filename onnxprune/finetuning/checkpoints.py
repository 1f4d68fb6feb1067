"""A training that can go on where it was stopped: one .npz, written whole or not at all.

Knows arrays and files, no graph.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.files import created, disk_errors, replacing
from onnxprune.model import Array

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter."""


@dataclass(frozen=True)
class Kept:
    """What a checkpoint holds: arrays by kind and name, and how far the run was."""

    arrays: Mapping[str, Array]
    at: int
    steps: int
    rate: float
    tries: int
    best: Array

    @property
    def state(self) -> dict[str, Array]:
        """The best state that was seen."""
        return {n.removeprefix("best:"): a for n, a in self.arrays.items() if n.startswith("best:")}

    def resume(self, leaves: Mapping[str, Any], optimiser: Any) -> int:
        """Put parameters and the optimiser's moments back; the step to go on with."""
        import torch

        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(torch.from_numpy(self.arrays[f"now:{name}"].copy()))
                kept = {m: self.arrays[f"{m}:{name}"] for m in MOMENTS if f"{m}:{name}" in self.arrays}
                found = {m: torch.from_numpy(a.copy()) for m, a in kept.items()}
                if found:
                    optimiser.state[leaf] = {m: x if m == "step" else x.to(leaf.device) for m, x in found.items()}
        return self.at


@dataclass(frozen=True)
class Checkpoint:
    """A file for one run, which `key` tells from others."""

    path: Path
    key: str

    def load(self) -> Kept | None:
        """What an earlier run left; None where there is no file. UsageError where it is of another run."""
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            key, (at, steps, tries) = str(arrays.pop("key")), arrays.pop("counts")
            rate, best = float(arrays.pop("rate")), arrays.pop("losses")
        except (OSError, ValueError, KeyError, EOFError):
            raise UsageError(f"{self.path}: not a checkpoint of a fine-tuning; give another --checkpoint") from None
        if key != self.key:
            raise UsageError(f"{self.path}: a checkpoint of other models, data or options; give another --checkpoint")
        return Kept(arrays, int(at), int(steps), rate, int(tries), best)

    def save(self, leaves: Mapping[str, Any], optimiser: Any, done: Any, at: int, steps: int) -> None:
        """Write how far the run is."""
        arrays = {f"now:{n}": leaf.detach().cpu().numpy() for n, leaf in leaves.items()}
        arrays |= {f"best:{n}": a for n, a in done.state.items()}
        for name, leaf in leaves.items():
            arrays |= {f"{m}:{name}": x.detach().cpu().numpy() for m, x in optimiser.state.get(leaf, {}).items()}
        buffer = io.BytesIO()
        counts, rate = np.array([at, steps, done.tries]), np.array(done.rate)
        np.savez(buffer, key=np.array(self.key), counts=counts, rate=rate, losses=done.best, **arrays)
        with disk_errors(self.path), replacing([self.path]) as files, created(files.temporary[self.path]) as write:
            write(buffer.getvalue())

    def remove(self) -> None:
        """The run is done."""
        self.path.unlink(missing_ok=True)
