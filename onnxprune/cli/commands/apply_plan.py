"""onnxprune apply-plan PLAN WEIGHTS OUT: slice the weights of a training framework by a plan.

Knows flags and files; the work is done by `transfer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.cli import arguments, flags, logs
from onnxprune.cli.terminal import print_json, work
from onnxprune.files import check_distinct, check_outputs, write_json

if TYPE_CHECKING:
    from onnxprune.frameworks import Sliced

EPILOG = """\
Tensors are found by the plan's names. Exporters rename, transpose, share and fold tensors: with --model, the dense
ONNX file that the plan was made of, they are found by their values as well, those of a BatchNorm that was folded into
a convolution, too. What is not certain is refused. --save-plan writes the plan in the names of WEIGHTS: that plan
needs no --model and fits any weights of the architecture, untrained ones, too."""
ABOUT = "Slice the weights of a training framework by a plan."


def parser() -> arguments.Parser:
    """The arguments of `onnxprune apply-plan`."""
    made = arguments.parser("onnxprune apply-plan", ABOUT, EPILOG)
    made.add_argument("PLAN", type=Path, help="what goes: a file made by --save-plan")
    made.add_argument("WEIGHTS", type=Path, help="a state dict: .safetensors, .pt or .pth; never changed")
    made.add_argument("OUT", type=Path, help="the smaller state dict to write")
    made.add_argument(
        "--model",
        type=arguments.model,
        default=None,
        metavar="IN",
        help="the dense ONNX file of the plan (default: names alone)",
    )
    made.add_argument(
        "--keep",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="tensors that stay: names or globs (default none)",
    )
    flags.force_flag(made)
    made.add_argument(
        "--save-plan",
        type=Path,
        default=None,
        metavar="FILE",
        help="the plan in the names of WEIGHTS (default: not written)",
    )
    logs.flags(made, "what was sliced")
    return made


def run(argv: Sequence[str]) -> int:
    """Do what the arguments ask for; 0, or an error that bears its exit code."""
    args = parser().parse(argv)
    outputs = [path for path in (args.OUT, args.save_plan) if path]
    check_outputs(outputs)
    check_distinct([path for path in (args.PLAN, args.WEIGHTS, args.model) if path], outputs)

    from dataclasses import replace

    from onnxprune.frameworks import tensors, transfer

    tensors.check_suffix(args.OUT)
    from onnxprune.planning import read_plan
    from onnxprune.report import document

    with work(args) as stages:
        given = read_plan(args.PLAN)
        weights = tensors.read(args.WEIGHTS)
        stages("match")
        plan = transfer.renamed(given, weights.arrays, args.model, args.keep, args.force_plan)
        stages("slice")
        after = transfer.sliced(plan, weights.arrays, args.keep, certain=args.model is not None)
        stages("write")
        tensors.write(args.OUT, replace(weights, arrays=after))
        if args.save_plan:
            write_json(args.save_plan, plan.to_json())
    cut = sum(array.shape != weights.arrays[name].shape for name, array in after.items())
    before, left = (sum(a.size for a in arrays.values()) for arrays in (weights.arrays, after))
    if args.json:
        heads = {
            name: [{"axis": h.axis, "before": list(h.before), "after": list(h.after)} for h in found]
            for name, found in after.heads.items()
        }
        counts: dict[str, Any] = {
            "tensors": len(after),
            "sliced": cut,
            "numbers": {"before": before, "after": left},
            "heads": heads,
        }
        counts |= {"branches": list(after.branches)}
        print_json(document("applied", counts))
    elif not args.quiet:
        print(f"{cut:,} of {len(after):,} tensors sliced; {left:,} of {before:,} numbers left")
        _print_more(after)
        print(f"written: {args.OUT}")
    return 0


def _print_more(after: Sliced) -> None:
    """What the sizes of tensors do not tell."""
    for name, found in after.heads.items():
        for h in found:
            (old, of), (new, size) = h.before, h.after
            print(f"{name}, axis {h.axis}: {old:,} heads or groups of {of:,} -> {new:,} of {size:,}")
    for name in after.branches:
        print(f"the residual branch that ends at {name} goes whole: take it out of the network's code")
