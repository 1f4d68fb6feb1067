"""What a comparison of two models on the same inputs found. Knows names and numbers, runs nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from onnxprune.prove.difference import incomparable
from onnxprune.prove.original import Run


@dataclass(frozen=True)
class Fault:
    """A tensor that differs, by how much, and how much it may. blurred: whether rounding alone makes so much."""

    name: str
    error: float
    allowed: float
    blurred: bool


@dataclass
class Findings:
    """What a comparison found. run: the first one, without its values. error: of outputs, inner: of tensors inside, as
    `difference` has it; allowed: what an output may have been. batches, sizes: of each run. seen: the outputs of which
    something could be compared; incomparable: why some could not, at some size. tensors: those inside that were."""

    run: Run | None = None
    error: float = 0.0
    inner: float = 0.0
    allowed: float = 0.0
    batches: list[int] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    providers: tuple[str, ...] = ()
    blocks: int = 1
    seen: set[str] = field(default_factory=set)
    incomparable: dict[str, str] = field(default_factory=dict)
    tensors: set[str] = field(default_factory=set)

    def add(
        self, run: Run, errors: Mapping[str, float], allowed: Mapping[str, float], outputs: Collection[str]
    ) -> None:
        """What one more run shows, of which nothing differs by more than it may."""
        self.batches.append(run.batch)
        self.sizes.append(run.open_sizes)
        self.allowed = max([self.allowed, *(allowed[n] for n in allowed if n in outputs)])
        for name, error in errors.items():
            why = incomparable(run.values[name])
            if name not in outputs:
                self.inner = max(self.inner, error)
                self.tensors |= set() if why else {name}
            else:
                self.error = max(self.error, error)
                self.seen |= set() if why else {name}
                self.incomparable |= {name: why} if why else {}
