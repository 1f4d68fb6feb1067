"""Families of flags that commands share, with those of `running`; those that decide a plan bear the names of the fields
of Options.

Knows argparse and `Options`, no stage.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onnxprune.cli import arguments as take
from onnxprune.cli.running import MANY
from onnxprune.errors import UsageError
from onnxprune.files import is_text
from onnxprune.options import Options, unread

CRITERIA = (
    "l1, l2, random, bn-scale, fpgm, lamp, activation, wanda, flap, cfsp, beta-rank, taylor, taylor-so, lrp, oracle"
)
METRICS = "top-1, top-5, miou, exact, perplexity, agreement, cosine, snr"


def plan_flags(parser: argparse.ArgumentParser) -> None:
    """What goes."""
    what = parser.add_argument_group("what goes")
    what.add_argument(
        "--ratio",
        type=take.option("ratio"),
        metavar="R",
        help=f"share of the prunable units to remove (default {Options().ratio}; with a gate the largest that holds)",
    )
    what.add_argument(
        "--criterion", metavar="NAME", help=f"how units are ranked: obs (default; l2 with --fast), {CRITERIA}"
    )
    what.add_argument(
        "--plan", type=Path, default=None, metavar="FILE", help="replay a plan made by --save-plan (default: make one)"
    )
    force_flag(what)
    spread_flags(what)


def spread_flags(what: argparse._ActionsContainer) -> None:
    """What goes, whatever the ratio and the criterion."""
    what.add_argument("--of", choices=("units", "macs", "params", "latency"), help="what the ratio is a share of")
    what.add_argument("--fast", action="store_true", help="weights only: l2, the same share everywhere, no refitting")
    what.add_argument(
        "--scope",
        choices=("local", "global", "sensitivity", "pq"),
        help="how the ratio is spread: the same share everywhere, one ranking of all, where it was "
        "measured to hurt least (default; local with --fast), or by how compressible weights are",
    )
    what.add_argument(
        "--allocation",
        dest="scope",
        choices=("uniform", "local", "global", "sensitivity", "pq"),
        help="another name of --scope, with 'uniform' for local (default: as there)",
    )
    what.add_argument(
        "--reconstruct",
        choices=("ls", "merge", "fold", "none"),
        help="refit what is left by least squares (default), in weight space (merge, fold), or not (as --fast)",
    )
    what.add_argument(
        "--effort", choices=("low", "normal", "high"), help="how long is looked for the shares of the layers"
    )
    what.add_argument(
        "--min-channels", type=take.option("min_channels"), metavar="N", help="keep at least N units of every group"
    )
    what.add_argument(
        "--round-to",
        type=take.option("round_to"),
        metavar="N",
        help="keep a multiple of N units; auto: of what this machine's runtime likes (default 1, --of latency: auto)",
    )
    what.add_argument(
        "--max-ratio", type=take.option("max_ratio"), metavar="R", help="remove at most this share of any group"
    )
    what.add_argument(
        "--ratio-of",
        type=take.option("ratio_of"),
        metavar="NAME=R",
        **MANY,
        help="remove this share of what a node, parameter or group stands for, whatever --ratio and --scope are; "
        "globs and re:... as for --nodes-to-exclude; 0 keeps it whole (default none)",
    )
    what.add_argument(
        "--seed", type=take.option("seed"), metavar="N", help="of the random criterion, made-up inputs and the proof's"
    )


def stay_flags(parser: argparse.ArgumentParser, decides: bool = True, planned: bool = False) -> None:
    """What stays, and at which sizes the model is looked at. decides: whether the command decides what goes; planned:
    whether a plan that it always has says so."""
    keep = parser.add_argument_group("what stays")
    keep.add_argument(
        "--nodes-to-exclude",
        metavar="NODE",
        **MANY,
        help="names of nodes or of parameters, globs, or re:REGULAR-EXPRESSION (default none)",
    )
    keep.add_argument("--op-types-to-exclude", metavar="OP", **MANY, help="operator types such as Gemm (default none)")
    keep.add_argument("--heads", action=argparse.BooleanOptionalAction, help="remove whole attention heads (default)")
    if not planned:
        keep.add_argument(
            "--kv-heads",
            action="store_true",
            help="remove whole heads of a KV cache, too, with the query heads that read them: past and present change "
            "their shapes (default: they keep their heads)",
        )
    if decides:
        keep.add_argument(
            "--blocks",
            action=argparse.BooleanOptionalAction,
            help="remove whole residual branches, where outputs lose less by that (default: with --calib, where "
            "--scope measures it)",
        )
        keep.add_argument(
            "--residual",
            action=argparse.BooleanOptionalAction,
            help="remove residual channels: all, none, or (default, neither flag) all but those that cross a norm",
        )
    keep.add_argument(
        "--overwrite-input-shape",
        dest="input_shapes",
        metavar="NAME:1,3,224,224",
        type=take.shape,
        **MANY,
        help="fix the shape of an input, in the pruned model too; 0 or -1 leaves a dimension open (default: as it is)",
    )


def metric_flag(parser: argparse._ActionsContainer) -> None:
    """A metric by name or as a function."""
    parser.add_argument(
        "--metric",
        default="",
        metavar="NAME",
        help=f"{METRICS} (the first four against labels, the others against the dense model), or script.py:function "
        "(default: what fits the labels; without labels agreement or cosine)",
    )


def samples_flag(parser: argparse._ActionsContainer) -> None:
    """On how many samples quality is measured."""
    parser.add_argument(
        "--validate-samples", type=take.count, default=None, metavar="N", help="at most so many samples (default all)"
    )


def force_flag(parser: argparse._ActionsContainer) -> None:
    """Whether a plan of another graph is taken."""
    parser.add_argument(
        "--force-plan", action="store_true", default=False, help="take a plan that was made of another graph"
    )


def report_flag(parser: argparse._ActionsContainer) -> None:
    """A file with everything about the run."""
    parser.add_argument(
        "--report",
        type=Path,
        default=None,
        metavar="FILE",
        help="everything about the run: a page to read (.html) or JSON (.json) (default: not written)",
    )


def origin(args: argparse.Namespace, words: Sequence[str], pruned: Path | None = None) -> dict[str, Any]:
    """What a report says of where it comes from: its fields `command` (of these words) and `files`."""
    named = {
        "model": args.IN,
        "pruned": pruned,
        "plan": getattr(args, "plan", None) or getattr(args, "save_plan", None),
    }
    named |= {role: getattr(args, role, None) for role in ("calib", "validate")}
    files = {role: str(name) for role, name in named.items() if name}
    return {"command": shlex.join(("onnxprune", *words)), "files": files}


def check_report(args: argparse.Namespace) -> None:
    """UsageError, before any work, where the name of the report does not say whether it is a page or JSON."""
    if args.report:
        from onnxprune.report import check_report_file

        check_report_file(args.report)


def options(args: argparse.Namespace) -> Options:
    """The flags that were given; the rest keeps the defaults of Options."""
    given = {name: value for name, value in vars(args).items() if name in Options.__dataclass_fields__}
    if given.get("scope") == "uniform":
        given["scope"] = "local"
    if "residual" in given:
        given["residual"] = "all" if given["residual"] else "none"
    if "input_shapes" in given:
        given["input_shapes"] = _once_each("--overwrite-input-shape", given["input_shapes"])
    if "ratio_of" in given:
        given["ratio_of"] = _once_each("--ratio-of", (pair for said in given["ratio_of"] for pair in said.items()))
    return Options(**given)


def _once_each(flag: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Values by name; UsageError where a name has two of them."""
    out: dict[str, Any] = {}
    for name, value in pairs:
        if out.setdefault(name, value) != value:
            raise UsageError(f"{flag} says two things of {name}: {out[name]} and {value}; leave one of them out")
    return out


def refuse_unread(
    args: argparse.Namespace, options: Options, *, inputs: bool, data: bool = False, times: bool = False
) -> None:
    """UsageError for a flag that was given and that nobody would read. inputs: whether any would be run, beyond those
    that quality is measured on. data: whether that is measured without --validate, too. times: whether time is
    measured beyond what the plan needs."""
    asked = {name for name, value in vars(args).items() if value is not None and value is not False and value != ""}
    asked |= vars(args).keys() & Options.__dataclass_fields__.keys()
    gated = not asked.isdisjoint(("max_drop", "min_agreement", "min_cosine"))
    measured = options.resolved().scope == "sensitivity"
    bounded = options.max_latency is not None
    if bounded and vars(args).get("of") == "units":
        raise UsageError("--max-latency spends the budget in seconds; leave --of units out, or say macs or params")
    times = times or bounded or options.of == "latency" or options.round_to == 0
    given = (options.calib, vars(args).get("validate"), vars(args).get("data"))
    run = unread.Run(
        inputs, data or "validate" in asked, times, "plan" in asked, gated, options.fast, measured,
        texts=any(map(is_text, given)), made_up=inputs and options.calib is None, bounded=bounded,
    )  # fmt: skip
    unread.check(asked, run)


def model_argument(parser: argparse.ArgumentParser, name: str = "IN") -> None:
    """A model to read."""
    parser.add_argument(name, type=take.model, help="the model to read; never changed")
