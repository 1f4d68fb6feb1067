#!/bin/sh
# Every check of the project: lint, types, tests, the slow ones too. Needs the extras test and dev.
set -eu
cd "$(dirname "$0")/.."
python -m ruff check .
python -m mypy --strict onnxprune
python -m pytest -q -m "slow or not slow" "$@"
