#!/bin/sh
# Every check of the project: lint, types, tests. Needs the extras test and dev.
set -eu
cd "$(dirname "$0")/.."
python -m ruff check .
python -m mypy --strict onnxprune
python -m pytest -q "$@"
