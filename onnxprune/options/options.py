"""What the user may ask for: plain data, no behaviour. Knows names and numbers, no ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, Literal, TypedDict

Progress = Callable[[str, float], None]
"""Called with a stage's name and the share of that stage that is done, 0..1. What follows a colon in the name changes
while the stage lasts."""


MEMORY = 4 << 30
"""Bytes that a process may take where nothing else is said."""


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
    reconstruct: "ls" refits what is left by least squares; in weight space "merge" gives what goes to what is left, and
    "fold" makes one of what is alike; "none" does not; "" is "ls", or with `fast` "none".
    fast: weights only: no inputs are run but for the proof.
    calib: inputs to calibrate on (see `calibrate`); None makes them up.
    mean, std, scale: how the pixels of image files are normalised; (pixel * scale - mean) / std.
    tokenizer: the tokenizer.json by which a .txt becomes token ids; None: the one beside the model, or in the folder
    above. text_length: tokens in a window of a .txt, where the model leaves it open.
    effort: "low" measures what cuts do to the outputs in closed form and takes images as they are; "normal" by light
    refits where these take half a minute or less, and mirrors images; "high" by three refits each, however long.
    memory: bytes that the process may take, or words such as "8G": as many inputs are looked at as fit, of those that
    are asked for; what needs more for statistics alone is refused. 0: 4 GiB, of which activations take two at most.
    ratio_of: name -> share, 0 (they stay) to below 1, to remove of the units that it stands for, whatever the ratio and
    the scope are; names as for nodes_to_exclude. A full name goes before patterns, of patterns the last one counts.
    max_ratio: at most this share of any group, in every scope.
    round_to: kept counts are rounded to the nearest multiple of this; "auto" (0): of what wastes no time in this
    runtime on this machine, as measured. With `of` "latency" this is so where shares do not follow from what was
    measured (there, what every width takes is known), unless the multiple is 2 or more.
    max_latency: the ratio is the smallest by which one run takes no longer, as measured: milliseconds, or a time such
    as "5ms" or "2s". The budget is spent in seconds, then, unless `of` is "macs" or "params". None: it is given.
    threads, batch: what time is measured with: threads inside an operator (0: the runtime's default) and samples.
    finetune: train what is left on the dense model's answers: True, a number of steps, or a time such as "90s" or "5m";
    None does not. It takes torch.
    blocks: whether whole residual branches may go, where the outputs lose less by that than by narrower layers; None:
    in the sensitivity scope, on inputs of the user's own, where it does not take too long to find out.
    kv_heads: whether whole heads of a cache (past keys and values that come out again as present ones) may go, with the
    query heads that read them: the declared shapes of these inputs and outputs change.
    residual: which units of branches that are added may go. "conv" (the default): those of convolutional streams, but
    none that cross a normalisation over their own axis (a transformer's residual width); "all" or "none".
    """

    ratio: float = 0.3
    of: Literal["units", "macs", "params", "latency"] = "units"
    scope: Literal["", "local", "global", "sensitivity", "pq"] = ""
    criterion: str = ""
    reconstruct: Literal["", "ls", "merge", "fold", "none"] = ""
    fast: bool = False
    effort: Literal["low", "normal", "high"] = "normal"
    calib: Any = None
    calib_samples: int = 512
    calib_batch: int = 32
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    scale: float | None = None
    tokenizer: str | PathLike[str] | None = None
    text_length: int = 256
    memory: int = 0
    finetune: bool | int | str | None = None
    heads: bool = True
    blocks: bool | None = None
    kv_heads: bool = False
    residual: Literal["none", "conv", "all"] = "conv"
    min_channels: int = 1
    round_to: int = 1
    max_ratio: float = 1.0
    ratio_of: Mapping[str, float] = field(default_factory=dict)
    nodes_to_exclude: Sequence[str] = ()
    op_types_to_exclude: Sequence[str] = ()
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0
    providers: Sequence[str] = ("cpu",)
    max_latency: float | str | None = None
    threads: int = 0
    batch: int = 1
    check_rtol: float | None = None
    check_atol: float = 0.0

    @property
    def memory_limit(self) -> int:
        """Bytes that the process may take."""
        return self.memory or MEMORY

    def resolved(self) -> Options:
        """With every default that depends on `fast` written out."""
        criterion, scope, reconstruct = ("l2", "local", "none") if self.fast else ("obs", "sensitivity", "ls")
        of = "latency" if self.max_latency is not None and self.of == "units" else self.of
        blind = of == "latency" and self.round_to == 1 and (self.scope or scope) != "sensitivity"
        chosen: dict[str, Any] = {
            "of": of, "criterion": self.criterion or criterion, "scope": self.scope or scope,
            "reconstruct": self.reconstruct or reconstruct, "round_to": 0 if blind else self.round_to,
        }  # fmt: skip
        return replace(self, **chosen)


@dataclass(frozen=True)
class Gates:
    """What must hold of the quality. max_drop: at most so much worse by the metric, in its unit, whichever way is
    better. min_agreement, min_cosine: at least so much of what the dense model answers. gate: whether that is asked of
    the figures as measured ("point"), or of the worse ends of their confidence intervals ("interval")."""

    max_drop: float | None = None
    min_agreement: float | None = None
    min_cosine: float | None = None
    gate: Literal["point", "interval"] = "point"

    @property
    def asked(self) -> tuple[str, ...]:
        """Those that there are, by the names of their fields."""
        return tuple(n for n in ("max_drop", "min_agreement", "min_cosine") if getattr(self, n) is not None)

    def __bool__(self) -> bool:
        return bool(self.asked)


class OptionKeywords(TypedDict, total=False):
    """The fields of `Options` as keyword arguments: a word that is none of them is an error for a type checker, too."""

    ratio: float
    of: Literal["units", "macs", "params", "latency"]
    scope: Literal["", "local", "global", "sensitivity", "pq"]
    criterion: str | Callable[..., Any]
    reconstruct: Literal["", "ls", "merge", "fold", "none"]
    fast: bool
    effort: Literal["low", "normal", "high"]
    calib: Any
    calib_samples: int
    calib_batch: int
    mean: Sequence[float] | None
    std: Sequence[float] | None
    scale: float | None
    tokenizer: str | PathLike[str] | None
    text_length: int
    memory: int | str
    finetune: bool | int | str | None
    heads: bool
    blocks: bool | None
    kv_heads: bool
    residual: Literal["none", "conv", "all"]
    min_channels: int
    round_to: int | Literal["auto"]
    max_ratio: float
    ratio_of: Mapping[str, float]
    nodes_to_exclude: Sequence[str]
    op_types_to_exclude: Sequence[str]
    input_shapes: Mapping[str, Sequence[int]]
    seed: int
    providers: Sequence[str]
    max_latency: float | str | None
    threads: int
    batch: int
    check_rtol: float | None
    check_atol: float
