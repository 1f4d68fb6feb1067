"""`optimum-cli onnxruntime prune`: the whole job as a command of Hugging Face's optimum, with the same flags.

Knows optimum's commands and the flags of ours; the work is done by `commands.prune`.
"""

from __future__ import annotations

import sys
import traceback
from argparse import ArgumentParser
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from onnxprune.cli.commands import prune
from onnxprune.cli.helping import Answer
from onnxprune.errors import INTERRUPTED, explain

NOT_HERE = {"config"}
"""Our flags that are read before the others; those that only print something are not here either."""


class PruneCommand(BaseOptimumCLICommand):  # type: ignore[misc, unused-ignore]
    """Beside `optimize` and `quantize`; the models may be one file or a folder."""

    COMMAND = CommandInfo(
        name="prune", help="Remove whole channels, heads and hidden units of ONNX models (onnxprune)."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declares optimum's two arguments and all of our flags."""
        needed = parser.add_argument_group("Required arguments")
        needed.add_argument(
            "--onnx_model",
            dest="IN",
            metavar="PATH",
            type=Path,
            required=True,
            help="folder of an exported network, or one .onnx file",
        )
        needed.add_argument(
            "-o", "--output", dest="OUT", metavar="PATH", type=Path, required=True, help="what to write, new"
        )
        for action in prune.parser()._actions:
            if action.option_strings and action.dest not in NOT_HERE and not isinstance(action, Answer):
                parser._add_action(action)

    def run(self) -> None:
        """Do it; the process ends with the exit code of `onnxprune` where it fails."""
        try:
            code = prune.carried_out(self.args, sys.argv[1:])
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Exception as error:
            if self.args.verbose:
                traceback.print_exc()
            message, code = explain(error)
            print(f"onnxprune: error: {message}", file=sys.stderr)
        if code:
            sys.exit(code)
