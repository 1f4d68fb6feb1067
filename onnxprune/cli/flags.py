"""Families of flags that commands share; those that decide a plan bear the names of the fields of Options.

Knows argparse and `Options`, no stage.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onnxprune import unread
from onnxprune.cli import arguments as take
from onnxprune.errors import UsageError
from onnxprune.options import Options

MANY: dict[str, Any] = {"nargs": "+", "action": "extend"}
"""How a flag is declared that takes several values and may be given more than once."""
CRITERIA = (
    "l1, l2, random, bn-scale, fpgm, lamp, activation, wanda, flap, cfsp, beta-rank, taylor, taylor-so, lrp, oracle"
)


def plan_flags(parser: argparse.ArgumentParser) -> None:
    """What goes."""
    default = Options()
    what = parser.add_argument_group("what goes")
    what.add_argument(
        "--ratio", type=take.option("ratio"), help=f"share of the prunable units to remove (default {default.ratio})"
    )
    what.add_argument(
        "--criterion", metavar="NAME", help=f"how units are ranked: obs (default; l2 with --fast), {CRITERIA}"
    )
    spread_flags(what)


def spread_flags(what: argparse._ActionsContainer) -> None:
    """What goes, whatever the ratio and the criterion."""
    what.add_argument(
        "--of", choices=("units", "macs", "params", "latency"), help="what the ratio is of (default units)"
    )
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
        type=take.allocation,
        metavar="NAME",
        help="another name of --scope, with 'uniform' for local",
    )
    what.add_argument(
        "--reconstruct",
        choices=("ls", "merge", "fold", "none"),
        help="refit what is left by least squares (default), in weight space (merge, fold), or not (as --fast)",
    )
    what.add_argument(
        "--effort",
        choices=("low", "normal", "high"),
        help="how long is looked for the shares of the layers (default normal)",
    )
    what.add_argument(
        "--min-channels", type=take.option("min_channels"), metavar="N", help="keep at least N units of every group"
    )
    what.add_argument(
        "--round-to",
        type=take.option("round_to"),
        metavar="N",
        help="keep a multiple of N units; auto: of what this machine's runtime likes",
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
        "globs and re:... as for --nodes-to-exclude; 0 keeps it whole",
    )
    what.add_argument("--seed", type=take.option("seed"), help="seed of the random criterion and of the proof's inputs")


def stay_flags(parser: argparse.ArgumentParser, decides: bool = True) -> None:
    """What stays, and at which sizes the model is looked at. decides: whether the command decides what goes."""
    keep = parser.add_argument_group("what stays")
    keep.add_argument(
        "--nodes-to-exclude",
        metavar="NODE",
        **MANY,
        help="names of nodes or of parameters, globs, or re:REGULAR-EXPRESSION",
    )
    keep.add_argument("--op-types-to-exclude", metavar="OP", **MANY, help="operator types such as Gemm")
    keep.add_argument("--heads", action=argparse.BooleanOptionalAction, help="remove whole attention heads (default)")
    if decides:
        keep.add_argument(
            "--residual",
            action=argparse.BooleanOptionalAction,
            help="remove residual channels: all, none, or (neither flag) all but those that cross a norm",
        )
    keep.add_argument(
        "--overwrite-input-shape",
        dest="input_shapes",
        metavar="NAME:1,3,224,224",
        type=take.shape,
        **MANY,
        help="fix the shape of an input, in the pruned model too; 0 or -1 leaves a dimension open",
    )


def calibration_flags(parser: argparse.ArgumentParser) -> None:
    """Inputs, and the memory that their activations may take."""
    default = Options()
    inputs = parser.add_argument_group("inputs to calibrate on (photographs or made-up ones where none are given)")
    inputs.add_argument(
        "--calib",
        metavar="DATA",
        help="an .npz, a folder of .npy, .npz, images or test_data_set_*, or script.py:function",
    )
    inputs.add_argument(
        "--calib-samples",
        type=take.option("calib_samples"),
        metavar="N",
        help=f"at most so many samples (default {default.calib_samples})",
    )
    inputs.add_argument(
        "--calib-batch",
        type=take.option("calib_batch"),
        metavar="N",
        help=f"samples that are run at once (default {default.calib_batch})",
    )
    memory_flag(inputs)
    pixel_flags(inputs)


def memory_flag(parser: argparse._ActionsContainer) -> None:
    """How much memory a look at activations may take."""
    parser.add_argument(
        "--memory",
        type=take.option("memory"),
        metavar="SIZE",
        help="what the process may take (default 4G, of which activations take no more than two)",
    )


def pixel_flags(parser: argparse._ActionsContainer) -> None:
    """How image files are read."""
    parser.add_argument(
        "--mean", type=take.option("mean"), metavar="M,..", help="of image files: (pixel * scale - mean) / std"
    )
    parser.add_argument("--std", type=take.option("std"), metavar="S,..", help="see --mean")
    parser.add_argument(
        "--scale", type=take.option("scale"), metavar="X", help="see --mean (1/255 brings pixels into 0..1)"
    )


def finetune_flag(parser: argparse._ActionsContainer) -> None:
    """Whether what is left is trained, and how long."""
    parser.add_argument(
        "--finetune",
        nargs="?",
        const=True,
        type=take.option("finetune"),
        metavar="STEPS|5m",
        help="then train it on the dense model's answers, for so many steps or so long (needs torch)",
    )


def proof_flags(parser: argparse.ArgumentParser) -> None:
    """Where the proof runs, and what it lets pass."""
    proof = parser.add_argument_group("proof")
    provider_flag(proof)
    proof.add_argument(
        "--check-rtol", type=take.option("check_rtol"), metavar="X", help="allowed error, as a share of the output"
    )
    proof.add_argument(
        "--check-atol", type=take.option("check_atol"), metavar="X", help="allowed absolute error on top of that"
    )


def metric_flag(parser: argparse._ActionsContainer) -> None:
    """A metric by name or as a function."""
    parser.add_argument(
        "--metric",
        default="",
        metavar="NAME",
        help="top-1, top-5, miou, exact (against labels), agreement, cosine, snr (against the dense model), or "
        "script.py:function (default: what fits the labels; without labels agreement or cosine)",
    )


def timing_flags(parser: argparse._ActionsContainer) -> None:
    """How time is measured."""
    parser.add_argument(
        "--threads", type=take.option("threads"), metavar="N", help="inside an operator (default: the runtime's own)"
    )
    parser.add_argument(
        "--batch", type=take.option("batch"), metavar="N", help="samples, where their number is open (default 1)"
    )


def provider_flag(parser: argparse._ActionsContainer) -> None:
    """What ONNX Runtime runs on."""
    parser.add_argument("--providers", nargs="+", metavar="P", help="cpu, cuda, tensorrt or full names (default cpu)")


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
        help="everything about the run: a page to read (.html) or JSON (any other name)",
    )


def options(args: argparse.Namespace) -> Options:
    """The flags that were given; the rest keeps the defaults of Options."""
    given = {name: value for name, value in vars(args).items() if name in Options.__dataclass_fields__}
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
    times = times or options.of == "latency" or options.round_to == 0
    unread.check(asked, unread.Run(inputs, data or "validate" in asked, times, "plan" in asked, gated, options.fast))


def model_argument(parser: argparse.ArgumentParser, name: str = "IN") -> None:
    """A model to read."""
    parser.add_argument(name, type=Path, help="the model to read; never changed")
