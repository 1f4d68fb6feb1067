"""`python -m onnxprune` is the same as `onnxprune`."""

import sys

from onnxprune.cli import command

sys.exit(command())
