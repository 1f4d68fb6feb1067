"""What becomes of OUT where quality is measured and something must hold of it. Knows flags, no stage and no model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.cli import arguments, flags
from onnxprune.errors import CheckFailed
from onnxprune.options import Gates, Options

if TYPE_CHECKING:
    from onnxprune.measure import Comparison


def gates(args: argparse.Namespace) -> Gates:
    """What must hold, as far as it was said."""
    return Gates(args.max_drop, args.min_agreement, args.min_cosine, args.gate or "point")


def comparison(args: argparse.Namespace, dense: Path, options: Options) -> Comparison | None:
    """The dense model on the validation data, before any work is done; None where there is none."""
    if not args.validate:
        return None
    from onnxprune.measure import compared

    return compared(dense, args.validate, options, args.metric, args.validate_samples, gates(args))


def quality_flags(parser: argparse._ActionsContainer) -> None:
    """A metric and what must hold of it."""
    flags.metric_flag(parser)
    flags.samples_flag(parser)
    parser.add_argument(
        "--max-drop",
        type=arguments.option("max_drop"),
        default=None,
        metavar="X",
        help="fail if the metric gets worse by more, in its own unit (of a share 0.01 is one point; default: no gate)",
    )
    for name, what in (
        ("agreement", "the models agree on fewer answers"),
        ("cosine", "the outputs' mean cosine is less"),
    ):
        parser.add_argument(
            f"--min-{name}",
            type=arguments.option(f"min_{name}"),
            default=None,
            metavar="X",
            help=f"fail if {what} (default: no gate)",
        )
    parser.add_argument(
        "--gate",
        choices=("point", "interval"),
        default=None,
        help="whether the figures must hold, or the worse ends of their confidence intervals (default point)",
    )


def keep_flag(parser: argparse._ActionsContainer) -> None:
    """Whether a model is kept that does not hold the gates."""
    parser.add_argument("--keep-on-fail", action="store_true", default=False, help="then write OUT.failed.onnx instead")


def path_on_fail(args: argparse.Namespace) -> Path | None:
    """Where a model goes that does not hold the gates, if it is to be kept."""
    out: Path = args.OUT
    return out.with_suffix(".failed.onnx") if args.keep_on_fail else None


def path(args: argparse.Namespace, failed: Sequence[str]) -> Path | None:
    """Where the model goes; None where it is not to be written."""
    out: Path = args.OUT
    return path_on_fail(args) if failed else out


def fail(args: argparse.Namespace, failed: Sequence[str]) -> None:
    """CheckFailed where a gate does not hold, with what became of the model."""
    if failed:
        kept = path_on_fail(args)
        what = f"kept as {kept}" if kept else "--keep-on-fail keeps the model"
        raise CheckFailed(f"{'; '.join(failed)}; {args.OUT} was not written ({what})")
