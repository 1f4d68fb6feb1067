#!/bin/sh
# Every check of the project: lint, types, tests, the slow ones too; tests/test_house.py holds complexity (radon, 15), length
# (300 lines) and docstrings. Needs the extras gpu (or cpu), test and dev.
set -eu
cd "$(dirname "$0")/.."
python -m ruff check .
python -m mypy --strict onnxprune
python -m pytest -q -m "slow or not slow" "$@"
