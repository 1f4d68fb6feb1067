"""Tells optimum-cli of our command. The wheel puts this file into `optimum/commands/register`, a namespace that optimum
keeps for others and looks through. Knows that command, nothing else."""

from __future__ import annotations

REGISTER_COMMANDS: list[object] = []
"""Of commands of their own. Ours is one of `optimum-cli onnxruntime`, which is registered in this way itself: when the
parents of these are looked up it is not there yet, so that it is told directly."""

try:
    from optimum.commands.base import CommandInfo
    from optimum.commands.onnxruntime.base import ONNXRuntimeCommand

    from onnxprune.cli.optimum import PruneCommand
except ImportError:  # no optimum, or none with optimum-onnx, which has the commands for ONNX Runtime
    pass
else:
    OURS = CommandInfo(PruneCommand.COMMAND.name, PruneCommand.COMMAND.help, subcommand_class=PruneCommand)
    ONNXRuntimeCommand.SUBCOMMANDS = (*ONNXRuntimeCommand.SUBCOMMANDS, OURS)
