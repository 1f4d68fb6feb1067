"""`python -m onnxprune` is the same as `onnxprune`."""

import sys

from .cli import command

sys.exit(command())
