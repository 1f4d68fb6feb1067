"""What the user may ask for and what comes back: plain data, no behaviour. Knows names and numbers, no ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict

Progress = Callable[[str, float], None]
"""Called with a stage's name and the share of that stage that is done, 0..1."""


@dataclass(frozen=True)
class Options:
    """Everything that decides a plan. The command line's flags bear the same names.

    ratio: share of the prunable units to remove, in (0, 1).
    of: what the ratio is a share of. "units" (the default): the MACs go down by what removing the share from every
    group would save; "macs", "params" or "latency": that share of the model's MACs, parameters or time goes.
    criterion: how units are ranked; "" is "obs", with `fast` "l2".
    scope: how the budget is spread. "local" (uniform): the same share of every group; "global": all units in one
    ranking; "sensitivity": where the measured loss is least; "pq": by the weights' PQ index. "" is "sensitivity", or
    with `fast` "local".
    reconstruct: "ls" refits what is left by least squares, "merge" in weight space, "none" does not; "" is "ls", or
    with `fast` "none".
    fast: weights only: no inputs are run but for the proof.
    calib: inputs to calibrate on (see `calibrate`); None makes them up.
    mean, std, scale: how the pixels of image files are normalised; (pixel * scale - mean) / std.
    memory: bytes that activations may take; what would need more for statistics than that is refused.
    floor: share of a group's units that global scope always keeps.
    max_ratio: at most this share of any group, in every scope.
    round_to: kept counts are rounded to the nearest multiple of this; 0: of what wastes no time in this runtime on
    this machine, as measured. With `of` "latency" this is so unless the multiple is 2 or more.
    threads, batch: what time is measured with: threads inside an operator (0: the runtime's default) and samples.
    residual: prune units that cross a normalisation over their own axis (a transformer's residual width).
    """

    ratio: float = 0.3
    of: Literal["units", "macs", "params", "latency"] = "units"
    scope: Literal["", "local", "global", "sensitivity", "pq"] = ""
    criterion: str = ""
    reconstruct: Literal["", "ls", "merge", "none"] = ""
    fast: bool = False
    calib: Any = None
    calib_samples: int = 512
    calib_batch: int = 32
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    scale: float | None = None
    memory: int = 4 << 30
    heads: bool = True
    residual: bool = False
    conv_residual: bool = True
    min_channels: int = 1
    round_to: int = 1
    max_ratio: float = 1.0
    floor: float = 0.1
    nodes_to_exclude: Sequence[str] = ()
    op_types_to_exclude: Sequence[str] = ()
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0
    providers: Sequence[str] = ("cpu",)
    threads: int = 0
    batch: int = 1
    check_rtol: float | None = None
    check_atol: float = 0.0

    def resolved(self) -> Options:
        """With every default that depends on `fast` written out."""
        criterion, scope, reconstruct = ("l2", "local", "none") if self.fast else ("obs", "sensitivity", "ls")
        chosen: dict[str, Any] = {
            "criterion": self.criterion or criterion, "scope": self.scope or scope,
            "reconstruct": self.reconstruct or reconstruct,
            "round_to": 0 if self.of == "latency" and self.round_to == 1 else self.round_to,
        }  # fmt: skip
        return replace(self, **chosen)


class OptionKeywords(TypedDict, total=False):
    """The fields of `Options` as keyword arguments: a word that is none of them is an error for a type checker, too."""

    ratio: float
    of: Literal["units", "macs", "params", "latency"]
    scope: Literal["", "local", "global", "sensitivity", "pq"]
    criterion: str
    reconstruct: Literal["", "ls", "merge", "none"]
    fast: bool
    calib: Any
    calib_samples: int
    calib_batch: int
    mean: Sequence[float] | None
    std: Sequence[float] | None
    scale: float | None
    memory: int
    heads: bool
    residual: bool
    conv_residual: bool
    min_channels: int
    round_to: int
    max_ratio: float
    floor: float
    nodes_to_exclude: Sequence[str]
    op_types_to_exclude: Sequence[str]
    input_shapes: Mapping[str, Sequence[int]]
    seed: int
    providers: Sequence[str]
    threads: int
    batch: int
    check_rtol: float | None
    check_atol: float


@dataclass(frozen=True)
class Cost:
    """Parameters (elements of prunable and other weights), multiply-accumulates of one sample, bytes of the file."""

    parameters: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class GroupInfo:
    """One connected component of the dependency graph: `units` of which `prunable` may go; `kept` after pruning."""

    name: str
    layers: tuple[str, ...]
    units: int
    prunable: int
    kept: int
    parameters: int
    macs: int
    kind: Literal["channel", "head"] = "channel"
    crosses_norm: bool = False


@dataclass(frozen=True)
class FrozenInfo:
    """`units` of the axis of `parameter` stay, because of `reason` at `node` (its operator is `op_type`)."""

    parameter: str
    axis: int
    units: int
    op_type: str
    node: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """What `onnxprune inspect` prints. `notes` point out layers that look like fixed transforms; `graph` is the
    networkx graph of parameters' axes and the operators that couple them (see `onnxprune.trace.dependencies`)."""

    groups: tuple[GroupInfo, ...]
    frozen: tuple[FrozenInfo, ...]
    cost: Cost
    notes: tuple[str, ...] = ()
    graph: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Proof:
    """The proofs of one rewriting: `couplings` compared by the re-trace; `error` is the largest difference of any
    output relative to the largest magnitude in that output (and channel); `batches` the batch sizes that were run;
    `blocks`: into how many consecutive pieces the graphs were cut, so that the weights of one at a time were in memory.

    sizes: the open dimensions at each run, in words. uncompared: outputs that say nothing, and why. redrawn: the
    largest difference on weights drawn anew, None where these do not run. slices: parameters compared with slices of
    the original's; tensors: tensors inside the graph that were compared. notes: what could not be shown."""

    couplings: int
    error: float
    tolerance: float
    batches: tuple[int, ...]
    providers: tuple[str, ...]
    blocks: int = 1
    sizes: tuple[str, ...] = ()
    uncompared: tuple[str, ...] = ()
    redrawn: float | None = None
    slices: int = 0
    tensors: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verified(Proof):
    """What `onnxprune verify DENSE PRUNED PLAN` prints: the proof of a file that was there already.

    refitted: its parameters that are no slices of the original's. output_error: with these values ("written") and with
    the slices instead ("sliced"), squared and relative to the variance, mean over the outputs; None where nothing is
    refitted. inputs: what it was measured on, or why it could not be."""

    refitted: tuple[str, ...] = ()
    output_error: Mapping[str, float] | None = None
    inputs: str = ""


@dataclass(frozen=True)
class Compared:
    """What `onnxprune compare A B` prints: the costs of both models and `quality` (see `quality.measure.Quality`)."""

    before: Cost
    after: Cost
    quality: Mapping[str, Any]


@dataclass(frozen=True)
class CurveInfo:
    """What cuts of one set of units that go together (of the group `group`) are expected to cost.

    losses: relative error of the layers that read them, at evenly spaced shares from 0 to 1; None where the limits do
    not allow the cut. factor: how much of that reaches the outputs, as measured. share: what was removed."""

    group: str
    units: int
    losses: tuple[float | None, ...]
    factor: float | None
    share: float


@dataclass(frozen=True)
class Report:
    """The result of one run, as written by `--report out.json` (see `report.to_json`) and shown by
    `out.html`.

    latency: in milliseconds, "predicted" (before, after) where the plan was made for it, "measured" (see
    `latency.Benchmark`) where a benchmark was asked for."""

    before: Cost
    after: Cost
    groups: tuple[GroupInfo, ...]
    frozen: tuple[FrozenInfo, ...]
    proof: Proof
    options: Options
    notes: tuple[str, ...] = ()
    validation: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    reconstruction: Mapping[str, Any] | None = None
    curves: tuple[CurveInfo, ...] = ()
    latency: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class SweepPoint:
    """One way to prune a model, or why it failed (`error`). Of the original, the ratio is 0.

    latency: seconds of one run, where it was measured. seconds: how long it took to get here. model: the file of it."""

    name: str
    criterion: str
    ratio: float
    metric: float | None = None
    parameters: int | None = None
    macs: int | None = None
    bytes: int | None = None
    latency: float | None = None
    seconds: float = 0.0
    model: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Sweep:
    """Many points of one model. metric: larger is better; `data`: what it was measured on.

    fronts: by cost, the names of the points that no other one beats in both, the cheapest first."""

    metric: str
    data: str
    dense: SweepPoint
    points: tuple[SweepPoint, ...]
    fronts: Mapping[str, tuple[str, ...]]
    options: Options
