"""What comes back: plain data, no behaviour. Knows names and numbers, no ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxprune.options import Options


@dataclass(frozen=True)
class Cost:
    """Parameters (elements of prunable and other weights), multiply-accumulates of one sample, bytes of the file."""

    parameters: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class GroupInfo:
    """One connected component of the dependency graph: `units` of which `prunable` may go; `kept` after pruning.

    nodes: names of the nodes that read its parameters (`layers`). rows: how many rows of equal size its units make up,
    which may go whole: heads, or the groups of a convolution; 0 where they make up none. asked: the shares that
    --ratio-of says for units of it. caches: inputs and outputs of the model of which heads go with its units."""

    name: str
    layers: tuple[str, ...]
    units: int
    prunable: int
    kept: int
    parameters: int
    macs: int
    kind: Literal["channel", "head"] = "channel"
    crosses_norm: bool = False
    nodes: tuple[str, ...] = ()
    rows: int = 0
    asked: tuple[float, ...] = ()
    caches: tuple[str, ...] = ()


@dataclass(frozen=True)
class CacheInfo:
    """An input of the model that is a cache (past keys or values), or an output that gives it out again, and its
    declared sizes, open ones by name: `after` are others where heads went, and none where the branch that it is of
    went with it."""

    name: str
    kind: Literal["input", "output"]
    before: tuple[int | str, ...]
    after: tuple[int | str, ...]


@dataclass(frozen=True)
class BranchInfo:
    """A residual branch f(x) of a sum x + f(x) that a model can do without. name: the first tensor that the sum makes,
    which names it in plans; node: the sum. nodes: how many only the branch needs, with their `parameters` and `macs`.
    loss: the output error without it alone, where that was measured; gone: whether it went."""

    name: str
    node: str
    nodes: int
    parameters: int
    macs: int
    loss: float | None = None
    gone: bool = False


@dataclass(frozen=True)
class LayerInfo:
    """A node that reads parameters: their names and shapes, and what names of it mean to --ratio-of. makes: the groups
    of its own units (a convolution's filters), or, where it has none, of those that it carries on. reads: the groups of
    the units that come in to its parameters."""

    node: str
    op_type: str
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    makes: tuple[str, ...]
    reads: tuple[str, ...]


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
class PicturedLayer:
    """One operator that has weights, or at which branches meet, of the graph before and after: what a picture of the
    model draws. An input and an output of the model are of op_type "input" and "output".

    sources: positions, in the list of all, of those that it reads, whatever lies between. width: its channels (of the
    output), before and after; None where none are known. group: the group that these are of, "" where none may go.
    macs: before and after, of one sample. shapes: of its weights by name, before and after."""

    node: str
    op_type: str
    sources: tuple[int, ...] = ()
    width: tuple[int, int] | None = None
    group: str = ""
    macs: tuple[int, int] = (0, 0)
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """What `onnxprune inspect` prints. `notes` point out what looks like fixed transforms; `graph` is the
    networkx graph of parameters' axes and the operators that couple them (see `onnxprune.trace.dependencies`)."""

    groups: tuple[GroupInfo, ...]
    frozen: tuple[FrozenInfo, ...]
    cost: Cost
    notes: tuple[str, ...] = ()
    layers: tuple[LayerInfo, ...] = ()
    branches: tuple[BranchInfo, ...] = ()
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
    """What `onnxprune compare A B` prints: the costs of both models, `quality` (see `measure.Quality`) and, where a
    benchmark was asked for, `latency` with an entry "measured" (see `measure.Benchmark`)."""

    before: Cost
    after: Cost
    quality: Mapping[str, Any]
    latency: Mapping[str, Any] | None = None


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
    """Many points of one model. metric: its name, with its `unit` and which way is better; `data`: what it was measured
    on. warnings: what makes the metric doubtful.

    fronts: by cost, the names of the points that no other one beats in both, the cheapest first. command, files: see
    `report.Report`."""

    metric: str
    data: str
    dense: SweepPoint
    points: tuple[SweepPoint, ...]
    fronts: Mapping[str, tuple[str, ...]]
    options: Options
    command: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""
    higher_is_better: bool = True
    warnings: tuple[str, ...] = ()
