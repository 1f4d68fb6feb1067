"""`python -m onnxprune` is the same as `onnxprune`."""

import sys

from .cli import main

sys.exit(main())
